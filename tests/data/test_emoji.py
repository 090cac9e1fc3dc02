"""The emoji data set: what the icons are called, which are held out, and that drawing is exact."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unclip_jax.config import DataConfig
from unclip_jax.data import emoji, tfds_source
from unclip_jax.data.emoji import build_emoji, cache_root, list_icons
from unclip_jax.data.emoji_catalogue import STYLES, Icon, load_entries, load_icons, slug_of
from unclip_jax.data.emoji_render import render_all, render_svg
from unclip_jax.data.emoji_splits import (
    NEAR_DUPLICATE,
    SPLITS,
    assign_splits,
    distances,
    fraction,
    load_groups,
    make_groups,
    near_duplicates,
)
from unclip_jax.data.images import BadImage, decode_image
from unclip_jax.data.tfds_source import EmojiSource
from unclip_jax.errors import UserError

LIMIT = 24


@pytest.fixture(scope="module")
def icons() -> list[tuple[Icon, str, str]]:
    return list_icons()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the first pictures at 64 pixels."""
    folder = tmp_path_factory.mktemp("cache")
    build_emoji(64, False, str(folder), LIMIT)
    return folder


def nothing() -> None:
    pass


# Names


@pytest.mark.parametrize(
    ("label", "slug"),
    [
        ("flag: Norway", "flag-norway"),
        ("keycap: #", "keycap-hash"),
        ("keycap: *", "keycap-asterisk"),
        ("piñata", "pinata"),
        ("man’s shoe", "mans-shoe"),
        ("flag: Bosnia & Herzegovina", "flag-bosnia-and-herzegovina"),
        ("woman astronaut: dark skin tone", "woman-astronaut-dark-skin-tone"),
    ],
)
def test_slugs(label: str, slug: str) -> None:
    assert slug_of(label) == slug
    assert load_entries()[slug][0].label == label


@pytest.mark.parametrize(
    ("label", "concept"),
    [
        ("woman astronaut: dark skin tone", "astronaut"),
        ("man astronaut", "astronaut"),
        ("woman", "person"),
        ("girl", "child"),
        ("old man", "older person"),
        ("man walking: facing right", "person walking"),
        ("family: man, woman, boy", "family"),
        ("kiss: woman, woman", "kiss"),
        ("men holding hands", "people holding hands"),
        ("princess", "person with crown"),
        ("Mrs. Claus", "Mx Claus"),
        ("mermaid: light skin tone", "merperson"),
        ("deaf woman", "deaf person"),
        ("woman: red hair", "person: red hair"),
        ("women with bunny ears", "people with bunny ears"),
        ("man’s shoe", "man’s shoe"),
    ],
)
def test_concepts(label: str, concept: str) -> None:
    known = {entry.label: entry for entry, _ in load_entries().values()}
    assert known[label].concept == concept


def test_every_style_has_its_captioned_icons(icons: list[tuple[Icon, str, str]]) -> None:
    plain = Counter(icon.style for icon, _, _ in icons if not icon.entry.has_tone)
    tones = Counter(icon.style for icon, _, _ in icons if icon.entry.has_tone)
    assert plain == {"noto": 1659, "twemoji": 1920, "flat": 1595, "3d": 1595}
    assert tones == {"noto": 2030, "twemoji": 2030, "flat": 1580, "3d": 1580}
    names = [(icon.style, icon.entry.label) for icon, _, _ in icons]
    assert len(set(names)) == len(names)
    styles_of = Counter(icon.entry.label for icon, _, _ in icons if not icon.entry.has_tone)
    assert sum(count == 4 for count in styles_of.values()) > 1567


def test_renamed_icons_are_found() -> None:
    labels = {icon.entry.label for icon, _ in load_icons("flat")}
    for label in ("deaf woman", "mermaid", "piñata", "keycap: #", "people wrestling", "superhero"):
        assert label in labels
    assert "woman astronaut: medium-light skin tone" in labels
    assert "man running: facing right" in labels


# Splits


def test_splits_are_frozen(icons: list[tuple[Icon, str, str]]) -> None:
    """A change here moves held-out pictures into training: published numbers lose their meaning."""
    lines = sorted(f"{icon.style}/{icon.slug}/{split}" for icon, _, split in icons)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    plain = Counter(split for icon, _, split in icons if not icon.entry.has_tone)
    assert plain == {"train": 5788, "test": 705, "test_cells": 276}
    assert digest == "1b13fed82011b7b671902b4d1f198c261488290a880595d89f62308ab3ce2535"


