"""Training steps beside PyTorch's: forward, backward, clipping, AdamW and the average of weights.

    python benchmarks/training.py [--cases ...] [--rounds 5] [--no-compile]

The first four are the same network with the same weights on both sides, through the exporters:
Karlo's prior, decoder and upsampler at a part of its width, and a CLIP, by diffusers and
transformers; their outputs are compared first, in float32. The last two are DALLE2-pytorch's prior
and decoder of its usual small sizes, beside ours of no fewer parameters: other networks, one task.
Frozen text encoders run in the step on both sides where they do in training; image embeddings are
given. Our decoder's step also has the loss of its learned variance, which the rival's leaves out.
With --dtype bfloat16 ours computes in it and torch under autocast, weights float32 on both sides.
On a device whose peak is known our MFU is printed, which remat's second forward does not count in.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp

from benchmarks.karlo_weights import random_stage, write_karlo
from benchmarks.side_by_side import OURS, Parts, Row, check_alike, print_table, save, take_turns
from unclip_jax.config import DataConfig, OptimConfig, with_fields
from unclip_jax.data.tokenizer import TokenizerConfig, clip_tokenizer
from unclip_jax.interop.clip_export import export_hf_clip
from unclip_jax.interop.karlo.diffusers_folder import open_diffusers_folder
from unclip_jax.models.clip import CLIP, CLIPConfig
from unclip_jax.models.decoder import Decoder, DecoderConfig
from unclip_jax.models.prior import DiffusionPrior, PriorConfig
from unclip_jax.models.text import text_mask
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import Upsampler
from unclip_jax.training.inputs import Inputs
from unclip_jax.training.objectives.conditions import to_float
from unclip_jax.training.planning.chips import peak_flops
from unclip_jax.training.planning.work import step_flops
from unclip_jax.training.program import make_program
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.sharding import make_mesh
from unclip_jax.training.weights import Stage

CASES = ("prior", "decoder", "upsampler", "clip", "dalle2 prior", "dalle2 decoder")
OPTIM = OptimConfig(learning_rate=1e-4, warmup_steps=0, clip_norm=1.0)
CAPTIONS = ("a red apple on a table", "two boats", "a corgi that plays a trumpet, oil painting")
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Ours:
    """What our side of a case trains."""

    recipe: Recipe
    clip: Stage | None
    params: Any
    batch: dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--width", type=float, default=0.25, help="of Karlo's networks")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", type=Path, help="a folder to keep the random weights in")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--device", default="cpu", help="of torch: cpu or cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS / "training.json")
    options = parser.parse_args()

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.weights or Path(scratch) / "karlo"
        if not (folder / "prior").is_dir():
            write_karlo(folder, options.width)
        for case in options.cases:
            rows += _time(case, folder, options)
    print_table("seconds a training step", rows)
    kept = ("cases", "width", "batch", "rounds", "device", "dtype")
    save(options.out, rows, {name: getattr(options, name) for name in kept})


def _time(case: str, folder: Path, options: argparse.Namespace) -> list[Row]:
    from benchmarks.rivals import torch_training as rival

    ours = _OURS[case](folder, options)
    given = _for_torch(ours.batch, options.device)
    if case.startswith("dalle2"):
        make, given = getattr(rival, case.replace(" ", "_")), _as_dalle2(given, ours)
        arguments: tuple[Any, ...] = (given, options.device)
    else:
        make = getattr(rival, f"{'transformers' if case == 'clip' else 'diffusers'}_{case}")
        where = folder / "hf_clip" if case == "clip" else folder
        arguments = (where, given, options.device)
    network, loss = make(*arguments)
    size = sum(leaf.size for leaf in jax.tree.leaves(ours.params))
    theirs = sum(one.numel() for one in network.parameters())
    print(f"\n{case}: {size:,} parameters, theirs {theirs:,}", flush=True)
    if case in _COMPARE:
        _COMPARE[case](ours, network, given)
    else:
        assert size >= theirs, f"{case}: fewer parameters than the rival's"
    label = "DALLE2-pytorch" if case.startswith("dalle2") else make.__name__.split("_")[0]
    if options.dtype != "float32":
        recipe: Any = ours.recipe
        recipe = replace(recipe, model=with_fields(recipe.model, dtype=options.dtype))
        ours = replace(ours, recipe=recipe)
    sides: dict[str, Callable[[], Parts]] = {OURS: _our_step(ours)}
    sides[label] = _seconds(rival.TorchTrainer(network, loss, options.dtype).step)
    if not options.no_compile and not case.startswith("dalle2"):
        network, loss = make(*arguments)
        trainer = rival.TorchTrainer(network, loss, options.dtype, is_compiled=True)
        sides[f"{label}, torch.compile"] = _seconds(trainer.step)
    rows = take_turns(sides, options.rounds)
    batch = len(next(iter(ours.batch.values())))
    rows = [replace(row, name=f"{case}, batch {batch}") for row in rows]
    print_table(case, rows)
    _print_mfu(ours, statistics.median(rows[0].seconds[OURS]))
    return rows


def _print_mfu(ours: Ours, seconds: float) -> None:
    """The model's operations as a part of what the devices could do (Chowdhery et al. 2022)."""
    tokenizer = None if ours.clip is None else ours.clip.tokenizer
    rate = step_flops(ours.recipe, Inputs(None, tokenizer, ours.clip)) / seconds
    peak = peak_flops(jax.devices()[0].device_kind)
    share = "" if peak is None else f", MFU {rate / jax.device_count() / peak:.1%}"
    print(f"{rate / 1e12:.3g} TFLOP/s{share}")


