"""What a picture's file says, as other programs read it; the manifest; shards; sheets."""

from __future__ import annotations

import json
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unclip_jax.data.contact_sheet import make_sheet
from unclip_jax.data.images import encode_png, make_grid
from unclip_jax.data.picture_manifest import (
    NAME,
    ManifestAppender,
    facts_key,
    manifest_line,
    part_name,
    read_entries,
    write_manifest,
)
from unclip_jax.data.png_text import read_png_text
from unclip_jax.data.provenance import DECIDING, facts_text, parameters_text, picture_texts
from unclip_jax.data.tar_members import read_span
from unclip_jax.data.tar_shards import read_members, write_shard

FACTS: dict[str, Any] = {
    "model": "emoji",
    "verb": "text",
    "prompt": "a red apple,\n3d style <&> 狐",
    "negative": "blue",
    "seed": 3,
    "index": 1,
    "weights": {"decoder": "0123456789abcdef"},
    "sampling": {
        "decoder": {"method": "ddim", "num_steps": "10,10,3", "guidance_scale": 2.5},
    },
}


def saved(path: Path, facts: dict[str, Any]) -> Image.Image:
    image = np.zeros((4, 6, 3), np.uint8)
    path.write_bytes(encode_png(image, picture_texts(facts, 6, 4)))
    return Image.open(path)


def test_what_other_programs_read(tmp_path: Path) -> None:
    found = saved(tmp_path / "a.png", FACTS).info
    assert found["parameters"].splitlines() == [
        "a red apple,",
        "3d style <&> 狐",
        "Negative prompt: blue",
        (
            'Steps: "10,10,3", Sampler: ddim, CFG scale: 2.5, Seed: 3, Index: 1, Size: 6x4, '
            "Model hash: 0123456789, Model: emoji, Version: " + found["Software"]
        ),
    ]
    assert found["Software"].startswith("unclip_jax ")
    facts = json.loads(found["unclip"])
    assert {name: facts[name] for name in FACTS} == FACTS
    assert set(facts["versions"]) == set(DECIDING) and facts["format"] == 1
    assert read_png_text(tmp_path / "a.png", "unclip") == facts_text(FACTS)


@pytest.mark.parametrize(
    ("verb", "source"),
    [
        ("text", "trainedAlgorithmicMedia"),
        ("vary", "trainedAlgorithmicMedia"),
        ("inpaint", "compositeWithTrainedAlgorithmicMedia"),
    ],
)
def test_the_mark_that_it_was_generated(verb: str, source: str, tmp_path: Path) -> None:
    xmp = saved(tmp_path / "a.png", {**FACTS, "verb": verb}).info["XML:com.adobe.xmp"]
    packet = ElementTree.fromstring(xmp[xmp.index("<x:") : xmp.rindex("<?xpacket")])
    described = packet.find(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert described is not None
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert described.get(name) == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"


def test_parameters_of_facts_that_say_little() -> None:
    assert parameters_text({"prompt": "a"}, 2, 2).startswith("a\nSize: 2x2, Version: unclip_jax ")
    assert parameters_text({"prompt": "\udcff"}, 2, 2).startswith("\\udcff\n")


def line(name: str, **more: Any) -> dict[str, Any]:
    facts = {**FACTS, "sampling": {"eta": 0.1 + 0.2}}
    return manifest_line(name, "ab" * 32, facts, has_metadata=False, **more)


def test_a_manifest_survives_a_kill(tmp_path: Path) -> None:
    """A line that was cut off is passed over, and what follows it is not."""
    appender = ManifestAppender(tmp_path / NAME)
    appender.close()
    assert not (tmp_path / NAME).exists()
    appender = ManifestAppender(tmp_path / NAME)
    appender.add(line("a.png"))
    appender.close()
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole + whole[:-20])
    appender = ManifestAppender(tmp_path / NAME)
    appender.add(line("b.png"))
    appender.close()
    other = ManifestAppender(tmp_path / part_name(3, 4))
    other.add(line("c.png"))
    other.add(line("elsewhere.png"))
    other.close()
    names = {"a.png", "b.png", "c.png"}
    entries = read_entries(tmp_path, names)
    assert set(entries) == names
    facts = {**FACTS, "sampling": {"eta": 0.1 + 0.2}}
    assert {entry.facts for entry in entries.values()} == {facts_key(facts)}
    assert facts_key({**facts, "seed": 4}) != facts_key(facts)
    write_manifest(tmp_path, [line("a.png"), line("b.png", score=0.5)])
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    rows = [json.loads(row) for row in (tmp_path / NAME).read_text().splitlines()]
    assert [row["path"] for row in rows] == ["a.png", "b.png"] and rows[1]["score"] == 0.5


@pytest.mark.parametrize(
    "row",
    [
        b"[1]",
        b"{",
        b'{"path": "a.png"}',
        b'{"path": "a.png", "sha256": 3, "metadata": true}',
        b'{"path": "a.png", "sha256": "x", "metadata": "yes"}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"path": ["a.png"], "sha256": "x", "metadata": true}',
    ],
)
def test_lines_that_make_no_sense(row: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(row + b"\n")
    assert read_entries(tmp_path, {"a.png"}) == {}


def test_shards_are_read_by_everyone(tmp_path: Path) -> None:
    samples = [(f"{n:05d}_a", {"png": b"x" * n, "txt": b"a", "json": b"{}"}) for n in (0, 1, 700)]
    write_shard(tmp_path / "a.tar", iter(samples))
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
        assert names[:3] == ["00000_a.png", "00000_a.txt", "00000_a.json"] and len(names) == 9
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in tar.getmembers()} == {(0, 0, 0, 0o644)}
        file = tar.extractfile("00700_a.png")
        assert file is not None and file.read() == b"x" * 700
    members = read_members(tmp_path / "a.tar")
    assert list(members) == names
    with (tmp_path / "a.tar").open("rb") as file:
        assert read_span(file, members["00700_a.png"]) == b"x" * 700
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(data[:-1100])
    assert read_members(tmp_path / "b.tar") == {}


def test_a_sheet_without_words_is_a_grid() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    rows = [list(images[:2]), list(images[2:4]), list(images[4:])]
    np.testing.assert_array_equal(make_sheet(rows), make_grid(images, 2))


def test_a_sheet_with_words_shows_the_same_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    rows = [list(images[:2]), list(images[2:])]
    words = ["a red apple that is very very large and " + "l" * 300, "ü\x1b[31m"]
    sheet = make_sheet(rows, words, ["seed 0", "seed 1"])
    large = images.repeat(2, axis=1).repeat(2, axis=2)
    plain = make_sheet([list(large[:2]), list(large[2:])])
    height, width = plain.shape[:2]
    np.testing.assert_array_equal(sheet[-height:, -width:], plain)
    assert (sheet[-height:, :-width] < 128).any() and (sheet[:-height] < 128).any()
    # Words stay in their margin, and are cut where there is no room.
    assert (sheet[:, :2] == 255).all()
