"""`evaluate --generated`: reports of folders whose answers are known, the cache, mistakes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unclip_jax.cli import evaluate
from unclip_jax.cli.main import run
from unclip_jax.config import DataConfig
from unclip_jax.data.images import decode_image, save_png
from unclip_jax.data.records import Record
from unclip_jax.errors import UserError
from unclip_jax.evaluation import extractors, inception_weights, picture_sets
from unclip_jax.evaluation.extractors import function_extractor
from unclip_jax.evaluation.feature_cache import cached_features
from unclip_jax.evaluation.features import Extractor
from unclip_jax.evaluation.picture_scores import PictureReport, measure_pictures
from unclip_jax.evaluation.picture_sets import PictureSet, open_pictures
from unclip_jax.evaluation.picture_sheets import write_sheets
from unclip_jax.evaluation.picture_table import report_to_markdown, save_report


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path, seed: int, count: int = 24, side: int = 16) -> np.ndarray:
    """Pictures of two mean colours, so that sets of them are alike and their members are not."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 1, 1, 3)) * 0.8 + rng.uniform(
        0, 40, (count, side, side, 3)
    )
    folder.mkdir(parents=True)
    for number, image in enumerate(images.astype(np.uint8)):
        save_png(folder / f"{number:03}.png", image)
    return images.astype(np.uint8)


def means(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(len(rows), -1, 3).mean(axis=1).astype(np.float32) / 64


def colours(name: str = "inception", calls: list[int] | None = None) -> Extractor:
    def function(rows: np.ndarray) -> np.ndarray:
        if calls is not None:
            calls.append(len(rows))
        return means(rows)

    return function_extractor(name, function, side=16, batch_size=8)


def folder_of(path: Path) -> PictureSet:
    return open_pictures(str(path), "--real")


def measure(*folders: Path, train: Path | None = None) -> PictureReport:
    generated, real = (folder_of(folder) for folder in folders)
    known = None if train is None else folder_of(train)
    both = [colours(), colours("clip")]
    said: list[str] = []
    found = measure_pictures(generated, real, both, known, seed=0, say=said.append)
    assert said
    return found


def by_name(report: PictureReport) -> dict[tuple[str, str], Any]:
    return {(score.features, score.name): score for score in report.scores}


def test_the_same_pictures(tmp_path: Path) -> None:
    write(tmp_path / "a", 0)
    write(tmp_path / "b", 0)
    report = measure(tmp_path / "a", tmp_path / "b", train=tmp_path / "a")
    found = by_name(report)
    assert report.paired and (report.num_generated, report.num_real) == (24, 24)
    for name, wanted in {
        "FID": 0,
        "precision": 1,
        "recall": 1,
        "coverage": 1,
        "copies": 1,
        "memorisation ratio": 0,
        "distance to the true picture": 0,
        "cosine to the true picture": 1,
    }.items():
        assert found["inception", name].value == pytest.approx(wanted, abs=1e-5), name
    assert found["clip", "CMMD (this CLIP)"].value == pytest.approx(0, abs=1e-9)
    assert found["pixels", "SSIM"].value == pytest.approx(1)
    for score in report.scores:
        assert score.low - 1e-9 <= score.value <= score.high + 1e-9, score


def test_other_pictures(tmp_path: Path) -> None:
    write(tmp_path / "a", 0)
    write(tmp_path / "b", 1, 30)
    folder = tmp_path / "black"
    folder.mkdir()
    for number in range(10):
        save_png(folder / f"{number}.png", np.full((16, 16, 3), number, np.uint8))
    alike, black = (by_name(measure(tmp_path / name, tmp_path / "b")) for name in ("a", "black"))
    assert alike["inception", "KID × 1000"].low < 0 < alike["inception", "KID × 1000"].high
    assert black["inception", "KID × 1000"].low > 0
    assert black["inception", "FID"].low > alike["inception", "FID"].high
    assert black["inception", "recall"].value < 0.2 < 0.7 < alike["inception", "recall"].value


def test_pictures_without_partners_are_not_paired(tmp_path: Path) -> None:
    write(tmp_path / "a", 0, 24)
    write(tmp_path / "b", 1, 20)
    report = measure(tmp_path / "a", tmp_path / "b")
    assert not report.paired and report.train is None
    assert "100 subsets of 20" in report_to_markdown(report)
    assert {score.features for score in report.scores} == {"inception", "clip"}
    assert measure(tmp_path / "b", tmp_path / "a").paired  # each of the 20 has one


def test_sheets_show_both_sets_and_the_likeliest_copies(tmp_path: Path) -> None:
    write(tmp_path / "mine", 0, 70)
    write(tmp_path / "real", 1)
    write(tmp_path / "known", 2)
    names = sorted(path.name for path in (tmp_path / "mine").iterdir())
    copied = tmp_path / "known" / "copied.png"
    copied.write_bytes((tmp_path / "mine" / names[9]).read_bytes())
    report = measure(tmp_path / "mine", tmp_path / "real", train=tmp_path / "known")
    first, *others = report.likeliest_copies
    assert len(others) == 15
    assert (first.generated, first.training, first.ratio) == (names[9], "copied.png", 0)
    assert [pair.ratio for pair in others] == sorted(pair.ratio for pair in others)
    assert others[0].ratio > 0
    out = tmp_path / "out"
    save_report(out, report)
    sets = [folder_of(tmp_path / name) for name in ("mine", "real", "known")]
    write_sheets(out, report, *sets)
    sheets = {
        name: decode_image((out / f"{name}.png").read_bytes(), name=name)
        for name in ("generated", "real", "copies")
    }
    side = sets[0].picture(0).shape[0]
    cell = side + 2
    assert sheets["generated"].shape[:2] == (8 * cell + 2, 8 * cell + 2)  # 64 of 70
    assert sheets["real"].shape[:2] == (3 * cell + 2, 8 * cell + 2)
    inside = slice(2, 2 + side)
    above, below = sheets["copies"][inside, inside], sheets["copies"][cell + 4 :][:side, inside]
    np.testing.assert_array_equal(above, sets[0].picture(9))
    np.testing.assert_array_equal(below, sets[0].picture(9))


def test_files(tmp_path: Path) -> None:
    write(tmp_path / "a|b`", 0)
    write(tmp_path / "b", 1)
    report = measure(tmp_path / "a|b`", tmp_path / "b")
    text = save_report(tmp_path / "new" / "out", report)
    assert text == (tmp_path / "new" / "out" / "evaluation.md").read_text()
    data = json.loads((tmp_path / "new" / "out" / "evaluation.json").read_text())
    assert data["scores"][0]["name"] == "FID" and data["num_real"] == 24
    assert data["kid_of_subsets"]["size"] == 24 and "as its authors" not in text
    table = next(iter(re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)))
    assert {line.count("|") for line in table.splitlines()} == {6}
    assert len(table.splitlines()) == 2 + len(report.scores)
    assert "what it says" in text and "says nothing by itself" in text
    assert all(not line.endswith("|  |") for line in table.splitlines())  # every score is explained
    assert report_to_markdown(measure(tmp_path / "a|b`", tmp_path / "b")) == text


