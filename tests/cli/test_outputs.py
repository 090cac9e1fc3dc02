"""Where sample.py's pictures go: files without metadata, tar shards, lines of JSON; and that a
picture's bytes depend on its own line alone."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.generation.test_all_stages import stage
from unclip_jax.cli import sample
from unclip_jax.generation.rows import RowRunner
from unclip_jax.training.weights import save_stage

FLAGS = ("--batch-size", "3", "--steps", "2", "--prior", "none", "--num-images", "2")
LINES: list[dict[str, Any]] = [
    {"prompt": "a red apple", "seed": 3},
    {"prompt": "a blue car", "guidance": 1},
    {"prompt": "a green tree", "negative": "a red apple", "n": 1, "name": "tree"},
    {"prompt": "a red apple", "guidance": 2, "n": 3},
    {"prompt": "a blue car", "guidance": 5, "seed": 1},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    clip = stage("clip")
    save_stage(clip, folder / "clip", "float32")
    save_stage(stage("decoder", clip.clip_id), folder / "decoder", "float32")
    return folder


def draw(model: Path, out: Path, lines: list[dict[str, Any]], *more: str) -> int:
    path = out.parent / f"{out.name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--prompts", str(path), "--model", str(model), "--out", str(out))
    return sample.main(["text", *options, *FLAGS, *more])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def by_request(folder: Path) -> dict[str, bytes]:
    """The pictures' bytes by what they say of themselves; file names hold numbers."""
    found = {}
    for row in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines()):
        key = {name: row.get(name) for name in ("prompt", "seed", "index", "guidance", "negative")}
        found[json.dumps(key)] = (folder / row["path"]).read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert draw(model, out, LINES) == 0
    return out


def test_order_and_company_change_no_byte(model: Path, whole: Path, tmp_path: Path) -> None:
    """In one file of all kinds, backwards, and a line alone."""
    expected = by_request(whole)
    assert len(expected) == 10 == len(set(expected.values()))
    assert draw(model, tmp_path / "backwards", LINES[::-1]) == 0
    assert by_request(tmp_path / "backwards") == expected
    assert draw(model, tmp_path / "alone", LINES[2:3]) == 0
    assert by_request(tmp_path / "alone").items() <= expected.items()


def test_one_three_or_eight_prompts(model: Path, tmp_path: Path) -> None:
    """By one command each, and again from the metadata of one of them."""
    lines = [{"prompt": f"a {word}", "seed": n, "n": 1} for n, word in enumerate("abcdefgh")]
    found = []
    for part in (lines, lines[4:7][::-1], lines[5:6]):
        out = tmp_path / str(len(part))
        assert draw(model, out, part) == 0
        found.append(by_request(out))
        assert len(found[-1]) == len(part)
    assert found[2].items() <= found[1].items() <= found[0].items()
    name = "00005_a-f_0.png"
    own = ("--model", str(model), "--out", str(tmp_path / "again"))
    assert sample.main(["from", str(tmp_path / "8" / name), *own]) == 0
    assert (tmp_path / "again" / name).read_bytes() in found[2].values()


def test_names_and_numbers_follow_the_file(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "manifest.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [
        "00000_a-red-apple_0.png",
        "00001_a-red-apple_1.png",
        "00002_a-blue-car_0.png",
        "00003_a-blue-car_1.png",
        "tree.png",
        "00005_a-red-apple_0.png",
        "00006_a-red-apple_1.png",
        "00007_a-red-apple_2.png",
        "00008_a-blue-car_0.png",
        "00009_a-blue-car_1.png",
    ]
    assert set(files(whole)) == {*(row["path"] for row in rows), "grid.png", "manifest.jsonl"}


