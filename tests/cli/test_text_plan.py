"""Lines with settings of their own, names of files, and the columns of a grid."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from unclip_jax.cli.prompts import PromptLine, read_prompts
from unclip_jax.cli.text_options import TextOptions
from unclip_jax.cli.text_plan import TextPlan, make_plan, read_grid
from unclip_jax.errors import UserError


def plan(lines: list[dict[str, Any]], folder: Path, **options: Any) -> TextPlan:
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return make_plan(read_prompts(path), TextOptions(prompt=(), **options))


def test_a_line_says_what_is_otherwise(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "n": 2, "seed": 7, "guidance": 2, "negative": " b ", "name": "x"},
        {"prompt": "b"},
        {"prompt": "c", "steps": 10, "sampler": "unipc", "prior-steps": "fast27", "n": 1},
        {"prompt": "d", "sampler": "unipc", "prior_steps": "fast27", "steps": 10, "n": 1},
        {"prompt": "e", "steps": "10,10,3", "guidance_interval": [0, 500], "n": 1, "seed": 1},
    ]
    made = plan(lines, tmp_path, num_images=3, seed=5, guidance=4.0)
    assert made.names[:3] == ["x_0.png", "x_1.png", "00002_b_0.png"]
    first, third = made.pictures[1], made.pictures[2]
    assert (first.seed, first.index, first.guidance, first.negative) == (7, 1, 2.0, "b")
    assert (third.seed, third.index, third.guidance, third.negative) == (5, 0, 4.0, "")
    # Seeds, scales and negatives compile nothing: they are no settings of their own.
    assert [one.settings for one in made.pictures] == [0, 0, 0, 0, 0, 1, 1, 2]
    where, options = made.settings[1]
    assert where.endswith("p.jsonl:3") and options.steps == 10 and options.prior_steps == "fast27"
    assert made.settings[2][1].guidance_interval == (0, 500)
    assert [list(numbers) for _, numbers in made.rows] == [[0, 1], [2, 3, 4], [5], [6], [7]]


REFUSED: dict[str, tuple[str, str]] = {
    "a typo": (
        '{"prompt": "a", "guidanse": 3}',
        "p.jsonl:1: 'guidanse' is unknown: did you mean g",
    ),
    "no option": ('{"prompt": "a", "zzzz": 3}', "'zzzz' is unknown: choose one of .*seed"),
    "of the whole run": ('{"prompt": "a", "batch_size": 3}', "'batch_size' is unknown"),
    "another choice": (
        '{"prompt": "a", "sampler": "uni"}',
        "sampler is 'uni': did you mean unipc",
    ),
    "a word for a number": ('{"prompt": "a", "seed": "x"}', "p.jsonl:1: seed is 'x': expected int"),
    "a truth for a number": ('{"prompt": "a", "n": true}', "num_images is True: expected int"),
    "none at all": ('{"prompt": "a", "n": 0}', "--num-images is 0: give 1 or more"),
    "a seed below 0": ('{"prompt": "a", "seed": -1}', "p.jsonl:1: --seed is -1"),
    "a seed of 33 bits": ('{"prompt": "a", "seed": 4294967296}', "--seed is 4294967296"),
    "odd steps": ('{"prompt": "a", "steps": "x"}', "--steps is 'x'"),
    "infinite guidance": ('{"prompt": "a", "guidance": Infinity}', "guidance is inf"),
    "a size that is none": ('{"prompt": "a", "upsample": 512}', "upsample is 512"),
    "twice": ('{"prompt": "a", "n": 1, "num_images": 2}', "num_images is given twice"),
    "a control character": ('{"prompt": "a", "negative": "\\u001b"}', "negative holds the control"),
    "a path": ('{"prompt": "a", "name": "../x"}', r"name is '\.\./x': give up to 80 letters"),
    "an ending": ('{"prompt": "a", "name": "x.png"}', "name is 'x.png'"),
    "a dash first": ('{"prompt": "a", "name": "-x"}', "name is '-x'"),
    "no name": ('{"prompt": "a", "name": ""}', "name is ''"),
    "a long name": (json.dumps({"prompt": "a", "name": "x" * 81}), "name is 'xxx"),
    "the grid's name": ('{"prompt": "a", "name": "Grid", "n": 1}', "the name 'Grid' is taken"),
    "a name twice": (
        '{"prompt": "a", "name": "X", "n": 1}\n{"prompt": "b", "name": "x", "n": 1}',
        r"p\.jsonl:2 and .*p\.jsonl:1 both write x\.png",
    ),
    "another line's number": (
        '{"prompt": "a", "n": 1, "name": "00001_b_0"}\n{"prompt": "b", "n": 1}',
        r"p\.jsonl:2 and .*p\.jsonl:1 both write 00001_b_0\.png",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_line(name: str, tmp_path: Path) -> None:
    text, words = REFUSED[name]
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        make_plan(read_prompts(tmp_path / "p.jsonl"), TextOptions(prompt=()))
    assert "p.jsonl:" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# note\na fox\n", [("a fox", {})]),
        ('\n {"prompt": "a", "seed": 3}\n{"prompt": "b"}\n', [("a", {"seed": 3}), ("b", {})]),
    ],
)
def test_standard_input(text: str, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert [(line.prompt, line.settings) for line in read_prompts("-")] == expected
    assert not sys.stdin.buffer.closed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"# none\n")))
    with pytest.raises(UserError, match="--prompts - holds no prompt"):
        read_prompts("-")


def test_a_grid_has_a_picture_a_cell(tmp_path: Path) -> None:
    lines = [PromptLine("a", "prompt 1"), PromptLine("b", "prompt 2", {"guidance": 9.0}, None, "n")]
    options = TextOptions(prompt=(), grid="rows=prompts,cols=guidance:1,2.5", seed=3)
    made = make_plan(lines, options)
    assert [one.guidance for one in made.pictures] == [1.0, 2.5, 1.0, 2.5]
    assert {(one.seed, one.index, one.settings) for one in made.pictures} == {(3, 0, 0)}
    assert made.names == ["00000_a_0.png", "00001_a_0.png", "n_0.png", "n_1.png"]
    assert made.columns == ("guidance 1", "guidance 2.5")
    options = TextOptions(prompt=(), grid="rows=prompts,cols=steps:10,fast27")
    made = make_plan(lines[:1], options)
    assert [made.settings[one.settings][1].steps for one in made.pictures] == [10, "fast27"]


def test_columns_of_seeds() -> None:
    options = TextOptions(prompt=(), num_images=2, seed=8)

    def seeds(text: str) -> list[int]:
        return [own["seed"] for _, own in read_grid(text, options)]

    assert seeds("rows=prompts,cols=seeds") == [8, 9]
    assert seeds("rows=prompts, cols=seeds:0..3") == [0, 1, 2, 3]
    assert seeds("rows=prompts,cols=seeds:5,1") == [5, 1]
    assert read_grid(None, options) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cols=seeds", "give rows=prompts,cols=seeds"),
        ("rows=prompts,cols=steps", "say which steps"),
        ("rows=prompts,cols=guidance:1,x", "'x' is no number for guidance"),
        ("rows=prompts,cols=seeds:3..1", "1 to 100 columns"),
        ("rows=prompts,cols=seeds:0..4294967295", "1 to 100 columns"),
        ("rows=prompts,cols=seeds:-1", "--seed is -1"),
        ("rows=prompts,cols=steps:0", "--steps is 0"),
    ],
)
def test_grids_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_grid(text, TextOptions(prompt=()))
    assert "--grid" in str(caught.value)


def test_a_grid_takes_no_number_of_pictures() -> None:
    options = TextOptions(prompt=(), grid="rows=prompts,cols=seeds")
    with pytest.raises(UserError, match="prompt 1: n is given"):
        make_plan([PromptLine("a", "prompt 1", {}, 2)], options)
