"""What the compiler takes for blocks of the decoder's U-Net on one v5e chip, and what cuts it.

    python benchmarks/unet_compile.py [--only TEXT ...]

Residual blocks of 512 channels in bfloat16 at 16 x 16 positions, 8 pictures: the gradient of their
parameters and input, with the TPU's compiler (`v5e:1x1`; no TPU is needed). Seconds are those of
the process's CPU time and of the clock. Cycles are the compiler's own estimates, summed over the
operations of the program; a loop's body counts once.
"""

from __future__ import annotations

import argparse
import re
import resource
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import SingleDeviceSharding

from unclip_jax.models import unet
from unclip_jax.models.layers import Dropout, Remat, rematerialized
from unclip_jax.models.unet import ResBlock, UNetConfig
from unclip_jax.training.planning.chips import topology_devices

CHANNELS, SIDE, BATCH = 512, 16, 8
CONFIG = UNetConfig(channels=CHANNELS, dtype="bfloat16")


@dataclass(frozen=True)
class Case:
    """A way to write or to compile the same blocks."""

    name: str
    blocks: int = 1
    is_scanned: bool = False
    remat: Remat = "block"
    has_backward: bool = True
    dropout: float = 0.1
    has_threefry: bool = False
    """Flax's dropout, with JAX's generator inside the block."""
    options: dict[str, Any] = field(default_factory=dict)


def effort(level: int) -> dict[str, Any]:
    """Compiler options of an effort level."""
    return {"xla_optimization_level": f"EFFORT_O{level}"}


CASES = [
    Case("1 block"),
    Case("2 blocks", blocks=2),
    Case("2 blocks, scanned", blocks=2, is_scanned=True),
    Case("1 block, threefry", has_threefry=True),
    Case("2 blocks, threefry", blocks=2, has_threefry=True),
    Case("1 block, forward only", has_backward=False),
    Case("1 block, remat none", remat="none"),
    Case("1 block, no dropout", dropout=0.0),
    Case("2 blocks, no dropout", blocks=2, dropout=0.0),
    Case("1 block, forward only, no dropout", has_backward=False, dropout=0.0),
    Case("1 block, EFFORT_O0", options=effort(0)),
    Case("2 blocks, EFFORT_O0", blocks=2, options=effort(0)),
    Case("1 block, EFFORT_O1", options=effort(1)),
    Case("1 block, EFFORT_O2", options=effort(2)),
    Case("1 block, EFFORT_O3", options=effort(3)),
    Case("1 block, time effort -0.5", options={"exec_time_optimization_effort": -0.5}),
    Case("1 block, time effort -1", options={"exec_time_optimization_effort": -1.0}),
]


class Link(nn.Module):
    """A block as the body of an `nn.scan`."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x_BHWC: Array, time: Array) -> tuple[Array, None]:
        return ResBlock(self.config, CHANNELS, train=True, name="block")(x_BHWC, time), None


class Chain(nn.Module):
    """Alike blocks one after the other, written out or scanned."""

    case: Case

    @nn.compact
    def __call__(self, x_BHWC: Array, time: Array) -> Array:
        c = self.case
        config = replace(CONFIG, dropout=c.dropout)
        if not c.is_scanned:
            block = rematerialized(ResBlock, c.remat)
            for i in range(c.blocks):
                x_BHWC = block(config, CHANNELS, None, True, name=f"block{i}")(x_BHWC, time)
            return x_BHWC
        scan = nn.scan(
            rematerialized(Link, c.remat, is_scanned=True),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=c.blocks,
        )
        return scan(config, name="blocks")(x_BHWC, time)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile time of the decoder's U-Net blocks.")
    parser.add_argument("--only", nargs="*", help="cases whose name begins so")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print("| case | CPU s | s | program MB | temporaries MB | HBM GB | cycles |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for case in CASES:
        if options.only is None or case.name.startswith(tuple(options.only)):
            print(row(case), flush=True)


def row(case: Case) -> str:
    """Compiles a case and says what that took, as a line of the table."""
    used, began = _cpu_seconds(), time.monotonic()
    compiled = _lowered(case).compile(compiler_options=case.options)
    used, took = _cpu_seconds() - used, time.monotonic() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    cycles = re.findall(r'"estimated_cycles":"?(\d+)', compiled.as_text())
    cells = [
        f"{used:.0f}",
        f"{took:.0f}",
        f"{memory.generated_code_size_in_bytes / 1e6:.1f}",
        f"{memory.temp_size_in_bytes / 1e6:.1f}",
        f"{cost.get('bytes accessed', 0) / 1e9:.2f}",
        f"{sum(map(int, cycles)):,}",
    ]
    return f"| {case.name} | " + " | ".join(cells) + " |"


def _lowered(case: Case) -> Any:
    unet.Dropout = nn.Dropout if case.has_threefry else Dropout  # pyright: ignore
    (device,) = topology_devices("v5e:1x1")
    chain = Chain(case)

    def place(shape: tuple[int, ...], dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    x, vector = place((BATCH, SIDE, SIDE, CHANNELS)), place((BATCH, CONFIG.time_width))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = jax.eval_shape(chain.init, keys, x, vector)["params"]
    params = jax.tree.map(lambda leaf: place(leaf.shape, leaf.dtype), params)

    # The key is data, as in a run: the bits of a constant one would be computed by the compiler.
    key = jax.eval_shape(lambda: jax.random.key(1))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=SingleDeviceSharding(device))

    def loss(params: Any, x: Array, vector: Array, key: Array) -> Array:
        y: Any = chain.apply({"params": params}, x, vector, rngs={"dropout": key})
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    function = jax.grad(loss, argnums=(0, 1)) if case.has_backward else loss
    return jax.jit(function).trace(params, x, vector, key).lower(lowering_platforms=("tpu",))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
