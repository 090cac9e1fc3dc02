"""A stage of ours whose weights are still in somebody else's file."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from unclip_jax.config import Dtype
from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.files import write_whole
from unclip_jax.interop.key_map import KeyMap
from unclip_jax.interop.safetensors_file import write_safetensors
from unclip_jax.interop.tensors import Tensors
from unclip_jax.interop.transfer import check_tensors, import_params, read_params
from unclip_jax.training.embedding_statistics import EmbeddingStatistics
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, flatten, save_stage


@dataclass(frozen=True, eq=False)
class ForeignStage:
    """What it will be, and where its tensors are."""

    recipe: Recipe
    key_map: KeyMap
    tensors: Tensors
    what: str
    """How messages call the file."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of names that mean nothing here."""
    statistics: EmbeddingStatistics | None = None

    def abstract(self) -> Any:
        """Shapes of the parameters."""
        return jax.eval_shape(lambda: init_params(self.recipe, jax.random.key(0)))

    def check(self) -> None:
        """UserError if names or shapes do not fit; reads no weights."""
        expected = {name: tuple(leaf.shape) for name, leaf in flatten(self.abstract()).items()}
        check_tensors(self.key_map, self.tensors, expected, what=self.what, ignored=self.ignored)

    def load(self, tokenizer: Tokenizer | None, clip_id: str) -> Stage:
        """The stage in memory; UserError if the file does not fit."""
        params = import_params(
            self.key_map, self.tensors, self.abstract(), what=self.what, ignored=self.ignored
        )
        return Stage(self.recipe, params, tokenizer, 0, clip_id, statistics=self.statistics)

    def write(self, folder: Path, tokenizer: Tokenizer | None, clip_id: str, dtype: Dtype) -> None:
        """The stage as a folder, without its weights in memory together.

        The check of names and shapes comes first: of a file that does not fit nothing is written.
        """
        abstract = self.abstract()
        arrays = read_params(
            self.key_map, self.tensors, abstract, what=self.what, ignored=self.ignored
        )
        # Everything but the weights; a tree without leaves stands for them.
        empty = Stage(self.recipe, {}, tokenizer, 0, clip_id, statistics=self.statistics)
        save_stage(empty, folder, dtype)
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
        shapes = {name: tuple(leaf.shape) for name, leaf in flatten(abstract).items()}
        write_safetensors(folder / "model.safetensors", shapes, arrays, kind)


@dataclass(frozen=True, eq=False)
class ForeignModel:
    """Stages that work with one CLIP."""

    clip: Stage
    stages: dict[str, ForeignStage]
    sampling: dict[str, Any]
    """A model folder's sampling.json."""

    def load(self) -> dict[str, Stage]:
        """All stages in memory, by their names in a model folder."""
        return {"clip": self.clip} | {
            name: foreign.load(self._tokenizer(name), self.clip.clip_id)
            for name, foreign in self.stages.items()
        }

    def write(self, folder: Path, dtype: Dtype) -> None:
        """A model folder that `UnCLIP.load` reads, one stage after the other."""
        save_stage(self.clip, folder / "clip", dtype)
        for name, foreign in self.stages.items():
            foreign.write(folder / name, self._tokenizer(name), self.clip.clip_id, dtype)
        text = json.dumps(self.sampling, indent=1) + "\n"
        write_whole(folder / "sampling.json", text.encode())

    def only(self, names: set[str]) -> ForeignModel:
        """The same with fewer stages."""
        return replace(
            self, stages={name: stage for name, stage in self.stages.items() if name in names}
        )

    def _tokenizer(self, name: str) -> Tokenizer | None:
        return None if name.startswith("upsampler") else self.clip.tokenizer
