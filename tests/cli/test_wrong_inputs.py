"""Wrong input to every verb: one line on standard error, exit code 2, the input and the remedy.

A row is a command line with the words of it that the line must name, and what it must advise. In
PLACES stand files that are there; all run in one folder, which stays as it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unclip_jax.cli import main as command_line
from unclip_jax.cli import sample, train
from unclip_jax.cli.verbs import VERBS
from unclip_jax.data.images import save_png

CLIP = "configs/toy/clip.py"
# command line: (what it must name, what it must advise).
WRONG: dict[str, tuple[str, str]] = {
    # verbs
    "unclip vray photo.png": ("'vray'", "did you mean vary?"),
    "unclip Text a": ("'Text'", "did you mean text?"),
    "unclip xyzzy": ("'xyzzy'", "choose one of text, vary"),
    "sample.py interpolat a.png b.png": ("'interpolat'", "did you mean interpolate?"),
    "sample.py train": ("'train'", "text, vary, reconstruct"),
    # text
    "unclip text": ("prompt", "--prompts"),
    "unclip text apple --sampler ddmi": ("--sampler is 'ddmi'", "did you mean ddim?"),
    "unclip text apple --guidanc 3": ("--guidanc", "did you mean --guidance?"),
    "unclip text apple --guidance strong": ("--guidance is 'strong'", "give a number"),
    "unclip text apple --num_imgs 3": ("--num_imgs", "did you mean --num-images?"),
    "unclip text apple --num-images 0": ("--num-images is 0", "give 1 or more"),
    "unclip text apple --num-images 1.5": ("--num-images is '1.5'", "give a whole number"),
    "unclip text apple --seed -1": ("--seed is -1", "give 0 to 4294967295"),
    "unclip text apple --seed": ("--seed has no value", "give a whole number"),
    "unclip text apple --steps fast": ("--steps is 'fast'", "give a number, 'fast27'"),
    "unclip text apple --guidance-interval 5": ("is '5'", "give 2 values, each a whole number"),
    "unclip text apple --upsample 512": ("--upsample is '512'", "choose one of 256, 1024"),
    "unclip text apple --prior difusion": ("'difusion'", "did you mean diffusion?"),
    "unclip text apple --model emojy": ("emojy", "did you mean emoji?"),
    "unclip text apple --model picturs": ("picturs", "did you mean pictures?"),
    "unclip text apple --out photo.png": ("--out photo.png", "name a folder"),
    "unclip text --prompts photo.png": ("photo.png", "give a .txt file or a .jsonl file"),
    "unclip text --prompts lst.txt": ("--prompts lst.txt", "did you mean notes.txt?"),
    "unclip text apple -n 3": ("-n", "--help lists them"),
    "unclip text apple --grid rows=prompts": ("--grid", "cols=guidance:1,2,4"),
    "unclip text apple --format zip": ("--format is 'zip'", "choose one of png, tar, jsonl"),
    "unclip text apple --shard-size 0": ("--shard-size is 0", "give 1 or more"),
    "unclip from": ("PICTURE", "--help shows how"),
    "unclip from photo.png": ("photo.png holds no metadata", "name a whole PNG"),
    "unclip from photo.png --input a --input b": ("--input is given 2 times", "FIRST SECOND"),
    "unclip from phto.png": ("phto.png", "did you mean photo.png?"),
    # edits
    "unclip vary": ("PHOTO", "--help shows how"),
    "unclip vary phto.png": ("phto.png", "did you mean photo.png?"),
    "unclip vary nowhere/photo.png": ("nowhere/photo.png", "its folder nowhere: check the name"),
    "unclip vary notes.txt": ("notes.txt", "not a picture in one of PNG, JPEG"),
    "unclip vary pictures": ("pictures", "not a regular file"),
    "unclip vary photo.png --eta 2": ("eta is 2", "give 0"),
    "unclip vary photo.png --noise drwan": ("--noise is 'drwan'", "did you mean drawn?"),
    "unclip vary photo.png photo.png": ("'photo.png'", "--help shows what it takes"),
    "unclip inpaint": ("PHOTO", "--help shows how"),
    "unclip inpaint photo.png hole": ("photo.png has no transparent part", "name a mask"),
    "unclip inpaint photo.png msak.png": ("msak.png", "check the name"),
    "unclip outpaint photo.png": ("nothing is to be added", "give --left, --right"),
    "unclip outpaint photo.png --zoom-out 0.5": ("zoom_out is 0.5", "give 1 to 16"),
    "unclip upscale photo.png --factor 3": ("--factor is '3'", "4, 16"),
    "unclip upscale phto.png": ("phto.png", "did you mean photo.png?"),
    "unclip reconstruct": ("reconstruct", "1 or more pictures, not from 0"),
    "unclip interpolate photo.png": ("interpolate", "2 or more pictures, not from 1"),
    "unclip interpolate photo.png fotos.png": ("fotos.png", "did you mean photo.png?"),
    "unclip diff photo.png --to": ("--to has no value", "give text"),
    "unclip mix --weights heavy": ("heavy", "give"),
    "unclip pca photo.png --component 3": ("--component", "did you mean --components?"),
    "unclip compare-conditioning": ("PROMPT", "--help shows how"),
    # CLIP
    "unclip classify phto.png --labels cat,dog": ("phto.png", "did you mean photo.png?"),
    "unclip caption photo.png --captions note.txt": ("note.txt", "notes.txt"),
    "unclip index picturs": ("picturs", "did you mean pictures?"),
    "unclip search nowhere apple": ("nowhere", "unclip index"),
    # train and plan
    f"train.py {CLIP[:-3]}.yp --workdir new": ("clip.yp", "did you mean configs/toy/clip.py?"),
    f"unclip train {CLIP} --workdir new --learning-rate 1": (
        "--learning-rate",
        "did you mean --optim.learning-rate?",
    ),
    f"unclip train {CLIP} --workdir new --optim.schedule cosin": ("'cosin'", "mean cosine?"),
    f"unclip train {CLIP} --workdir new --log.tensorboard maybe": ("'maybe'", "True, False"),
    f"unclip train {CLIP} --workdir photo.png": ("--workdir photo.png", "name a folder"),
    f"unclip train {CLIP} --workdir new --data.source picturs": ("'picturs'", "a folder of"),
    f"unclip plan {CLIP} --topology v5x:2x2": ("'v5x:2x2'", "give a chip and its grid"),
    f"unclip plan {CLIP} --slices none": ("--slices is 'none'", "give 1 or more"),
    f"unclip plan {CLIP} --set batch": ("'batch'", "write --set batch_size=64"),
    # data, embed, fit-*
    "unclip data": ("COMMAND", "--help shows how"),
    "unclip data shet": ("'shet'", "did you mean sheet?"),
    "unclip data sheet --colums 3": ("--colums", "did you mean --columns?"),
    "unclip data stats --source picturs": ("'picturs'", "a folder of pictures"),
    "unclip embed": ("CLIP", "--help shows how"),
    "unclip embed emojy": ("emojy", "did you mean emoji?"),
    "unclip embed emoji --dtype float8": ("'float8'", "did you mean float"),
    "unclip embed emoji --batch-size 0": ("--batch-size is 0", "give 1 or more"),
    "unclip fit-codes emoji --out pictures": ("--out pictures", "name a file"),
    "unclip fit-linear emoji --ridg 1": ("--ridg", "did you mean --ridge?"),
    "unclip fit-variance emoji --rows 0": ("--rows is 0", "give 1 or more"),
    # convert, compare, export, evaluate
    "unclip convert phot.png new": ("phot.png", "did you mean photo.png?"),
    "unclip convert photo.png": ("FOLDER", "--help shows how"),
    "unclip convert photo.png new --format gilde": ("'gilde'", "did you mean glide?"),
    "unclip convert notes.txt new": ("notes.txt", "give"),
    "unclip compare karloo pictures": ("REFERENCE is 'karloo'", "did you mean karlo?"),
    "unclip compare karlo picturs": ("picturs", "did you mean pictures?"),
    "unclip compare karlo pictures --steps 1 1 1": ("--steps", "give 2 or more"),
    "unclip export --format onnx": ("'onnx'", "choose one of unclip, hf_clip"),
    "unclip export --decoder nowhere": ("nowhere", "train it first"),
    "unclip evaluate --prior emoji": ("--prior", "name --clip"),
    "unclip evaluate --num-prompts none": ("--num-prompts is 'none'", "give a whole number"),
    # doctor, inspect, completion
    "unclip doctor --jsn": ("--jsn", "did you mean --json?"),
    "unclip doctor --timeout 0": ("--timeout is 0", "give 1 second"),
    "unclip inspect": ("PATH", "--help shows how"),
    "unclip inspect photo.pgn": ("photo.pgn", "did you mean photo.png?"),
    "unclip inspect notes.txt": ("notes.txt", "name weights"),
    "unclip inspect broken.json": ("broken.json", "restore the file"),
    "unclip inspect broken.safetensors": ("broken.safetensors", "restore the file"),
    "unclip inspect photo.png --depth 0": ("--depth is 0", "give 1 to 20"),
    "unclip completion": ("SHELL", "one of bash, zsh, fish"),
    "unclip completion bsh": ("SHELL is 'bsh'", "did you mean bash?"),
}


RUN: dict[str, Callable[[list[str]], None]] = {
    "unclip": command_line.main,
    "sample.py": lambda arguments: command_line.run(sample.main, arguments),
    "train.py": lambda arguments: command_line.run(train.main, arguments),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "configs").symlink_to(repository / "configs")
    (folder / "pictures").mkdir()
    (folder / "notes.txt").write_text("no picture\n")
    (folder / "broken.json").write_text("{")
    (folder / "broken.safetensors").write_bytes(b"\xff" * 20)
    save_png(folder / "photo.png", np.full((9, 7, 3), 200, np.uint8))
    return folder


def check(code: object, error: str, words: tuple[str, str]) -> None:
    """The properties that every mistake's line has."""
    named, advice = words
    assert code == 2
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1, error
    assert named in error, error
    assert advice in error, error
    assert len(error) < 700 and "Traceback" not in error
    assert not any(word in error for word in ("NoneType", "<class", "helptext", "[bold]")), error


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input(
    line: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    program, *arguments = line.split()
    with pytest.raises(SystemExit) as end:
        RUN[program](arguments)
    check(end.value.code, capsys.readouterr().err, WRONG[line])
    assert sorted(path.name for path in place.iterdir()) == before


def test_every_verb_is_in_the_table() -> None:
    used = {line.split()[1] for line in WRONG if line.startswith("unclip ")}
    assert set(VERBS) <= used
    assert len(WRONG) >= 40


@pytest.mark.parametrize(
    "line",
    [
        "unclip vray photo.png",
        "sample.py interpolat a.png b.png",
        f"unclip train {CLIP} --workdir new --optim.schedule cosin",
        "unclip inspect photo.pgn",
    ],
)
def test_as_a_process(line: str, place: Path, repository: Path) -> None:
    program, *arguments = line.split()
    script = {"unclip": ["-m", "unclip_jax"]}.get(program, [str(repository / program)])
    result = subprocess.run(
        [sys.executable, *script, *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == ""
    check(result.returncode, result.stderr, WRONG[line])


def test_what_acts_on_a_terminal_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["inspect", "\x1b[2J\nnothing"])
    error = capsys.readouterr().err
    assert "\x1b" not in error and error.count("\n") == 1 and "\\x1b[2J" in error
