"""Trains toy stages on the devices there are: python -m tests.training.sharded_run FOLDER

A process of its own, because the number of devices is fixed when JAX starts: JAX_NUM_CPU_DEVICES.
Prints one JSON object with the metric rows of every run and where the arrays lie.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from tests.training import toys
from unclip_jax.config import MeshConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.text import TextConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.training import sharding
from unclip_jax.training.loop import train
from unclip_jax.training.optim import make_optimizer
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.stages import init_params
from unclip_jax.training.state import init_state

MESHES = {"8x1": (8, 1), "2x4": (2, 4), "1x8": (1, 8)}


def run(
    folder: Path, stage: str, mesh: str, name: str = "", rule: str = "fsdp"
) -> list[dict[str, float]]:
    data, fsdp = MESHES[mesh]
    workdir = folder / (name or f"{stage}_{mesh}")
    model = toys.SMALL_DECODER if stage == "decoder" else {}
    shape = {"data": data, "fsdp": fsdp, "rule": rule}
    recipe = toys.on_folder(stage, folder, 3, mesh=shape, model=model)
    train(recipe, workdir)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def placement_of_the_papers_decoder() -> dict[str, Any]:
    """How the state of the paper's decoder would lie on the mesh (1, 8); nothing is allocated."""
    text = TextConfig(50257, 256, TransformerConfig(width=2048, depth=24, heads=32))
    unet = UNetConfig(channels=512, context_width=2048)
    model = DecoderConfig(unet=unet, text=text, embedding_width=1024)
    recipe = DecoderRecipe(model=model)
    optimizer = make_optimizer(recipe.optim, recipe.steps)
    state = jax.eval_shape(
        lambda k: init_state(init_params(recipe, k), optimizer), jax.random.key(0)
    )
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
    placed = sharding.infer_shardings(state, mesh)
    leaves = list(zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True))
    split = [leaf.size for leaf, s in leaves if s.spec != PartitionSpec()]
    whole = [leaf.size for leaf, s in leaves if s.spec == PartitionSpec()]
    same = jax.tree.map(
        lambda *specs: len({s.spec for s in specs}) == 1, placed.params, placed.ema_params
    )
    zero = sharding.infer_shardings(state, mesh, "zero1")
    rows = sharding.placements(state, zero)
    return {
        "whole_under_zero1": sorted({row.part for row in rows if row.spec == PartitionSpec()}),
        "split_under_zero1": sorted({row.part for row in rows if row.spec != PartitionSpec()}),
        "every_leaf": all(isinstance(s, NamedSharding) for _, s in leaves),
        "largest_whole": max(whole),
        "share_split": sum(split) / sum(split + whole),
        "average_as_weights": all(jax.tree.leaves(same)),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    found: dict[str, Any] = {"paper": placement_of_the_papers_decoder()}
    sharding.SMALLEST_SHARDED = 64  # the toys' arrays are small: split them all the same
    found["clip"] = {mesh: run(folder, "clip", mesh) for mesh in ("8x1", "1x8")}
    found["zero1"] = run(folder, "clip", "1x8", "clip_zero1", "zero1")
    found["continued"] = run(folder, "clip", "2x4", "clip_continued")
    found["decoder"] = run(folder, "decoder", "2x4")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
