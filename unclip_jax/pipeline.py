"""UnCLIP: the trained stages as pure functions, and text to picture written on them.

    text --encode_text--> text embedding --sample_prior--> image embedding
                                     --decode--> 64 x 64 --upsample--> 256 --upsample--> 1024

Every picture has a key of its own, fold_in(seed, index); nothing else is random. Work runs in
padded micro-batches of one fixed size a device, so picture `index` of (prompt, seed) does not
depend on how many others are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.config import MeshConfig
from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.errors import UserError
from unclip_jax.generation.captions import encode_caption
from unclip_jax.generation.decoder import Condition, decode_embedding, to_uint8
from unclip_jax.generation.guides import make_guides
from unclip_jax.generation.keys import fold_keys, image_keys
from unclip_jax.generation.model_folder import check_stages, read_model
from unclip_jax.generation.prior import make_prior, sample_embedding
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.tiling import TilingConfig
from unclip_jax.generation.upsampler import upsample_picture
from unclip_jax.models.clip import CLIP, CLIPConfig
from unclip_jax.samples import Samples
from unclip_jax.training.objectives.conditions import encode_image, to_float
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.sharding import batch_sharding, make_mesh, replicated
from unclip_jax.training.weights import Stage

PRIORS = {
    "diffusion": "prior",
    "ar": "ar_prior",
    "linear": "linear_prior",
    "one_step": "one_step_prior",
}
"""How a prior is named in a call, and its stage."""
UPSAMPLED = (256, 1024)
"""Sides of the pictures that the upsamplers make."""


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
        check_stages(self.stages)

    @classmethod
    def load(cls, source: str | Path | dict[str, Any]) -> UnCLIP:
        """A shipped model by name, a folder with a folder a stage, or {stage: folder}.

        Raises:
            UserError: nothing there, or stages that were trained for another CLIP.
        """
        stages, sampling = read_model(source)
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
        """[N, E] float32, of unit norm unless the model's CLIP config says otherwise."""

        def run(params: Any, tokens: Array) -> Array:
            return encode_caption(self._clip_config, params["clip"], tokens).embedding

        return self._batched("text", run, (self.tokenizer(texts),))

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """[N, S, S, 3] uint8 of any side → [N, E] float32, as `encode_text`."""

        def run(params: Any, images: Array) -> Array:
            return encode_image(CLIP(self._clip_config), params["clip"], images)

        return self._batched(("image", images.shape[1:]), run, (images,))

    def sample_prior(
        self,
        texts: Sequence[str],
        keys: Array,
        sampling: SamplingConfig | None = None,
        prior: str = "diffusion",
        *,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Image embeddings for captions, one a key: [N, E] float32, as `encode_image`.

        Args:
            prior: one of `PRIORS`: diffusion, ar, linear or one_step.
            noise: [N, steps, E] float32, a diffusion prior's noise in the order of drawing instead
                of the keys' (see `diffusion.samplers.split_draws`); needs num_candidates 1.
        """
        how = sampling or self.sampling
        if prior not in PRIORS:
            raise UserError(f"prior {prior!r} is unknown: choose {', '.join(PRIORS)}")
        name = PRIORS[prior]
        stage, empty_tokens = self.stage(name), self.tokenizer([""])
        recipe: Any = stage.recipe
        if noise is not None and (how.num_candidates != 1 or prior != "diffusion"):
            raise UserError("noise is for one draw of the diffusion prior: set num_candidates to 1")
        given = () if noise is None else (np.asarray(noise, np.float32),)

        def run(params: Any, tokens: Array, keys: Array, draws: Array | None = None) -> Array:
            caption = encode_caption(self._clip_config, params["clip"], tokens)
            empty = encode_caption(self._clip_config, params["clip"], jnp.asarray(empty_tokens))
            extras = (stage.codes, stage.score_norms, stage.statistics, draws)
            draw = make_prior(recipe, empty, how, *extras)
            return sample_embedding(draw, params[name], caption, keys, how.num_candidates)

        key = (name, how.prior, how.ar_prior, how.num_candidates, bool(given))
        return self._batched(key, run, (self.tokenizer(texts), keys, *given))

    def decode(
        self,
        embeddings: np.ndarray | None,
        texts: Sequence[str],
        keys: Array,
        sampling: SamplingConfig | None = None,
        *,
        guidance: Sequence[float] | None = None,
        noise: np.ndarray | None = None,
        as_float: bool = False,
    ) -> np.ndarray:
        """Pictures from image embeddings and captions.

        Args:
            embeddings: [N, E] float32, as `sample_prior` and `encode_image` make them; None draws
                from the captions alone, as GLIDE.
            guidance: [N], the guidance scale of each picture; None is the sampling's, for all.
            noise: [N, steps, S, S, 3] float32, all noise in the order of drawing instead of the
                keys' (see `diffusion.samplers.split_draws`).
            as_float: no rounding.
        Returns:
            [N, S, S, 3] uint8, or float32 in [-1, 1].
        """
        how = sampling or self.sampling
        empty_tokens = jnp.asarray(self.tokenizer([""]))
        recipe: Any = self.stage("decoder").recipe
        guides = make_guides(self.stage, how)
        has_embedding, has_scales = embeddings is not None, guidance is not None
        has_noise = noise is not None

        def run(
            params: Any,
            vectors: Array,
            tokens: Array,
            keys: Array,
            scales: Array,
            draws: Array,
            *given: Array,
        ) -> Array:
            caption, empty = (
                encode_caption(self._clip_config, params["clip"], text)
                for text in (tokens, empty_tokens)
            )
            condition = Condition(vectors if has_embedding else None, caption, empty)
            images = decode_embedding(
                recipe,
                params["decoder"],
                condition,
                how.decoder,
                keys=keys,
                noise=draws if has_noise else None,
                guidance=scales if has_scales else None,
                gradients=[
                    guide.follow(params, rows) for guide, rows in zip(guides, given, strict=True)
                ],
            )
            return images if as_float else to_uint8(images)

        unused = np.zeros(len(texts), np.float32)
        arguments = (
            np.asarray(embeddings, np.float32) if has_embedding else unused,
            self.tokenizer(texts),
            keys,
            np.asarray(guidance, np.float32) if has_scales else unused,
            np.asarray(noise, np.float32) if has_noise else unused,
            *(guide.read(texts) for guide in guides),
        )
        steered = (how.clip_guidance, how.classifier_guidance)
        key = ("decoder", how.decoder, has_embedding, has_scales, has_noise, as_float, steered)
        return self._batched(key, run, arguments)

    def upsample(
        self,
        images: np.ndarray,
        keys: Array,
        size: int,
        sampling: SamplingConfig | None = None,
        *,
        noise: np.ndarray | None = None,
        as_float: bool = False,
    ) -> np.ndarray:
        """Pictures of four times the side.

        A stage `upsampler_SIZE_last`, where the model has it, takes the last step (Karlo).

        Args:
            images: [N, H, W, 3] uint8, or float32 in [-1, 1].
            keys: [N] typed keys.
            size: 256 or 1024, which names the upsampler; square pictures come out at this side.
            noise: [N, steps, 4 H, 4 W, 3] float32, as for `decode`.
            as_float: no rounding.
        Returns:
            [N, 4 H, 4 W, 3] uint8, or float32 in [-1, 1].
        """
        how = sampling or self.sampling
        name = f"upsampler_{size}"
        recipe: Any = self.stage(name).recipe
        config = {256: how.upsampler_256, 1024: how.upsampler_1024}[size]
        tiling = None if how.tile is None else TilingConfig(how.tile, how.tile_overlap)

        def run(params: Any, images: Array, keys: Array, draws: Array | None = None) -> Array:
            low_res = to_float(images) if images.dtype == jnp.uint8 else images
            own, last = params[name], params.get(f"{name}_last")
            large = upsample_picture(
                recipe, own, low_res, keys, config, tiling, last_params=last, noise=draws
            )
            return large if as_float else to_uint8(large)

        given = () if noise is None else (np.asarray(noise, np.float32),)
        key = (name, images.shape[1:], images.dtype, config, tiling, bool(given), as_float)
        return self._batched(key, run, (images, keys, *given), how.upsample_batch_size)

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
            prior: see `sample_prior`; "none" draws no image embedding, and the decoder sees the
                caption alone, as GLIDE. A decoder that knows no embeddings always does.
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
        recipe: Any = self.stage("decoder").recipe
        if recipe.model.embedding_width is None:
            prior = "none"
        embeddings = None
        if prior != "none":
            on_stage("prior")
            embeddings = bundle.sample_prior(texts, fold_keys(keys, 0), how, prior)
        on_stage("decoder")
        images = bundle.decode(embeddings, texts, fold_keys(keys, 1), how, as_float=bool(sizes))
        for number, size in enumerate(sizes):
            on_stage(f"upsampler_{size}")
            as_float = size != sizes[-1]
            images = bundle.upsample(
                images, fold_keys(keys, 2 + number), size, how, as_float=as_float
            )
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
