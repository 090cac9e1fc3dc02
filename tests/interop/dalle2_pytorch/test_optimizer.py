"""Training after import: steps and averages as DALLE2-pytorch's trainers make them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.interop.comparison import GOLDEN, error, quick
from tests.interop.dalle2_pytorch import optimizer_reference as reference
from tests.interop.dalle2_pytorch import prior_reference, unet_reference
from tests.interop.dalle2_pytorch.unet_runs import FrozenRuns
from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.decoder import import_unet, unet_of
from unclip_jax.interop.dalle2_pytorch.optimizer import (
    DECODER_OPTIMIZER,
    PRIOR_OPTIMIZER,
    EmaConfig,
    OptimizerConfig,
    clip_by_norm,
    ema_decay,
    make_learning_rate,
    make_optimizer,
    prior_decay_mask,
    unet_decay_mask,
    update_ema,
)
from unclip_jax.interop.dalle2_pytorch.prior import ImportedPrior, export_prior, import_prior
from unclip_jax.interop.dalle2_pytorch.prior_keys import prior_key_map
from unclip_jax.interop.dalle2_pytorch.prior_loss import prior_loss
from unclip_jax.interop.dalle2_pytorch.prior_sampling import TextCondition
from unclip_jax.interop.dalle2_pytorch.unet_config import UnetConfig, unet_config
from unclip_jax.interop.dalle2_pytorch.unet_keys import unet_key_map, unused_parameters
from unclip_jax.interop.key_map import KeyMap
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.transfer import export_tensors, import_params
from unclip_jax.training.weights import flatten

PARAMS_TOLERANCE = 3e-6  # absolute; a step changes a weight by up to 3e-4
LOSS_TOLERANCE = 1e-5
CURVE_STEPS, CURVE_TOLERANCE, CURVE_END = 20, 1e-3, 0.02


def config_of(job: dict[str, Any]) -> OptimizerConfig:
    options = job["optimizer"]
    return OptimizerConfig(
        learning_rate=options["lr"],
        eps=options["eps"],
        clip_norm=job["clip"],
        weight_decay=options["wd"],
        betas=options["betas"],
        warmup_steps=job.get("warmup"),
        cosine_decay_max_steps=job.get("cosine"),
    )


def train(
    prior: ImportedPrior, config: OptimizerConfig, given: dict[str, Any], *, decayed: Any = None
) -> tuple[np.ndarray, np.ndarray, ImportedPrior]:
    """What `optimizer_reference.train` gives, computed here: losses, gradient norms, the prior."""
    if decayed is None:
        decayed = prior_decay_mask(prior.config.net)
    optimizer = make_optimizer(config, decayed)

    def step(state: tuple[Any, Any], now: dict[str, Any]) -> tuple[Any, Any]:
        params, moments = state
        text = TextCondition(now["text_embed"], now["encodings"])

        def loss_of(params: Any) -> Any:
            return prior_loss(
                prior,
                params,
                now["image_embed"],
                text,
                now["t"],
                now["noise"],
                drop_text=now["drop_text"],
                drop_image=now["drop_image"],
            )

        loss, gradients = jax.value_and_grad(loss_of)(params)
        changes, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, changes), moments), (
            loss,
            optax.tree.norm(gradients),
        )

    def run(params: Any, given: dict[str, Any]) -> Any:
        (params, _), rows = jax.lax.scan(step, (params, optimizer.init(params)), given)
        return params, rows

    params, (losses, norms) = quick(run, prior.params, given)(prior.params, given)
    return np.asarray(losses), np.asarray(norms), replace(prior, params=params)


@cache
def frozen(name: str) -> tuple[ImportedPrior, dict[str, Any]]:
    """The prior that a frozen run begins with, and the run."""
    with np.load(GOLDEN / "dalle2_prior_training.npz") as file:
        run = {k.removeprefix(f"{name}/"): file[k] for k in file.files if k.startswith(name)}
    job = reference.STEPS_JOB if name == "steps" else reference.CURVE_JOB
    rates = run.pop("freqs")
    state = prior_reference.weights(json.loads(str(run.pop("shapes"))), reference.SEED)
    for layer in range(job["net"]["depth"]):
        state[f"net.causal_transformer.layers.{layer}.0.rotary_emb.freqs"] = rates
    return import_prior(state, {"prior": {"net": job["net"], **job["prior"]}}), run


def assert_same_weights(found: ImportedPrior, expected: dict[str, np.ndarray]) -> None:
    exported = export_prior(found)
    names = [name for name in expected if name.startswith("net.") and "freqs" not in name]
    assert len(names) == len({name for name in exported if name.startswith("net.")}) - sum(
        "freqs" in name for name in exported
    )
    for name in names:
        np.testing.assert_allclose(
            exported[name], expected[name], rtol=0, atol=PARAMS_TOLERANCE, err_msg=name
        )


# Whole steps


def test_three_steps_equal_the_frozen_ones() -> None:
    prior, run = frozen("steps")
    job = reference.STEPS_JOB
    losses, norms, after = train(prior, config_of(job), reference.stream(job, reference.SEED))
    np.testing.assert_allclose(losses, run["losses"], rtol=LOSS_TOLERANCE)
    np.testing.assert_allclose(norms, run["grad_norms"], rtol=LOSS_TOLERANCE)
    assert norms.min() > job["clip"]
    assert_same_weights(after, run)
    # The tolerance sees each part: the step itself is a hundred times larger.
    before, expected = flatten(prior.params), flatten(after.params)
    for name, leaf in expected.items():
        assert np.abs(leaf - before[name]).max() > 30 * PARAMS_TOLERANCE, name


def test_the_mask_and_the_eps_show_in_three_steps() -> None:
    """Of what `train` is given, a wrong mask or a wrong eps would fail the test above."""
    prior, run = frozen("steps")
    job = reference.STEPS_JOB
    given = reference.stream(job, reference.SEED)
    flipped = jax.tree.map(lambda decays: not decays, prior_decay_mask(prior.config.net))
    wrong = [(config_of(job), flipped), (replace(config_of(job), eps=1e-3), None)]
    for config, decayed in wrong:
        with pytest.raises(AssertionError):
            assert_same_weights(train(prior, config, given, decayed=decayed)[2], run)


def test_two_hundred_steps_learn_as_the_frozen_ones() -> None:
    prior, run = frozen("curve")
    job = reference.CURVE_JOB
    losses, _, _ = train(prior, config_of(job), reference.stream(job, reference.SEED))
    np.testing.assert_allclose(
        losses[:CURVE_STEPS], run["losses"][:CURVE_STEPS], rtol=CURVE_TOLERANCE
    )
    end, expected = losses[-50:].mean(), run["losses"][-50:].mean()
    assert abs(end / expected - 1) < CURVE_END
    assert end < 0.75 * losses[:CURVE_STEPS].mean()


LIVE: dict[str, dict[str, Any]] = {
    "decoder's options": {"optimizer": {"lr": 1e-4, "wd": 1e-2, "eps": 1e-8, "betas": (0.9, 0.99)}},
    "adam": {"optimizer": {**reference.STEPS_JOB["optimizer"], "wd": 0.0}, "clip": None},
    "all decay": {
        "optimizer": {**reference.STEPS_JOB["optimizer"], "wd": 0.3, "group_wd_params": False},
        "clip": 6.0,
    },
    "schedule": {
        "net": {**prior_reference.NET, "num_timesteps": None, "num_text_embeds": 2},
        "warmup": 3,
        "cosine": 4,
        "steps": 7,
        "optimizer": {**reference.STEPS_JOB["optimizer"], "betas": (0.8, 0.95)},
    },
}


@pytest.mark.torch
@pytest.mark.parametrize("name", LIVE)
def test_steps_equal_the_package(name: str) -> None:
    package = prior_reference.package_or_skip()
    job = {**reference.STEPS_JOB, **LIVE[name]}
    theirs, state = prior_reference.make_prior(package, job, seed=3)
    given = reference.stream(job, seed=3)
    prior = import_prior(state, {"prior": {"net": job["net"], **job["prior"]}})
    expected = reference.train(package, theirs.train(), job, given)
    every = not job["optimizer"].get("group_wd_params", True)
    decayed = prior_decay_mask(prior.config.net, every=every)
    losses, norms, after = train(prior, config_of(job), given, decayed=decayed)
    np.testing.assert_allclose(losses, expected["losses"], rtol=LOSS_TOLERANCE)
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=LOSS_TOLERANCE)
    assert_same_weights(after, expected)


UNETS = [
    {
        **unet_reference.TEXT,
        "sparse_attn": True,
        "self_attn": [False, True],
        "add_image_embeds_to_time": False,
    },
    {"dim_mults": [1], "cond_on_image_embeds": False, "memory_efficient": True},
]


@pytest.mark.torch
@pytest.mark.parametrize("change", UNETS, ids=str)
def test_the_decoders_steps_equal_the_package_with_its_gradients(change: dict[str, Any]) -> None:
    """Torch's gradients through both optimisers, so that only these are compared."""
    import torch

    package = prior_reference.package_or_skip()
    from dalle2_pytorch.optimizer import get_optimizer

    entry = {**unet_reference.TINY, **change}
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
    theirs = package.Unet(**options)
    arrays = unet_reference.fill(theirs, seed=2)
    config = unet_of(unet_config(entry), from_arrays(arrays), what="it")
    key_map, decayed = unet_key_map(config), unet_decay_mask(config)
    params = import_unet(from_arrays(arrays), config)
    optimizer = make_optimizer(DECODER_OPTIMIZER, decayed)
    moments, adam = optimizer.init(params), get_optimizer(theirs.parameters())
    update = quick(optimizer.update, params, moments, params)
    given = unet_reference.unet_inputs(entry)
    tensors = {name: unet_reference.to_torch(array) for name, array in given.items()}
    x, t = tensors.pop("x"), tensors.pop("t")
    tensors.setdefault("image_embed", None)
    for _ in range(3):
        adam.zero_grad()
        (theirs(x, t, **tensors) ** 2).sum().backward()
        gradients = {
            name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy().copy()
            for name, p in theirs.named_parameters()
        }
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adam.step()
        found = import_params(key_map, from_arrays(gradients), params, what="gradients")
        changes, moments = update(found, moments, params)
        params = jax.tree.map(np.add, params, changes)
    exported = export_tensors(key_map, params)
    for name, parameter in theirs.named_parameters():
        expected = parameter.detach().numpy()
        np.testing.assert_allclose(exported[name].read(), expected, rtol=0, atol=1e-6, err_msg=name)
    # Those without a gradient are the ones that are known to have none, and stay as they were.
    without = {name for name, p in theirs.named_parameters() if p.grad is None}
    unused = unused_parameters(config)
    entries = [e for e in key_map if e.target.split("/")[0] in unused]
    assert without == {name for e in entries for name in e.sources}
    for name in without:
        np.testing.assert_array_equal(exported[name].read(), arrays[name], err_msg=name)


