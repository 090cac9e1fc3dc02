"""The stages of a model as functions of any number of rows.

    text --encode_text--> text embedding --sample_prior--> image embedding
                                     --decode--> 64 x 64 --upsample--> 256 --upsample--> 1024
    picture --encode_image--> image embedding, --invert--> the noise that decodes to the picture

Everything that is drawn or edited is written on these. Every picture has a key of its own; nothing
else is random. Work runs in padded micro-batches of one fixed size a device, so a row does not
depend on how many others there are, nor on the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax import Array

from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.diffusion.inpainting import Resampling
from unclip_jax.errors import UserError
from unclip_jax.generation.facts import stage_id
from unclip_jax.generation.guides import make_guides
from unclip_jax.generation.inpainting import TRAINED, inpaint_program
from unclip_jax.generation.model_folder import check_stages
from unclip_jax.generation.programs import (
    decoder_program,
    image_program,
    inversion_program,
    prior_program,
    text_program,
    upsampler_program,
)
from unclip_jax.generation.rows import RowProgram, RowRunner
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.training.weights import Stage

UPSAMPLED = (256, 1024)
"""Sides of the pictures that the upsamplers make."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A frozen bundle of stages.

    Its methods take any number of rows and run in compiled micro-batches over all devices of this
    host; what they compile are the programs in `generation/programs.py`.
    """

    stages: dict[str, Stage]
    """By the names in `STAGES`; a call that needs one which is not here says so."""
    sampling: SamplingConfig = SamplingConfig()
    name: str = ""
    _compiled: dict[Any, Any] = field(default_factory=dict, repr=False)
    _ids: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_stages(self.stages)

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
    def compile_seconds(self) -> float:
        """Time that this bundle has spent on compiling so far."""
        return self.runner.compile_seconds

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """[N, E] float32, of unit norm unless the model's CLIP config says otherwise."""
        return self._run(text_program(self.stage), self.sampling, tokens=self.tokenizer(texts))

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """[N, S, S, 3] uint8 of any side → [N, E] float32, as `encode_text`."""
        return self._run(image_program(self.stage), self.sampling, image=images)

    def sample_prior(
        self,
        texts: Sequence[str],
        keys: Array,
        sampling: SamplingConfig | None = None,
        prior: str = "diffusion",
        *,
        negative: Sequence[str] | None = None,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Image embeddings for captions, one a key: [N, E] float32, as `encode_image`.

        Args:
            prior: one of `PRIORS`: diffusion, ar, linear or one_step.
            negative: captions that a guided prior is led away from; None is the empty one.
            noise: [N, steps, E] float32, a diffusion prior's noise in the order of drawing instead
                of the keys' (see `diffusion.samplers.split_draws`); needs num_candidates 1.
        """
        how = sampling or self.sampling
        if noise is not None and (how.num_candidates != 1 or prior != "diffusion"):
            raise UserError("noise is for one draw of the diffusion prior: set num_candidates to 1")
        program = prior_program(self.stage, how, prior)
        return self._run(
            program,
            how,
            tokens=self.tokenizer(texts),
            keys=jax.random.key_data(keys),
            negative_tokens=None if negative is None else self.tokenizer(negative),
            noise=noise,
        )

    def decode(
        self,
        embeddings: np.ndarray | None,
        texts: Sequence[str],
        keys: Array,
        sampling: SamplingConfig | None = None,
        *,
        guidance: Sequence[float] | None = None,
        negative: Sequence[str] | None = None,
        negative_embeddings: np.ndarray | None = None,
        x_T: np.ndarray | None = None,
        noise: np.ndarray | None = None,
        as_float: bool = False,
    ) -> np.ndarray:
        """Pictures from image embeddings and captions.

        Args:
            embeddings: [N, E] float32, as `sample_prior` and `encode_image` make them; None draws
                from the captions alone, as GLIDE.
            guidance: [N], the guidance scale of each picture; None is the sampling's, for all.
            negative: captions that guidance leads away from; None is the empty one.
            negative_embeddings: [N, E] float32, image embeddings that guidance leads away from;
                None is the one that was dropped in training.
            x_T: [N, S, S, 3] float32, the noise to start from, as `invert` makes it.
            noise: [N, steps, S, S, 3] float32, all noise in the order of drawing instead of the
                keys' (see `diffusion.samplers.split_draws`).
            as_float: no rounding.
        Returns:
            [N, S, S, 3] uint8, or float32 in [-1, 1].
        """
        how = sampling or self.sampling
        if guidance is None and how.decoder.guidance_scale != 1:
            guidance = [how.decoder.guidance_scale] * len(texts)
        return self._run(
            decoder_program(self.stage, how, as_float=as_float),
            how,
            embedding=embeddings,
            tokens=self.tokenizer(texts),
            keys=jax.random.key_data(keys),
            guidance=guidance,
            negative_tokens=None if negative is None else self.tokenizer(negative),
            negative_embedding=negative_embeddings,
            x_T=x_T,
            noise=noise,
            **self.guide_rows(texts, how),
        )

    def decode_known(
        self,
        images: np.ndarray,
        keep: np.ndarray,
        embeddings: np.ndarray | None,
        texts: Sequence[str],
        keys: Array,
        sampling: SamplingConfig | None = None,
        resampling: Resampling | None = None,
        *,
        negative: Sequence[str] | None = None,
        negative_embeddings: np.ndarray | None = None,
        as_float: bool = False,
    ) -> np.ndarray:
        """`decode` where a part of the pictures is known: by the stage `decoder_inpaint` where the
        model has it, else by RePaint with its decoder.

        Args:
            images: [N, S, S, 3] uint8, S the decoder's side.
            keep: [N, S, S, 1] bool; elsewhere `images` are not read.
            resampling: how often RePaint goes back and forth; None is its default. The stage
                that was trained to see what is known does neither.
        Returns:
            as `decode`; `images` where they are kept.
        """
        how = sampling or self.sampling
        walk = None if self.inpainter == TRAINED else resampling or Resampling()
        program = inpaint_program(self.stage, how, walk, as_float=as_float)
        scale = how.decoder.guidance_scale
        return self._run(
            program,
            how,
            image=images,
            keep=keep,
            embedding=embeddings,
            tokens=self.tokenizer(texts),
            keys=jax.random.key_data(keys),
            guidance=None if scale == 1 else [scale] * len(texts),
            negative_tokens=None if negative is None else self.tokenizer(negative),
            negative_embedding=negative_embeddings,
            **self.guide_rows(texts, how),
        )

    def invert(
        self,
        images: np.ndarray,
        embeddings: np.ndarray | None,
        texts: Sequence[str],
        sampling: SamplingConfig | None = None,
    ) -> np.ndarray:
        """The noise from which `decode` with ddim, eta 0 and guidance 1 draws `images`.

        Args:
            images: [N, S, S, 3] uint8, S the decoder's side.
            embeddings, texts: what they are decoded from, as for `decode`.
            sampling: its decoder's steps, thresholding and `iterations` are read.
        Returns:
            [N, S, S, 3] float32 (Ramesh et al. 2022, section 3).
        """
        how, side = sampling or self.sampling, self.side
        if images.shape[1:] != (side, side, 3):
            raise UserError(
                f"pictures of {images.shape[1:]} cannot be inverted: this decoder's are {side} x "
                f"{side}, resize them"
            )
        program, tokens = inversion_program(self.stage, how), self.tokenizer(texts)
        return self._run(program, how, image=images, embedding=embeddings, tokens=tokens)

    @property
    def inpainter(self) -> str:
        """The stage that draws where a part of the picture is known."""
        return TRAINED if TRAINED in self.stages else "decoder"

    @property
    def side(self) -> int:
        """Of the decoder's pictures, in pixels."""
        recipe: Any = self.stage("decoder").recipe
        return recipe.model.unet.image_size

    def upsample(
        self,
        images: np.ndarray,
        keys: Array,
        size: int,
        sampling: SamplingConfig | None = None,
        *,
        noise: np.ndarray | None = None,
        known: np.ndarray | None = None,
        keep: np.ndarray | None = None,
        as_float: bool = False,
    ) -> np.ndarray:
        """Pictures of four times the side.

        A stage `upsampler_SIZE_last`, where the model has it, takes the last step (Karlo); a stage
        `upsampler_SIZE_inpaint` takes all where a part is known.

        Args:
            images: [N, H, W, 3] uint8, or float32 in [-1, 1].
            keys: [N] typed keys.
            size: 256 or 1024, which names the upsampler; square pictures come out at this side.
            noise: [N, steps, 4 H, 4 W, 3] float32, as for `decode`.
            known, keep: [N, 4 H, 4 W, 3] uint8 and [N, 4 H, 4 W, 1] bool: what the result is where
                it is kept.
            as_float: no rounding.
        Returns:
            [N, 4 H, 4 W, 3] uint8, or float32 in [-1, 1].
        """
        how = sampling or self.sampling
        is_known = known is not None
        program = self.upsampler(size, how, is_known=is_known, as_float=as_float)
        data = jax.random.key_data(keys)
        return self._run(program, how, image=images, keys=data, noise=noise, known=known, keep=keep)

    def upsampler(
        self, size: int, how: SamplingConfig, *, is_known: bool = False, as_float: bool
    ) -> RowProgram:
        """The program of an upsampler, see `upsample`."""
        name = self.upsampler_stage(size, is_known=is_known)
        has_last = f"{name}_last" in self.stages
        return upsampler_program(self.stage, how, size, name, has_last=has_last, as_float=as_float)

    def upsampler_stage(self, size: int, *, is_known: bool = False) -> str:
        """The stage of the upsampler to `size`, for a picture of which a part is known if the model
        has one that was trained for that."""
        name = f"upsampler_{size}"
        return f"{name}_inpaint" if is_known and f"{name}_inpaint" in self.stages else name

    def guide_rows(self, texts: Sequence[str], how: SamplingConfig) -> dict[str, np.ndarray]:
        """What the networks that steer are asked, see `decoder_program`."""
        guides = make_guides(self.stage, how)
        return {f"guide_{number}": guide.read(texts) for number, guide in enumerate(guides)}

    def _run(self, program: RowProgram, how: SamplingConfig, **rows: Any) -> np.ndarray:
        """The program over rows, those that are None left out."""
        given = {name: _on_host(array) for name, array in rows.items() if array is not None}
        return self.runner.run(program, given, how.batch_size)

    def stage_id(self, name: str) -> str:
        """Names what a stage computes, see `facts.stage_id`."""
        if name not in self._ids:
            self._ids[name] = stage_id(self.stages[name])
        return self._ids[name]

    @cached_property
    def runner(self) -> RowRunner:
        """What compiles and runs the programs."""
        params = {name: stage.params for name, stage in self.stages.items()}
        return RowRunner(params, self._compiled)


def _on_host(array: Any) -> np.ndarray:
    """As numpy; fractions in float32."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