def _seconds(step: Callable[[], Any]) -> Callable[[], Parts]:
    def run() -> Parts:
        began = time.perf_counter()
        step()
        return {"step": time.perf_counter() - began}

    return run


def _our_step(ours: Ours) -> Callable[[], Parts]:
    """The very step of `train.py`, its state donated, on all devices."""
    mesh = make_mesh(ours.recipe.mesh)
    tokenizer = None if ours.clip is None else ours.clip.tokenizer
    program = make_program(ours.recipe, Inputs(None, tokenizer, ours.clip), mesh)
    with jax.set_mesh(mesh):
        state = program.init(jax.random.key(0))
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract_state.params)
    state = state.replace(params=jax.device_put(ours.params, shardings))
    frozen, key = program.place_frozen(), jax.random.key(1)

    def step() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = program.step(state, frozen, ours.batch, key)
        assert np.isfinite(float(metrics["loss"]))
        jax.block_until_ready(state)

    return _seconds(step)


# -- our sides


def _karlo(name: str, folder: Path, options: argparse.Namespace) -> Ours:
    model = open_diffusers_folder(folder, "diffusers")
    foreign = "upsampler_256" if name == "upsampler" else name
    stage = model.only({foreign}).load()[foreign]
    recipe: Any = replace(stage.recipe, batch_size=options.batch, optim=OPTIM, ema_decay=0.999)
    batch = _batch(options.batch, int(768 * options.width))
    if name == "prior":
        del batch["image"]
        recipe = replace(recipe, text_drop=0.1)
    elif name == "decoder":
        recipe = replace(recipe, text_drop=0.1, embedding_drop=0.1)
    else:
        batch = {"image": batch["image"]}
        recipe = replace(recipe, crop_size=64, crops=1)
    return Ours(recipe, None if name == "upsampler" else model.clip, stage.params, batch)


def _clip(folder: Path, options: argparse.Namespace) -> Ours:
    tower = TransformerConfig(width=256, depth=8, heads=4, activation="quick_gelu")
    recipe = CLIPRecipe(
        model=CLIPConfig(256, 64, 8, tower, tower),
        batch_size=4 * options.batch,
        tokenizer=TokenizerConfig(),
        data=DataConfig(image_size=64),
        optim=OPTIM,
        ema_decay=0.999,
    )
    stage = random_stage(recipe, 5)
    if not (folder / "hf_clip").is_dir():
        export_hf_clip(recipe.model, stage.params, None, folder / "hf_clip")
    batch = _batch(recipe.batch_size, 1)
    del batch["embedding"]
    return Ours(recipe, None, stage.params, batch)


