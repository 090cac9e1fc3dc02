"""Order, resume, processes, threads, replacement of bad pictures: what a training run relies on."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip_jax.data import picture_reader
from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.captions import EmojiFacts, all_captions, caption_with_style, draw_caption
from unclip_jax.data.pipeline import Batch, make_batches
from unclip_jax.data.records import Record
from unclip_jax.errors import UserError

SIZE = 4


class Numbers:
    """Pictures that show their own number, two captions each; some cannot be read."""

    def __init__(self, total: int, bad: Sequence[int] = ()) -> None:
        self.total = total
        self.bad = set(bad)
        self.reads = 0

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int, /) -> Record:
        self.reads += 1
        if index in self.bad:
            return Record(f"n{index}", b"broken", ("x",))
        out = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE), (index % 256, index // 256, 7)).save(out, "PNG")
        return Record(f"n{index}", out.getvalue(), (f"{index} a", f"{index} b"))


def tokenize(texts: Sequence[str]) -> np.ndarray:
    return np.array([[int(text.split()[0]), ord(text[-1])] for text in texts], np.int32)


def batches(source: Numbers, count: int, **options: object) -> list[Batch]:
    settings = {"image_size": SIZE, "batch_size": 6, "tokenize": tokenize, "seed": 3} | options
    stream: Iterator[Batch] = make_batches(source, **settings)  # type: ignore[arg-type]
    return list(itertools.islice(stream, count))


def numbers(found: Sequence[Batch]) -> list[int]:
    return [int(n) for batch in found for n in batch["tokens"][:, 0]]


def assert_same(left: Sequence[Batch], right: Sequence[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert np.array_equal(a["image"], b["image"])
        assert np.array_equal(a["tokens"], b["tokens"])


def test_shapes_and_that_picture_and_caption_belong_together() -> None:
    found = batches(Numbers(20), 5)
    for batch in found:
        assert batch["image"].shape == (6, SIZE, SIZE, 3) and batch["image"].dtype == np.uint8
        assert batch["tokens"].shape == (6, 2) and batch["tokens"].dtype == np.int32
        assert np.array_equal(batch["image"][:, 0, 0, 0], batch["tokens"][:, 0])


def test_each_epoch_has_every_picture_once_in_another_order() -> None:
    found = numbers(batches(Numbers(18), 9))
    epochs = [found[:18], found[18:36], found[36:]]
    assert all(sorted(epoch) == list(range(18)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(18))


def test_captions_are_drawn_anew_each_epoch() -> None:
    drawn: dict[int, set[int]] = {}
    for batch in batches(Numbers(6), 12):
        for number, letter in batch["tokens"]:
            drawn.setdefault(int(number), set()).add(int(letter))
    assert all(letters == {ord("a"), ord("b")} for letters in drawn.values())


def test_resume_is_exact_even_with_another_batch_size() -> None:
    whole = batches(Numbers(20), 8)
    assert_same(whole[3:], batches(Numbers(20), 5, start=18))
    other = batches(Numbers(20), 6, start=18, batch_size=5)
    assert numbers(other) == numbers(whole)[18:48]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_read_the_parts_of_the_same_batches(processes: int) -> None:
    whole = batches(Numbers(20), 6)
    parts = [
        batches(Numbers(20), 6, process_index=p, process_count=processes) for p in range(processes)
    ]
    joined = [
        {key: np.concatenate([part[step][key] for part in parts]) for key in whole[0]}
        for step in range(6)
    ]
    assert_same(whole, joined)


@pytest.mark.parametrize("threads", [1, 8])
def test_threads_change_nothing(threads: int) -> None:
    bad = [1, 5]
    assert_same(
        batches(Numbers(20, bad), 8, threads=2), batches(Numbers(20, bad), 8, threads=threads)
    )


def test_pictures_in_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    warm_source, cold_source = Numbers(20, [4]), Numbers(20, [4])
    warm = batches(warm_source, 12)
    monkeypatch.setattr(picture_reader, "CACHE_BYTES", 0)
    cold = batches(cold_source, 12)
    assert_same(warm, cold)
    assert warm_source.reads < cold_source.reads


def test_another_seed_is_another_order() -> None:
    assert numbers(batches(Numbers(20), 3)) != numbers(batches(Numbers(20), 3, seed=4))


def test_one_epoch_in_order_ends_with_a_short_batch() -> None:
    found = batches(Numbers(20), 99, shuffle=False, repeat=False)
    assert numbers(found) == list(range(20))
    assert [len(batch["image"]) for batch in found] == [6, 6, 6, 2]
    parts = [
        batches(Numbers(20), 99, shuffle=False, repeat=False, process_index=p, process_count=2)
        for p in range(2)
    ]
    assert sorted(numbers(parts[0]) + numbers(parts[1])) == list(range(20))
    rest = batches(Numbers(20), 99, shuffle=False, repeat=False, start=12)
    assert numbers(rest) == list(range(12, 20))


def test_bad_pictures_are_replaced_counted_and_listed_once(tmp_path: Path) -> None:
    bad = [2, 3, 11]
    path = tmp_path / "run" / "skipped.jsonl"
    counter = BadRecords(path, max_fraction=0.5)
    found = batches(Numbers(20, bad), 10, bad=counter)
    assert not set(numbers(found)) & set(bad)
    assert len(numbers(found)) == 60
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(item["name"] for item in listed) == ["n11", "n2", "n3"]
    assert "not a picture" in listed[0]["reason"]
    assert counter.count == 3

    # The good ones stay where they were: only the bad places differ from a run on a sound set.
    sound = numbers(batches(Numbers(20), 10))
    differ = [a for a, b in zip(sound, numbers(found), strict=True) if a != b]
    assert set(differ) == set(bad)

    # A resumed run knows the list, and lists nothing twice.
    again = BadRecords(path, max_fraction=0.5)
    assert again.count == 3
    batches(Numbers(20, bad), 3, bad=again)
    assert len(path.read_text().splitlines()) == 3


def test_too_many_bad_pictures_stop_the_run(tmp_path: Path) -> None:
    counter = BadRecords(tmp_path / "skipped.jsonl", max_fraction=0.1)
    with pytest.raises(UserError, match=r"of 20 pictures cannot be read.*max_bad_fraction"):
        batches(Numbers(20, range(10)), 10, bad=counter)


def test_all_bad_is_an_error_not_a_hang() -> None:
    with pytest.raises(UserError, match="in a row could not be read"):
        batches(Numbers(4, range(4)), 1)


def test_user_mistakes() -> None:
    with pytest.raises(UserError, match="not a multiple of the 4 processes"):
        batches(Numbers(4), 1, process_count=4)
    with pytest.raises(UserError, match="empty"):
        batches(Numbers(0), 1)


def test_the_next_batch_is_made_in_the_background() -> None:
    source = Numbers(200)
    stream = make_batches(source, image_size=SIZE, batch_size=6, tokenize=tokenize, seed=0)
    next(stream)
    done = threading.Event()
    for _ in range(100):
        if source.reads >= 12:
            done.set()
            break
        threading.Event().wait(0.02)
    assert done.is_set()


FACTS = EmojiFacts(
    *("red apple", "red apple", "3d", ("fruit", "ripe", "diet")),
    *("food & drink", "fruit", "red-apple", "train"),
)


def test_emoji_captions() -> None:
    drawn = [draw_caption(FACTS, np.random.default_rng(i)) for i in range(2000)]
    assert drawn == [draw_caption(FACTS, np.random.default_rng(i)) for i in range(2000)]
    assert all("red apple" in text for text in drawn)
    styled = sum(text.endswith(", 3d style") for text in drawn) / 2000
    assert 0.56 < styled < 0.64
    for form in ("red apple", "red apple, 3d style", "a red apple", "an emoji of red apple"):
        assert form in drawn
    assert any("fruit" in text and "ripe" in text for text in drawn)
    assert "red apple, food & drink" in drawn
    assert caption_with_style("red apple", "3d") == "red apple, 3d style"
    assert {"red apple", "a red apple, 3d style"} <= set(all_captions(FACTS))


@pytest.mark.parametrize(
    ("label", "group", "expected"),
    [
        ("owl", "animals & nature", "an owl"),
        ("unicorn", "animals & nature", "a unicorn"),
        ("umbrella", "travel & places", "an umbrella"),
        ("one-piece swimsuit", "objects", "a one-piece swimsuit"),
        ("scissors", "objects", "scissors"),
        ("glass", "objects", "a glass"),
        ("flag: Norway", "flags", "flag: Norway"),
        ("T-Rex", "animals & nature", "T-Rex"),
        ("minus", "symbols", "minus"),
    ],
)
def test_articles(label: str, group: str, expected: str) -> None:
    facts = EmojiFacts(label, label, "flat", (), group, "", "slug", "train")
    assert all_captions(facts)[1] == expected


def test_given_captions_are_drawn_evenly() -> None:
    drawn = [draw_caption(("a", "b"), np.random.default_rng(i)) for i in range(400)]
    assert 140 < drawn.count("a") < 260
    assert draw_caption(("only",), np.random.default_rng(0)) == "only"


def test_a_block_of_neighbours_meets_in_one_batch() -> None:
    found = batches(Numbers(18), 9, batch_size=6, block=3)
    for batch in found[:3]:  # the first epoch's blocks begin at multiples of three
        for first in (0, 3):
            block = batch["tokens"][first : first + 3, 0].tolist()
            assert block[0] % 3 == 0 and block == list(range(block[0], block[0] + 3))
    epochs = [numbers(found[start : start + 3]) for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(18)) for epoch in epochs)
    starts = [{epoch[place] % 3 for place in range(0, 18, 3)} for epoch in epochs]
    assert starts == [{0}, {1}, {2}]


def test_the_last_block_is_filled_up_with_the_first_records() -> None:
    once = numbers(batches(Numbers(20), 8, batch_size=6, block=3, repeat=False))
    assert sorted(once) == [0, *range(20)]
    resumed = batches(Numbers(20), 4, batch_size=6, block=3, start=12)
    assert_same(batches(Numbers(20), 6, batch_size=6, block=3)[2:], resumed)
