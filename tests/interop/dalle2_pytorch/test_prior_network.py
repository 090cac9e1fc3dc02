"""The prior's network after import: against DALLE2-pytorch of every era, frozen and live."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.comparison import GOLDEN, TOLERANCE, Frozen, error, quick
from tests.interop.dalle2_pytorch import prior_reference as reference
from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.era import Semantics
from unclip_jax.interop.dalle2_pytorch.prior import (
    ImportedPrior,
    abstract_params,
    export_prior,
    import_prior,
)
from unclip_jax.interop.dalle2_pytorch.prior_config import PriorNetworkConfig
from unclip_jax.interop.dalle2_pytorch.prior_network import PriorNetwork
from unclip_jax.interop.dalle2_pytorch.prior_sampling import (
    TextCondition,
    make_sampler,
    predict,
)
from unclip_jax.training.weights import flatten

ERAS = [(version, name) for version, jobs in reference.FROZEN.items() for name in jobs]
SAMPLE_TOLERANCE = 1e-4  # absolute, on entries of about 0.25; the errors of the steps add up


@cache
def frozen_prior(version: str, name: str) -> tuple[ImportedPrior, dict[str, Any]]:
    """A prior of another era and what it computed there."""
    with np.load(GOLDEN / "dalle2_prior_eras.npz") as file:
        start = f"{version}/{name}/"
        run = {k.removeprefix(start): file[k] for k in file.files if k.startswith(start)}
    job = reference.FROZEN[version][name]
    state = reference.weights(json.loads(str(run.pop("shapes"))))
    rates = [run.pop(k) for k in list(run) if k.startswith("constant/")]
    for layer in range(job["net"]["depth"] if rates else 0):
        state[f"net.causal_transformer.layers.{layer}.0.rotary_emb.freqs"] = rates[0]
    config = {"prior": {"net": job["net"], **job["prior"]}}
    return import_prior(state, config, era=version), run


def outputs(prior: ImportedPrior, given: dict[str, Any], job: dict[str, Any]) -> dict:
    """What `prior_reference.run_network` gives, from the network here."""
    self_cond = given["self_cond"] if job["net"].get("self_cond") else None
    scale = job.get("cond_scale", 1.0)

    def run(params: Any, given: dict[str, Any]) -> dict[str, Any]:
        text = TextCondition(given["text_embed"], given["encodings"])
        arguments = (prior, params, given["x"], given["t"])
        found = {"plain": predict(*arguments, text, self_cond=self_cond)}
        bare = TextCondition(given["text_embed"])
        found["no_encodings"] = predict(*arguments, bare, self_cond=self_cond)
        if scale != 1:
            guided = predict(*arguments, text, cond_scale=scale, self_cond=self_cond)
            found["guided"] = guided
        return found

    return quick(run, prior.params, given)(prior.params, given)


@pytest.mark.parametrize(("version", "name"), ERAS)
def test_every_era_computes_what_it_computed(version: str, name: str) -> None:
    prior, expected = frozen_prior(version, name)
    job = reference.FROZEN[version][name]
    given = reference.inputs(job["net"], job["prior"]["timesteps"])
    found = outputs(prior, given, job)
    assert set(found) == set(expected) - {"sample"}
    for key, output in found.items():
        assert error(output, expected[key]) < TOLERANCE, key


@pytest.mark.parametrize(("version", "name"), ERAS)
def test_every_era_samples_as_it_sampled(version: str, name: str) -> None:
    prior, expected = frozen_prior(version, name)
    job = reference.FROZEN[version][name]
    given = reference.inputs(job["net"], job["prior"]["timesteps"])
    sample, steps = make_sampler(
        prior,
        num_steps=job["steps"],
        cond_scale=job.get("cond_scale", 1.0),
        reference_compat=True,
    )
    text = TextCondition(given["text_embed"], given["encodings"])
    noise = reference.noise(job["net"]["dim"], steps.num_draws)
    with jax.default_matmul_precision("highest"):
        found = sample(prior.params, text, noise)
    np.testing.assert_allclose(found, expected["sample"], atol=SAMPLE_TOLERANCE)


@pytest.mark.parametrize("name", ["base", "continuous", "multi"])
def test_the_network_equals_frozen_runs(name: str) -> None:
    frozen = Frozen(f"dalle2_priornet_{name}")
    config = json.loads(str(frozen["config"]))
    prior = import_prior(frozen.arrays(), config)
    x, t, embed = frozen["in/x"], frozen["in/t"].astype(np.int32), frozen["in/text_embed"]
    nobody, all_of_them = np.zeros(4, bool), np.ones(4, bool)

    def run(params: Any, encodings: Any, drop_text: Any, drop_image: Any) -> Any:
        return prior.network.apply(
            {"params": params},
            *(x, t, embed, encodings),
            drop_text_B=drop_text,
            drop_image_B=drop_image,
        )

    full = quick(run, prior.params, frozen["in/enc"], nobody, nobody)

    def padded(encodings: np.ndarray) -> np.ndarray:
        return np.pad(encodings, ((0, 0), (0, 6 - encodings.shape[1]), (0, 0)))

    cases = {
        "plain": (frozen["in/enc"], nobody, nobody),
        "no_enc": (np.zeros((4, 6, 32), np.float32), nobody, nobody),
        "short": (padded(frozen["in/short"]), nobody, nobody),
        "long": (frozen["in/long"][:, :6], nobody, nobody),
        "drop_text": (frozen["in/enc"], all_of_them, nobody),
        "drop_image": (frozen["in/enc"], nobody, all_of_them),
    }
    found = {key: full(prior.params, *arguments) for key, arguments in cases.items()}
    for key, output in found.items():
        assert error(output, frozen[f"out/{key}"]) < TOLERANCE, key
    null = full(prior.params, frozen["in/enc"], all_of_them, all_of_them)
    guided = null + (found["plain"] - null) * 3
    assert error(guided, frozen["out/cfg3"]) < 3 * TOLERANCE
    # Text of any length, cut and padded by the network itself.
    if name == "base":
        for key in ("short", "long"):
            own = quick(run, prior.params, frozen[f"in/{key}"], nobody, nobody)
            output = own(prior.params, frozen[f"in/{key}"], nobody, nobody)
            assert error(output, frozen[f"out/{key}"]) < TOLERANCE
    # And back to the file, to the last bit.
    exported = export_prior(prior)
    for key, array in frozen.arrays().items():
        np.testing.assert_array_equal(exported[f"net.{key}"], array, err_msg=key)


LIVE = {
    "wide": {"dim": 24, "heads": 5, "dim_head": 48, "depth": 1, "num_timesteps": 30},
    "norms": {"norm_in": True, "normformer": True, "depth": 3, "max_text_len": 9},
    "bare": {"norm_out": False, "final_proj": False, "rotary_emb": False, "ff_mult": 3},
    "tokens": {"num_time_embeds": 3, "num_image_embeds": 2, "num_text_embeds": 4},
    "sinusoids": {"num_timesteps": None, "num_time_embeds": 2, "dim": 22, "ff_mult": 1.7},
    "self_cond": {"self_cond": True, "num_image_embeds": 2, "dim_head": 6},
    "long": {"max_text_len": 150, "depth": 1},
}


@pytest.mark.torch
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", LIVE)
def test_the_network_equals_the_package(name: str, seed: int) -> None:
    package = reference.package_or_skip()
    options = {**reference.NET, "depth": 1 + seed, **LIVE[name]}
    job = {"net": options, "prior": reference.PRIOR, "cond_scale": 3.0}
    theirs, state = reference.make_prior(package, job, seed)
    given = reference.inputs(options, 20, extra=3 * seed, seed=seed)
    expected = reference.run_network(theirs, given, job)
    self_cond = {"net": {"self_cond": options.get("self_cond", False)}}
    prior = import_prior(state, self_cond)
    assert prior.config.net.ff_width == int(options.get("ff_mult", 4) * options["dim"])
    for key, output in outputs(prior, given, job).items():
        assert error(output, expected[key]) < TOLERANCE * (3 if key == "guided" else 1), key


@pytest.mark.torch
@pytest.mark.parametrize("name", LIVE)
def test_the_package_loads_what_is_exported(name: str) -> None:
    import torch

    package = reference.package_or_skip()
    job = {"net": {**reference.NET, **LIVE[name]}, "prior": {"timesteps": 30}}
    theirs, state = reference.make_prior(package, job)
    state["net.learned_query"] = state["net.learned_query"] + np.float32(1)
    exported = export_prior(import_prior(state, {"prior": job["prior"] | {"net": job["net"]}}))
    arrays = {key: torch.from_numpy(array.copy()) for key, array in exported.items()}
    theirs.load_state_dict(arrays, strict=True)
    for key, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[key], err_msg=key)


@pytest.mark.parametrize("version", ["1.1.0", "1.15.6"])
def test_every_tensor_matters(version: str) -> None:
    """A change of any one parameter, or of one layer of a stack, changes an output."""
    prior, _ = frozen_prior(version, "learned_time" if version == "1.1.0" else "many")
    job = next(iter(reference.FROZEN[version].values()))
    given = reference.inputs(job["net"], 20)

    def run(params: Any) -> Any:
        text = TextCondition(given["text_embed"], given["encodings"])
        options: dict[str, Any] = {"cond_scale": 2.0} if version == "1.15.6" else {}
        if prior.config.net.self_cond:
            options["self_cond"] = given["self_cond"]
        return predict(prior, params, given["x"], given["t"], text, **options)

    compiled = quick(run, prior.params)
    before = compiled(prior.params)
    leaves, tree = jax.tree.flatten(prior.params)
    names = list(flatten(prior.params))
    assert len(names) == len(leaves)
    for number, leaf in enumerate(leaves):
        layers = len(leaf) if "/blocks/" in names[number] else 1
        # One entry alone could be a time or a position that no input has.
        change = reference.numbers(leaf.shape, number)
        for layer in range(layers):
            changed = np.array(leaf)
            part = layer if layers > 1 else ...
            changed[part] += change[part]
            after = compiled(
                jax.tree.unflatten(tree, [*leaves[:number], changed, *leaves[number + 1 :]])
            )
            assert not np.allclose(after, before, rtol=1e-4, atol=1e-6), (names[number], layer)


@cache
def current() -> tuple[ImportedPrior, dict[str, Any], Any]:
    prior, _ = frozen_prior("1.10.6", "sinusoids")
    given = reference.inputs(reference.NET, 20)

    def run(given: dict[str, Any], drop_text: Any, drop_image: Any) -> Any:
        return prior.network.apply(
            {"params": prior.params},
            *(given["x"], given["t"], given["text_embed"], given["encodings"]),
            drop_text_B=drop_text,
            drop_image_B=drop_image,
        )

    nobody = np.zeros(reference.BATCH, bool)
    return prior, given, quick(run, given, nobody, nobody)


def test_rows_do_not_depend_on_each_other() -> None:
    _, given, run = current()
    nobody = np.zeros(reference.BATCH, bool)
    before = run(given, nobody, nobody)
    kept = {name: array.copy() for name, array in given.items()}
    changed = {
        name: np.concatenate([array[:1], array[1:] * 0 + 1]) for name, array in given.items()
    }
    after = run(changed, nobody, nobody)
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    assert not np.allclose(after[1], before[1])
    for name, array in kept.items():
        np.testing.assert_array_equal(given[name], array)


def test_with_both_dropped_only_the_time_matters() -> None:
    _, given, run = current()
    everyone = np.ones(reference.BATCH, bool)
    before = run(given, everyone, everyone)
    others = {name: 3 * array for name, array in given.items()}
    np.testing.assert_array_equal(run({**others, "t": given["t"]}, everyone, everyone), before)
    text_only = run({**others, "t": given["t"], "x": given["x"]}, everyone, ~everyone)
    np.testing.assert_array_equal(text_only, run(given, everyone, ~everyone))
    assert not np.allclose(text_only, before)


def test_what_a_mask_hides_has_no_influence() -> None:
    prior, given, _ = current()
    mask = np.array([[True] * 5, [True, True, False, False, False]])

    def run(encodings: Any, mask: Any) -> Any:
        return prior.network.apply(
            {"params": prior.params},
            *(given["x"], given["t"], given["text_embed"], encodings),
            text_mask_BL=mask,
        )

    compiled = quick(run, given["encodings"], mask)
    masked = compiled(given["encodings"], mask)
    noisy = np.where(mask[..., None], given["encodings"], 7.0).astype(np.float32)
    np.testing.assert_array_equal(compiled(noisy, mask), masked)
    assert not np.allclose(compiled(noisy, np.ones_like(mask)), masked)
    # Without a mask, rows of zeros are what it hides.
    nobody = np.zeros(reference.BATCH, bool)
    assert error(current()[2](given, nobody, nobody), masked) < TOLERANCE


def test_bfloat16_is_close() -> None:
    prior, given, run = current()
    half = PriorNetwork(prior.config.net, jnp.bfloat16)
    arguments = (given["x"], given["t"], given["text_embed"], given["encodings"])
    found = jax.jit(half.apply)({"params": prior.params}, *arguments)
    nobody = np.zeros(reference.BATCH, bool)
    difference = error(found, run(given, nobody, nobody))
    assert 1e-5 < difference < 3e-2


def test_dropout_acts_only_in_training() -> None:
    config = PriorNetworkConfig(dim=8, depth=1, dim_head=4, heads=1, max_text_len=2, ff_dropout=0.5)
    module, x, t = PriorNetwork(config), jnp.ones((1, 8)), jnp.zeros(1, jnp.int32)
    params = module.init(jax.random.key(0), x, t, x)
    plain: Any = module.apply(params, x, t, x)
    trained: list[Any] = [
        module.apply(params, x, t, x, deterministic=False, rngs={"dropout": jax.random.key(i)})
        for i in range(2)
    ]
    assert not np.allclose(trained[0], trained[1]) and not np.allclose(trained[0], plain)


def test_the_counts_of_the_published_prior() -> None:
    """LAION's: 101,768,200 values with its 13 tables and twelve rotations; nousr's is larger."""
    laion = PriorNetworkConfig(
        dim=768,
        depth=12,
        num_timesteps=1000,
        max_text_len=77,
        dim_head=64,
        heads=12,
        normformer=True,
        semantics=Semantics(attention="dot", bias_scale=128.0, null_tokens=False),
    )

    def count(config: PriorNetworkConfig) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))

    assert count(laion) + 13 * 1000 + 12 * 16 == 101_768_200
    nousr = count(PriorNetworkConfig(**{**vars(laion), "depth": 24, "heads": 32}))
    assert round(nousr / 1e6, 1) == 249.3


def test_what_cannot_be_is_refused() -> None:
    prior, given, _ = current()
    call = prior.network.apply
    params, x, t = {"params": prior.params}, given["x"], given["t"]
    with pytest.raises(UserError, match="text encodings has width 7, but the prior 16"):
        call(params, x, t, given["text_embed"], np.zeros((2, 3, 7)))
    old, _ = frozen_prior("1.1.0", "learned_time")
    with pytest.raises(UserError, match="no token for a dropped condition"):
        old.network.apply({"params": old.params}, x, t, x, drop_text_B=np.ones(2, bool))
    with pytest.raises(UserError, match="depth of the prior is 0"):
        PriorNetworkConfig(dim=8, depth=0)
    with pytest.raises(UserError, match="even number"):
        PriorNetworkConfig(dim=9, depth=1)