def _small_clip() -> Stage:
    """Text states and embeddings of 512, at next to no cost: the rival is given its own."""
    text = TransformerConfig(width=512, depth=1, heads=8)
    config = CLIPConfig(512, 64, 32, TransformerConfig(width=64, depth=1, heads=1), text)
    recipe = CLIPRecipe(model=config, tokenizer=TokenizerConfig(), data=DataConfig(image_size=64))
    return random_stage(recipe, 6)


def _dalle2_prior(folder: Path, options: argparse.Namespace) -> Ours:
    model = PriorConfig(512, 512, 77, TransformerConfig(width=512, depth=7, heads=8))
    recipe = PriorRecipe(clip="", model=model, batch_size=2 * options.batch, optim=OPTIM)
    batch = _batch(recipe.batch_size, 512)
    del batch["image"]
    return Ours(recipe, _small_clip(), random_stage(recipe, 7).params, batch)


def _dalle2_decoder(folder: Path, options: argparse.Namespace) -> Ours:
    unet = UNetConfig(
        image_size=64,
        out_channels=3,
        channels=32,
        channel_mult=(1, 2, 4, 8),
        depth=(1, 1, 1, 2),
        attention_resolutions=(16, 8),
        head_channels=16,
        context_width=128,
    )
    recipe = DecoderRecipe(
        clip="",
        model=DecoderConfig(unet=unet, text=None, clip_text_width=512, embedding_width=512),
        diffusion=DiffusionConfig(variance="fixed_small"),
        batch_size=options.batch // 2,
        optim=OPTIM,
    )
    batch = _batch(recipe.batch_size, 512)
    return Ours(recipe, _small_clip(), random_stage(recipe, 8).params, batch)


_OURS: dict[str, Callable[[Path, argparse.Namespace], Ours]] = {
    "prior": lambda folder, options: _karlo("prior", folder, options),
    "decoder": lambda folder, options: _karlo("decoder", folder, options),
    "upsampler": lambda folder, options: _karlo("upsampler", folder, options),
    "clip": _clip,
    "dalle2 prior": _dalle2_prior,
    "dalle2 decoder": _dalle2_decoder,
}


def _batch(rows: int, width: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(rows)]
    return {
        "image": random.integers(0, 256, (rows, 64, 64, 3), np.uint8),
        "embedding": random.standard_normal((rows, width), np.float32),
        "tokens": np.asarray(clip_tokenizer()(captions), np.int32),
    }


# -- the same for torch


def _for_torch(batch: dict[str, np.ndarray], device: str) -> dict[str, Any]:
    import torch

    given = {name: torch.from_numpy(array.copy()).to(device) for name, array in batch.items()}
    given["tokens"] = given["tokens"].long() if "tokens" in given else None
    if "image" in given:
        image = given["image"].permute(0, 3, 1, 2).float() / 127.5 - 1
        given["image"] = image.contiguous(memory_format=torch.channels_last)
        config = CLIPConfig()
        mean, deviation = (
            torch.tensor(numbers, device=device)[:, None, None]
            for numbers in (config.image_mean, config.image_std)
        )
        given["pixels"] = ((image + 1) / 2 - mean) / deviation
    return given


def _as_dalle2(given: dict[str, Any], ours: Ours) -> dict[str, Any]:
    """It is given what its CLIP would make of the captions."""
    import torch

    random, rows = np.random.default_rng(1), len(given["embedding"])
    for name, shape in (("text", (rows, 512)), ("states", (rows, 77, 512))):
        array = torch.from_numpy(random.standard_normal(shape, np.float32))
        given[name] = array.to(given["embedding"].device)
    return given


# -- both sides on the same inputs, before anything is timed


