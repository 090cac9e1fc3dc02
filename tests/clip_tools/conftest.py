"""A tiny random CLIP, twelve pictures, and their index in three shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.generation.test_all_stages import stage
from tests.training import toys
from unclip_jax.clip_tools.index_writer import write_index
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.pipeline import UnCLIP

SHARD_ROWS = 5


@pytest.fixture(scope="session")
def clip() -> UnCLIP:
    return UnCLIP({"clip": stage("clip")}, SamplingConfig(batch_size=4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toys.write_pictures(tmp_path / "pictures")


@pytest.fixture
def index(clip: UnCLIP, folder: Path, tmp_path: Path) -> Path:
    write_index(clip, folder, tmp_path / "index", shard_rows=SHARD_ROWS)
    return tmp_path / "index"
