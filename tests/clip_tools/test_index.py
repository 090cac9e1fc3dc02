"""An index follows its folder, survives a kill anywhere, and is refused when damaged."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unclip_jax.cli import main as command_line
from unclip_jax.clip_tools import index as index_files
from unclip_jax.clip_tools.array_file import pack_rows
from unclip_jax.clip_tools.encoding import encode_pictures
from unclip_jax.clip_tools.index import open_index
from unclip_jax.clip_tools.index_writer import write_index
from unclip_jax.data.images import decode_image, picture_bytes
from unclip_jax.errors import UserError
from unclip_jax.pipeline import UnCLIP


def content(index: Path) -> dict[str, np.ndarray]:
    """The embedding of every picture, by name."""
    opened = open_index(index)
    return {
        name: row
        for place in range(len(opened.manifest.shards))
        for name, row in zip(opened.names(place), opened.embeddings(place), strict=True)
    }


def check(clip: UnCLIP, folder: Path, index: Path) -> None:
    """The index holds every picture of the folder, each with its own embedding, and no other."""
    found = content(index)
    assert sorted(found) == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    for name, row in found.items():
        photo = decode_image(picture_bytes(folder / name), name=name)
        np.testing.assert_allclose(row, encode_pictures(clip, [photo])[0], atol=1e-6)
    files = {entry.number for entry in open_index(index).manifest.shards}
    assert len(list(index.iterdir())) == 2 + 2 * len(files)  # index.json and the lock


def test_arrays_are_plain(clip: UnCLIP, folder: Path, index: Path) -> None:
    check(clip, folder, index)
    rows = np.load(index / "shard-00000.npy")
    assert rows.shape == (5, 16) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    listed = json.loads((index / "shard-00000.json").read_text())
    assert listed["names"] == sorted(path.name for path in folder.glob("*.png"))[:5]
    assert str(folder) not in (index / "index.json").read_text()


def test_float16(clip: UnCLIP, folder: Path, tmp_path: Path) -> None:
    write_index(clip, folder, tmp_path / "half", dtype="float16")
    assert np.load(tmp_path / "half" / "shard-00000.npy").dtype == np.float16
    hits = clip.search(tmp_path / "half", "a red circle", k=12)
    assert len({hit.name for hit in hits}) == 12


def test_only_what_changed_is_encoded(clip: UnCLIP, folder: Path, index: Path) -> None:
    def again() -> int:
        done = write_index(clip, folder, index, shard_rows=5)
        check(clip, folder, index)
        return done.encoded

    assert again() == 0
    (folder / "sub").mkdir()
    (folder / "sub" / "new.png").write_bytes((folder / "red_bar.png").read_bytes())
    assert again() == 1
    (folder / "red_bar.png").write_bytes((folder / "blue_bar.png").read_bytes())
    os.utime(folder / "red_bar.png", ns=(1, 1))  # whatever the resolution of the file system's
    assert again() == 1
    (folder / "blue_cross.png").unlink()
    assert again() == 0
    for path in folder.glob("green*.png"):
        path.rename(folder / "sub" / path.name)
    assert again() == 4
    assert again() == 0
    sizes = [entry.rows for entry in open_index(index).manifest.shards]
    assert sum(sizes) == 12 and len(sizes) <= 4


def test_bad_pictures_are_left_out_and_listed(clip: UnCLIP, folder: Path, tmp_path: Path) -> None:
    (folder / "a broken.png").write_bytes(b"no picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    done = write_index(clip, folder, tmp_path / "index", shard_rows=5)
    assert (done.pictures, done.encoded) == (12, 12)
    assert [name for name, _ in done.unreadable] == ["a broken.png", "empty.jpg"]
    assert done.unreadable[1][1] == "the file is empty"
    again = write_index(clip, folder, tmp_path / "index", shard_rows=5)
    assert (again.encoded, again.unreadable) == (0, done.unreadable)
    assert "empty.jpg" not in content(tmp_path / "index")
    (folder / "empty.jpg").write_bytes((folder / "red_bar.png").read_bytes())  # mended
    mended = write_index(clip, folder, tmp_path / "index", shard_rows=5)
    assert (mended.encoded, len(mended.unreadable)) == (1, 1)


def test_killed_at_any_file_it_continues(
    clip: UnCLIP, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files appear whole or not at all, so a kill is between two of them."""
    write = index_files.write_whole
    for last in range(8):  # index.json, three times .npy and .json, index.json
        out, left = tmp_path / str(last), last

        def write_some(path: Path, data: bytes) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            write(path, data)

        monkeypatch.setattr(index_files, "write_whole", write_some)
        with pytest.raises(KeyboardInterrupt):
            write_index(clip, folder, out, shard_rows=5)
        if last > 0:
            with pytest.raises(UserError, match="not finished: run the same `unclip index` again"):
                open_index(out)
        monkeypatch.setattr(index_files, "write_whole", write)
        whole = max(0, last - 1) // 2
        done = write_index(clip, folder, out, shard_rows=5)
        assert done.encoded == 12 - min(12, 5 * whole)
        check(clip, folder, out)


