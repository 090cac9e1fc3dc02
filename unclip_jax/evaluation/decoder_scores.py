"""The decoder: is a generated picture recognised as what was asked for?

For each prompt, the caption of an emoji picture, a CLIP is asked three questions about each
generated picture: which of 100 captions (the own one and 99 of other pictures of the split), which
of 100 things in the own style, and which of the four styles of the own thing. The true pictures are
asked the same, which is the ceiling. The judge is the model's own CLIP, or better another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unclip_jax.data.captions import EmojiFacts, caption_with_style
from unclip_jax.data.images import make_grid
from unclip_jax.evaluation.encoders import Say, own_text_is_first
from unclip_jax.evaluation.pictures import Pictures, draw_candidates, style_candidates
from unclip_jax.pipeline import UnCLIP

NUM_CANDIDATES = 100


@dataclass(frozen=True)
class Questions:
    """What CLIP is asked about the pictures of each prompt: texts to choose from, own first."""

    prompts: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    things: tuple[tuple[str, ...], ...]
    styles: tuple[tuple[str, ...], ...]
    same_label: tuple[int, ...]
    """How many of the other captions name the same thing in another style."""


@dataclass(frozen=True)
class PictureScores:
    """The answers about one set of pictures; shares are 0 to 1."""

    pictures: str
    """'true' or 'generated'."""
    guidance: float | None
    """Guidance scale of the decoder."""
    per_prompt: int
    caption_r1_first: float
    """Own caption nearest among 100, one picture a prompt."""
    caption_r1: float
    """The same over all pictures."""
    thing_r1: float
    """Own thing nearest among 100 things in the own style, over all pictures."""
    style_r1: float
    """Own style nearest among the four styles of the own thing, over all pictures."""
    recognised: tuple[int, ...]
    """For each prompt the number of pictures whose own caption was nearest."""


@dataclass(frozen=True)
class DecoderScores:
    """The decoder's pictures next to the true ones."""

    split: str
    """Of the emoji, that the prompts are from."""
    judge: str
    """Identity of the CLIP that was asked."""
    prompts: tuple[str, ...]
    num_candidates: int
    num_things: int
    same_label: tuple[int, ...]
    """For each prompt: other candidates that name the same thing in another style."""
    pictures: int
    """Of the split, whose captions the candidates were drawn from."""
    steps: int | str | tuple[int, ...]
    scores: tuple[PictureScores, ...]


def make_questions(known: Sequence[EmojiFacts], rows: Sequence[int], seed: int) -> Questions:
    """Candidates for the prompts `rows` among the pictures `known`, drawn by seed."""
    label_of = {caption_with_style(fact.label, fact.style): fact.label for fact in known}
    asked = [known[row] for row in rows]
    prompts = tuple(caption_with_style(fact.label, fact.style) for fact in asked)
    captions = tuple(
        draw_candidates(list(label_of), prompt, NUM_CANDIDATES, seed) for prompt in prompts
    )
    labels = [draw_candidates([*label_of.values()], f.label, NUM_CANDIDATES, seed) for f in asked]
    things = tuple(
        tuple(caption_with_style(label, fact.style) for label in row)
        for fact, row in zip(asked, labels, strict=True)
    )
    same_label = tuple(
        sum(label_of[text] == label_of[row[0]] for text in row[1:]) for row in captions
    )
    styles = tuple(style_candidates(fact) for fact in asked)
    return Questions(prompts, captions, things, styles, same_label)


def measure_decoder(
    unclip: UnCLIP,
    judge: UnCLIP,
    split: str,
    known: Pictures,
    rows: Sequence[int],
    seed: int,
    per_prompt: int,
    say: Say,
) -> tuple[DecoderScores, dict[float, np.ndarray]]:
    """Scores of the true pictures, of an unguided run and of one with the model's own guidance.

    Args:
        judge: whose CLIP is asked; `unclip` itself where there is no other.
        split, known: its name and pictures; of train only what the decoder was trained on.
        rows: of `known`, the prompts.
        per_prompt: pictures drawn for each.
    Returns:
        the scores, and for each guidance scale a grid [H, W, 3] uint8: a row for each prompt, the
        true picture, then the generated ones.
    """
    questions = make_questions(known.facts, rows, seed)
    true = known.take(rows)
    scores = [_ask(judge, questions, true.images[:, None], "true", None)]
    grids: dict[float, np.ndarray] = {}
    for guidance in sorted({1.0, unclip.sampling.decoder.guidance_scale}):
        images = _generate(unclip, questions.prompts, seed, per_prompt, guidance, say)
        scores.append(_ask(judge, questions, images, "generated", guidance))
        cells = np.concatenate([true.images[:, None], images], axis=1)
        grids[guidance] = make_grid(cells.reshape(-1, *cells.shape[2:]), per_prompt + 1)
    result = DecoderScores(
        split=split,
        judge=judge.clip.clip_id,
        prompts=questions.prompts,
        num_candidates=len(questions.captions[0]),
        num_things=len(questions.things[0]),
        same_label=questions.same_label,
        pictures=len(known.facts),
        steps=unclip.sampling.decoder.num_steps,
        scores=tuple(scores),
    )
    return result, grids


def _generate(
    unclip: UnCLIP, prompts: Sequence[str], seed: int, per_prompt: int, guidance: float, say: Say
) -> np.ndarray:
    """[P, K, S, S, 3] uint8. A prompt's pictures do not depend on the other prompts."""
    how = unclip.sampling
    how = replace(how, decoder=replace(how.decoder, guidance_scale=guidance))
    step, parts = how.batch_size, []
    for start in range(0, len(prompts), step):
        say(f"decoder, guidance {guidance:g}: {start} of {len(prompts)} prompts")
        part = unclip.text_to_image(prompts[start : start + step], per_prompt, seed, how)
        parts.append(part.images)
    images = np.concatenate(parts)
    return images.reshape(len(prompts), per_prompt, *images.shape[1:])


def _ask(
    judge: UnCLIP, questions: Questions, images: np.ndarray, name: str, guidance: float | None
) -> PictureScores:
    """The scores of [P, K, S, S, 3] uint8 pictures, K for each prompt."""
    embeddings = judge.encode_image(images.reshape(-1, *images.shape[2:]))
    embeddings = embeddings.reshape(*images.shape[:2], -1)
    caption = own_text_is_first(judge, embeddings, questions.captions)
    thing = own_text_is_first(judge, embeddings, questions.things)
    style = own_text_is_first(judge, embeddings, questions.styles)
    return PictureScores(
        pictures=name,
        guidance=guidance,
        per_prompt=images.shape[1],
        caption_r1_first=float(caption[:, 0].mean()),
        caption_r1=float(caption.mean()),
        thing_r1=float(thing.mean()),
        style_r1=float(style.mean()),
        recognised=tuple(int(count) for count in caption.sum(axis=1)),
    )
