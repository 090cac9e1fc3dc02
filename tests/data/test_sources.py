"""Other people's data: folders, tar shards, TFDS data sets, and what is said about bad ones."""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unclip_jax.cli.data import main
from unclip_jax.config import DataConfig
from unclip_jax.data.images import BadImage, decode_image
from unclip_jax.data.pipeline import make_batches
from unclip_jax.data.sources import Source, open_source
from unclip_jax.errors import UserError


def png(number: int, size: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


def read(source: Source) -> list[tuple[str, int, Any]]:
    """(name, red of the first pixel, captions) of every record."""
    records = [source[i] for i in range(len(source))]
    return [(r.name, int(decode_image(r.image, name=r.name)[0, 0, 0]), r.captions) for r in records]


# A folder


def make_folder(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "b.png").write_bytes(png(1))
    (folder / "b.txt").write_text("one\n\n  first  \n")
    (folder / "sub" / "a.PNG").write_bytes(png(2))
    (folder / "sub" / "a.txt").write_text("two", encoding="utf-8-sig")
    (folder / "notes.md").write_text("no picture")
    (folder / ".hidden.png").write_bytes(png(9))
    return folder


def test_folder_with_text_files(tmp_path: Path) -> None:
    source = open_source(DataConfig(source=str(make_folder(tmp_path))))
    assert read(source) == [("b.png", 1, ("one", "first")), ("sub/a.PNG", 2, ("two",))]


def test_folder_with_a_list(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "c.png").write_bytes(png(3))
    lines = [
        {"file": "c.png", "caption": "three"},
        {"image": "./sub/a.PNG", "text": ["two", "zwei"]},
        {"file_name": "c.png", "caption": "drei"},
        {"file": "../outside.png", "caption": "is never opened"},
    ]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read(open_source(DataConfig(source=str(folder)))) == [
        ("b.png", 1, ("one", "first")),
        ("c.png", 3, ("three", "drei")),
        ("sub/a.PNG", 2, ("two", "zwei")),
    ]


def test_pictures_without_a_caption_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path)
    (folder / "z.png").write_bytes(png(3))
    assert len(open_source(DataConfig(source=str(folder)))) == 2
    assert "1 of 3 pictures have no caption" in capsys.readouterr().err