def test_reference_features_are_cached(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "a", 0)
    calls: list[int] = []
    extractor = colours(calls=calls)
    calls.clear()
    first, was_there = cached_features(extractor, folder_of(tmp_path / "a"), print)
    assert not was_there and calls == [8, 8, 8]
    (file,) = (cache / "features").iterdir()
    np.testing.assert_array_equal(np.load(file), first)  # a plain .npy
    again, was_there = cached_features(extractor, folder_of(tmp_path / "a"), print)
    assert was_there and len(calls) == 3
    np.testing.assert_array_equal(again, first)
    # Another name of the same pictures is the same; another picture or extractor is not.
    (tmp_path / "a").rename(tmp_path / "moved")
    assert cached_features(extractor, folder_of(tmp_path / "moved"), print)[1]
    assert not cached_features(colours("other"), folder_of(tmp_path / "moved"), print)[1]
    save_png(tmp_path / "moved" / "003.png", np.zeros((16, 16, 3), np.uint8))
    assert not cached_features(extractor, folder_of(tmp_path / "moved"), print)[1]
    # What is damaged is made again.
    for one in (cache / "features").iterdir():
        one.write_bytes(one.read_bytes()[:-7])
    assert not cached_features(extractor, folder_of(tmp_path / "moved"), print)[1]
    assert cached_features(extractor, folder_of(tmp_path / "moved"), print)[1]


