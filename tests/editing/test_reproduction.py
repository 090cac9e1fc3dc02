"""A picture again from its own metadata: the same bytes, or one line that says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.generation.test_all_stages import SAMPLING, stage
from unclip_jax.cli import sample
from unclip_jax.cli.edit import EDITS
from unclip_jax.data.images import save_png
from unclip_jax.data.provenance import facts_text
from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.editing.reproduction import Origin, draw_again, read_origin
from unclip_jax.errors import UserError
from unclip_jax.generation.drawing import Request
from unclip_jax.pipeline import UnCLIP
from unclip_jax.samples import Samples
from unclip_jax.training.weights import save_stage

PICTURES = list(np.random.default_rng(3).integers(0, 256, (3, 20, 28, 3), dtype=np.uint8))
MASK = np.zeros((20, 28), bool)
MASK[5:12, 8:20] = True
KINDS = {verb: kind for verb, (kind, _) in EDITS.items()}
STEPS = replace(SAMPLING, decoder=SamplerConfig(method="ddim", num_steps=2, guidance_scale=2.0))


@pytest.fixture(scope="module")
def unclip() -> UnCLIP:
    clip = stage("clip")
    on_clip = {name: stage(name, clip.clip_id) for name in ("prior", "ar_prior", "decoder")}
    return UnCLIP({"clip": clip, **on_clip, "upsampler_256": stage("upsampler")}, STEPS, "toy")


def origin_of(facts: dict[str, Any]) -> Origin:
    return read_origin(facts_text(facts), KINDS)


DRAWN: dict[str, Callable[[UnCLIP], Samples]] = {
    "text": lambda unclip: unclip.text_to_image("a red apple", 2, 5),
    "text, upsampled": lambda unclip: unclip.text_to_image("a b", 1, prior="ar", upsample=256),
    "text, negative": lambda unclip: unclip.text_to_image("a b", 1, negative="red"),
    "vary": lambda unclip: unclip.vary(PICTURES[1], 3, seed=2, eta=0.5),
    "reconstruct": lambda unclip: unclip.reconstruct(PICTURES[:2]),
    "interpolate": lambda unclip: unclip.interpolate(PICTURES, 4),
    "interpolate, drawn": lambda unclip: unclip.interpolate(
        PICTURES[:2], 2, 3, noise="drawn", num_images=2
    ),
    "diff": lambda unclip: unclip.diff(PICTURES[0], "a red apple", frames=3),
    "mix": lambda unclip: unclip.mix(PICTURES[:2], ["a red apple"], (1, 1, 2), 3, negative="x"),
    "pca": lambda unclip: unclip.pca(PICTURES[0], (1, 3)),
    "compare-conditioning": lambda unclip: unclip.compare_conditioning("a red apple", 2, seed=1),
    "inpaint": lambda unclip: unclip.inpaint(PICTURES[0], MASK, "a red apple", 2, seed=4),
    "outpaint": lambda unclip: unclip.outpaint(PICTURES[0], right=9, num_images=2, seed=4),
    "upscale": lambda unclip: unclip.upscale(PICTURES[0], seed=4),
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_picture_again(name: str, unclip: UnCLIP) -> None:
    samples = DRAWN[name](unclip)
    for place in {0, len(samples.images) - 1}:
        origin = origin_of(samples.metadata[place])
        assert facts_text(origin.facts) == facts_text(samples.metadata[place])
        again = draw_again(unclip, origin, [MASK, *PICTURES[::-1]])
        np.testing.assert_array_equal(again, samples.images[place])


def test_every_verb_is_tried() -> None:
    assert {name.split(",")[0] for name in DRAWN} == {"text", *KINDS}


@pytest.fixture(scope="module")
def facts(unclip: UnCLIP) -> dict[str, Any]:
    how = replace(STEPS, decoder=replace(STEPS.decoder, guidance_scale=3.0))
    return unclip.facts([Request("a red apple", 3, 1, "blue")], how, prior="none")[0]


# What is put into sound facts, by the path to it → the words of the refusal.
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "another verb": ({"verb": "paint"}, "verb is 'paint'"),
    "a verb that is none": ({"verb": ["text"]}, "verb is "),
    "no edit": ({"verb": "vary"}, "edit.: expected an object"),
    "a seed of 33 bits": ({"seed": 2**32}, "seed is 4294967296"),
    "a negative seed": ({"seed": -1}, "seed is -1"),
    "a seed that is a truth": ({"seed": True}, "seed is True"),
    "an index of 40 bits": ({"index": 2**40}, "index is"),
    "a prompt that is a list": ({"prompt": ["a"]}, "prompt is"),
    "a negative that is a number": ({"negative": 3}, "negative is 3"),
    "huge guidance": ({"guidance": 1e300}, "guidance is 1e[+]300"),
    "guidance as a text": ({"guidance": "3"}, "guidance is '3'"),
    "guidance that contradicts": ({"guidance": 4.0}, "sampling is not what this version writes"),
    "another prior": ({"prior": "../x"}, "prior is '../x'"),
    "another size": ({"upsample": 10**9}, "upsample is 1000000000"),
    "a million steps": ({"sampling.decoder.num_steps": 10**6}, "num_steps is 1000000, the limit"),
    "steps as a text": ({"sampling.decoder.num_steps": "9" * 99}, "num_steps is '999"),
    "a list of steps": ({"sampling.decoder.num_steps": [1] * 5000}, "num_steps is .*the limit"),
    "a huge batch": ({"sampling.batch_size": 10**9}, "batch_size is 1000000000, the limit is 1024"),
    "no batch": ({"sampling.batch_size": 0}, "batch_size is 0"),
    "many candidates": ({"sampling.num_candidates": 10**6}, "num_candidates is 1000000, the limit"),
    "another field": ({"sampling.decoder.code": "x"}, "sampling.decoder.code: no such field"),
    "sampling as a list": ({"sampling": []}, "sampling is"),
    "no weights": ({"weights": None}, "weights is None"),
    "weights as numbers": ({"weights.decoder": 3}, "weights is"),
    "other weights": ({"weights.decoder": "0" * 16}, "other weights of the decoder"),
    "a stage that is not here": ({"weights.\x1b[31m": "x"}, r"with the stage \\x1b\[31m, which"),
    "a stage left out": ({"weights": {}}, "weights is not what this version writes"),
    "an extra": ({"code": "x"}, "code is not what this version writes"),
    "inputs that are paths": ({"inputs": ["/etc/passwd"]}, "inputs is"),
    "a million inputs": ({"inputs": ["0" * 16] * 1000}, "inputs is"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_facts(
    name: str, unclip: UnCLIP, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused in one line before anything is compiled or drawn."""
    changes, words = HOSTILE[name]
    made = json.loads(facts_text(facts))
    for path, value in changes.items():
        *parents, last = path.split(".") if "\x1b" not in path else path.split(".", 1)
        where = made
        for parent in parents:
            where = where[parent]
        where[last] = value
    monkeypatch.setattr("unclip_jax.generation.rows.RowRunner.start", None)
    with pytest.raises(UserError, match=words) as caught:
        draw_again(unclip, read_origin(json.dumps(made), KINDS), [])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "no object"),
        ("{}", "of format None, this version reads 1"),
        ('{"format": 2, "x": "\\u001b"}', "of format 2"),
        ('{"format": 1, "format": 1}', "a name twice"),
        ('{"format": 1, "verb": "text"}', "model is None"),
    ],
)
def test_texts_that_are_no_facts(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_origin(text, KINDS)


def test_a_picture_that_is_missing_is_named(unclip: UnCLIP) -> None:
    facts = unclip.mix(PICTURES[:2], num_images=1).metadata[0]
    with pytest.raises(UserError, match=rf"{facts['inputs'][1]} is not among those .* --input"):
        draw_again(unclip, origin_of(facts), [PICTURES[0], PICTURES[2]])


@pytest.fixture(scope="module")
def model(unclip: UnCLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    for name in ("clip", "decoder"):
        save_stage(unclip.stages[name], folder / name, "float32")
    return folder


def test_by_the_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ("--model", str(model))
    short = ("--steps", "2", "--batch-size", "2")
    assert sample.main(["text", "a red apple", *own, *short, "--prior", "none"]) == 0
    save_png("photo.png", PICTURES[0])
    assert sample.main(["vary", "photo.png", *own, *short, "--out", "varied"]) == 0
    rows = [json.loads(line) for line in Path("varied/manifest.jsonl").read_text().splitlines()]
    scores = [row["score"] for row in rows]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    first = Path("out/00001_a-red-apple_1.png")
    last = Path("varied") / rows[3]["path"]
    assert sample.main(["from", str(first), *own, "--out", "again"]) == 0
    assert "is out/00001_a-red-apple_1.png byte for byte" in capsys.readouterr().out
    assert (Path("again") / first.name).read_bytes() == first.read_bytes()
    photo = ("--input", "photo.png")
    assert sample.main(["from", str(last), *own, *photo, "--out", "again"]) == 0
    assert (Path("again") / last.name).read_bytes() == last.read_bytes()
    save_png("mask.png", 255 * MASK.astype(np.uint8))
    few = (*own, *short, "--resamples", "1", "--num-images", "1", "--out", "holes")
    assert sample.main(["inpaint", "photo.png", "mask.png", *few]) == 0
    hole = next(Path("holes").glob("0*.png"))
    photo = ("--input", "mask.png", "photo.png")
    assert sample.main(["from", str(hole), *own, *photo, "--out", "again"]) == 0
    assert (Path("again") / hole.name).read_bytes() == hole.read_bytes()
    # In place: it is there already, and stays.
    assert sample.main(["from", str(first), *own]) == 0
    # Drawn by another version: the same pixels, and a file that says so.
    data = first.read_bytes()
    monkeypatch.setattr("unclip_jax.data.provenance.versions", lambda: {"unclip_jax": "9"})
    monkeypatch.setattr("unclip_jax.editing.reproduction.versions", lambda: {"unclip_jax": "9"})
    capsys.readouterr()
    assert sample.main(["from", str(first), *own, "--out", "other"]) == 1
    said = capsys.readouterr()
    assert "not out/00001_a-red-apple_1.png byte for byte: it has the same pixels" in said.out
    assert "it was drawn with unclip_jax " in said.err and "(here 9)" in said.err
    with pytest.raises(UserError, match="is there with other bytes"):
        sample.main(["from", str(first), *own])
    assert first.read_bytes() == data


def test_files_that_cannot_be_drawn_again(
    model: Path, tmp_path: Path, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_png("plain.png", PICTURES[0])
    save_png("tiny.png", PICTURES[0], {"unclip": facts_text({**facts, "model": "../toy"})})
    save_png("odd.png", PICTURES[0], {"unclip": "{"})
    Path("notes.txt").write_text("a")
    for name, words in {
        "plain.png": "plain.png holds no metadata of ours",
        "notes.txt": "notes.txt holds no metadata of ours",
        "none.png": "none.png does not exist",
        "tiny.png": r"tiny.png: it was drawn by a model '../toy': name its folder with --model",
        "odd.png": "odd.png: its metadata are not those of a picture of ours: not JSON",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            sample.main(["from", name])
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        "odd.png",
        "plain.png",
        "tiny.png",
    ]
