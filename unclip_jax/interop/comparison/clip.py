"""`unclip compare clip`: both towers of a CLIP, block by block, then embeddings and logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.clip import ForeignCLIP, find_clip
from unclip_jax.interop.clip_state_dict import StateDictOptions
from unclip_jax.interop.comparison.clip_reference import record_clip
from unclip_jax.interop.comparison.rows import Row, compare_arrays
from unclip_jax.interop.comparison.trace import Trace
from unclip_jax.interop.comparison.traced import Progress, obtain_trace
from unclip_jax.models.clip import CLIP, CLIPConfig

BATCH = 2
"""Pictures, and rows of ids where there is no tokenizer."""


def run_clip(
    folder: Path,
    prompts: Sequence[str],
    *,
    record: Path | None,
    trace: Path | None,
    seed: int,
    progress: Progress,
    model: str | None = None,
) -> tuple[list[Row], list[str], list[np.ndarray]]:
    """Rows, remarks and no pictures.

    Args:
        folder: of Hugging Face or OpenCLIP, or OpenAI's file.
        prompts: captions; a CLIP whose vocabulary is unknown gets random ids instead.
        record, trace: where the trace is written, or read from.
        seed: of pictures and ids.
        progress: told what of the reference runs.
        model: what a bare state dict is: 'openai', or a name of OpenCLIP's.
    """
    found = find_clip(folder, options=StateDictOptions(model))
    notes = []

    def run() -> Trace:
        arrays = inputs(found, prompts, seed)
        return record_clip(folder, model, arrays, progress)

    recorded, rows, remarks = obtain_trace("clip", found.tensors, run, record=record, trace=trace)
    if found.tokenizer is None:
        notes.append("texts: the vocabulary is unknown, so they are random ids")
    notes.append(f"reference: {recorded.facts['reference']}")
    return [*compare_clip(found, recorded), *rows], [*notes, *remarks], []


def inputs(found: ForeignCLIP, prompts: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """`text/tokens` [B, L] int32, and `image/pixels` [B, S, S, 3] in [-1, 1] if it sees."""
    random, c = np.random.default_rng(seed), found.config
    if found.tokenizer is None:
        tokens = _random_ids(random, c)
    else:
        tokens = found.tokenizer(list(prompts)).astype(np.int32)
    arrays = {"text/tokens": tokens}
    if c.vision is not None:
        shape = (BATCH, c.image_size, c.image_size, 3)
        arrays["image/pixels"] = random.uniform(-1, 1, shape).astype(np.float32)
    mean, std = np.asarray(c.image_mean, np.float32), np.asarray(c.image_std, np.float32)
    return arrays | {"image/mean": mean, "image/std": std}


def compare_clip(found: ForeignCLIP, trace: Trace) -> Iterator[Row]:
    """Rows in the order in which the data flows.

    Raises:
        UserError: a trace of another CLIP.
    """
    arrays, c = trace.arrays, found.config
    tokens, pixels = arrays["text/tokens"], arrays.get("image/pixels")
    side = None if c.vision is None else (c.image_size,)
    fits = tokens.shape[1] == c.context_length and int(tokens.max()) < c.vocab_size
    if not fits or (None if pixels is None else pixels.shape[1:2]) != side:
        raise UserError(
            f"the trace is of another CLIP than {found.what} (its texts or pictures do not fit): "
            "record one of this"
        )
    clip, variables = CLIP(c), {"params": found.load()}

    @jax.jit
    def run(variables: Any, pixels: Any, tokens: Any) -> Any:
        return clip.apply(
            variables,
            pixels,
            tokens,
            capture_intermediates=lambda _, method: method == "__call__",
            mutable=["intermediates"],
        )

    out, kept = run(variables, None if pixels is None else jnp.asarray(pixels), jnp.asarray(tokens))
    kept = kept["intermediates"]
    if pixels is not None:
        yield from _blocks("image", kept["vision"], trace)
        embedding = kept["vision"]["__call__"][0]
        yield compare_arrays("image: embedding", embedding, arrays["image/embedding"])
    yield from _blocks("text", kept["text"], trace)
    embedding, states = kept["text"]["__call__"][0]
    if "text/states" in arrays:
        yield compare_arrays("text: states", states, arrays["text/states"])
    yield compare_arrays("text: embedding", embedding, arrays["text/embedding"])
    if pixels is not None:
        logits = out["logit_scale"] * out["image"] @ out["text"].T + out["logit_bias"]
        yield compare_arrays("logits", logits, arrays["logits"])


def _blocks(tower: str, kept: Any, trace: Trace) -> Iterator[Row]:
    references = trace.under(f"{tower}/block/")
    if not references:  # a TorchScript does not show its inside
        return
    stacked = kept["transformer"]["blocks"]["__call__"][0][0]
    for i, ours in enumerate(stacked):
        yield compare_arrays(f"{tower}: block {i}", ours, references[str(i)])


def _random_ids(random: np.random.Generator, c: CLIPConfig) -> np.ndarray:
    """Rows with one end of text each, at different places, and zeros after it; without one where
    the config names an id that the vocabulary does not have."""
    end = c.vocab_size - 1 if c.end_of_text is None else c.end_of_text
    words = [i for i in (1, c.vocab_size - 2) if i != end]
    tokens = random.integers(min(words), max(words) + 1, (BATCH, c.context_length))
    tokens[tokens == end] = words[0]
    if end >= c.vocab_size:
        return tokens.astype(np.int32)
    for row, at in zip(tokens, (c.context_length - 1, c.context_length // 2), strict=True):
        row[at], row[at + 1 :] = end, 0
    return tokens.astype(np.int32)