@pytest.mark.parametrize("more", [(), ("--no-metadata",), ("--format", "tar", "--shard-size", "4")])
def test_a_job_that_was_killed_continues(
    more: tuple[str, ...],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As kills leave a folder: pictures and lines, the last of them cut off, and no end."""
    assert draw(model, tmp_path / "whole", LINES, *more) == 0
    expected, starts = files(tmp_path / "whole"), []
    start = RowRunner.start

    def dies(self: RowRunner, *arguments: Any) -> Any:
        starts.append(1)
        if len(starts) == 4:
            raise KeyboardInterrupt
        return start(self, *arguments)

    monkeypatch.setattr(RowRunner, "start", dies)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        draw(model, out, LINES, *more)
    manifest = out / "manifest.jsonl"
    done = len(manifest.read_text().splitlines())
    assert 0 < done < 10 and not (out / "grid.png").exists()
    manifest.write_bytes(manifest.read_bytes()[:-9])
    monkeypatch.setattr(RowRunner, "start", start)
    capsys.readouterr()
    assert draw(model, out, LINES, *more) == 0
    lost = "--no-metadata" in more  # a picture is known by its line
    said = f"({done - lost} kept, {10 - done} drawn, {int(lost)} replaced)"
    assert said in capsys.readouterr().out
    assert files(out) == expected and all(path.is_file() for path in out.iterdir())
    monkeypatch.setattr(RowRunner, "start", None)
    assert draw(model, out, LINES, *more) == 0
    assert "(10 kept, 0 drawn, 0 replaced)" in capsys.readouterr().out
    assert files(out) == expected


def test_no_metadata_leaves_none(
    model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert draw(model, out, LINES, "--no-metadata") == 0
    for path in out.glob("*.png"):
        with Image.open(path) as image, Image.open(whole / path.name) as other:
            assert not {*image.info} and image.tobytes() == other.tobytes()
        data = path.read_bytes()
        assert not any(kind in data for kind in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME"))
    # A file that somebody changed is not the one that the manifest means.
    changed = out / "tree.png"
    changed.write_bytes((whole / "00000_a-red-apple_0.png").read_bytes())
    before = capsys.readouterr() and files(out)
    assert draw(model, out, LINES, "--no-metadata") == 0
    assert "(9 kept, 0 drawn, 1 replaced)" in capsys.readouterr().out
    assert files(out)["tree.png"] != before["tree.png"]
    # With metadata all are other files, and without again.
    assert draw(model, out, LINES) == 0
    assert "(0 kept, 0 drawn, 10 replaced)" in capsys.readouterr().out
    assert files(out) == files(whole)


def test_shards_hold_the_same_pictures(
    model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tar = ("--format", "tar", "--shard-size", "4")
    assert draw(model, out, LINES, *tar) == 0
    shards = [f"pictures-{number:06d}.tar" for number in range(3)]
    assert sorted(files(out)) == ["grid.png", "manifest.jsonl", *shards]
    expected = files(whole)
    assert (out / "grid.png").read_bytes() == expected["grid.png"]
    names = []
    for shard in shards:
        with tarfile.open(out / shard) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name.endswith(".png"):
                    names.append(member.name)
                    assert data == expected[member.name]
                if member.name == "tree.txt":
                    assert data == b"a green tree"
                if member.name == "tree.json":
                    assert json.loads(data)["negative"] == "a red apple"
    rows = [json.loads(line) for line in (whole / "manifest.jsonl").read_text().splitlines()]
    assert names == [row["path"] for row in rows]
    told = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [row.pop("path") for row in told][4] == "pictures-000001.tar/tree.png"
    assert told == [{name: v for name, v in row.items() if name != "path"} for row in rows]
    # A shard that is cut off, and one of other pictures, are written again; the third stays.
    (out / shards[0]).write_bytes((out / shards[0]).read_bytes()[:-2000])
    (out / shards[1]).write_bytes((out / shards[2]).read_bytes())
    kept, before = (out / shards[2]).stat().st_ino, files(tmp_path / "out")
    capsys.readouterr()
    assert draw(model, out, LINES, *tar) == 0
    assert "(2 kept, 0 drawn, 8 replaced)" in capsys.readouterr().out
    after = files(out)
    assert after[shards[0]] != before[shards[0]] and after[shards[1]] != before[shards[1]]
    assert (out / shards[2]).stat().st_ino == kept and not (out / ".unpacked").exists()


def test_a_line_of_json_for_each_finished_picture(
    model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert draw(model, out, LINES[:1]) == 0
    capsys.readouterr()
    assert draw(model, out, LINES[:2], "--format", "jsonl") == 0
    told = capsys.readouterr()
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert len(rows) == 4 and "4 pictures in" in told.err
    assert [row["prompt"] for row in rows[:2]] == ["a red apple"] * 2  # those that were there
    for row in rows:
        path = Path(row["path"])
        assert path.read_bytes() == (whole / path.name).read_bytes()
        assert {"seed", "index", "sha256", "weights"} <= set(row)


def test_a_grid_with_words(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    grid = ("--grid", "rows=prompts,cols=steps:2,3,ddim2")
    lines = [{"prompt": "a red apple"}, {"prompt": "a blue car"}]
    assert draw(model, out, lines, *grid) == 0
    assert len(list(out.glob("0*.png"))) == 6
    with Image.open(out / "grid.png") as sheet:
        assert sheet.width > 3 * 128 + 100 and sheet.height > 2 * 128


def test_settings_that_do_not_fit_name_their_line(model: Path, tmp_path: Path) -> None:
    lines = [LINES[0], {"prompt": "a", "sampler": "unipc", "eta": 0.5}]
    with pytest.raises(ValueError, match=r"out\.jsonl:2: eta is 0\.5, but only ddim reads it"):
        draw(model, tmp_path / "out", lines)
