"""UnCLIP: the trained stages as pure functions, and text to picture written on them.

    text --encode_text--> text embedding --sample_prior--> image embedding
                                     --decode--> 64 x 64 --upsample--> 256 --upsample--> 1024

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
from unclip_jax.diffusion.samplers import Gradient
from unclip_jax.errors import UserError
from unclip_jax.generation.captions import encode_caption
from unclip_jax.generation.decoder import Condition, decode_embedding, to_uint8
from unclip_jax.generation.keys import fold_keys, image_keys
from unclip_jax.generation.prior import make_prior, sample_embedding
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.steering import make_classifier_steering, make_clip_steering
from unclip_jax.generation.tiling import TilingConfig
from unclip_jax.generation.upsampler import upsample_picture
from unclip_jax.models.classifier import Classifier
from unclip_jax.models.clip import CLIP, CLIPConfig
from unclip_jax.models.noised_clip import NoisedCLIP
from unclip_jax.samples import Samples
from unclip_jax.training.objectives.conditions import encode_image, to_float
from unclip_jax.training.objectives.steering import make_labeler
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe, OneStepPriorRecipe
from unclip_jax.training.recipes.classifier import ClassifierRecipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
from unclip_jax.training.sharding import batch_sharding, make_mesh, replicated
from unclip_jax.training.weights import SHIPPED, Stage, load_stage, missing_model, shipped_model

# What a model may consist of: the name of a stage's folder, and the recipe it was trained by.
STAGES: dict[str, type] = {
    "clip": CLIPRecipe,
    "prior": PriorRecipe,
    "ar_prior": ARPriorRecipe,
    "linear_prior": LinearPriorRecipe,
    "one_step_prior": OneStepPriorRecipe,
    "decoder": DecoderRecipe,
    "noised_clip": NoisedCLIPRecipe,
    "classifier": ClassifierRecipe,
    "upsampler_256": UpsamplerRecipe,
    "upsampler_1024": UpsamplerRecipe,
}
PRIORS = {
    "diffusion": "prior",
    "ar": "ar_prior",
    "linear": "linear_prior",
    "one_step": "one_step_prior",
}
UPSAMPLED = (256, 1024)
ALONE = ("noised_clip", "classifier")
"""Stages that are not trained for a CLIP, like the upsamplers."""


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
            if isinstance(stage.recipe, UpsamplerRecipe):
                if name != f"upsampler_{stage.recipe.data.image_size}":
                    raise UserError(
                        f"the {name} given was trained for {stage.recipe.data.image_size} pixels"
                    )
            elif name not in ALONE and stage.clip_id != clip_id:
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
        assert self.clip.tokenizer is not None
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
        sampling: SamplingConfig | None = None,
        prior: str = "diffusion",
    ) -> np.ndarray:
        """Image embeddings for captions, one a key: [N, E] float32, unit norm.

        Args:
            prior: one of `PRIORS`: diffusion, ar, linear or one_step.
        """
        how = sampling or self.sampling
        if prior not in PRIORS:
            raise UserError(f"prior {prior!r} is unknown: choose {', '.join(PRIORS)}")
        name = PRIORS[prior]
        stage, empty_tokens = self.stage(name), self.tokenizer([""])
        recipe: Any = stage.recipe

        def run(params: Any, tokens: Array, keys: Array) -> Array:
            caption = encode_caption(self._clip_config, params["clip"], tokens)
            empty = encode_caption(self._clip_config, params["clip"], jnp.asarray(empty_tokens))
            draw = make_prior(recipe, empty, how, stage.codes)
            return sample_embedding(draw, params[name], caption, keys, how.num_candidates)

        key = (name, how.prior, how.ar_prior, how.num_candidates)
        return self._batched(key, run, (self.tokenizer(texts), keys))

    def decode(
        self,
        embeddings: np.ndarray,
        texts: Sequence[str],
        keys: Array,
        sampling: SamplingConfig | None = None,
    ) -> np.ndarray:
        """Pictures [N, S, S, 3] uint8 from unit-norm image embeddings [N, E] and captions."""
        how = sampling or self.sampling
        empty_tokens = jnp.asarray(self.tokenizer([""]))
        recipe: Any = self.stage("decoder").recipe
        guides = self._guides(how)

        def run(params: Any, embedding: Array, tokens: Array, keys: Array, *given: Array) -> Array:
            gradients = [
                guide(params, rows) for (_, guide), rows in zip(guides, given, strict=True)
            ]
            condition = Condition(embedding, tokens, empty_tokens)
            images = decode_embedding(
                recipe,
                params["decoder"],
                condition,
                how.decoder,
                keys=keys,
                gradients=gradients,
            )
            return to_uint8(images)

        rows = [read(texts) for read, _ in guides]
        arguments = (np.asarray(embeddings, np.float32), self.tokenizer(texts), keys, *rows)
        key = ("decoder", how.decoder, how.clip_guidance, how.classifier_guidance)
        return self._batched(key, run, arguments)

    def _guides(self, how: SamplingConfig) -> list[tuple[Callable[..., Any], Callable[..., Any]]]:
        """For each network that steers: texts → its rows, and (params, rows) → its gradient."""
        guides: list[tuple[Callable[..., Any], Callable[..., Any]]] = []
        if how.clip_guidance:
            stage = self.stage("noised_clip")
            assert isinstance(stage.recipe, NoisedCLIPRecipe) and stage.tokenizer is not None
            model = NoisedCLIP(stage.recipe.model)

            def by_clip(params: Any, tokens: Array) -> Gradient:
                own = params["noised_clip"]
                text: Any = model.apply({"params": own}, tokens, method=NoisedCLIP.encode_text)
                return make_clip_steering(model, own, text[0], how.clip_guidance)

            guides.append((stage.tokenizer, by_clip))
        if how.classifier_guidance:
            stage = self.stage("classifier")
            assert isinstance(stage.recipe, ClassifierRecipe)
            classifier = Classifier(stage.recipe.model)

            def by_class(params: Any, labels: Array) -> Gradient:
                # A prompt that names no class is not steered.
                scale = jnp.where(labels[:, 0] >= 0, how.classifier_guidance, 0.0)
                known = jnp.maximum(labels[:, 0], 0)
                return make_classifier_steering(classifier, params["classifier"], known, scale)

            guides.append((make_labeler(stage.recipe.classes), by_class))
        return guides

    def upsample(
        self, images: np.ndarray, keys: Array, size: int, sampling: SamplingConfig | None = None
    ) -> np.ndarray:
        """Pictures of four times the side.

        Args:
            images: [N, H, W, 3] uint8.
            keys: [N] typed keys.
            size: 256 or 1024, which names the upsampler; square pictures come out at this side.
        Returns:
            [N, 4 H, 4 W, 3] uint8.
        """
        how = sampling or self.sampling
        name = f"upsampler_{size}"
        recipe: Any = self.stage(name).recipe
        config = {256: how.upsampler_256, 1024: how.upsampler_1024}[size]
        tiling = None if how.tile is None else TilingConfig(how.tile, how.tile_overlap)

        def run(params: Any, images: Array, keys: Array) -> Array:
            large = upsample_picture(recipe, params[name], to_float(images), keys, config, tiling)
            return to_uint8(large)

        key = (name, images.shape[1:], config, tiling)
        return self._batched(key, run, (images, keys), how.upsample_batch_size)

    def text_to_image(
        self,
        prompts: str | Sequence[str],
        num_images: int = 4,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        prior: str = "diffusion",
        upsample: int | None = None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Samples:
        """Pictures for prompts, `num_images` each, in the order of the prompts.

        Args:
            seed: picture i of every prompt is drawn with fold_in(key(seed), i).
            prior: see `sample_prior`.
            upsample: 256 or 1024, the side of the pictures; None is the decoder's own.
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
        sizes = [size for size in UPSAMPLED if upsample is not None and size <= upsample]
        if upsample is not None and upsample not in UPSAMPLED:
            raise UserError(f"upsample is {upsample}: give {' or '.join(map(str, UPSAMPLED))}")
        for size in sizes:  # before anything is computed
            self.stage(f"upsampler_{size}")
        on_stage("prior")
        embeddings = bundle.sample_prior(texts, fold_keys(keys, 0), how, prior)
        on_stage("decoder")
        images = bundle.decode(embeddings, texts, fold_keys(keys, 1), how)
        for number, size in enumerate(sizes):
            on_stage(f"upsampler_{size}")
            images = bundle.upsample(images, fold_keys(keys, 2 + number), size, how)
        facts = tuple(
            {
                "model": self.name,
                "prompt": text,
                "seed": seed,
                "index": number % num_images,
                "prior": prior,
                "prior_steps": how.prior.num_steps,
                "prior_guidance": how.prior.guidance_scale,
                "decoder_steps": how.decoder.num_steps,
                "guidance": how.decoder.guidance_scale,
                "candidates": how.num_candidates,
                "upsample": upsample,
            }
            for number, text in enumerate(texts)
        )
        return Samples(images, embeddings, facts)

    def _batched(
        self,
        name: Any,
        function: Callable[..., Array],
        arguments: tuple[Any, ...],
        batch_size: int | None = None,
    ) -> np.ndarray:
        """function(params, *rows) in padded micro-batches over all local devices."""
        mesh = make_mesh(MeshConfig())
        rows = batch_sharding(mesh)
        size = (batch_size or self.sampling.batch_size) * mesh.size
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
