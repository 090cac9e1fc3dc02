"""evaluation.json as text that can go into a README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def to_markdown(result: dict[str, Any]) -> str:
    """The tables and what their numbers mean.

    Args:
        result: `Evaluation` as plain data, as in evaluation.json.
    """
    stages = ", ".join(f"{name} {step}" for name, step in result["steps"].items())
    name = f" of {result['model']}" if result["model"] else ""
    intro = f"Training steps: {stages}. Seed {result['seed']}."
    lines = [
        f"# Evaluation{name}",
        "",
        intro,
        "",
        *_retrieval(result["retrieval"]),
    ]
    lines += _prior(result["prior"]) if result["prior"] else ["The prior was not measured.", ""]
    decoder = result["decoder"]
    lines += _decoder(decoder, result["clip_id"]) if decoder else ["The decoder was not measured."]
    return "\n".join(lines).rstrip() + "\n"


def _retrieval(splits: Sequence[dict[str, Any]]) -> list[str]:
    head = (
        "split",
        "pictures",
        "captions",
        "image→text R@1",
        "R@5",
        "text→image R@1",
        "chance R@1",
        "right label R@1",
        "style of 4",
    )
    shares = ("image_to_text_r1", "image_to_text_r5", "text_to_image_r1", "chance_r1")
    rows = [
        (
            split["split"],
            split["pictures"],
            split["candidates"],
            *(_percent(split[name]) for name in (*shares, "label_r1", "style_r1")),
        )
        for split in splits
    ]
    meaning = (
        "Captions are 'LABEL, STYLE style'; the candidates are the distinct captions of the split. "
        "In `test_cells` the concept is known in other styles and this picture is not; in `test` "
        "the concept is new; the `train` row is training pictures, as many as `test_cells` has. "
        "'Style of 4': the right one of the own label's captions in the four styles (chance 25 %)."
    )
    return [
        "## CLIP",
        "",
        *_table(head, rows),
        "",
        meaning,
        "",
    ]


def _prior(prior: dict[str, Any]) -> list[str]:
    count = prior["num_candidates"]

    def cosine(name: str) -> str:
        low, high = prior["intervals"][name]
        return f"{prior[name]:.3f} ({low:.3f} to {high:.3f})"

    def percent(name: str) -> str:
        low, high = prior["intervals"][name]
        return f"{_percent(prior[name])} ({100 * low:.1f} to {100 * high:.1f})"

    head = ("query", "cosine to the true image embedding", f"R@1 of {prior['pictures']} pictures")
    rows = [
        (f"prior, best of {count}", cosine("cosine"), percent("r1")),
        ("prior, one draw", cosine("cosine_one_draw"), percent("r1_one_draw")),
        ("text embedding itself", cosine("cosine_text"), percent("r1_text")),
        (
            "another picture",
            cosine("cosine_pictures"),
            f"{_percent(prior['chance_r1'])} (chance)",
        ),
    ]
    meaning = (
        f"On `{prior['split']}`, {prior['steps']} steps, guidance {prior['guidance']:g}; in "
        "brackets 95 % intervals over the pictures. Prior output and another picture: "
        f"{cosine('cosine_other')}. Two prior outputs for the same caption: "
        f"{cosine('cosine_seeds')}. Prior output and its own caption: {cosine('cosine_to_text')}, "
        f"which is {cosine('cosine_gain')} more than the true picture has; and another caption: "
        f"{cosine('cosine_other_text')}."
    )
    return [
        "## Prior",
        "",
        *_table(head, rows),
        "",
        meaning,
        "",
    ]


def _decoder(decoder: dict[str, Any], own_clip: str) -> list[str]:
    scores, prompts = decoder["scores"], decoder["prompts"]
    per_prompt = scores[-1]["per_prompt"]
    number, things = decoder["num_candidates"], decoder["num_things"]
    head = (
        "pictures",
        "guidance",
        f"own caption of {number}, 1 a prompt",
        f"{per_prompt} a prompt",
        f"thing of {things}",
        "style of 4",
    )
    rows = [
        (
            score["pictures"],
            "–" if score["guidance"] is None else f"{score['guidance']:g}",
            _percent(score["caption_r1_first"]),
            _percent(score["caption_r1"]) if score["guidance"] is not None else "–",
            _percent(score["thing_r1"]),
            _percent(score["style_r1"]),
        )
        for score in scores
    ]
    similar = decoder["same_label"]
    drawn = [score for score in scores if score["guidance"] is not None]
    listed = [
        (prompt, *(f"{score['recognised'][row]}/{per_prompt}" for score in drawn))
        for row, prompt in enumerate(prompts)
    ]
    judge = (
        "The judge is the model's own CLIP, whose embeddings it draws from: it flatters."
        if decoder["judge"] == own_clip
        else f"The judge is another CLIP ({decoder['judge'][:12]})."
    )
    meaning = (
        f"{judge} {len(prompts)} prompts of `{decoder['split']}`, {decoder['steps']} decoder "
        f"steps. Each picture is compared with its own caption and {number - 1} captions of other "
        f"pictures among {decoder['pictures']} of the split; on average "
        f"{sum(similar) / len(similar):.2f} of them name the same thing in another style (at most "
        f"{max(similar)}). 'Thing': the own label among {things} labels, all in the own style. "
        f"'Style': the own label in the four styles. Chance is {_percent(1 / number)}, "
        f"{_percent(1 / things)} and 25 %. The last two columns are over all pictures. The true "
        "pictures of the prompts are the ceiling."
    )
    return [
        "## Text to picture",
        "",
        *_table(head, rows),
        "",
        meaning,
        "",
        "Pictures found back to their own caption:",
        "",
        *_table(("prompt", *(f"guidance {score['guidance']:g}" for score in drawn)), listed),
        "",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