def test_test_holds_whole_concepts(icons: list[tuple[Icon, str, str]]) -> None:
    splits: dict[str, set[str]] = {}
    for icon, _, split in icons:
        splits.setdefault(icon.entry.concept, set()).add(split)
    held = {concept for concept, found in splits.items() if "test" in found}
    assert all(splits[concept] == {"test"} for concept in held)
    assert 0.08 < len(held) / len(splits) < 0.13
    groups = load_groups()
    assert held == {c for c in splits if fraction(groups.get(c, c)) < 0.10}


def test_held_out_cells_are_known_in_other_styles(icons: list[tuple[Icon, str, str]]) -> None:
    styles: dict[str, dict[str, set[str]]] = {}
    for icon, _, split in icons:
        styles.setdefault(icon.entry.concept, {}).setdefault(icon.style, set()).add(split)
    cells = 0
    for found in styles.values():
        assert all(len(splits) == 1 for splits in found.values())  # tones and genders stay together
        held = [style for style, splits in found.items() if splits == {"test_cells"}]
        known = [style for style, splits in found.items() if splits == {"train"}]
        cells += len(held)
        assert not held or len(known) >= 2
    assert 0.03 < cells / sum(map(len, styles.values())) < 0.06


def test_near_duplicates_stay_together(icons: list[tuple[Icon, str, str]]) -> None:
    split = {(icon.entry.concept, icon.style): split for icon, _, split in icons}
    groups: dict[str, list[str]] = {}
    for concept, group in load_groups().items():
        groups.setdefault(group, []).append(concept)
    assert len(groups) > 50
    for concepts in groups.values():
        for style in STYLES:
            assert len({split[c, style] for c in concepts if (c, style) in split}) <= 1
    known = load_groups()
    assert known["flag: Norway"] == known["flag: Svalbard & Jan Mayen"]
    assert known["three o’clock"] == known["nine-thirty"]


def test_no_held_out_picture_looks_like_a_training_picture(
    icons: list[tuple[Icon, str, str]],
) -> None:
    """All plain pictures: those that are close at 16 pixels are measured again at 64."""
    plain = [item for item in icons if not item[0].entry.has_tone]
    pngs = render_all([svg for _, svg, _ in plain], 16, nothing)
    images = np.stack([decode_image(png, name="") for png in pngs])
    close: list[tuple[int, int]] = []
    for style in STYLES:
        rows = np.array([i for i, item in enumerate(plain) if item[0].style == style])
        is_train = np.array([plain[i][2] == "train" for i in rows])
        apart = distances(images[rows])[np.ix_(~is_train, is_train)]
        for held, known in np.argwhere(apart < NEAR_DUPLICATE + 0.05):
            close.append((int(rows[~is_train][held]), int(rows[is_train][known])))
    assert close  # the search looks where there is something to find
    chosen = sorted({row for pair in close for row in pair})
    large = render_all([plain[row][1] for row in chosen], 64, nothing)
    measured = distances(np.stack([decode_image(png, name="") for png in large]))
    for held, known in close:
        assert measured[chosen.index(held), chosen.index(known)] >= NEAR_DUPLICATE


def test_cells_need_two_other_styles() -> None:
    concepts = [f"c{i}" for i in range(4000)]
    two = assign_splits(dict.fromkeys(concepts, ("noto", "flat")), {})
    four = assign_splits(dict.fromkeys(concepts, tuple(STYLES)), {})
    assert "test_cells" not in two.values()
    share = Counter(four.values())["test_cells"] / 16000
    assert 0.035 < share < 0.055


def test_distance_sees_copies_mirrors_and_differences() -> None:
    rng = np.random.default_rng(0)
    first = np.full((64, 64, 3), 255, np.uint8)
    first[8:40, 8:30] = rng.integers(0, 200, (32, 22, 3))
    images = np.stack([first, first, first[:, ::-1], np.roll(first, 24, 0)])
    apart = distances(images)
    assert apart[0, 1] < 1e-3 and apart[0, 2] < 1e-3
    assert apart[0, 3] > 0.5
    assert near_duplicates(images, ["a", "b", "a", "c"]) == {("a", "b")}


