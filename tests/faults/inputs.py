"""Hostile input: every case that the tests have, at full size, counted by its kind."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.cli import hostile_prompts
from tests.data import hostile_pictures, hostile_tars
from tests.faults.outcome import Outcome
from tests.training import hostile_stages
from unclip_jax.cli.prompts import read_prompts
from unclip_jax.data.images import decode_image
from unclip_jax.data.tar_source import TarSource
from unclip_jax.errors import UserError

LARGEST = 8000
"""Side of the largest picture allowed."""
MILLION = 1_000_000


def try_faults(rounds: int, folder: Path) -> Iterator[Outcome]:
    """Pictures, shards, stages and prompts from strangers.

    Args:
        rounds: below 20 the large pictures and the large shard are small.
        folder: scratch.
    """
    is_full = rounds >= 20
    yield from _pictures(LARGEST if is_full else LARGEST // 8)
    yield _shards(folder)
    yield _cut_shards(folder)
    yield _many_members(folder, MILLION if is_full else MILLION // 50)
    yield _stages(folder / "stages")
    yield from _prompts(folder)


def _count(fault: str, checks: Mapping[str, Callable[[], bool]], note: str) -> Outcome:
    """Any exception of a check is a failure, and is named."""
    failed = []
    for name, check in checks.items():
        try:
            held = check()
        except Exception as error:  # whatever it is, it should have been a UserError
            held, name = False, f"{name} ({type(error).__name__})"
        failed += [] if held else [name]
    note = note if not failed else f"FAILED: {', '.join(failed)}"
    return Outcome(fault, len(checks), len(checks) - len(failed), note=note)


def _pictures(side: int) -> Iterator[Outcome]:
    def decodes(name: str) -> Callable[[], bool]:
        make, color = hostile_pictures.DECODED[name]
        return lambda: bool(np.abs(decode_image(make(), name="a").astype(int) - color).max() <= 3)

    kinds = {name: decodes(name) for name in hostile_pictures.DECODED}
    yield _count("odd pictures (16 bits, CMYK, clear, animated)", kinds, "decoded right")
    found = _measured("tests.data.hostile_pictures", str(side))

    def refuses(name: str) -> Callable[[], bool]:
        words, seconds, megabytes = found[name]
        is_right = not words
        if name in hostile_pictures.REFUSED:
            is_right = hostile_pictures.REFUSED[name][1] in words
        return lambda: is_right and seconds < 5 and megabytes < 30

    names = (*hostile_pictures.REFUSED, *hostile_pictures.HARMLESS)
    refused = {name: refuses(name) for name in names}
    most = max(found[name][2] for name in refused)
    yield _count(
        "bombs and files that are no pictures",
        refused,
        f"one line or no price, {most:.1f} MB at most",
    )
    large = {name: value for name, value in found.items() if name not in refused}
    most = max(megabytes for _, _, megabytes in large.values())
    fits = {
        name: (lambda words=words, used=used: not words and used < 16 * side**2 / 1e6 + 50)
        for name, (words, _, used) in large.items()
    }
    yield _count(f"pictures of {side} × {side}", fits, f"decoded in {most:.0f} MB at most")


def _measured(module: str, argument: str) -> Any:
    """The words, seconds and megabytes that a module prints for its cases."""
    command = [sys.executable, "-m", module, argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return json.loads(done.stdout)


def _captions(path: Path) -> list[str]:
    with contextlib.redirect_stderr(io.StringIO()):
        source = TarSource(str(path))
    found: Any = [source[index].captions for index in range(len(source))]
    return [caption for captions in found for caption in captions]


def _shards(folder: Path) -> Outcome:
    def gives(name: str) -> Callable[[], bool]:
        make, expected = hostile_tars.CASES[name]
        path = folder / "hostile.tar"
        return lambda: bool(path.write_bytes(make())) and _captions(path) == expected

    checks = {name: gives(name) for name in hostile_tars.CASES}
    return _count("hostile tar shards", checks, "indexed, nothing extracted or followed")


def _cut_shards(folder: Path) -> Outcome:
    path = folder / "cut.tar"

    def gives(data: bytes, whole: int) -> Callable[[], bool]:
        def check() -> bool:
            path.write_bytes(data)
            try:
                return _captions(path) == ["caption"] * whole
            except UserError:
                return whole == 0

        return check

    cases = [(kind, *cut) for kind in hostile_tars.KINDS for cut in hostile_tars.cuts(kind)]
    checks = {f"{kind} at {len(data)}": gives(data, whole) for kind, data, whole in cases}
    return _count("tar shards cut at every block", checks, "the whole samples are used")


def _many_members(folder: Path, count: int) -> Outcome:
    path = folder / "many.tar"
    hostile_tars.write_members(path, count)
    began = time.process_time()
    found = len(TarSource(str(path)))
    seconds = time.process_time() - began
    path.unlink()
    held = found == count // 2 and seconds < 60
    note = f"indexed in {seconds:.1f} s of a core"
    return Outcome(f"a shard of {count:,} members", 1, int(held), note=note)


def _stages(folder: Path) -> Outcome:
    hostile_stages.save_whole(folder / "whole")
    hostile_stages.make_all(folder / "whole", folder)
    found = _measured("tests.training.hostile_stages", str(folder))

    def refuses(number: int, words: str) -> Callable[[], bool]:
        said, seconds, megabytes = found[number]
        return lambda: bool(re.search(words, said)) and seconds < 2 and megabytes < 300

    cases = enumerate(hostile_stages.CASES.items())
    checks = {name: refuses(number, words) for number, (name, (_, words)) in cases}
    most = max(megabytes for _, _, megabytes in found)
    note = f"one line, {most:.0f} MB at most"
    return _count("stages with hostile weights, configs and tokenizers", checks, note)


def _prompts(folder: Path) -> Iterator[Outcome]:
    def reads(name: str) -> Callable[[], bool]:
        file, content, expected = hostile_prompts.READ[name]
        path = folder / file
        return lambda: (
            path.write_bytes(content) >= 0
            and [line.prompt for line in read_prompts(path)] == expected
        )

    def refuses(name: str) -> Callable[[], bool]:
        file, content, words = hostile_prompts.REFUSED[name]

        def check() -> bool:
            (folder / file).write_bytes(content)
            try:
                read_prompts(folder / file)
            except UserError as error:
                return bool(re.search(words, str(error)))
            return False

        return check

    yield _count("odd prompts", {name: reads(name) for name in hostile_prompts.READ}, "read right")
    refused = {name: refuses(name) for name in hostile_prompts.REFUSED}
    yield _count("files that are no prompts", refused, "refused by line number")
