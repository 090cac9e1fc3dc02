"""Records that cannot be read, where a run begins by reading all of them: for its tokenizer."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.training import toys
from unclip_jax.cli import preview
from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.images import MAX_BYTES
from unclip_jax.data.records import MAX_TEXT
from unclip_jax.errors import UserError
from unclip_jax.training.inputs import open_inputs

NOT_UTF_8 = os.fsdecode(b"\xff\xfe.png")
REASONS = {
    "pipe.png": "not a regular file",
    "large.png": "the limit is",
    "loop.png": "symbolic links",
    NOT_UTF_8: "not a picture",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good pictures and one of each bad kind."""
    folder = toys.write_pictures(tmp_path_factory.mktemp("bad") / "pictures")
    os.mkfifo(folder / "pipe.png")
    with (folder / "large.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / NOT_UTF_8).write_bytes(b"junk")
    for name in REASONS:
        (folder / name).with_suffix(".txt").write_text("a bad one")
    return folder


def listed(workdir: Path) -> dict[str, str]:
    lines = (workdir / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert len({entry["name"] for entry in found}) == len(found)
    return {entry["name"]: entry["reason"] for entry in found}


def test_bad_pictures_cost_a_new_run_nothing_but_themselves(
    pictures: Path, tmp_path: Path, repository: Path
) -> None:
    """train.py from its start, with a tokenizer that it trains."""
    command = [sys.executable, "train.py", "configs/toy/clip.py", "--workdir", str(tmp_path / "a")]
    command += ["--data.source", str(pictures), "--data.max_bad_fraction", "0.5", "--steps", "4"]
    command += ["--log.preview_every", "0"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = listed(tmp_path / "a")
    assert found.keys() == REASONS.keys()
    assert all(REASONS[name] in found[name] for name in REASONS)
    tokenizer = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    assert "bad" not in json.dumps(tokenizer)


def test_a_preview_shows_others_in_their_place(pictures: Path) -> None:
    recipe = toys.recipe("upsampler", data={"source": str(pictures)})
    truth, records = preview._pictures(recipe, 16)  # every record, the bad ones too
    assert len(truth) == len(records) == 16
    assert not {record.name for record in records} & REASONS.keys()


def opened(source: str, workdir: Path, share: float) -> Any:
    recipe = toys.recipe("clip", data={"source": source})
    return open_inputs(recipe, workdir, BadRecords(workdir / "skipped.jsonl", share))


def test_too_many_bad_records_stop_it(pictures: Path, tmp_path: Path) -> None:
    """Four of sixteen, and the third is one too many."""
    with pytest.raises(UserError, match=r"3 of 16 pictures cannot be read.*max_bad_fraction"):
        opened(str(pictures), tmp_path, 0.125)
    assert len(listed(tmp_path)) == 3


def test_captions_of_a_shard(tmp_path: Path) -> None:
    folder = toys.write_pictures(tmp_path / "pictures")
    captions = ['{"caption": null}', json.dumps({"caption": "x " * MAX_TEXT}), "[" * 100_000]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, path in enumerate(sorted(folder.glob("*.png"))):
            caption = captions[number] if number < len(captions) else '{"caption": "a fox"}'
            for ending, data in ((".png", path.read_bytes()), (".json", caption.encode())):
                member = tarfile.TarInfo(f"{number:02d}{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    inputs = opened(str(tmp_path / "a.tar"), tmp_path / "run", 0.5)
    assert inputs.tokenizer is not None and len(inputs) == 12
    found = listed(tmp_path / "run")
    assert found == {
        "a.tar/00": "no caption",
        "a.tar/01": "the picture or its caption is too large",
        "a.tar/02": "no caption",
    }
