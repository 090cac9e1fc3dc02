"""Mean and deviation of CLIP's image embeddings, which a prior in whitened space needs.

They stay float32 whatever the weights are stored in: rounded to bfloat16 they would shift every
embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.files import save_tensors

FILE = "embedding_statistics.safetensors"


@dataclass(frozen=True, eq=False)
class EmbeddingStatistics:
    """Of embeddings as the encoder makes them, not of unit norm."""

    mean: np.ndarray
    """[E] float32."""
    deviation: np.ndarray
    """[E] float32, positive."""

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.deviation.shape:
            raise UserError(
                f"embedding statistics have shapes {self.mean.shape} and {self.deviation.shape}: "
                "give a mean and a deviation for each dimension"
            )
        if not (np.isfinite(self.mean).all() and (self.deviation > 0).all()):
            raise UserError(
                "embedding statistics are not finite, or a deviation is not positive: restore them"
            )


def save_statistics(statistics: EmbeddingStatistics, path: Path) -> None:
    """Write the file, whole or not at all."""
    arrays = {"mean": statistics.mean, "deviation": statistics.deviation}
    save_tensors(path, {name: np.asarray(array, np.float32) for name, array in arrays.items()})


def load_statistics(path: Path, width: int) -> EmbeddingStatistics:
    """Read the file of a prior for embeddings of `width`; raises UserError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
        statistics = EmbeddingStatistics(arrays["mean"], arrays["deviation"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file") from error
    if statistics.mean.shape != (width,):
        raise UserError(f"{path} has {len(statistics.mean)} dimensions, the prior needs {width}")
    return statistics
