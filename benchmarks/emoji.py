"""The shipped emoji model, text → 64 pixels, beside its export in PyTorch.

    python benchmarks/emoji.py [--batches 1 4 16] [--rounds 5]

The torch side (`rivals/torch_emoji.py`) reads the model's safetensors. Both are given the same
tokens and the same noise, both draw two embeddings for each picture and keep the better one, in 64
steps, and decode in 30; their pictures are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp

from benchmarks.rivals.torch_emoji import TorchEmoji
from benchmarks.side_by_side import OURS, Parts, check_alike, print_table, save, take_turns, timed
from unclip_jax.diffusion.samplers import row_noise
from unclip_jax.generation.guided import make_chain
from unclip_jax.generation.prior import variance_table
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.weights import shipped_model

PROMPTS = ("red apple, 3d style", "guitar, flat style", "dog face, noto style", "rocket")
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=RESULTS / "emoji.json")
    options = parser.parse_args()
    rows = []
    for batch in options.batches:
        sides, pictures = _sides(options, batch)
        for side, picture in pictures.items():
            if side != OURS:
                check_alike(f"{side}, batch {batch}", picture(), pictures[OURS](), 1e-3)
        rows += [replace(row, name=f"batch {batch}") for row in take_turns(sides, options.rounds)]
    print_table("text → 64 pixels", rows)
    kept = ("model", "batches", "rounds")
    save(options.out, rows, {name: getattr(options, name) for name in kept})


def _sides(
    options: argparse.Namespace, batch: int
) -> tuple[dict[str, Callable[[], Parts]], dict[str, Callable[[], np.ndarray]]]:
    unclip = UnCLIP.load(options.model)
    how = replace(unclip.sampling, batch_size=-(-batch // jax.device_count()))
    unclip = replace(unclip, sampling=how)
    texts = [PROMPTS[i % len(PROMPTS)] for i in range(batch)]
    keys = jax.random.split(jax.random.key(0), (2, batch))

    def ours() -> np.ndarray:
        embeddings = unclip.sample_prior(texts, keys[0])
        return unclip.decode(embeddings, texts, keys[1], as_float=True)

    folder = shipped_model(options.model) or Path(options.model)
    chains = {name: _chain(unclip, name) for name in ("prior", "decoder")}
    noise, x_T = _noise(unclip, keys)
    tokens, empty = (np.asarray(unclip.tokenizer(part)) for part in (texts, [""]))
    pictures: dict[str, Callable[[], np.ndarray]] = {OURS: ours}
    for is_compiled in (False,) if options.no_compile else (False, True):
        model = TorchEmoji(folder, chains, is_compiled=is_compiled)
        side = "torch, compiled" if is_compiled else "torch"
        pictures[side] = lambda model=model: model.draw(tokens, empty, noise, x_T)
    return {side: timed(draw) for side, draw in pictures.items()}, pictures


def _chain(unclip: UnCLIP, name: str) -> dict[str, Any]:
    """What a step needs to know, from the last index of the chain (noise) to 0."""
    stage = unclip.stage(name)
    recipe: Any = stage.recipe
    how = getattr(unclip.sampling, name)
    chain = make_chain(recipe.diffusion, how)
    variance = chain.posterior_variance
    if how.variance == "analytic":
        variance = variance_table(recipe.model, chain, stage.score_norms)
    return {
        "t": chain.timesteps,
        "abar": chain.alphas_bar,
        "guidance": how.guidance_scale,
        "mean_x0": chain.posterior_mean_coef1,
        "mean_xt": chain.posterior_mean_coef2,
        "deviation": np.sqrt(variance),
    }


def _noise(unclip: UnCLIP, keys: Any) -> tuple[np.ndarray, np.ndarray]:
    """What our sampler draws from these keys: of the prior in the order of drawing, and x_T."""
    prior: Any = unclip.stage("prior").recipe
    chain = make_chain(prior.diffusion, unclip.sampling.prior)
    count = unclip.sampling.num_candidates
    split = jax.vmap(lambda key: jax.random.split(key, count))(keys[0]).reshape(-1)
    shape = (len(split), prior.model.embedding_width)
    numbers = [chain.num_train_timesteps, *chain.timesteps[:0:-1].tolist()]
    noise = jnp.stack([row_noise(split, number, shape) for number in numbers], 1)
    decoder: Any = unclip.stage("decoder").recipe
    size = decoder.model.unet.image_size
    shape = (keys.shape[1], size, size, 3)
    start = make_chain(decoder.diffusion, unclip.sampling.decoder).num_train_timesteps
    return np.array(noise), np.array(row_noise(keys[1], start, shape))


if __name__ == "__main__":
    main()