def test_a_folder_trains(tmp_path: Path) -> None:
    source = open_source(DataConfig(source=str(make_folder(tmp_path))))

    def tokenize(texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(text)] for text in texts], np.int32)

    stream = make_batches(source, image_size=4, batch_size=4, tokenize=tokenize, seed=0)
    for batch in itertools.islice(stream, 3):
        assert batch["image"].shape == (4, 4, 4, 3)
        assert sorted(batch["image"][:, 0, 0, 0]) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"source": "none"}, "no such folder"),
        ({"source": "empty"}, "no pictures"),
        ({"source": "bare"}, "none of its 1 pictures has a caption"),
        ({"source": "list"}, r"captions.jsonl, line 2: not JSON"),
        ({"source": "list2"}, r"captions.jsonl, line 1: expected"),
        ({"source": "latin"}, r"p.txt: cannot be read as UTF-8"),
        ({"source": "bare", "split": "test"}, "has only 'train'"),
        ({"source": "none*.tar"}, "no file matches"),
        ({"source": "text.tar"}, "not a tar file"),
        ({"source": "zeros.tar"}, "no picture with a caption"),
        ({"source": "tfds:none"}, "no TFDS data set"),
        ({"source": "tfds:broken"}, "not a readable TFDS data set"),
    ],
)
def test_user_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], message: str
) -> None:
    for name in ("empty", "bare", "list", "list2", "latin", "broken"):
        (tmp_path / name).mkdir()
        if name not in ("empty", "broken"):
            (tmp_path / name / "p.png").write_bytes(png(1))
    (tmp_path / "list" / "captions.jsonl").write_text('{"file": "p.png", "text": "a"}\n{oops\n')
    (tmp_path / "list2" / "captions.jsonl").write_text('["p.png", "a"]\n')
    (tmp_path / "latin" / "p.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "text.tar").write_text("hello " * 500)
    (tmp_path / "zeros.tar").write_bytes(bytes(10240))
    (tmp_path / "broken" / "dataset_info.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        open_source(DataConfig(cache_dir=str(tmp_path / "cache"), **config))
    assert "\n" not in str(caught.value)


# Tar shards


def make_shard(path: Path, count: int, first: int = 0, kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for number in range(first, first + count):
            key = f"{number:05d}"
            parts = {
                f"{key}.png": png(number),
                f"{key}.txt": f"caption {number}".encode(),
                f"{key}.json": json.dumps({"caption": "not this one"}).encode(),
            }
            for name, data in parts.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_shards(tmp_path: Path, kind: int) -> None:
    make_shard(tmp_path / "01.tar", 3, first=10, kind=kind)
    make_shard(tmp_path / "00.tar", 2, kind=kind)
    source = open_source(DataConfig(source=str(tmp_path / "*.tar")))
    assert read(source) == [
        ("00.tar/00000", 0, ("caption 0",)),
        ("00.tar/00001", 1, ("caption 1",)),
        ("01.tar/00010", 10, ("caption 10",)),
        ("01.tar/00011", 11, ("caption 11",)),
        ("01.tar/00012", 12, ("caption 12",)),
    ]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_json_captions_and_incomplete_samples(tmp_path: Path, kind: int) -> None:
    long = "folder/" + "n" * 150
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
        add(tar, f"{long}.png", png(5))
        add(tar, f"{long}.json", b'{"text": "from json", "caption": ""}')
        add(tar, "only.png", png(6))
        add(tar, "only.txt.bak", b"no")
        add(tar, "x/first.jpg", png(7))
        add(tar, "y/first.txt", b"another folder")
        add(tar, "name.with.dots.png", png(8))
    assert read(open_source(DataConfig(source=str(tmp_path / "a.tar")))) == [
        (f"a.tar/{long}", 5, ("from json",))
    ]


def test_members_are_keys_never_paths(tmp_path: Path) -> None:
    """Nothing is written or followed, whatever a member is called."""
    (tmp_path / "in").mkdir()
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        add(tar, "../../up.png", png(1))
        add(tar, "../../up.txt", b"one")
        add(tar, "/abs.png", png(2))
        add(tar, "/abs.txt", b"two")
        add(tar, "link.png", png(3))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    found = read(open_source(DataConfig(source=str(tmp_path / "in" / "a.tar"))))
    assert [captions for _, _, captions in found] == [("one",), ("two",)]
    assert sorted(os.listdir(tmp_path)) == ["in", "secret.txt"]


def test_a_sample_without_caption_text_is_a_bad_record(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.png", png(1))
        add(tar, "a.txt", b"  \n")
        add(tar, "b.png", png(1))
        add(tar, "b.json", b"[" * 100_000)
    source = open_source(DataConfig(source=str(tmp_path / "a.tar")))
    for index in range(2):
        with pytest.raises(BadImage, match="no caption"):
            source[index]


def test_a_shard_cut_anywhere_gives_its_complete_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_shard(tmp_path / "whole.tar", 4).read_bytes()
    expected = [("caption 0",), ("caption 1",), ("caption 2",), ("caption 3",)]
    sizes = set()
    cut = tmp_path / "cut.tar"
    for length in range(0, len(whole), 256):
        cut.write_bytes(whole[:length])
        try:
            found = read(open_source(DataConfig(source=str(cut))))
        except UserError:
            sizes.add(0)
            continue
        sizes.add(len(found))
        assert [captions for _, _, captions in found] == expected[: len(found)]
    assert sizes == {0, 1, 2, 3, 4}
    assert "ends early, 2 complete samples are used" in capsys.readouterr().err


def test_damaged_shards_never_hang_or_crash(tmp_path: Path) -> None:
    whole = make_shard(tmp_path / "whole.tar", 3).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "bad.tar"
    for _ in range(200):
        data = bytearray(whole[: 3 * 3 * 1024])
        for place in rng.integers(0, len(data), 6):
            data[place] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            source = open_source(DataConfig(source=str(path)))
        except UserError:
            continue
        for index in range(len(source)):
            try:
                record = source[index]
                decode_image(record.image, name=record.name)
            except BadImage:
                continue


def test_sizes_that_point_backwards_or_beyond(tmp_path: Path) -> None:
    """The archives of CVE-2025-8194: a size below zero must not send the reader back."""
    whole = bytearray(make_shard(tmp_path / "whole.tar", 2).read_bytes())
    for field in (b"-0000001000\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11):
        header = bytearray(whole)
        header[124:136] = field
        checksum = sum(header[:148]) + 8 * 32 + sum(header[156:512])
        header[148:156] = f"{checksum:06o}\0 ".encode()
        (tmp_path / "bad.tar").write_bytes(bytes(header))
        with pytest.raises(UserError):
            open_source(DataConfig(source=str(tmp_path / "bad.tar")))


# TFDS


def make_tfds(folder: Path) -> Path:
    """A data set as other people write them: an image, several captions, a class."""
    import tensorflow_datasets as tfds

    class Squares(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")
        code_path = None
        url_infos = None
        pkg_dir_path = folder  # pyright: ignore[reportAssignmentType]

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "caption": tfds.features.Text(),
                "many": tfds.features.Sequence(tfds.features.Text()),
                "label": tfds.features.ClassLabel(names=["red_square", "none"]),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(5), "validation": self._generate_examples(2)}

        def _generate_examples(self, count: int) -> Any:
            for number in range(count):
                many = [f"{number} a", f"{number} b"][: number + 1]
                yield (
                    number,
                    {
                        "image": io.BytesIO(png(number)),
                        "caption": f"sqüare {number}",
                        "many": many,
                        "label": 0,
                    },
                )

    builder = Squares(data_dir=folder, file_format="array_record")
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tfds(tmp_path_factory.mktemp("tfds"))


def test_tfds_folder(squares: Path) -> None:
    found = read(open_source(DataConfig(source=f"tfds:{squares}")))
    assert found == [(f"train/{n}", n, (f"sqüare {n}",)) for n in range(5)]


def test_tfds_by_name_split_and_key(squares: Path) -> None:
    config = DataConfig(
        source="tfds:squares:1.2.0",
        cache_dir=str(squares.parent.parent),
        split="validation",
        caption_key="many",
    )
    found = read(open_source(config))
    assert [captions for _, _, captions in found] == [("0 a",), ("1 a", "1 b")]


def test_tfds_class_names_are_captions(squares: Path) -> None:
    config = DataConfig(source=f"tfds:{squares}", caption_key="label")
    assert read(open_source(config))[0] == ("train/0", 0, ("red square",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "has train, validation"),
        ({"image_key": "picture"}, "data.image_key is 'picture'.*has .*image"),
        ({"caption_key": "text"}, "data.caption_key is 'text'"),
    ],
)
def test_tfds_mistakes(squares: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(DataConfig(source=f"tfds:{squares}", **change))  # type: ignore[arg-type]


def test_tfds_is_read_without_tensorflow(squares: Path) -> None:
    import sys

    read(open_source(DataConfig(source=f"tfds:{squares}")))
    assert "tensorflow" not in sys.modules


# The command


def test_sheet_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "in")
    (folder / "broken.png").write_bytes(b"broken")
    (folder / "broken.txt").write_text("cannot be read")
    out = tmp_path / "sheet.png"
    main(["sheet", "--source", str(folder), "--out", str(out), "--size", "32", "--columns", "2"])
    sheet = decode_image(out.read_bytes(), name="sheet")
    assert sheet.shape == (2 * (32 + 38 + 4) + 4, 2 * (96 + 4) + 4, 3)
    assert "3 of 3 pictures" in capsys.readouterr().out


def test_stats_without_drawing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["stats"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["style", "train", "test", "test_cells"]
    assert rows[5].split() == ["all", "5788", "705", "276"]
    main(["stats", "--names", "--split", "test"])
    assert "volcano" in capsys.readouterr().out.splitlines()


def test_build_knows_its_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="drawn at 64, 256, 1024"):
        main(["build", "--sizes", "100", "--cache-dir", str(tmp_path)])