# Its parts


def ranks(key_map: KeyMap, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Axes in the file of each parameter here."""
    found = {e.target: {len(shapes[name]) for name in e.sources} for e in key_map}
    assert all(len(lengths) == 1 for lengths in found.values())
    return {target: lengths.pop() for target, lengths in found.items()}


def test_a_prior_decays_what_has_two_axes_in_the_file() -> None:
    prior, run = frozen("steps")
    shapes = {k.removeprefix("net."): a.shape for k, a in run.items() if k.startswith("net.")}
    mask = flatten(prior_decay_mask(prior.config.net))
    expected = ranks(prior_key_map(prior.config.net), shapes)
    assert {name: n >= 2 for name, n in expected.items()} == mask
    # The names that a rule on our own shapes, or on names, would get wrong.
    assert not mask["learned_query"] and not mask["transformer/blocks/attention_norm/scale"]
    assert mask["null_image_embed"] and mask["transformer/blocks/null_kv"]
    assert all(flatten(prior_decay_mask(prior.config.net, every=True)).values())


CASES = [f"{version}/{name}" for version, jobs in unet_reference.FROZEN.items() for name in jobs]


@pytest.mark.parametrize("case", CASES)
def test_a_unet_decays_what_has_two_axes_and_a_gradient(case: str) -> None:
    version, name = case.split("/")
    shapes = FrozenRuns().shapes(case)
    tensors = from_arrays({key: np.zeros(shape) for key, shape in shapes.items()})
    entry = unet_config(unet_reference.FROZEN[version][name])
    config: UnetConfig = unet_of(entry, tensors, recorded=version, what=case)
    expected = {
        target: n >= 2 and target.split("/")[0] not in unused_parameters(config)
        for target, n in ranks(unet_key_map(config), shapes).items()
    }
    mask = flatten(unet_decay_mask(config))
    assert mask == expected
    gains = {n for n in mask if "attention/norm" in n}
    assert {mask[n] for n in gains} == ({True, False} if config.sparse_attn else {False})
    unused = {n for n in mask if n.split("/")[0] in unused_parameters(config)}
    everything = flatten(unet_decay_mask(config, every=True))
    assert {n for n, decays in everything.items() if not decays} == unused


def test_the_gradient_is_clipped_by_its_norm() -> None:
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}

    def clipped(limit: float) -> Any:
        return clip_by_norm(limit).update(gradient, optax.EmptyState())[0]

    np.testing.assert_allclose(clipped(0.5)["a"], [0.3, 0], rtol=1e-6)
    np.testing.assert_allclose(clipped(0.5)["b"], [[0.4]], rtol=1e-6)
    np.testing.assert_array_equal(clipped(5.1)["a"], gradient["a"])
    gradient = {"a": jnp.array([1e-6])}
    np.testing.assert_allclose(clipped(1e-6)["a"], [0.5e-6], rtol=1e-5)


def test_learning_rates() -> None:
    config = replace(PRIOR_OPTIMIZER, learning_rate=8.0, warmup_steps=4, cosine_decay_max_steps=6)
    rates = [float(make_learning_rate(config)(jnp.int32(step))) for step in (0, 1, 3, 6, 9, 12)]
    cosine = [8 * (1 + np.cos(np.pi * step / 6)) / 2 for step in (0, 1, 3, 6, 9, 12)]
    np.testing.assert_allclose(rates, cosine * np.array([0.25, 0.5, 1, 1, 1, 1]), atol=1e-5)
    constant = make_learning_rate(DECODER_OPTIMIZER)
    assert float(constant(0)) == float(constant(10**6)) == np.float32(1e-4)


def test_the_defaults_are_the_trainers() -> None:
    assert OptimizerConfig(3e-4, 1e-6, None, 1e-2, (0.9, 0.99)) == PRIOR_OPTIMIZER
    assert OptimizerConfig(1e-4, 1e-8, 0.5, 1e-2, (0.9, 0.99)) == DECODER_OPTIMIZER
    assert EmaConfig(0.9999, 100, 10, 1.0, 2 / 3, 0.0) == EmaConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0: give a positive number"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"warmup_steps": 0}, "warmup_steps"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_options_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(PRIOR_OPTIMIZER, **change)


@pytest.mark.parametrize(
    "change",
    [{"update_every": 0}, {"beta": 1.1}, {"min_value": 0.9, "beta": 0.5}, {"inv_gamma": 0.0}],
)
def test_averages_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        EmaConfig(**change)


# The average


def test_the_decay_grows_with_the_age() -> None:
    steps = jnp.array([0, 100, 101, 102, 110, 200, 1000, 10_000, 100_000])
    expected = [0, 0, 0, 0.37004, 0.78456, 0.95358, 0.98927, 0.99783, 0.99954]
    np.testing.assert_allclose(jax.vmap(ema_decay)(steps), expected, atol=6e-6)
    bounds = EmaConfig(beta=0.99, min_value=0.5)
    found = [float(ema_decay(step, bounds)) for step in (101, 102, 100_000)]
    np.testing.assert_allclose(found, [0, 0.5, 0.99], rtol=1e-6)


AVERAGES = [
    {"update_after_step": 7, "update_every": 3},
    {"update_after_step": 0, "update_every": 1, "inv_gamma": 5.0, "power": 0.75, "beta": 0.9},
    {"update_after_step": 4, "update_every": 2, "min_value": 0.8},
    {"update_after_step": 4, "update_every": 2, "beta": 1.0},
]


def averages(config: EmaConfig, weights: np.ndarray) -> np.ndarray:
    """The average after each update, from a first one of sevens."""

    def step(average: Any, now: tuple[Any, Any]) -> tuple[Any, Any]:
        average = update_ema(average, now[1], now[0], config)
        return average, average

    rows = jnp.arange(len(weights)), jnp.asarray(weights)
    return np.asarray(jax.jit(lambda: jax.lax.scan(step, jnp.full(4, 7.0), rows)[1])())


def test_an_average_is_a_copy_until_it_begins() -> None:
    weights = prior_reference.numbers((20, 4), "weights")
    found = averages(EmaConfig(update_after_step=7, update_every=3), weights)
    for step, source in enumerate([0, 0, 0, 3, 3, 3, 6, 6, 6]):
        np.testing.assert_array_equal(found[step], weights[source])
    decay = 1 - (1 + 2) ** (-2 / 3)  # at update 9, the tenth: 10 - 7 - 1
    expected = decay * weights[6] + (1 - decay) * weights[9]
    np.testing.assert_allclose(found[9], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[11], found[9])
    assert not np.allclose(found[12], found[9])


@pytest.mark.torch
@pytest.mark.parametrize("options", AVERAGES, ids=str)
def test_averages_equal_the_package(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("ema_pytorch")
    weights = prior_reference.numbers((30, 4), "weights")
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.zeros(4))})
    average = package.EMA(model, **options)
    expected = []
    for row in weights:
        model["w"].data.copy_(torch.from_numpy(row))
        average.update()
        expected.append(average.ema_model["w"].detach().numpy().copy())
    found = averages(EmaConfig(**options), weights)
    assert error(found, np.stack(expected)) < 1e-6
    for step in (0, 5, 101, 3000):
        counter = SimpleNamespace(step=torch.tensor(step), **vars(EmaConfig(**options)))
        value = package.EMA.get_current_decay(counter)
        np.testing.assert_allclose(ema_decay(step, EmaConfig(**options)), value, rtol=1e-5)
