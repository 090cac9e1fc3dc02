"""The paper's decoder on more and more v5e chips, as many pictures a chip: floors of a step.

    python benchmarks/weak_scaling.py [--again]

Every row is the train step of `configs/dalle2/decoder.py` compiled for its topology, three minutes
or more each on a CPU core, and kept in `weak_scaling.json` beside this file: what is there is not
compiled again without `--again`. A floor is work at the published rate of one resource and nothing
else in the way: matrix products, the links inside a slice, the data centre's network between
slices. The step is the longest of them, which supposes that they overlap perfectly.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unclip_jax.cli.overrides import load_recipe
from unclip_jax.cli.runtime import prepare_jax
from unclip_jax.training.planning.chips import Chip, chip_of

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "dalle2"
STORE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Case:
    """Where the step runs, and on how much a chip."""

    chips: int
    topology: str
    slices: int = 1
    batch: int = 8
    """Pictures a chip."""
    fsdp: int = 8

    @property
    def name(self) -> str:
        """Its key in the store."""
        return f"{self.slices}x{self.topology} batch {self.batch} fsdp {self.fsdp}"


CASES = [
    Case(8, "v5e:2x4"),
    Case(32, "v5e:4x8"),
    Case(128, "v5e:8x16"),
    Case(256, "v5e:16x16"),
    Case(1024, "v5e:16x16", slices=4),
    Case(256, "v5e:16x16", batch=1),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="The decoder on more and more v5e chips.")
    parser.add_argument("--again", action="store_true", help="compile what is in the store, too")
    options = parser.parse_args()
    prepare_jax()
    found: dict[str, Any] = json.loads(STORE.read_text()) if STORE.is_file() else {}
    for case in CASES:
        if options.again or case.name not in found:
            print(f"compiling {case.name} ...", file=sys.stderr, flush=True)
            found[case.name] = measure(case)
            STORE.write_text(json.dumps(found, indent=1) + "\n")
    print(
        "| chips | topology | fsdp | pictures a chip | compute | inside a slice | between slices | "
        "step at least | bound | MFU at most | memory a chip |"
    )
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | --- |")
    for case in CASES:
        print(row(case, found[case.name]))


def measure(case: Case) -> dict[str, float]:
    """What one chip computes, receives and holds in a step; `needed` alone if it does not fit."""
    import jax

    from unclip_jax.training.planning.compiling import DoesNotFitError
    from unclip_jax.training.planning.plan import make_plan

    jax.config.update("jax_enable_compilation_cache", False)
    recipe: Any = load_recipe(str(CONFIGS / "decoder.py"))
    clip: Any = load_recipe(str(CONFIGS / "clip.py"))
    mesh = replace(recipe.mesh, topology=case.topology, slices=case.slices, fsdp=case.fsdp)
    recipe = replace(recipe, mesh=mesh, batch_size=case.batch * case.chips)
    try:
        plan = make_plan(recipe, clip)
    except DoesNotFitError as error:
        return {"needed": error.needed}
    rows = plan.program.collectives
    return {
        "model_flops": plan.flops / plan.devices,
        "flops": plan.program.flops,
        "inside": sum(row.received for row in rows if not row.is_across),
        "across": sum(row.received for row in rows if row.is_across),
        "gathered": sum(row.received for row in rows if row.kind == "all-gather"),
        "memory": plan.memory.total,
        "seconds": plan.compile_seconds,
    }


def row(case: Case, found: dict[str, float]) -> str:
    """A case as a line of the table."""
    chip = chip_of(case.topology)
    topology = f"{case.slices} x {case.topology}" if case.slices > 1 else case.topology
    cells = [f"{case.chips:,}", topology, str(case.fsdp), str(case.batch)]
    if "needed" in found:
        memory = f"{found['needed'] / 1e9:.1f} of {chip.memory / 1e9:.1f} GB: does not fit"
        return "| " + " | ".join([*cells, *[""] * 6, memory]) + " |"
    floors = _floors(found, chip)
    bound = max(floors, key=lambda name: floors[name])
    step = floors[bound]
    cells += [f"{1e3 * seconds:.0f} ms" for seconds in floors.values()]
    cells += [f"{1e3 * step:.0f} ms", bound, f"{found['model_flops'] / chip.flops / step:.0%}"]
    cells.append(f"{found['memory'] / 1e9:.1f} of {chip.memory / 1e9:.1f} GB: fits")
    return "| " + " | ".join(cells) + " |"


def _floors(found: dict[str, float], chip: Chip) -> dict[str, float]:
    """Seconds a step if only this took time."""
    return {
        "compute": max(found["flops"], found["model_flops"]) / chip.flops,
        "inside a slice": found["inside"] / chip.link_bandwidth,
        "between slices": found["across"] / chip.slice_bandwidth,
    }


if __name__ == "__main__":
    main()
