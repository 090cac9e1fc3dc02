"""What is gained by how the sampler runs a guided chain: what no step changes computed once, and
both halves of guidance as one batch.

    python benchmarks/chains.py [--width 0.125] [--batch 2] [--steps 25] [--rounds 5]

The chains of Karlo's prior and decoder, at a part of their width with random weights, as the
sampler runs them, with the whole network at every step, and with that and the halves of guidance
one after the other. Same noise; the results are compared.
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

from benchmarks.karlo_weights import karlo_recipes, random_stage
from benchmarks.side_by_side import OURS, check_alike, print_table, save, take_turns, timed
from unclip_jax.diffusion.guidance import classifier_free_guidance
from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.diffusion.samplers import sample
from unclip_jax.generation.captions import Caption, encode_caption
from unclip_jax.generation.decoder import Condition, make_decoder
from unclip_jax.generation.guided import make_chain, make_guided
from unclip_jax.models.cached_transformer import Cache
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.prior import DiffusionPrior, denoise_embedding, read_caption
from unclip_jax.models.text import text_mask
from unclip_jax.training.recipes.decoder import DecoderRecipe

EVERY_STEP = "whole network at every step"
TWO_CALLS = "that, and guidance as two calls"
PROMPTS = ["a red apple on a table", "two boats at sea", "a corgi that plays a trumpet", "rain"]
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "chains.json")
    options = parser.parse_args()
    recipes: dict[str, Any] = karlo_recipes(options.width)
    clip = random_stage(recipes["clip"], 0)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(options.batch)]
    assert clip.tokenizer is not None

    def encode(texts: list[str]) -> Caption:
        assert clip.tokenizer is not None
        tokens = jnp.asarray(clip.tokenizer(texts))
        run = jax.jit(lambda p: encode_caption(recipes["clip"].model, p, tokens))
        return run(clip.params)

    text, empty = encode(prompts), encode([""])
    how = SamplerConfig(method="ddpm", num_steps=options.steps, guidance_scale=4.0)
    rows = []
    for name, chains in (("prior", _prior_chains), ("decoder", _decoder_chains)):
        stage = random_stage(recipes[name], 1)
        sides = chains(stage.recipe, text, empty, how)
        runs = {side: _runner(stage, run, how, options) for side, run in sides.items()}
        made = {side: np.asarray(run()) for side, run in runs.items()}
        for side in (EVERY_STEP, TWO_CALLS):
            check_alike(f"{name}, {side}", made[OURS], made[side], 1e-3)
        found = take_turns({side: timed(run) for side, run in runs.items()}, options.rounds)
        rows += [replace(row, name=f"{name}, batch {options.batch}") for row in found]
    print_table(f"{options.steps} guided steps at {options.width:g} of Karlo's width", rows)
    kept = ("width", "batch", "steps", "rounds")
    save(options.out, rows, {name: getattr(options, name) for name in kept})


Chain = Callable[[Any], Callable[[Any, Any], Any]]
"""Parameters → the guided network."""


def _two_calls(
    run: Callable[[Any, Any, Any], Any], given: Any, nothing: Any, how: SamplerConfig
) -> Callable[[Any, Any], Any]:
    """Guidance whose halves are computed one after the other."""

    def guided(xt: Any, t: Any) -> Any:
        empty = jax.tree.map(lambda n, c: jnp.broadcast_to(n, c.shape), nothing, given)
        halves = run(xt, t, given), run(xt, t, empty)
        channels = xt.shape[-1]
        learned = halves[0].shape[-1] > channels
        return classifier_free_guidance(*halves, how.guidance_scale, learned_variance=learned)

    return guided


def _prior_chains(
    recipe: Any, text: Caption, empty: Caption, how: SamplerConfig
) -> dict[str, Chain]:
    model = recipe.model

    def once(params: Any) -> Any:
        def read(c: Caption) -> Cache:
            return read_caption(model, params, c.embedding, c.states, text_mask(c.tokens))

        def run(xt: Any, t: Any, cache: Cache) -> Any:
            return denoise_embedding(model, params, cache, xt, t)

        return make_guided(run, text, empty, how, has_variance=False, prepare=read)

    def whole(params: Any) -> Any:
        def run(xt: Any, t: Any, c: Caption) -> Any:
            given = (xt, t, c.embedding, c.states, text_mask(c.tokens))
            return DiffusionPrior(model).apply({"params": params}, *given)

        return run

    return {
        OURS: once,
        EVERY_STEP: lambda p: make_guided(whole(p), text, empty, how, has_variance=False),
        TWO_CALLS: lambda p: _two_calls(whole(p), text, empty, how),
    }


def _decoder_chains(
    recipe: Any, text: Caption, empty: Caption, how: SamplerConfig
) -> dict[str, Chain]:
    model, rows = recipe.model, text.tokens.shape[0]
    embedding = jax.random.normal(jax.random.key(3), (rows, model.embedding_width))

    def once(params: Any) -> Any:
        return make_decoder(recipe, params, Condition(embedding, text, empty), how)

    def whole(params: Any) -> Any:
        def run(xt: Any, t: Any, given: Any) -> Any:
            vectors, has, c = given
            told = (c.tokens, text_mask(c.tokens), c.embedding, c.states)
            return Decoder(model).apply({"params": params}, xt, t, vectors, has, *told)

        return run

    given = (embedding, jnp.ones(rows, bool), text)
    nothing = (jnp.zeros((1, model.embedding_width)), jnp.zeros(1, bool), empty)
    return {
        OURS: once,
        EVERY_STEP: lambda p: make_guided(whole(p), given, nothing, how, has_variance=True),
        TWO_CALLS: lambda p: _two_calls(whole(p), given, nothing, how),
    }


def _runner(
    stage: Any, chain: Chain, how: SamplerConfig, options: argparse.Namespace
) -> Callable[[], Any]:
    recipe = stage.recipe
    shape: tuple[int, ...] = (options.batch, recipe.model.embedding_width)
    if isinstance(recipe, DecoderRecipe):
        shape = (options.batch, 64, 64, 3)
    steps = make_chain(recipe.diffusion, how)
    keys = jax.random.split(jax.random.key(2), options.batch)

    @jax.jit
    def run(params: Any) -> Any:
        return sample(
            chain(params),
            steps,
            shape,
            config=how,
            prediction=recipe.diffusion.prediction,
            variance=recipe.diffusion.variance,
            keys=keys,
        )

    params = jax.device_put(stage.params)
    return lambda: jax.block_until_ready(run(params))


if __name__ == "__main__":
    main()
