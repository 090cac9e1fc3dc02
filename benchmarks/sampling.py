"""Text → 256 pixels at Karlo's architecture, beside diffusers' components, stage by stage.

    python benchmarks/sampling.py [--width 0.125] [--batches 1 4 16] [--steps 25 25 7] [--rounds 3]

Both sides load one folder of random weights, ours by the importer, and are given the same noise;
their outputs are compared before anything is timed. torch runs eager and compiled, with its fused
attention, channels last, under `inference_mode`. `--width 1` is Karlo itself: with --stages prior,
decoder or upsampler it fits a machine of 24 GB one stage at a time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax

from benchmarks.karlo_weights import write_karlo
from benchmarks.side_by_side import OURS, Parts, check_alike, print_table, save, take_turns
from unclip_jax.config import from_dict
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.interop.karlo.diffusers_folder import open_diffusers_folder
from unclip_jax.pipeline import UnCLIP

STAGES = ("prior", "decoder", "upsampler")
PROMPTS = (
    "a red apple on a table",
    "a corgi that plays a trumpet, oil painting",
    "two boats",
    "a photograph of a lighthouse in the fog at dawn, seen from the sea",
)
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, nargs=3, default=[25, 25, 7])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", type=Path, help="a folder to keep the random weights in")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--device", default="cpu", help="of torch: cpu or cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS / "sampling.json")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = options.weights or Path(scratch) / "karlo"
        if not (folder / "prior").is_dir():
            write_karlo(folder, options.width)
        rows = []
        for batch in options.batches:
            noise = draw_noise(options, batch)
            sides = _sides(options, folder, batch, noise)
            _check(sides, options)
            for row in take_turns({name: side[1] for name, side in sides.items()}, options.rounds):
                rows.append(replace(row, name=f"{row.name}, batch {batch}"))
            print_table(f"Karlo at {options.width:g} of its width, batch {batch}", rows)
    kept = ("width", "batches", "steps", "stages", "rounds", "device", "dtype")
    save(options.out, rows, {name: getattr(options, name) for name in kept})


def draw_noise(options: argparse.Namespace, batch: int) -> dict[str, np.ndarray]:
    """Of every stage, and what a stage is given where the one before is not run."""
    random, shapes = np.random.default_rng(0), {}
    sides = {"prior": (int(768 * options.width),), "decoder": (64, 64, 3)}
    sides["upsampler"] = (256, 256, 3)
    for stage, steps in zip(STAGES, options.steps, strict=True):
        shapes[stage] = (batch, steps, *sides[stage])
    noise = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    noise["embedding"] = random.standard_normal((batch, *sides["prior"]), np.float32)
    noise["small"] = np.clip(random.standard_normal((batch, 64, 64, 3), np.float32), -1, 1)
    return noise


Side = tuple[dict[str, np.ndarray], Callable[[], Parts]]
"""What its stages made last, and what runs them."""


def _sides(
    options: argparse.Namespace, folder: Path, batch: int, noise: dict[str, np.ndarray]
) -> dict[str, Side]:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(batch)]
    sides = {OURS: our_side(options, folder, prompts, noise)}
    for is_compiled in (False,) if options.no_compile else (False, True):
        name = "diffusers, torch.compile" if is_compiled else "diffusers"
        sides[name] = their_side(options, folder, prompts, noise, is_compiled=is_compiled)
    return sides


def _check(sides: dict[str, Side], options: argparse.Namespace) -> None:
    """A chain amplifies rounding, see `interop.comparison.karlo.TRAJECTORY_TOLERANCES`."""
    for _, run in sides.values():
        run()
    ours = sides[OURS][0]
    tolerance = 1e-3 if options.dtype == "float32" else 0.5
    for side, (made, _) in sides.items():
        for stage in made if side != OURS else ():
            check_alike(f"{side}, {stage}", made[stage], ours[stage], tolerance)


def our_side(
    options: argparse.Namespace, folder: Path, prompts: list[str], noise: dict[str, np.ndarray]
) -> Side:
    """By `UnCLIP`, as the importer makes it."""
    wanted = {"prior": "prior", "decoder": "decoder", "upsampler": "upsampler_256"}
    names = {wanted[stage] for stage in options.stages}
    if "upsampler" in options.stages:
        names.add("upsampler_256_last")
    model = open_diffusers_folder(folder, "diffusers").only(names)
    how = from_dict(SamplingConfig, model.sampling, "sampling")
    how = replace(
        how,
        batch_size=-(-len(prompts) // jax.device_count()),
        upsample_batch_size=len(prompts),
        dtype=options.dtype,
        prior=replace(how.prior, num_steps=options.steps[0]),
        decoder=replace(how.decoder, num_steps=options.steps[1]),
        upsampler_256=replace(how.upsampler_256, num_steps=options.steps[2]),
    )
    unclip = UnCLIP(model.load(), how)
    keys = jax.random.split(jax.random.key(0), len(prompts))
    made: dict[str, np.ndarray] = {}

    def prior(_: Any) -> np.ndarray:
        return unclip.sample_prior(prompts, keys, noise=noise["prior"])

    def decode(embedding: Any) -> np.ndarray:
        return unclip.decode(embedding, prompts, keys, noise=noise["decoder"], as_float=True)

    def upsample(small: Any) -> np.ndarray:
        small = np.clip(small, -1, 1)
        return unclip.upsample(small, keys, 256, noise=noise["upsampler"], as_float=True)

    return made, _stages(options, noise, made, (prior, decode, upsample))


def their_side(
    options: argparse.Namespace,
    folder: Path,
    prompts: list[str],
    noise: dict[str, np.ndarray],
    *,
    is_compiled: bool,
) -> Side:
    """By diffusers' components."""
    import torch

    from benchmarks.rivals.diffusers_karlo import DiffusersKarlo
    from unclip_jax.data.tokenizer import clip_tokenizer

    karlo = DiffusersKarlo(
        folder,
        tuple(options.stages),
        is_compiled=is_compiled,
        device=options.device,
        dtype=getattr(torch, options.dtype),
    )
    tokens, made = clip_tokenizer()(prompts), {}

    def tensor(array: np.ndarray) -> Any:
        if array.ndim == 4:
            array = np.moveaxis(array, -1, 1)
        return torch.from_numpy(array.copy()).to(karlo.device, karlo.dtype)

    def array(tensor: Any) -> np.ndarray:
        found = tensor.float().cpu().numpy()
        return np.moveaxis(found, 1, -1) if found.ndim == 4 else found

    def prior(_: Any) -> np.ndarray:
        return array(karlo.prior(karlo.text(tokens), noise["prior"]))

    def decode(embedding: np.ndarray) -> np.ndarray:
        return array(karlo.decode(karlo.text(tokens), tensor(embedding), noise["decoder"]))

    def upsample(small: np.ndarray) -> np.ndarray:
        return array(karlo.upsample(tensor(small), noise["upsampler"]))

    return made, _stages(options, noise, made, (prior, decode, upsample))


def _stages(
    options: argparse.Namespace,
    noise: dict[str, np.ndarray],
    made: dict[str, np.ndarray],
    runs: tuple[Callable[[Any], np.ndarray], ...],
) -> Callable[[], Parts]:
    """One pass over the wanted stages, each timed, on arrays of the host in and out."""

    def run() -> Parts:
        parts: Parts = {}
        given: dict[str, Any] = {"decoder": noise["embedding"], "upsampler": noise["small"]}
        for stage, call, follower in zip(STAGES, runs, (*STAGES[1:], None), strict=True):
            if stage not in options.stages:
                continue
            began = time.perf_counter()
            made[stage] = call(given.get(stage))
            parts[stage] = time.perf_counter() - began
            if follower is not None:
                given[follower] = made[stage]
        if len(parts) > 1:
            parts["together"] = sum(parts.values())
        return parts

    return run


if __name__ == "__main__":
    main()
