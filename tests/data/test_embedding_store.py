"""Embeddings on disk: the same batches as from the source, resume, several hosts, damage."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from unclip_jax.config import DataConfig
from unclip_jax.data import embedding_store, picture_reader
from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.captions import EmojiFacts, all_captions
from unclip_jax.data.embedding_batches import make_embedding_batches
from unclip_jax.data.embedding_manifest import Description, Manifest, StoredData, tokenizer_id
from unclip_jax.data.embedding_shard import Encoders, ShardFile
from unclip_jax.data.embedding_store import EmbeddingStore, check_fits, open_store
from unclip_jax.data.embedding_writer import write_store
from unclip_jax.data.images import BadImage
from unclip_jax.data.pipeline import Batch, make_batches
from unclip_jax.data.records import Record
from unclip_jax.data.tokenizer import Tokenizer, train_bpe
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole

SIZE, LENGTH, WIDTH, ROWS = 4, 16, 4, 23
BAD = (2, 9, 10)
DATA = DataConfig(source="pictures", image_size=SIZE)


class Numbers:
    """Pictures of one colour each, with one to three captions; some cannot be read."""

    def __init__(self, bad: Sequence[int] = BAD, note: str = "") -> None:
        self.bad, self.note = set(bad), note

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int, /) -> Record:
        captions = tuple(f"number {index} {word}{self.note}" for word in "abc"[: 1 + index % 3])
        if index in self.bad:
            return Record(f"n{index}", b"broken", captions)
        out = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE), (10 * index, 255 - index, 7 * index)).save(out, "PNG")
        return Record(f"n{index}", out.getvalue(), captions)


class Emoji(Numbers):
    """The same pictures with an emoji's facts; every drawn pair of tags is another caption."""

    def __getitem__(self, index: int, /) -> Record:
        tags = tuple(f"tag{number}" for number in range(index % 5))
        words = (f"apple {index}", "apple", "3d", tags, "food & drink", "fruit", f"a{index}")
        return replace(super().__getitem__(index), captions=EmojiFacts(*words, split="train"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    corpus = [
        text for source in (Numbers(), Emoji()) for i in range(ROWS) for text in texts(source, i)
    ]
    return train_bpe(corpus, 600, LENGTH)


def texts(source: Numbers, index: int) -> tuple[str, ...]:
    return all_captions(source[index].captions)


def encode_image(images: np.ndarray) -> np.ndarray:
    """[B, S, S, 3] uint8 → [B, 4] float32 of unit norm, another one for every colour."""
    mean = images.reshape(len(images), -1, 3).mean(axis=1)
    vectors = np.concatenate([mean, np.full((len(images), 1), 50.0)], axis=1)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def encode_text(tokens: np.ndarray) -> np.ndarray:
    vectors = np.stack([np.cos(tokens * (k + 1)).sum(axis=1) + 0.1 for k in range(WIDTH)], axis=1)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def describe(tokenizer: Tokenizer, **changes: Any) -> Description:
    made_of = Description(
        clip_id="c" * 16,
        tokenizer_id=tokenizer_id(tokenizer),
        data=StoredData.of(DATA),
        rows=ROWS,
        width=WIDTH,
        context_length=LENGTH,
        vocab_size=tokenizer.vocab_size,
        dtype="float32",
        has_text=False,
        shard_rows=5,
    )
    return replace(made_of, **changes)


def write(
    folder: Path,
    tokenizer: Tokenizer,
    source: Numbers | None = None,
    image: Callable[[np.ndarray], np.ndarray] = encode_image,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> Manifest:
    made_of = describe(tokenizer, **(changes or {}))
    encoders = Encoders(image, encode_text if made_of.has_text else None, tokenizer, batch_size=3)
    return write_store(folder, source or Numbers(), made_of, encoders, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A store that was written without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    assert write(folder, tokenizer).finished
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def take(stream: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(stream, count))


def test_rows_are_those_of_the_source(whole: Path, tokenizer: Tokenizer) -> None:
    store, source = open_store(whole), Numbers()
    assert len(store) == ROWS and store.num_unreadable == len(BAD)
    for index in range(ROWS):
        if index in BAD:
            with pytest.raises(BadImage, match=f"n{index}: not a picture"):
                store[index]
            assert not store.embeddings([index]).any()
            continue
        record = source[index]
        assert store[index] == replace(record, image=b"")
        colour = np.array([[[10 * index, 255 - index, 7 * index]]], np.uint8)[None]
        assert np.array_equal(store.embeddings([index]), encode_image(colour))
        for place, text in enumerate(record.captions):
            assert np.array_equal(store.tokens(index, place), tokenizer([text])[0])
    with pytest.raises(IndexError):
        store[ROWS]


def test_shards_are_safetensors(whole: Path) -> None:
    """The files as the library reads them, against the memory map."""
    paths = sorted(whole.glob("shard-*.safetensors"))
    assert [path.name for path in paths] == [f"shard-{i:05d}.safetensors" for i in range(5)]
    assert sorted(p.name for p in whole.iterdir()) == ["manifest.json", *(p.name for p in paths)]
    for path in paths:
        mapped = ShardFile(path).tensors
        loaded = load_file(path)
        assert mapped.keys() == loaded.keys()
        for name, array in loaded.items():
            assert mapped[name].dtype == array.dtype and np.array_equal(mapped[name], array)
    assert loaded["token_ids"].dtype == np.uint16
    assert loaded["embedding"].shape == (ROWS % 5, WIDTH)


class Strange(Numbers):
    """Names and captions as file systems and people write them."""

    def __getitem__(self, index: int, /) -> Record:
        record = super().__getitem__(index)
        captions = ("the same", "the same", f'苹果 "{index}"\n\t\\ é')
        return replace(record, name=f"not utf-8 \udcff/{index}", captions=captions)


def test_strange_names_and_captions_come_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path, tokenizer, Strange())
    store = open_store(tmp_path)
    for index in (0, 7, 22):
        record = Strange()[index]
        assert store[index] == replace(record, image=b"")
        for place, text in enumerate(record.captions):
            assert np.array_equal(store.tokens(index, place), tokenizer([text])[0])


@pytest.mark.parametrize(
    "source", [Numbers(), Numbers(bad=()), Emoji()], ids=["bad", "all", "emoji"]
)
@pytest.mark.parametrize("has_pictures", [False, True])
def test_three_epochs_are_those_of_the_source(
    source: Numbers, has_pictures: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Order, replacements, drawn captions and embeddings, against `make_batches`."""
    write(tmp_path / "store", tokenizer, source)
    options: dict[str, Any] = {"batch_size": 6, "tokenize": tokenizer, "seed": 3}
    steps = -(-3 * ROWS // 6)
    expected = take(make_batches(source, image_size=SIZE, **options), steps)
    pictures: dict[str, Any] = {"source": source, "image_size": SIZE} if has_pictures else {}
    stream = make_embedding_batches(open_store(tmp_path / "store"), **options, **pictures)
    for batch, found in zip(expected, take(stream, steps), strict=True):
        assert found["tokens"].dtype == np.int32 and found["embedding"].dtype == np.float32
        assert np.array_equal(found["tokens"], batch["tokens"])
        np.testing.assert_allclose(found["embedding"], encode_image(batch["image"]), atol=1e-6)
        assert ("image" in found) == has_pictures
        if has_pictures:
            assert np.array_equal(found["image"], batch["image"])


def test_drawn_tags_are_tokenised(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Some of the emoji's drawn captions are not among the stored ones: else no case above is."""
    write(tmp_path / "store", tokenizer, Emoji())
    asked: list[str] = []

    def tokenize(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return tokenizer(texts)

    store = open_store(tmp_path / "store")
    take(make_embedding_batches(store, batch_size=6, tokenize=tokenize, seed=3), 20)
    assert 0 < len(asked) < 60 and all("tag" in text for text in asked)


def test_position_processes_and_one_epoch(whole: Path, tokenizer: Tokenizer) -> None:
    store = open_store(whole)

    def batches(count: int, **options: Any) -> list[Batch]:
        settings: dict[str, Any] = {"batch_size": 6, "tokenize": tokenizer, "seed": 3} | options
        return take(make_embedding_batches(store, **settings), count)

    straight = batches(8)
    resumed = batches(5, start=18)
    parts = [batches(8, process_index=p, process_count=2) for p in range(2)]
    for step in range(8):
        for name in ("embedding", "tokens"):
            joined = np.concatenate([part[step][name] for part in parts])
            assert np.array_equal(joined, straight[step][name])
            if step >= 3:
                assert np.array_equal(resumed[step - 3][name], straight[step][name])
    once = batches(99, shuffle=False, repeat=False)
    assert [len(batch["tokens"]) for batch in once] == [6, 6, 6, 5]
    plain = make_batches(
        Numbers(), image_size=SIZE, batch_size=6, tokenize=tokenizer, seed=3, shuffle=False,
        repeat=False,
    )  # fmt: skip
    for left, right in zip(once, plain, strict=True):
        assert np.array_equal(left["tokens"], right["tokens"])
    # A process whose part of the last batch is empty.
    last = batches(99, process_index=5, process_count=6, repeat=False, shuffle=False)[-1]
    assert last["tokens"].shape == (0, LENGTH) and last["embedding"].shape == (0, WIDTH)
    with pytest.raises(UserError, match="not a multiple of the 4 processes"):
        batches(1, process_count=4)


def test_float16_is_near_and_of_unit_norm(
    whole: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write(tmp_path / "store", tokenizer, changes={"dtype": "float16"})
    half, full = open_store(tmp_path / "store"), open_store(whole)
    good = [index for index in range(ROWS) if index not in BAD]
    found = half.embeddings(good)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    difference = np.abs(found - full.embeddings(good)).max()
    assert 0 < difference < 2**-10
    assert not half.embeddings(list(BAD)).any()


def test_text_embeddings(whole: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "store", tokenizer, changes={"has_text": True})
    store = open_store(tmp_path / "store")
    for index in (0, 1, 8, 22):
        expected = encode_text(tokenizer(Numbers()[index].captions))
        assert np.array_equal(store.text_embeddings(index), expected)
    with pytest.raises(UserError, match="no text embeddings"):
        open_store(whole).text_embeddings(0)


def test_large_vocabularies_have_wide_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def tokenize(texts: Sequence[str]) -> np.ndarray:
        return np.where(tokenizer(texts) > 0, tokenizer(texts) + 70_000, 0)

    made_of = describe(tokenizer, vocab_size=80_000)
    encoders = Encoders(encode_image, None, tokenize, batch_size=3)
    write_store(tmp_path, Numbers(), made_of, encoders)
    store = open_store(tmp_path)
    assert np.array_equal(store.tokens(4, 1), tokenize(Numbers()[4].captions)[1])


class Killed(Exception):
    pass


@pytest.mark.parametrize("calls", [0, 1, 2, 5, 7])
def test_killed_and_run_again(
    calls: int, whole: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Each shard of 5 rows takes two calls of 3; the result is that of an uninterrupted run."""
    counted: list[int] = []

    def dying(images: np.ndarray) -> np.ndarray:
        if len(counted) == calls:
            raise Killed
        counted.append(len(images))
        return encode_image(images)

    folder = tmp_path / "store"
    with pytest.raises(Killed):
        write(folder, tokenizer, image=dying)
    assert len(list(folder.glob("shard-*"))) == calls // 2
    with pytest.raises(UserError, match="not finished"):
        open_store(folder)
    (folder / ".shard-00003.safetensors-x.tmp").write_bytes(b"what a killed run leaves")

    counted.clear()
    calls_before, calls = calls, -1
    assert write(folder, tokenizer, image=dying).finished
    assert counted == [3] * (9 - 2 * (calls_before // 2))
    assert files(folder) == files(whole)


def test_embeddings_that_are_not_finite_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def broken(images: np.ndarray) -> np.ndarray:
        found = encode_image(images)
        found[images[:, 0, 0, 0] == 70, 1] = np.nan  # the colour of number 7
        return found

    with pytest.raises(UserError, match="embedding of n7 is not finite"):
        write(tmp_path, tokenizer, image=broken)


def test_run_again_when_finished_does_nothing(whole: Path, tokenizer: Tokenizer) -> None:
    def never(images: np.ndarray) -> np.ndarray:
        raise AssertionError("encoded again")

    times = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert write(whole, tokenizer, image=never).finished
    assert times == {path: path.stat().st_mtime_ns for path in whole.iterdir()}


@pytest.mark.parametrize("hosts", [2, 3, 8])
def test_hosts_share_the_work(
    hosts: int, whole: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    found = [
        write(tmp_path, tokenizer, process_index=host, process_count=hosts).finished
        for host in reversed(range(hosts))
    ]
    assert found == [False] * (hosts - 1) + [True]
    assert files(tmp_path) == files(whole)


def copy(whole: Path, folder: Path) -> Path:
    folder.mkdir()
    for name, data in files(whole).items():
        (folder / name).write_bytes(data)
    return folder


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("place", [3, 12, -1, -40])
def test_a_flipped_bit_is_found_and_mended(
    place: int, whole: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = copy(whole, tmp_path / "store")
    flip(folder / "shard-00001.safetensors", place)
    store = open_store(folder)
    assert store.embeddings([0]).any()  # the other shards can be read
    with pytest.raises(UserError, match=r"shard-00001.*unclip embed"):
        store.embeddings([5])
    with pytest.raises(UserError, match=r"shard-00001.*unclip embed"):
        take(make_embedding_batches(store, batch_size=6, tokenize=tokenizer, seed=3), 5)
    assert write(folder, tokenizer).finished
    assert files(folder) == files(whole)


def test_missing_and_cut_shards(whole: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path / "store")
    last = folder / "shard-00004.safetensors"
    last.write_bytes(last.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"shard-00004.*damaged.*bytes long"):
        open_store(folder)
    last.write_bytes(b"")
    with pytest.raises(UserError, match=r"shard-00004.*damaged"):
        open_store(folder)
    last.unlink()
    with pytest.raises(UserError, match=r"shard-00004.*is missing"):
        open_store(folder)
    assert write(folder, tokenizer).finished
    assert files(folder) == files(whole)


def test_no_host_accepts_the_damaged_shard_of_another(
    whole: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = copy(whole, tmp_path / "store")
    flip(folder / "shard-00001.safetensors", -1)
    assert not write(folder, tokenizer, process_index=0, process_count=2).finished
    assert write(folder, tokenizer, process_index=1, process_count=2).finished
    assert files(folder) == files(whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip_id": "d" * 16}, r"clip_id 'c{16}', this run has 'd{16}'"),
        ({"tokenizer_id": "d" * 16}, "tokenizer_id"),
        ({"data": StoredData.of(replace(DATA, source="others"))}, r"data\.source 'pictures'"),
        ({"data": StoredData.of(replace(DATA, image_size=8))}, r"data\.image_size 4"),
        ({"dtype": "float16"}, "dtype"),
        ({"rows": 22}, "rows 23, this run has 22"),
        ({"shard_rows": 4}, "shard_rows 5"),
    ],
)
def test_another_store_is_not_continued(
    changes: dict[str, Any], words: str, whole: Path, tokenizer: Tokenizer
) -> None:
    before = files(whole)
    with pytest.raises(UserError, match=words):
        write(whole, tokenizer, changes=changes)
    assert files(whole) == before


def test_a_folder_of_something_else_is_left_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"other files \(holiday\.png\)"):
        write(tmp_path, tokenizer)
    assert files(tmp_path) == {"holiday.png": b"mine"}
    with pytest.raises(UserError, match="cannot be made"):
        write(tmp_path / "holiday.png" / "store", tokenizer)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the same command again"):
        write_whole(tmp_path / "nowhere" / "a", b"x")
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_whole(tmp_path / "a", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no embeddings"),
        ("{", "cannot be read"),
        ("[]", "not of format 1"),
        ('{"format": 2}', "not of format 1"),
        ('{"format": 1}', "Manifest"),
        ("rows", r"made_of\.rows"),
        ("width", "below 1"),
    ],
)
def test_manifests_that_are_none(text: str | None, words: str, whole: Path, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path / "store")
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    if text is None:
        path.unlink()
    else:
        data["made_of"] |= {"rows": {"rows": "many"}, "width": {"width": 0}}.get(text, {})
        path.write_text(json.dumps(data) if text in ("rows", "width") else text)
    with pytest.raises(UserError, match=words):
        open_store(folder)


def fits(store: EmbeddingStore, tokenizer: Tokenizer, **changes: Any) -> None:
    data = replace(DATA, **changes.pop("data", {}))
    check_fits(store, **{"clip_id": "c" * 16, "tokenizer": tokenizer, "data": data, **changes})


def test_a_run_of_other_things_is_refused(whole: Path, tokenizer: Tokenizer) -> None:
    store = open_store(whole)
    fits(store, tokenizer)
    fits(store, tokenizer, data={"threads": 9, "cache_dir": "x", "image_size": 8})
    fits(store, tokenizer, data={"source": "./pictures"})
    with pytest.raises(UserError, match=r"CLIP c{16}, this run has e{16}"):
        fits(store, tokenizer, clip_id="e" * 16)
    with pytest.raises(UserError, match="tokenizer"):
        fits(store, train_bpe(["other other words words"], 600, LENGTH))
    with pytest.raises(UserError, match=r"data\.source 'pictures', this run has 'others'"):
        fits(store, tokenizer, data={"source": "others"})
    with pytest.raises(UserError, match=r"data\.concepts"):
        fits(store, tokenizer, data={"concepts": ("apple",)})
    # Data that moved: its records are compared instead of its place.
    fits(store, tokenizer, data={"source": "moved"}, source=Numbers())
    with pytest.raises(UserError, match="are of 23 pictures, the data has 2"):
        fits(store, tokenizer, source=[Numbers()[0], Numbers()[1]])


def test_data_that_changed_is_refused(whole: Path, tokenizer: Tokenizer) -> None:
    stream = make_embedding_batches(
        open_store(whole), batch_size=6, tokenize=tokenizer, seed=3,
        source=Numbers(note=" more"), image_size=SIZE,
    )  # fmt: skip
    with pytest.raises(UserError, match="the data has changed"):
        take(stream, 4)


@pytest.mark.parametrize("has_pictures", [False, True])
def test_unreadable_pictures_are_counted(
    has_pictures: bool, whole: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """As from the source: each once, listed by name; too many stop the run."""
    pictures: dict[str, Any] = {"source": Numbers(), "image_size": SIZE} if has_pictures else {}
    options: dict[str, Any] = {"batch_size": 6, "tokenize": tokenizer, "seed": 3, **pictures}
    bad = BadRecords(tmp_path / "skipped.jsonl", max_fraction=0.5)
    take(make_embedding_batches(open_store(whole), **options, bad=bad), 12)
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted(item["name"] for item in listed) == ["n10", "n2", "n9"]
    assert "not a picture" in listed[0]["reason"]
    few = BadRecords(max_fraction=0.1)
    with pytest.raises(UserError, match=r"3 of 23 pictures cannot be read"):
        take(make_embedding_batches(open_store(whole), **options, bad=few), 12)
    with pytest.raises(UserError, match=r"of 23 pictures cannot be read"):
        write(tmp_path / "store", tokenizer, bad=BadRecords(max_fraction=0.1))


def test_a_picture_that_was_lost_since_is_replaced(whole: Path, tokenizer: Tokenizer) -> None:
    """Picture and embedding still belong together."""
    lost = Numbers(bad=(*BAD, 4, 5))
    options: dict[str, Any] = {"batch_size": 6, "tokenize": tokenizer, "seed": 3}
    expected = take(make_batches(lost, image_size=SIZE, **options), 12)
    stream = make_embedding_batches(open_store(whole), source=lost, image_size=SIZE, **options)
    for batch, found in zip(expected, take(stream, 12), strict=True):
        assert np.array_equal(found["image"], batch["image"])
        np.testing.assert_allclose(found["embedding"], encode_image(batch["image"]), atol=1e-6)


def test_few_open_files_and_no_pictures_in_memory_change_nothing(
    whole: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batch_size": 6, "tokenize": tokenizer, "seed": 3}
    pictures: dict[str, Any] = {"source": Numbers(), "image_size": SIZE}
    plain = take(make_embedding_batches(open_store(whole), **options, **pictures), 8)
    monkeypatch.setattr(embedding_store, "_MAX_OPEN", 1)
    monkeypatch.setattr(picture_reader, "CACHE_BYTES", 0)
    frugal = take(make_embedding_batches(open_store(whole), **options, **pictures), 8)
    for left, right in zip(plain, frugal, strict=True):
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_all_unreadable_is_an_error_not_a_hang(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path, tokenizer, Numbers(bad=range(ROWS)))
    store = open_store(tmp_path)
    with pytest.raises(UserError, match="in a row could not be read"):
        take(make_embedding_batches(store, batch_size=6, tokenize=tokenizer, seed=3), 1)