def test_groups_are_connected_components() -> None:
    pairs = [("b", "a"), ("c", "b"), ("x", "y")]
    assert make_groups(pairs, ["a", "one-thirty", "two o’clock"]) == [
        ["a", "b", "c"],
        ["one-thirty", "two o’clock"],
        ["x", "y"],
    ]


# Drawing


def test_drawing_is_deterministic_square_and_on_white(icons: list[tuple[Icon, str, str]]) -> None:
    chosen = [item for item in icons if item[0].slug in ("watermelon", "bomb", "red-apple")]
    documents = [svg for _, svg, _ in chosen]
    one = render_all(documents, 64, nothing, workers=1)
    assert one == render_all(documents, 64, nothing, workers=3)
    assert one == [render_svg(svg, 64) for svg in documents]
    for png in one:
        image = decode_image(png, name="")
        assert image.shape == (64, 64, 3)
        assert image[0, 0].tolist() == [255, 255, 255]
        assert image.std() > 20


def test_an_oblong_icon_is_centred(icons: list[tuple[Icon, str, str]]) -> None:
    svg = next(svg for i, svg, _ in icons if (i.slug, i.style) == ("watermelon", "twemoji"))
    image = decode_image(render_svg(svg, 64), name="")
    rows = np.flatnonzero((image < 250).any((1, 2)))
    assert abs(rows[0] - (63 - rows[-1])) <= 1 and rows[0] > 5


def test_mirrored_aliases(icons: list[tuple[Icon, str, str]]) -> None:
    found = {i.slug: svg for i, svg, _ in icons if i.style == "3d"}
    left, right = (
        decode_image(render_svg(found[f"backhand-index-pointing-{side}"], 64), name="")
        for side in ("left", "right")
    )
    assert np.abs(left.astype(int) - right[:, ::-1]).mean() < 2


def test_a_broken_drawing_is_named() -> None:
    good = '<svg xmlns="http://www.w3.org/2000/svg" width="SIZE" height="SIZE"/>'
    with pytest.raises(RuntimeError, match="picture 1 "):
        render_all([good, "<svg", good], 8, nothing)


# The data set


def test_build_leaves_nothing_but_the_data_set(cache: Path) -> None:
    (home,) = cache.iterdir()
    assert home.name == f"emoji-{emoji.fingerprint()}"
    assert [path.name for path in home.iterdir()] == [f"plain_64_first{LIMIT}"]


def test_two_builds_have_the_same_records(cache: Path, tmp_path: Path) -> None:
    """Two at once, into one folder: both end well, and nothing is left over."""
    errors: list[Exception] = []

    def build() -> None:
        try:
            build_emoji(64, False, str(tmp_path), 6)
        except Exception as error:  # reported below
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(list(next(tmp_path.iterdir()).iterdir())) == 1
    again = EmojiSource(DataConfig(cache_dir=str(tmp_path)), limit=6)
    first = EmojiSource(DataConfig(cache_dir=str(cache)), limit=LIMIT)
    assert [again[i] for i in range(len(again))] == [first[i] for i in range(len(again))]


def test_a_split_holds_its_own_pictures_only(
    cache: Path, icons: list[tuple[Icon, str, str]]
) -> None:
    expected = Counter(s for i, _, s in [x for x in icons if not x[0].entry.has_tone][:LIMIT])
    for split in SPLITS:
        if expected[split]:
            source = EmojiSource(DataConfig(cache_dir=str(cache), split=split), limit=LIMIT)
            assert len(source) == expected[split]
            for i in range(len(source)):
                record = source[i]
                assert record.captions.split == split  # type: ignore[union-attr]
                assert decode_image(record.image, name="").shape == (64, 64, 3)


def test_a_reader_that_finds_a_held_out_picture_stops(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "copy")
    (folder,) = (tmp_path / "copy").glob("*/*")
    files = {path.name.split("-")[1].split(".")[0]: path for path in folder.glob("*.array_record*")}
    other = next(name for name in files if name != "train")
    shutil.copyfile(files[other], files["train"])
    with pytest.raises(RuntimeError, match=f"of {other} lies in train"):
        EmojiSource(DataConfig(cache_dir=str(tmp_path / "copy")), limit=LIMIT)