def _compare_prior(ours: Ours, network: Any, given: dict[str, Any]) -> None:
    import torch

    assert ours.clip is not None
    text, states, mask, t = _text_of(ours)
    x = ours.batch["embedding"]
    config: Any = ours.recipe.model
    found = jax.jit(DiffusionPrior(config).apply)({"params": ours.params}, x, t, text, states, mask)
    device = given["embedding"].device
    with torch.no_grad():
        theirs = network(
            given["embedding"],
            timestep=_tensor(t, device),
            proj_embedding=_tensor(text, device),
            encoder_hidden_states=_tensor(states, device),
            attention_mask=_tensor(mask, device),
        ).predicted_image_embedding
    check_alike("prior, output", np.asarray(found), theirs.cpu().numpy(), 1e-4)


def _compare_decoder(ours: Ours, network: Any, given: dict[str, Any]) -> None:
    import torch

    text, states, mask, t = _text_of(ours)
    x, rows = to_float(jnp.asarray(ours.batch["image"])), len(t)
    config: Any = ours.recipe.model
    embedding, has = ours.batch["embedding"], np.ones(rows, bool)
    inputs = (x, t, embedding, has, ours.batch["tokens"], mask, text, states)
    found = jax.jit(Decoder(config).apply)({"params": ours.params}, *inputs)
    device = given["embedding"].device
    with torch.no_grad():
        told = tuple(_tensor(part, device) for part in (text, states, mask))
        theirs = network(given["image"], _tensor(t, device), given["embedding"], told)
    check_alike("decoder, output", np.asarray(found), _last(theirs), 1e-4)


def _compare_upsampler(ours: Ours, network: Any, given: dict[str, Any]) -> None:
    import torch

    x = to_float(jnp.asarray(ours.batch["image"]))
    t = np.arange(len(x), dtype=np.int32) * 90
    config: Any = ours.recipe.model
    run = jax.jit(lambda p: Upsampler(config).apply({"params": p}, x, t, -x, method="denoise"))
    image = given["image"]
    with torch.no_grad():
        both = torch.cat([image, -image], 1)
        theirs = network(sample=both, timestep=_tensor(t, image.device)).sample
    check_alike("upsampler, output", np.asarray(run(ours.params)), _last(theirs), 1e-4)


def _compare_clip(ours: Ours, network: Any, given: dict[str, Any]) -> None:
    import torch

    config: Any = ours.recipe.model
    x = to_float(jnp.asarray(ours.batch["image"]))
    out: Any = jax.jit(CLIP(config).apply)({"params": ours.params}, x, ours.batch["tokens"])
    with torch.no_grad():
        theirs = network(input_ids=given["tokens"], pixel_values=given["pixels"])
    unit = out["image"] / np.linalg.norm(out["image"], axis=-1, keepdims=True)
    check_alike("clip, image embeddings", unit, theirs.image_embeds.cpu().numpy(), 1e-4)


_COMPARE: dict[str, Callable[[Ours, Any, dict[str, Any]], None]] = {
    "prior": _compare_prior,
    "decoder": _compare_decoder,
    "upsampler": _compare_upsampler,
    "clip": _compare_clip,
}


def _text_of(ours: Ours) -> tuple[Any, Any, Any, np.ndarray]:
    """Embedding, states and mask of the captions, and a timestep for each."""
    assert ours.clip is not None
    config, tokens = ours.clip.recipe.model, ours.batch["tokens"]  # pyright: ignore
    run = jax.jit(lambda p: CLIP(config).apply({"params": p}, tokens, method=CLIP.encode_text))
    text, states = run(ours.clip.params)  # pyright: ignore
    t = np.arange(len(tokens), dtype=np.int32) * 90
    return text, states, text_mask(jnp.asarray(tokens)), t


def _tensor(array: Any, device: Any) -> Any:
    import torch

    tensor = torch.from_numpy(np.array(array)).to(device)
    return tensor.long() if tensor.dtype == torch.int32 else tensor


def _last(x: Any) -> np.ndarray:
    return np.moveaxis(x.detach().float().cpu().numpy(), 1, -1)


if __name__ == "__main__":
    main()
