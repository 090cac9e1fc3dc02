"""Every input of the corpus again, without atheris: read or refused, quickly, in little memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from tests.fuzz.corpus import CORPUS
from tests.fuzz.targets import TARGETS

MOST_MEMORY = 24 * 2**20
"""Bytes; the largest input has 40,000, and the names of tensors may take 16 MiB."""
MOST_SECONDS = 3.0
INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())


def test_corpus_is_complete_and_small() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
    assert sum(path.stat().st_size for path in INPUTS) < 300_000


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_corpus(target: str) -> None:
    inputs = [path for path in INPUTS if path.parent.name == target]
    TARGETS[target](inputs[0].read_bytes())  # modules and tables that are loaded once
    for path in inputs:
        data = path.read_bytes()
        tracemalloc.start()
        began = time.process_time()
        try:
            TARGETS[target](data)
        except Exception as error:
            error.add_note(f"on {path}")
            raise
        finally:
            seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < MOST_MEMORY, f"{path} takes {peak:,} bytes"
        assert seconds < MOST_SECONDS, f"{path} takes {seconds:.1f} s"
