"""Prompts and candidates: spread evenly, the same every time, refused in one line."""

from __future__ import annotations

from collections import Counter

import pytest

from unclip_jax.data.captions import EmojiFacts
from unclip_jax.errors import UserError
from unclip_jax.evaluation.decoder_scores import make_questions
from unclip_jax.evaluation.pictures import (
    choose_prompts,
    draw_candidates,
    find_prompts,
    style_candidates,
)

STYLES = ("noto", "twemoji", "flat", "3d")


def fact(label: str, style: str) -> EmojiFacts:
    return EmojiFacts(label, label, style, (), "objects", "", label, "train")


def facts(count: int, held_out: tuple[tuple[str, str], ...] = ()) -> list[EmojiFacts]:
    cells = [(f"thing {number}", style) for number in range(count) for style in STYLES]
    return [fact(*cell) for cell in cells if cell not in held_out]


def test_prompts_are_spread_over_concepts_and_styles() -> None:
    known = facts(50, (("thing 0", "noto"), ("thing 5", "flat")))
    chosen = [known[row] for row in choose_prompts(known, 20)]
    assert Counter(f.style for f in chosen) == dict.fromkeys(STYLES, 5)
    numbers = [int(f.concept.split()[1]) for f in chosen]
    assert len(set(numbers)) == 20
    assert sorted(numbers) == numbers and numbers[-1] >= 45
    assert chosen[0].concept == "thing 1"  # thing 0 is held out in noto
    assert choose_prompts(known, 20) == choose_prompts(known, 20)


def test_all_concepts_can_be_asked() -> None:
    known = facts(8, (("thing 7", "3d"),))
    chosen = choose_prompts(known, 8)
    assert {known[row].concept for row in chosen} == {f"thing {n}" for n in range(8)}
    with pytest.raises(UserError, match="--num-prompts is 9: give 1 to 8"):
        choose_prompts(known, 9)


def test_prompts_by_name() -> None:
    known = facts(3)
    prompts = ["thing 2, flat style", "thing 0, noto style"]
    assert [known[row].style for row in find_prompts(known, prompts)] == ["flat", "noto"]
    with pytest.raises(UserError, match="did you mean 'thing 2, flat style'"):
        find_prompts(known, ["thing 2, flat stile"])
    with pytest.raises(UserError, match="twice"):
        find_prompts(known, [prompts[0], prompts[0]])


def test_candidates_are_distinct_and_drawn_by_seed() -> None:
    pool = [f"text {number}" for number in range(300)] * 2
    drawn = draw_candidates(pool, "text 7", 100, seed=0)
    assert drawn[0] == "text 7"
    assert len(drawn) == len(set(drawn)) == 100
    assert drawn == draw_candidates(pool[::-1], "text 7", 100, seed=0)
    assert drawn != draw_candidates(pool, "text 7", 100, seed=1)
    assert set(drawn[1:]) != set(draw_candidates(pool, "text 8", 100, seed=0)[1:])
    assert len(draw_candidates(pool[:5], "text 1", 100, seed=0)) == 5


def test_questions() -> None:
    known = facts(150)
    rows = choose_prompts(known, 4)
    questions = make_questions(known, rows, seed=0)
    for number, row in enumerate(rows):
        own, style = questions.prompts[number], known[row].style
        assert own == questions.captions[number][0] == questions.things[number][0]
        assert len(set(questions.captions[number])) == len(set(questions.things[number])) == 100
        assert all(text.endswith(f", {style} style") for text in questions.things[number])
        label = own.split(",")[0] + ","
        others = sum(text.startswith(label) for text in questions.captions[number][1:])
        assert questions.same_label[number] == others
    assert style_candidates(fact("key", "flat")) == (
        "key, flat style",
        "key, noto style",
        "key, twemoji style",
        "key, 3d style",
    )
