"""UnCLIP: the trained stages as pure functions, and text to picture written on them.

    text --encode_text--> text embedding --sample_prior--> image embedding
                                     --decode--> 64 x 64 --upsample--> 256 --upsample--> 1024

Every picture has a key of its own, fold_in(seed, index); nothing else is random. Work runs in
padded micro-batches of one fixed size a device, so picture `index` of (prompt, seed) does not
depend on how many others are asked for, nor on the devices there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.errors import UserError
from unclip_jax.generation.drawing import Drawn, Link, Request, draw
from unclip_jax.generation.facts import picture_facts, stage_id
from unclip_jax.generation.guides import make_guides
from unclip_jax.generation.keys import fold_keys, request_keys
from unclip_jax.generation.model_folder import check_stages, read_model
from unclip_jax.generation.programs import (
    decoder_program,
    image_program,
    prior_program,
    text_program,
    upsampler_program,
)
from unclip_jax.generation.rows import RowProgram, RowRunner
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.samples import Samples
from unclip_jax.training.weights import Stage

UPSAMPLED = (256, 1024)
"""Sides of the pictures that the upsamplers make."""


@dataclass(frozen=True, eq=False)
class UnCLIP:
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

    @classmethod
    def load(cls, source: str | Path | dict[str, Any]) -> UnCLIP:
        """A shipped model by name, a folder with a folder a stage, or {stage: folder}.

        Raises:
            UserError: nothing there, or stages that were trained for another CLIP.
        """
        stages, sampling = read_model(source, as_stored=True)
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
    def compile_seconds(self) -> float:
        """Time that this bundle has spent on compiling so far."""
        return self._runner.compile_seconds

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
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Image embeddings for captions, one a key: [N, E] float32, as `encode_image`.

        Args:
            prior: one of `PRIORS`: diffusion, ar, linear or one_step.
            noise: [N, steps, E] float32, a diffusion prior's noise in the order of drawing instead
                of the keys' (see `diffusion.samplers.split_draws`); needs num_candidates 1.
        """
        how = sampling or self.sampling
        if noise is not None and (how.num_candidates != 1 or prior != "diffusion"):
            raise UserError("noise is for one draw of the diffusion prior: set num_candidates to 1")
        program = prior_program(self.stage, how, prior)
        tokens, data = self.tokenizer(texts), jax.random.key_data(keys)
        return self._run(program, how, tokens=tokens, keys=data, noise=noise)

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
        return self._run(
            decoder_program(self.stage, how, as_float=as_float),
            how,
            embedding=embeddings,
            tokens=self.tokenizer(texts),
            keys=jax.random.key_data(keys),
            guidance=guidance,
            noise=noise,
            **self._guide_rows(texts, how),
        )

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
        program = self._upsampler(size, how, as_float=as_float)
        data = jax.random.key_data(keys)
        return self._run(program, how, image=images, keys=data, noise=noise)

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
        requests = [Request(prompt, seed, i) for prompt in prompts for i in range(num_images)]
        parts = list(
            self.draw(requests, sampling, prior=prior, upsample=upsample, on_stage=on_stage)
        )
        vectors = [part.embeddings for part in parts if part.embeddings is not None]
        facts = self.facts(requests, sampling, prior=prior, upsample=upsample)
        images = np.concatenate([part.images for part in parts])
        return Samples(images, np.concatenate(vectors) if vectors else None, tuple(facts))

    def draw(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        *,
        prior: str = "diffusion",
        upsample: int | None = None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Iterator[Drawn]:
        """Pictures for any number of requests, as a stream of micro-batches in their order.

        While the caller is busy with one micro-batch the devices draw the next. The arguments are
        those of `text_to_image`; mistakes are raised before anything is computed.
        """
        how = sampling or self.sampling
        links, rows = self._links(requests, how, self._prior(prior), upsample)
        runner, at_once = self._runner, how.stages_at_once
        return draw(runner, links, rows, how.batch_size, at_once, on_stage)

    def facts(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        *,
        prior: str = "diffusion",
        upsample: int | None = None,
    ) -> list[dict[str, Any]]:
        """What each picture was made from, as it is written into its file."""
        how, prior = sampling or self.sampling, self._prior(prior)
        programs = self._programs(how, prior, upsample)
        names = sorted({name for program in programs for name in program.stages})
        weights = {name: self._stage_id(name) for name in names}
        return picture_facts(requests, how, prior, upsample, self.name, weights)

    def _programs(self, how: SamplingConfig, prior: str, upsample: int | None) -> list[RowProgram]:
        """What draws pictures from text: the prior unless there is none, decoder, upsamplers."""
        if upsample is not None and upsample not in UPSAMPLED:
            raise UserError(f"upsample is {upsample}: give {' or '.join(map(str, UPSAMPLED))}")
        sizes = [size for size in UPSAMPLED if upsample is not None and size <= upsample]
        first = [] if prior == "none" else [prior_program(self.stage, how, prior)]
        decoder = decoder_program(self.stage, how, as_float=bool(sizes))
        last = [self._upsampler(size, how, as_float=size != sizes[-1]) for size in sizes]
        return [*first, decoder, *last]

    def _links(
        self, requests: Sequence[Request], how: SamplingConfig, prior: str, upsample: int | None
    ) -> tuple[list[Link], dict[str, Any]]:
        """The stages that these pictures go through, and the rows that they start from."""
        programs = self._programs(how, prior, upsample)
        texts = [request.prompt for request in requests]
        keys = request_keys([r.seed for r in requests], [r.index for r in requests])
        rows = {"tokens": self.tokenizer(texts), **self._guide_rows(texts, how)}
        links, reads = [], {name: name for name in rows}
        if prior != "none":
            given = {"tokens": "tokens", "keys": "keys_0"}
            links.append(Link(programs.pop(0), given, "embedding"))
            reads["embedding"] = "embedding"
        for number, program in enumerate(programs, 1):
            given = reads if number == 1 else {"image": "image"}
            links.append(Link(program, {**given, "keys": f"keys_{number}"}, "image"))
        for number in range(1 + len(programs)):
            rows[f"keys_{number}"] = np.asarray(jax.random.key_data(fold_keys(keys, number)))
        return links, rows

    def _prior(self, prior: str) -> str:
        recipe: Any = self.stage("decoder").recipe
        return "none" if recipe.model.embedding_width is None else prior

    def _upsampler(self, size: int, how: SamplingConfig, *, as_float: bool) -> RowProgram:
        has_last = f"upsampler_{size}_last" in self.stages
        return upsampler_program(self.stage, how, size, has_last=has_last, as_float=as_float)

    def _guide_rows(self, texts: Sequence[str], how: SamplingConfig) -> dict[str, np.ndarray]:
        guides = make_guides(self.stage, how)
        return {f"guide_{number}": guide.read(texts) for number, guide in enumerate(guides)}

    def _run(self, program: RowProgram, how: SamplingConfig, **rows: Any) -> np.ndarray:
        """The program over rows, those that are None left out."""
        given = {name: _on_host(array) for name, array in rows.items() if array is not None}
        return self._runner.run(program, given, how.batch_size)

    def _stage_id(self, name: str) -> str:
        if name not in self._ids:
            self._ids[name] = stage_id(self.stages[name])
        return self._ids[name]

    @cached_property
    def _runner(self) -> RowRunner:
        params = {name: stage.params for name, stage in self.stages.items()}
        return RowRunner(params, self._compiled)


def _on_host(array: Any) -> np.ndarray:
    """As numpy; fractions in float32."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