class Damaged:
    """Rows of which one cannot be read."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Any:
        if row == 1:
            raise RuntimeError("chunk data hash mismatch; reading /home/somebody/emoji")
        return self._rows[row]


def test_a_damaged_record_costs_itself(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source opens, the others keep their places, and nobody knows the concept of that one."""
    config = DataConfig(cache_dir=str(cache))
    whole = EmojiSource(config, limit=LIMIT)
    open_rows = tfds_source._open_rows
    monkeypatch.setattr(tfds_source, "_open_rows", lambda *given: Damaged(open_rows(*given)))
    damaged = EmojiSource(config, limit=LIMIT)
    assert len(damaged) == len(whole)
    with pytest.raises(BadImage, match=r"train/1: damaged record \(chunk data hash mismatch\)"):
        damaged[1]
    others = [index for index in range(len(whole)) if index != 1]
    assert [damaged[index] for index in others] == [whole[index] for index in others]
    concept = whole[0].captions.concept  # type: ignore[union-attr]
    assert EmojiSource(replace(config, concepts=(concept,)), limit=LIMIT)[0] == whole[0]


def test_concepts_filter(cache: Path) -> None:
    everything = EmojiSource(DataConfig(cache_dir=str(cache)), limit=LIMIT)
    wanted = everything[0].captions.concept  # type: ignore[union-attr]
    config = DataConfig(cache_dir=str(cache), concepts=(wanted,))
    kept = EmojiSource(config, limit=LIMIT)
    assert 0 < len(kept) < len(everything)
    assert {kept[i].captions.concept for i in range(len(kept))} == {wanted}  # type: ignore[union-attr]


def test_some_concepts_come_more_often(cache: Path) -> None:
    config = DataConfig(cache_dir=str(cache))
    once = EmojiSource(config, limit=LIMIT)
    records = [once[index] for index in range(len(once))]
    wanted = records[0].captions.concept  # type: ignore[union-attr]
    own = [r for r in records if r.captions.concept == wanted]  # type: ignore[union-attr]
    often = EmojiSource(replace(config, repeated=(wanted,), repeats=3), limit=LIMIT)
    assert [often[index] for index in range(len(often))] == records + own * 2


def test_joined_splits_are_in_the_order_of_labels(cache: Path) -> None:
    def source(split: str) -> EmojiSource:
        return EmojiSource(DataConfig(cache_dir=str(cache), split=split), limit=LIMIT)

    parts = [source(split) for split in ("train", "test_cells")]
    joined = source("train+test_cells")
    records = [joined[index] for index in range(len(joined))]
    labels = [record.captions.label for record in records]  # type: ignore[union-attr]
    assert labels == sorted(labels)
    keys = sorted(part[index].name for part in parts for index in range(len(part)))
    assert sorted(record.name for record in records) == keys
    assert all(len(part) for part in parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"concepts": ("red aple",)},
            "no emoji concept is called 'red aple'; did you mean 'red ap",
        ),
        ({"repeated": ("red aple",), "repeats": 2}, "data.repeated: no emoji concept is called"),
        ({"repeats": 2}, "data.repeated names nothing in split 'train'"),
        ({"concepts": ("robot",)}, "none of them has a picture in split 'train'"),
        ({"split": "validation"}, "emoji has train, test, test_cells"),
        ({"split": "train+validation"}, "emoji has train, test, test_cells"),
        ({"split": "test+test"}, "each once"),
    ],
)
def test_user_mistakes(cache: Path, change: dict[str, object], message: str) -> None:
    config = DataConfig(cache_dir=str(cache), **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        EmojiSource(config, limit=LIMIT)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    assert cache_root("/elsewhere") == Path("/elsewhere")
    monkeypatch.delenv("UNCLIP_CACHE")
    assert cache_root() == Path.home() / ".cache" / "unclip_jax"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"set \$UNCLIP_CACHE"):
        build_emoji(64, False, str(tmp_path / "file"), 4)


def test_progress_counts_to_the_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    build_emoji(64, False, str(tmp_path), 5)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("drawing 5 emoji at 64 px")
    assert shown.err.rstrip().endswith("5/5")
    build_emoji(64, False, str(tmp_path), 5)
    assert capsys.readouterr().err == ""


def test_importing_brings_no_jax() -> None:
    import subprocess
    import sys

    code = (
        "import sys, unclip_jax.data.pipeline, unclip_jax.data.sources\n"
        "heavy = {'jax', 'grain', 'tensorflow_datasets', 'tensorflow', 'torch', 'resvg_py'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )

    root = Path(emoji.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"
