"""classify, caption, index and search as commands: what they print, and every mistake in a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.generation.test_all_stages import stage
from tests.training import toys
from unclip_jax.cli import main as command_line
from unclip_jax.cli import sample
from unclip_jax.data.images import decode_image, picture_bytes
from unclip_jax.training.weights import save_stage


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user stands: a model, pictures, texts."""
    home = tmp_path_factory.mktemp("home")
    save_stage(stage("clip"), home / "model" / "clip", "float32")
    toys.write_pictures(home / "pictures")
    (home / "pictures" / "broken.png").write_bytes(b"nothing")
    (home / "labels.txt").write_text("# colours\nred\n\n blue \n")
    (home / "captions.txt").write_text("a red circle\na blue square\na red circle\n")
    (home / "templates.txt").write_text("a {}\n")
    return home


def run(repository: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(repository / "sample.py"), *arguments, "--model", "model"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_every_verb_runs(repository: Path, home: Path) -> None:
    photos = ("pictures/red_bar.png", "pictures/blue_cross.png")
    said = run(repository, home, "index", "pictures", "--out", "index", "--shard-rows", "5")
    assert said.stdout == "index: 12 pictures, 12 of them encoded now, 1 cannot be read\n"
    assert "left out: broken.png: not a picture" in said.stderr

    said = run(repository, home, "classify", *photos, "--labels", "labels.txt", "--json")
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    assert [row["picture"] for row in rows] == list(photos)
    for row in rows:
        assert {one["text"] for one in row["matches"]} == {"red", "blue"}
        assert sum(one["probability"] for one in row["matches"]) == pytest.approx(1, abs=1e-5)

    said = run(repository, home, "caption", *photos, "--captions", "captions.txt", "--top", "1")
    lines = said.stdout.splitlines()
    assert [lines[0], lines[2]] == list(photos) and len(lines) == 4
    assert lines[1].split("  ")[-1] in ("a red circle", "a blue square") and "%" in lines[1]

    query = ("search", "index", "a red circle", "--picture", photos[0], "--weights", "-0.01", "2")
    said = run(repository, home, *query, "--top", "3", "--sheet", "found.png")
    lines = said.stdout.splitlines()
    assert len(lines) == 3 and lines[0].split() == ["1", lines[0].split()[1], "red_bar.png"]
    sheet = decode_image(picture_bytes(home / "found.png"), name="sheet")
    assert sheet.shape == (132, 3 * 130 + 2, 3) and len(np.unique(sheet)) > 3


def test_names_from_outside_are_escaped(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file's name can neither act on the terminal nor break the table or the JSON."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd").mkdir()
    data = (home / "pictures" / "red_bar.png").read_bytes()
    names = (b"\x1b[2J red.png", b"line\nfeed.png", b"not utf-8 \xff.png")
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path / "odd") + b"/" + name)).write_bytes(data)
    model = ("--model", str(home / "model"))
    call("index", "odd", "--out", "i", *model)
    capsys.readouterr()
    call("search", "i", "red", *model)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3 and "\\x1b[2J red.png" in out and "\\x0afeed.png" in out
    call("search", "i", "red", "--json", *model)
    found = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(os.fsencode(name) for name in found) == sorted(names)


def call(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        command_line.run(sample.main, arguments)
    assert end.value.code == 0


PHOTO = "pictures/red_bar.png"
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no photo": (("classify", "--labels", "a,b"), "there is no picture"),
    "no such photo": (("classify", "x.png", "--labels", "a,b"), "x.png does not exist"),
    "a folder": (("caption", "pictures", "--captions", "captions.txt"), "pictures is a folder"),
    "a damaged photo": (
        ("classify", "pictures/broken.png", "--labels", "a,b"),
        "pictures/broken.png: not a picture",
    ),
    "no labels": (("classify", PHOTO), "--labels is missing"),
    "one label": (("classify", PHOTO, "--labels", "a"), "labels: 1 given"),
    "a label twice": (("classify", PHOTO, "--labels", "a,b,a"), "label 'a' is given twice"),
    "an empty label": (("classify", PHOTO, "--labels", "a,,b"), "--labels, label 2 is empty"),
    "no such labels": (("classify", PHOTO, "--labels", "no.txt"), "--labels no.txt does not exist"),
    "labels of a picture": (("classify", PHOTO, "--labels", PHOTO), "is not UTF-8"),
    "no slot": (
        ("classify", PHOTO, "--labels", "a,b", "--templates", "captions.txt"),
        "template 'a red circle' has no {}",
    ),
    "no captions": (("caption", PHOTO), "--captions is missing"),
    "no text": (("caption", PHOTO, "--captions", "empty.txt"), "empty.txt holds no text"),
    "a control character": (("caption", PHOTO, "--captions", "bell.txt"), "bell.txt:2 holds the"),
    "top 0": (("caption", PHOTO, "--captions", "captions.txt", "--top", "0"), "--top is 0"),
    "no pictures": (("index", "."), "has folder"),
    "no folder": (("index", "nowhere"), "nowhere does not exist"),
    "out is a file": (("index", "pictures", "--out", "labels.txt"), "--out labels.txt is a file"),
    "out is taken": (("index", "pictures", "--out", "pictures"), "holds other files"),
    "shards of 0": (("index", "pictures", "--shard-rows", "0"), "--shard-rows is 0"),
    "another dtype": (("index", "pictures", "--dtype", "float16"), "has dtype 'float32'"),
    "no index": (("search", "pictures", "a"), "pictures holds no index"),
    "no query": (("search", "index"), "nothing to search for"),
    "an empty query": (("search", "index", " "), "text 1 is empty"),
    "weights": (("search", "index", "a", "--weights", "1", "2"), "2 weights for 1 texts"),
    "a sheet of another kind": (("search", "index", "a", "--sheet", "a.jpg"), "ends in .png"),
    "a sheet without pictures": (
        ("search", "index", "a", "--sheet", "a.png", "--folder", "model"),
        "say where they are with --folder",
    ),
    "no such folder": (("search", "index", "a", "--folder", "x"), "--folder x is no folder"),
    "an unknown option": (("search", "index", "a", "--topp", "3"), "--topp"),
    "another model": (("search", "other", "a"), "was made with CLIP ffff"),
}


@pytest.fixture(scope="module")
def mistaken(home: Path) -> Path:
    here = Path.cwd()
    os.chdir(home)
    try:
        call("index", "pictures", "--model", "model")
    finally:
        os.chdir(here)
    (home / "other").mkdir()
    manifest = json.loads((home / "index" / "index.json").read_text())
    (home / "other" / "index.json").write_text(json.dumps({**manifest, "clip_id": "f" * 16}))
    (home / "empty.txt").write_text("# nothing\n\n")
    (home / "bell.txt").write_text("a\nb \a c\n")
    return home


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(
    name: str,
    mistaken: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, words = MISTAKES[name]
    monkeypatch.chdir(mistaken)
    with pytest.raises(SystemExit) as end:
        command_line.run(sample.main, (*arguments, "--model", "model"))
    captured = capsys.readouterr()
    assert end.value.code == 2
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: ") and words in last and captured.err.count("error:") == 1
    assert name == "a sheet without pictures" or captured.err.count("\n") == 1


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in sample.TOOLS:
        assert verb in command_line.VERBS
        call(verb, "--help")
        assert f"sample.py {verb}" in capsys.readouterr().out
