"""The stages that a picture drawn from text goes through, and the rows that they start from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.generation.bundle import UPSAMPLED, Bundle
from unclip_jax.generation.drawing import Link, Request
from unclip_jax.generation.keys import stage_keys
from unclip_jax.generation.programs import decoder_program, prior_program
from unclip_jax.generation.rows import RowProgram, micro_batches
from unclip_jax.generation.sampling import SamplingConfig

BLOCK = 64
"""Micro-batches whose rows are made together: making them waits for the devices."""


def make_requests(
    prompts: str | Sequence[str], num_images: int, seed: int, negative: str = ""
) -> list[Request]:
    """`num_images` of each prompt; UserError for none."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts or num_images < 1:
        raise UserError("give at least one prompt and num_images of 1 or more")
    return [Request(prompt, seed, i, negative) for prompt in prompts for i in range(num_images)]


def text_programs(
    bundle: Bundle, how: SamplingConfig, prior: str, upsample: int | None
) -> list[RowProgram]:
    """What draws pictures from text: the prior unless there is none, decoder, upsamplers.

    Args:
        prior: one of `PRIORS`, or "none", see `usable_prior`.
        upsample: 256 or 1024, the side of the pictures; None is the decoder's own.
    """
    sizes = upsampled_sizes(upsample)
    first = [] if prior == "none" else [prior_program(bundle.stage, how, prior)]
    decoder = decoder_program(bundle.stage, how, as_float=bool(sizes))
    last = [bundle.upsampler(size, how, as_float=size != sizes[-1]) for size in sizes]
    return [*first, decoder, *last]


def text_links(
    bundle: Bundle,
    requests: Sequence[Request],
    how: SamplingConfig,
    prior: str,
    upsample: int | None,
) -> tuple[list[Link], dict[str, Any]]:
    """The same as a chain, and the rows of these requests, all of them at once."""
    check_alike(requests, how)
    rows = _rows(bundle, requests, how, upsample)
    return _links(bundle, rows, how, prior, upsample), rows


def text_batches(
    bundle: Bundle,
    requests: Sequence[Request],
    how: SamplingConfig,
    prior: str,
    upsample: int | None,
) -> tuple[list[Link], Iterator[tuple[dict[str, Any], int]]]:
    """The same with the rows in micro-batches, made as they are taken: ten thousand prompts take no
    more memory than a few hundred.

    Raises:
        UserError: see `check_alike`, or a stage is missing; before the first is taken.
    """
    check_alike(requests, how)
    first = _rows(bundle, requests[:1], how, upsample)
    size = how.batch_size * bundle.runner.mesh.size

    def batches() -> Iterator[tuple[dict[str, Any], int]]:
        for start in range(0, len(requests), BLOCK * size):
            part = requests[start : start + BLOCK * size]
            yield from micro_batches(_rows(bundle, part, how, upsample), size)

    return _links(bundle, first, how, prior, upsample), batches()


def check_alike(requests: Sequence[Request], how: SamplingConfig) -> None:
    """UserError unless all requests go through one compiled program: all with a negative prompt or
    none, all guided or none. What a picture looks like never depends on its neighbours."""
    kinds = {kind_of(request, how) for request in requests}
    if len(kinds) > 1:
        raise UserError(
            "these requests are drawn by different programs: draw those with a negative prompt, "
            "those with guidance 1 and the others in calls of their own"
        )


def kind_of(request: Request, how: SamplingConfig) -> tuple[bool, bool]:
    """What of a request decides its program: is it guided, has it a negative prompt."""
    return guidance_of(request, how) != 1, bool(request.negative)


def _rows(
    bundle: Bundle, requests: Sequence[Request], how: SamplingConfig, upsample: int | None
) -> dict[str, Any]:
    """What the chain reads: [N, ...] by name."""
    texts = [request.prompt for request in requests]
    rows = {"tokens": bundle.tokenizer(texts), **bundle.guide_rows(texts, how)}
    scales = [guidance_of(request, how) for request in requests]
    if any(scale != 1 for scale in scales):
        rows["guidance"] = np.asarray(scales, np.float32)
    if any(request.negative for request in requests):
        rows["negative_tokens"] = bundle.tokenizer([request.negative for request in requests])
    count = 2 + len(upsampled_sizes(upsample))
    keys = stage_keys([r.seed for r in requests], [r.index for r in requests], count)
    return rows | {f"keys_{number}": keys[number] for number in range(count)}


def _links(
    bundle: Bundle, rows: dict[str, Any], how: SamplingConfig, prior: str, upsample: int | None
) -> list[Link]:
    """The chain for rows of these names."""
    programs = text_programs(bundle, how, prior, upsample)
    links, reads = [], {name: name for name in rows if not name.startswith("keys_")}
    if prior != "none":
        links += _prior_links(programs.pop(0), "negative_tokens" in rows)
        reads |= {link.makes: link.makes for link in links}
    for number, program in enumerate(programs, 1):
        given = reads if number == 1 else {"image": "image"}
        links.append(Link(program, {**given, "keys": f"keys_{number}"}, "image"))
    return links


def _prior_links(program: RowProgram, has_negative: bool) -> list[Link]:
    """The prior for the captions, and for the negative ones: guidance leads from the embedding of
    these to that of those, as it leads from caption to caption."""
    given = {"tokens": "tokens", "keys": "keys_0"}
    if not has_negative:
        return [Link(program, given, "embedding")]
    own = Link(program, {**given, "negative_tokens": "negative_tokens"}, "embedding")
    away = {"tokens": "negative_tokens", "keys": "keys_0"}
    return [own, Link(program, away, "negative_embedding")]


def guidance_of(request: Request, how: SamplingConfig) -> float:
    """The decoder's guidance scale for a request."""
    return how.decoder.guidance_scale if request.guidance is None else request.guidance


def upsampled_sizes(upsample: int | None) -> list[int]:
    """Which upsamplers run one after another, by name; UserError for a side that none makes."""
    if upsample is not None and upsample not in UPSAMPLED:
        raise UserError(f"upsample is {upsample}: give {' or '.join(map(str, UPSAMPLED))}")
    return [size for size in UPSAMPLED if upsample is not None and size <= upsample]


def usable_prior(bundle: Bundle, prior: str) -> str:
    """`prior`, or "none" for a decoder that reads captions alone."""
    recipe: Any = bundle.stage("decoder").recipe
    return "none" if recipe.model.embedding_width is None else prior
