"""UnCLIP: the trained stages as pure functions, and text to picture written on them.

    text --encode_text--> text embedding --sample_prior--> image embedding --decode--> picture

Every picture has a key of its own, fold_in(seed, index); nothing else is random. Work runs in
padded micro-batches of one fixed size a device, so picture `index` of (prompt, seed) does not
depend on how many others are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.config import MeshConfig, from_dict
from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.errors import UserError
from unclip_jax.generation.captions import encode_caption
from unclip_jax.generation.decoder import decode_embedding, to_uint8
from unclip_jax.generation.keys import fold_keys, image_keys
from unclip_jax.generation.prior import sample_embedding
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.models.clip import CLIP, CLIPConfig
from unclip_jax.samples import Samples
from unclip_jax.training.objectives.conditions import encode_image
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.sharding import batch_sharding, make_mesh, replicated
from unclip_jax.training.weights import SHIPPED, Stage, load_stage, missing_model, shipped_model

# What a model may consist of: the name of a stage's folder, and the recipe it was trained by.
STAGES: dict[str, type] = {"clip": CLIPRecipe, "prior": PriorRecipe, "decoder": DecoderRecipe}


@dataclass(frozen=True, eq=False)
class UnCLIP:
    """A frozen bundle of stages.

    Its methods take any number of rows and run in compiled micro-batches over all local devices;
    what they compile are the pure functions in `generation/`.
    """

    stages: dict[str, Stage]
    """By the names in `STAGES`; a call that needs one which is not here says so."""
    sampling: SamplingConfig = SamplingConfig()
    name: str = ""
    _compiled: dict[Any, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if "clip" not in self.stages:
            raise UserError("a model needs its clip stage: name its folder or run as clip")
        clip_id = self.stages["clip"].clip_id
        for name, stage in self.stages.items():
            if name not in STAGES:
                raise UserError(f"stage {name!r} is unknown: give {', '.join(STAGES)}")
            if not isinstance(stage.recipe, STAGES[name]):
                raise UserError(f"the {name} given is a {type(stage.recipe).__name__} stage")
            if stage.clip_id != clip_id:
                raise UserError(
                    f"the {name} was trained for CLIP {stage.clip_id}, not for this one "
                    f"({clip_id}): load the stages of one model together"
                )

    @classmethod
    def load(cls, source: str | Path | dict[str, Any]) -> UnCLIP:
        """A shipped model by name, a folder with a folder a stage, or {stage: folder}.

        Raises:
            UserError: nothing there, or stages that were trained for another CLIP.
        """
        sampling = SamplingConfig()
        if isinstance(source, dict):
            odd = sorted(set(source) - set(STAGES))
            if odd:
                raise UserError(f"stage {odd[0]!r} is unknown: give {', '.join(STAGES)}")
            folders = {stage: Path(path) for stage, path in source.items()}
        else:
            root = _find_model(source)
            folders = {stage: root / stage for stage in STAGES if (root / stage).is_dir()}
            if (root / "sampling.json").exists():
                data = json.loads((root / "sampling.json").read_text(encoding="utf-8"))
                sampling = from_dict(SamplingConfig, data, "sampling.json: ")
        if "clip" not in folders:
            raise UserError(f"{source} has no clip stage: give a folder with clip/")
        stages = {stage: load_stage(folder) for stage, folder in folders.items()}
        return cls(stages, sampling, source if isinstance(source, str) else "")

    @property
    def clip(self) -> Stage:
        """The stage that every model has."""
        return self.stages["clip"]

    def stage(self, name: str) -> Stage:
        """A stage by name; UserError if the model has none."""
        if name not in self.stages:
            raise UserError(f"this model has no {name} stage: load one that has")
        return self.stages[name]

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns captions into tokens."""
        return self.clip.tokenizer

    @property
    def _clip_config(self) -> CLIPConfig:
        assert isinstance(self.clip.recipe, CLIPRecipe)
        return self.clip.recipe.model

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """[N, E] float32, unit norm."""

        def run(params: Any, tokens: Array) -> Array:
            return encode_caption(self._clip_config, params["clip"], tokens).embedding

        return self._batched("text", run, (self.tokenizer(texts),))

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """[N, S, S, 3] uint8 of any side → [N, E] float32, unit norm."""

        def run(params: Any, images: Array) -> Array:
            return encode_image(CLIP(self._clip_config), params["clip"], images)

        return self._batched(("image", images.shape[1:]), run, (images,))

    def sample_prior(
        self,
        texts: Sequence[str],
        keys: Array,
        config: SamplerConfig | None = None,
        num_candidates: int | None = None,
    ) -> np.ndarray:
        """Image embeddings for captions, one a key: [N, E] float32, unit norm."""
        config = config or self.sampling.prior
        count = num_candidates or self.sampling.num_candidates
        empty_tokens = self.tokenizer([""])
        recipe: Any = self.stage("prior").recipe

        def run(params: Any, tokens: Array, keys: Array) -> Array:
            caption = encode_caption(self._clip_config, params["clip"], tokens)
            empty = encode_caption(self._clip_config, params["clip"], jnp.asarray(empty_tokens))
            return sample_embedding(recipe, params["prior"], caption, empty, keys, config, count)

        return self._batched(("prior", config, count), run, (self.tokenizer(texts), keys))

    def decode(
        self,
        embeddings: np.ndarray,
        texts: Sequence[str],
        keys: Array,
        config: SamplerConfig | None = None,
    ) -> np.ndarray:
        """Pictures [N, S, S, 3] uint8 from unit-norm image embeddings [N, E] and captions."""
        config = config or self.sampling.decoder
        empty_tokens = jnp.asarray(self.tokenizer([""]))
        recipe: Any = self.stage("decoder").recipe

        def run(params: Any, embedding: Array, tokens: Array, keys: Array) -> Array:
            images = decode_embedding(
                recipe, params["decoder"], embedding, tokens, empty_tokens, keys, config
            )
            return to_uint8(images)

        arguments = (np.asarray(embeddings, np.float32), self.tokenizer(texts), keys)
        return self._batched(("decoder", config), run, arguments)

    def text_to_image(
        self,
        prompts: str | Sequence[str],
        num_images: int = 4,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Samples:
        """Pictures for prompts, `num_images` each, in the order of the prompts.

        Args:
            seed: picture i of every prompt is drawn with fold_in(key(seed), i).
            on_stage: told the name of each stage before it runs.
        Raises:
            UserError: no prompt, or a stage is missing.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or num_images < 1:
            raise UserError("give at least one prompt and num_images of 1 or more")
        how = sampling or self.sampling
        bundle = self if how.batch_size == self.sampling.batch_size else replace(self, sampling=how)
        texts = [prompt for prompt in prompts for _ in range(num_images)]
        keys = image_keys(seed, [*range(num_images)] * len(prompts))
        prior_keys = fold_keys(keys, 0)
        decoder_keys = fold_keys(keys, 1)
        on_stage("prior")
        embeddings = bundle.sample_prior(texts, prior_keys, how.prior, how.num_candidates)
        on_stage("decoder")
        images = bundle.decode(embeddings, texts, decoder_keys, how.decoder)
        facts = tuple(
            {
                "model": self.name,
                "prompt": text,
                "seed": seed,
                "index": number % num_images,
                "prior_steps": how.prior.num_steps,
                "prior_guidance": how.prior.guidance_scale,
                "decoder_steps": how.decoder.num_steps,
                "guidance": how.decoder.guidance_scale,
                "candidates": how.num_candidates,
            }
            for number, text in enumerate(texts)
        )
        return Samples(images, embeddings, facts)

    def _batched(
        self, name: Any, function: Callable[..., Array], arguments: tuple[Any, ...]
    ) -> np.ndarray:
        """function(params, *rows) in padded micro-batches over all local devices."""
        mesh = make_mesh(MeshConfig())
        rows = batch_sharding(mesh)
        size = self.sampling.batch_size * mesh.size
        if name not in self._compiled:
            self._compiled[name] = jax.jit(function, out_shardings=rows)
        compiled = self._compiled[name]
        params = self._placed_params
        parts = [
            np.asarray(compiled(params, *jax.device_put(part, rows)))[:count]
            for part, count in _micro_batches(arguments, size)
        ]
        return np.concatenate(parts)

    @cached_property
    def _placed_params(self) -> Any:
        mesh = make_mesh(MeshConfig())
        params = {name: stage.params for name, stage in self.stages.items()}
        return jax.device_put(params, replicated(mesh))


def _micro_batches(arguments: tuple[Any, ...], size: int) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Slices of `size` rows, the last one filled up with copies of its first row."""
    total = arguments[0].shape[0]
    for start in range(0, total, size):
        count = min(size, total - start)
        rows = np.concatenate([np.arange(start, start + count), np.full(size - count, start)])
        yield tuple(argument[rows] for argument in arguments), count


def _find_model(source: str | Path) -> Path:
    """The folder of a shipped model, or the given one."""
    shipped = shipped_model(source)
    if shipped is not None and not shipped.is_dir():
        raise UserError(missing_model(str(source)))
    folder = shipped or Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"model {source} is neither a folder nor shipped: give a folder with clip/, prior/ and "
            f"decoder/, or one of {', '.join(SHIPPED)}"
        )
    return folder
