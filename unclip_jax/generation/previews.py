"""Pictures while they are drawn: what the decoder's chain looks like from where it is.

The chain is run in segments by one compiled program that takes its ends as inputs, so that neither
another number of previews nor another place of them compiles anything. `drawing.draw`, which shows
nothing on the way, does not know of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.generation.bundle import Bundle
from unclip_jax.generation.drawing import Link, Request
from unclip_jax.generation.guided import make_chain
from unclip_jax.generation.programs import segment_program, start_program
from unclip_jax.generation.rows import Rows, micro_batches
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.text_to_image import text_links


@dataclass(frozen=True)
class Preview:
    """All pictures of a call as they look after some of the decoder's steps."""

    step: int
    """Steps done."""
    steps: int
    """Of all."""
    images: np.ndarray
    """[N, S, S, 3] uint8, the estimates of x_0; after the last step the pictures, upsampled if that
    was asked for."""

    @property
    def is_last(self) -> bool:
        """Whether these are the pictures themselves."""
        return self.step == self.steps


def stream_previews(
    bundle: Bundle,
    requests: Sequence[Request],
    how: SamplingConfig,
    prior: str,
    upsample: int | None,
    every: int,
) -> Iterator[Preview]:
    """A preview after every `every` steps, and the pictures; arguments as `text_links`.

    Raises:
        UserError: `every` is less than 1.
    """
    if every < 1:
        raise UserError(f"every is {every}: give 1 step or more")
    links, rows = text_links(bundle, requests, how, prior, upsample)
    place = next(i for i, link in enumerate(links) if link.program.name == "decoder")
    before, decoder, after = links[:place], links[place], links[place + 1 :]
    parts = list(micro_batches(rows, how.batch_size * bundle.runner.mesh.size))
    states = [_through(bundle, before, part) for part, _ in parts]
    begin, advance = start_program(bundle.stage, how), segment_program(bundle.stage, how)
    given = [_given(state, decoder.reads) for state in states]
    chains: list[Rows] = [bundle.runner.start(begin, one) for one in given]
    recipe: Any = bundle.stage("decoder").recipe
    total = len(make_chain(recipe.diffusion, how.decoder))
    done = 0
    while done < total:
        first, done = total - 1 - done, min(done + every, total)
        for number, one in enumerate(given):
            ends = {"first": first, "last": total - done}
            ends = {name: np.full(len(one["is_real"]), end, np.int32) for name, end in ends.items()}
            chain = {name: array for name, array in chains[number].items() if name != "clean"}
            chains[number] = bundle.runner.start(advance, {**one, **chain, **ends})
        if done < total or not after:
            yield Preview(done, total, _real([chain["clean"] for chain in chains], parts))
    if after:
        both = zip(states, chains, strict=True)
        ends = [_through(bundle, after, {**state, "image": chain["x"]}) for state, chain in both]
        yield Preview(total, total, _real([end["image"] for end in ends], parts))


def _through(bundle: Bundle, links: Sequence[Link], state: Rows) -> Rows:
    """`state` with what the links make of it."""
    for link in links:
        made = bundle.runner.start(link.program, _given(state, link.reads))
        state = {**state, link.makes: made}
    return state


def _given(state: Rows, reads: dict[str, str]) -> Rows:
    return {**{name: state[of] for name, of in reads.items()}, "is_real": state["is_real"]}


def _real(images: list[Any], parts: list[tuple[Rows, int]]) -> np.ndarray:
    """Of all micro-batches, without their padding."""
    counted = zip(images, parts, strict=True)
    return np.concatenate([np.asarray(one)[:count] for one, (_, count) in counted])