def test_too_few_and_damaged(tmp_path: Path) -> None:
    write(tmp_path / "a", 0)
    write(tmp_path / "few", 1, 5)
    with pytest.raises(UserError, match="has 5 pictures: give 6 or more"):
        measure(tmp_path / "a", tmp_path / "few")
    (tmp_path / "a" / "007.png").write_bytes(b"no picture")
    write(tmp_path / "b", 1)
    with pytest.raises(UserError, match=r"007\.png: not a picture"):
        measure(tmp_path / "a", tmp_path / "b")


@pytest.fixture
def tiny_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean colours in its place: the network is tested on its own."""
    monkeypatch.setattr(inception_weights, "load_inception", lambda: None)
    tiny: Callable[..., Extractor] = lambda params, batch_size: colours()  # noqa: E731
    monkeypatch.setattr(extractors, "inception_extractor", tiny)


@pytest.mark.usefixtures("tiny_inception")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", 0)
    write(tmp_path / "b", 1)
    given = ["--generated", f"{tmp_path}/a", "--real", f"{tmp_path}/b", "--train", f"{tmp_path}/a"]
    out = tmp_path / "out"
    assert evaluate.main([*given, "--features", "inception", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == (out / "evaluation.md").read_text()
    assert "24 generated pictures" in said.err
    names = [score["name"] for score in json.loads((out / "evaluation.json").read_text())["scores"]]
    assert names[:3] == ["FID", "KID × 1000", "precision"]
    assert {"copies", "SSIM"} < set(names)
    assert evaluate.main([*given, "--features", "inception", "--out", str(out)]) == 0
    assert capsys.readouterr().err.count("were in the cache") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--generated a", "name both"),
        ("--real a", "name both"),
        ("--train a", "name --generated"),
        ("--generated a --real b --features inceptoin", "did you mean inception"),
        ("--generated a --real b --features inception,", "is unknown"),
        ("--generated a --real b --prior p --clip c", "leave it out"),
        ("--generated nowhere --real b", "--generated 'nowhere' is no folder"),
        ("--generated empty --real b", "no pictures"),
        ("--generated a --real nowhere", "--real 'nowhere' is no folder"),
        ("--generated a --real emoji:tset", "did you mean test"),
        ("--generated a --real b --train emoji:", "--train 'emoji:': no such split"),
        ("--generated a --real b --out a/000.png", "is a file"),
        ("--generated few --real a --features inception", "few has 2 pictures: give 6"),
        ("--generated text --real a", "notes.png: not a picture"),
    ],
)
@pytest.mark.usefixtures("tiny_inception")
def test_mistakes_are_one_line(
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a"), 0, 6)
    write(Path("b"), 1, 6)
    write(Path("few"), 2, 2)
    for name in ("empty", "text"):
        Path(name).mkdir()
    Path("text/notes.png").write_text("no picture")
    with pytest.raises(SystemExit) as stop:
        run(evaluate.main, arguments.split())
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not Path("eval").exists()


def test_emoji_are_brought_to_the_side_of_the_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 7, np.uint8)).save(drawn, "PNG")
    asked: list[DataConfig] = []

    def source(config: DataConfig) -> list[Record]:
        asked.append(config)
        return [Record("a", drawn.getvalue(), ("a",))] * 9

    monkeypatch.setattr(picture_sets, "open_source", source)
    found = open_pictures("emoji:test_cells", "--real", 32)
    assert (found.picture(0) == 7).all() and found.picture(0).shape == (32, 32, 3)
    assert len(found) == 9 and found.names[1] == "emoji:test_cells[1]"
    assert found.digest() != open_pictures("emoji:test_cells", "--real", 16).digest()
    open_pictures("emoji:test", "--real", 5000)
    assert [(one.split, one.image_size) for one in asked] == [
        ("test_cells", 32),
        ("test_cells", 16),
        ("test", 1024),
    ]


def test_the_grid_of_a_folder_of_samples_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "out", 0, count=3)
    save_png(tmp_path / "out" / "grid.png", np.zeros((8, 8, 3), np.uint8))
    assert "grid.png" in folder_of(tmp_path / "out").names  # of whatever origin
    (tmp_path / "out" / "manifest.jsonl").write_text("")
    assert folder_of(tmp_path / "out").names == ("000.png", "001.png", "002.png")