def test_an_update_that_is_killed_leaves_the_old_index(
    clip: UnCLIP, folder: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(index)
    for path in folder.glob("red*.png"):
        os.utime(path, ns=(1, 1))
    monkeypatch.setattr("unclip_jax.clip_tools.index_writer._finish", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_index(clip, folder, index, shard_rows=5)
    assert content(index).keys() == before.keys()
    monkeypatch.undo()
    assert write_index(clip, folder, index, shard_rows=5).encoded == 0  # the shards were written
    check(clip, folder, index)


def _interrupted(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_damaged_shards_are_made_again(clip: UnCLIP, folder: Path, index: Path) -> None:
    flip(index / "shard-00001.npy", 200)
    with pytest.raises(UserError, match=r"shard-00001\.npy is damaged"):
        clip.search(index, "a")
    assert write_index(clip, folder, index, shard_rows=5).encoded == 5
    check(clip, folder, index)
    flip(index / "shard-00000.json", 60)
    assert write_index(clip, folder, index, shard_rows=5).encoded == 5
    check(clip, folder, index)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def array_of(shape: tuple[int, ...], data: bytes, descr: str = "<f4") -> bytes:
    out = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + data


ROWS = np.eye(5, 16, dtype=np.float32)
ARRAYS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read"),
    "not npy": (b"PK\x03\x04" + bytes(400), "cannot be read"),
    "version 3": (b"\x93NUMPY\x03\x00" + pack_rows(ROWS)[8:], "as numpy.save writes"),
    "cut": (pack_rows(ROWS)[:-1], "header announces"),
    "too long": (pack_rows(ROWS) + b"\0", "header announces"),
    "other rows": (pack_rows(ROWS[:4]), "not 5 x 16 numbers"),
    "other width": (pack_rows(np.eye(5, 17, dtype=np.float32)), "not 5 x 16 numbers"),
    "other type": (pack_rows(ROWS.astype(np.float16)), "not 5 x 16 numbers"),
    "float64": (pack_rows(ROWS.astype(np.float64)), "as numpy.save writes"),
    "big-endian": (array_of((5, 16), bytes(320), ">f4"), "as numpy.save writes"),
    "a huge shape": (array_of((1 << 39, 1 << 39), b""), "not 5 x 16 numbers"),
    "a negative shape": (array_of((-5, 16), bytes(320)), "as numpy.save writes"),
    "python objects": (array_of((5, 16), bytes(640), "|O"), "as numpy.save writes"),
    "a nested header": (
        b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"[" * 9000,
        "cannot be read",
    ),
    "a header cut off": (pack_rows(ROWS)[:60], "as numpy.save writes"),
    "columns first": (pack_rows(ROWS).replace(b"False, ", b"True,  "), "as numpy.save writes"),
    "not finite": (pack_rows(np.where(ROWS > 0, np.float32("nan"), ROWS)), "finite"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_hostile_arrays_are_refused(name: str, clip: UnCLIP, index: Path) -> None:
    """With hashes that fit: an index from a stranger has those."""
    data, words = ARRAYS[name]
    (index / "shard-00000.npy").write_bytes(data)
    change_manifest(index, lambda m: m["shards"][0].update(rows_sha256=sha(data)))
    refuse(clip, index, words)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (lambda m: m.update(format=2), "not of format 1"),
    "a text for a width": (lambda m: m.update(width="16"), "width is '16'"),
    "an unknown field": (lambda m: m.update(run="rm"), "run: no such field"),
    "no shards": (lambda m: m.update(shards=[]), "not finished"),
    "shards of numbers": (lambda m: m.update(shards=[1, 2]), "expected an object"),
    "another width": (lambda m: m.update(width=17), "was made with CLIP"),
    "another CLIP": (lambda m: m.update(clip_id="0" * 16), "CLIP 0000000000000000"),
    "no width": (lambda m: m.update(width=0), "is damaged"),
    "a huge width": (lambda m: m.update(width=1 << 60), "is damaged"),
    "a huge shard": (lambda m: m["shards"][1].update(rows=1 << 50), "is damaged"),
    "fewer than no rows": (lambda m: m["shards"][1].update(rows=-1), "is damaged"),
    "a number below 0": (lambda m: m["shards"][1].update(number=-1), "is damaged"),
    "a number twice": (lambda m: m["shards"][1].update(number=0), "is damaged"),
    "a fraction": (lambda m: m["shards"][1].update(rows=5.5), "rows is 5.5"),
    "a long number": (lambda m: m["shards"][1].update(number=10**400), "cannot be read"),
    "another type": (lambda m: m.update(dtype="object"), "dtype is 'object'"),
    "a missing shard": (lambda m: m["shards"][1].update(number=77), "shard-00077.npy"),
    "another hash": (lambda m: m["shards"][1].update(rows_sha256="0"), "SHA-256"),
    "another list": (lambda m: m["shards"][0].update(list_sha256="0"), "SHA-256"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_hostile_manifests_are_refused(name: str, clip: UnCLIP, index: Path) -> None:
    change, words = MANIFESTS[name]
    change_manifest(index, change)
    refuse(clip, index, words)


LISTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a name that climbs": (lambda d: d["names"].__setitem__(0, "../../etc/passwd.png"), "below"),
    "a name inside that climbs": (lambda d: d["names"].__setitem__(0, "a/../../b.png"), "below"),
    "an absolute name": (lambda d: d["names"].__setitem__(0, "/etc/passwd.png"), "below"),
    "no name": (lambda d: d["names"].__setitem__(0, ""), "below"),
    "a name with NUL": (lambda d: d["names"].__setitem__(0, "a\0.png"), "below"),
    "a number for a name": (lambda d: d["names"].__setitem__(0, 7), "names[0] is 7"),
    "too few names": (lambda d: d["names"].pop(), "columns differ"),
    "more reasons than names": (lambda d: d.update(unreadable=["x"] * 9), "columns differ"),
    "fewer rows": (lambda d: d.update(unreadable=["x"]), "does not belong"),
    "an object": (lambda d: d.update(names={"a": 1}), "names is"),
}


@pytest.mark.parametrize("name", LISTS)
def test_hostile_lists_are_refused(name: str, clip: UnCLIP, index: Path) -> None:
    change, words = LISTS[name]
    path = index / "shard-00000.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    digest = sha(path.read_bytes())
    change_manifest(index, lambda m: m["shards"][0].update(list_sha256=digest))
    refuse(clip, index, words)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"format": NaN}'])
def test_a_manifest_that_is_no_json_is_refused(data: bytes, clip: UnCLIP, index: Path) -> None:
    (index / "index.json").write_bytes(data)
    refuse(clip, index, "index.json")


def change_manifest(index: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = index / "index.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refuse(clip: UnCLIP, index: Path, words: str) -> None:
    with pytest.raises(UserError) as caught:
        clip.search(index, "a", k=12)
    line = str(caught.value)
    assert words in line and str(index) in line and "\n" not in line and ":" in line


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_flipped_byte_of_a_shard_is_noticed(clip: UnCLIP, index: Path) -> None:
    for path in (index / "shard-00001.npy", index / "shard-00001.json"):
        whole = path.read_bytes()
        for place in range(0, len(whole), 37):
            flip(path, place)
            with pytest.raises(UserError, match=path.name):
                clip.search(index, "a", k=12)
            path.write_bytes(whole)


def test_folders_that_do_not_fit_are_refused(
    clip: UnCLIP, folder: Path, index: Path, tmp_path: Path
) -> None:
    def refused(words: str, source: Path = folder, out: Path = index, **options: Any) -> None:
        with pytest.raises(UserError, match=words):
            write_index(options.pop("model", clip), source, out, **options)

    other = UnCLIP({"clip": replace(clip.clip, clip_id="f" * 16)}, clip.sampling)
    refused("made with CLIP .*this model's is f{16}", model=other)
    refused("has dtype 'float32', this command 'float16'", dtype="float16")
    (tmp_path / "more").mkdir()
    refused("has no pictures", source=tmp_path / "more")
    refused("does not exist", source=tmp_path / "nowhere")
    (tmp_path / "more" / "a.png").write_bytes(b"x")
    refused("has folder '../pictures'", source=tmp_path / "more")
    refused(
        "none of the 1 pictures can be read, the first is a.png", tmp_path / "more", tmp_path / "i"
    )
    before = sorted(folder.iterdir())
    refused("holds other files", out=folder)
    assert sorted(folder.iterdir()) == before  # not even a lock is left there
    refused("is a file", out=folder / "red_bar.png")
    refused("shard_rows is 0", shard_rows=0)
    with pytest.raises(UserError, match="holds no index"):
        open_index(tmp_path / "more")


def test_two_at_once_are_refused(clip: UnCLIP, folder: Path, index: Path) -> None:
    from unclip_jax.training.run_lock import RunLock

    with RunLock(index, "--out"), pytest.raises(UserError, match=r"in use .*name another --out"):
        write_index(clip, folder, index)


def test_inspect(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `unclip inspect` says of an index, whole and damaged."""

    def inspect(*options: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as end:
            command_line.main(["inspect", str(index), "--json", *options])
        found = json.loads(capsys.readouterr().out)
        assert end.value.code == bool(found["problems"])
        return found

    found = inspect("--verify")
    assert found["kind"] == "index of pictures" and not found["problems"]
    assert found["facts"]["pictures"] == 12 and found["facts"]["shards"] == 3
    rows = index / "shard-00001.npy"
    rows.write_bytes(rows.read_bytes()[:-1] + b"\0")
    assert not inspect()["problems"]
    assert "shard-00001.npy" in inspect("--verify")["problems"][0]
    (index / "shard-00002.json").unlink()
    assert "shard-00002.json" in inspect()["problems"][0]
