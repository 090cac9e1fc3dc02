"""What must hold of every imported prior and U-Net, whatever the reference computes."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.comparison import error, quick
from tests.interop.dalle2_pytorch import invariant_runs as runs
from unclip_jax.interop.dalle2_pytorch.prior_loss import prior_loss
from unclip_jax.interop.dalle2_pytorch.prior_sampling import TextCondition, make_sampler

ROW_TOLERANCE = 1e-6  # absolute, on outputs of about 1
COMPILED_TOLERANCE = 3e-6
DEVICE_TOLERANCE = 1e-5
SMALL = 1e-2  # share of the whole norm: leaves below it are sums that cancel, and lose digits
HALF_TOLERANCE = 3e-2
HIDDEN = {"prior": ("embed", "encodings", "mask", "x"), "unet": ("embed", "encodings", "mask")}
"""What has no influence when everything is dropped; a prior's x is the noised image embedding."""

networks = pytest.mark.parametrize("name", runs.NAMES)


@cache
def network(name: str) -> runs.Network:
    return runs.network(name)


@cache
def compiled(name: str) -> Any:
    net = network(name)
    return quick(net.apply, net.params, net.batch)


def output(name: str, **changes: Any) -> np.ndarray:
    net = network(name)
    return np.asarray(compiled(name)(net.params, {**net.batch, **changes}))


@networks
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    batch, before = network(name).batch, output(name)
    others = {key: np.roll(a, 1, axis=0) for key, a in batch.items() if key != "x"}
    others["x"] = -batch["x"]
    changed = {key: np.concatenate([batch[key][:1], a[1:]]) for key, a in others.items()}
    after = output(name, **changed)
    np.testing.assert_allclose(after[0], before[0], rtol=0, atol=ROW_TOLERANCE)
    assert all(error(after[i : i + 1], before[i : i + 1]) > 1e-2 for i in range(1, runs.BATCH))


@networks
def test_text_after_its_end_is_irrelevant(name: str) -> None:
    """The mask holds the tokens up to and with the end of text."""
    batch, before = network(name).batch, output(name)
    hidden = ~batch["mask"][..., None]
    noisy = np.where(hidden, np.float32(5), batch["encodings"])
    np.testing.assert_array_equal(output(name, encodings=noisy), before)
    # Each of the tokens that the mask holds counts, the last one too.
    last = batch["mask"].sum(axis=1) - 1
    one = batch["encodings"].copy()
    one[np.arange(runs.BATCH), last] *= -1
    after = output(name, encodings=one)
    assert all(error(after[i : i + 1], before[i : i + 1]) > 1e-4 for i in range(runs.BATCH))


@networks
def test_with_both_dropped_neither_text_nor_image_matters(name: str) -> None:
    batch, everyone = network(name).batch, np.ones(runs.BATCH, bool)
    dropped = {"drop_embed": everyone, "drop_text": everyone}
    others = {key: ~batch[key] if key == "mask" else 1 - 3 * batch[key] for key in HIDDEN[name]}
    before = output(name, **dropped)
    np.testing.assert_array_equal(output(name, **dropped, **others), before)
    assert error(output(name, **dropped, t=batch["t"] + 7), before) > 1e-3
    # One drop alone leaves the other condition.
    for drop in dropped:
        half = {drop: everyone}
        assert error(output(name, **half, **others), output(name, **half)) > 1e-3, drop


@networks
def test_compiled_or_not_is_the_same(name: str) -> None:
    net = network(name)
    with jax.default_matmul_precision("highest"), jax.disable_jit():
        eager = net.apply(net.params, jax.tree.map(jnp.asarray, net.batch))
    assert error(eager, output(name)) < COMPILED_TOLERANCE


@networks
def test_bfloat16_weights_and_inputs_are_close(name: str) -> None:
    """Cast outside; where a module promotes to float32 it may, the numbers have lost their bits."""
    net = network(name)

    def half(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype.kind == "f" else a, tree)

    params, batch = half(net.params), half(net.batch)
    found = quick(net.apply, params, batch)(params, batch)
    difference = np.linalg.norm(np.float32(found) - output(name)) / np.linalg.norm(output(name))
    assert 1e-4 < difference < HALF_TOLERANCE


@networks
def test_inputs_are_not_mutated(name: str) -> None:
    net = network(name)
    params, batch = jax.tree.map(np.copy, net.params), jax.tree.map(np.copy, net.batch)
    np.testing.assert_array_equal(compiled(name)(params, batch), output(name))
    jax.tree.map(np.testing.assert_array_equal, (params, batch), (net.params, net.batch))


def test_the_loss_and_the_sampler_of_a_prior_leave_their_inputs() -> None:
    """The original scales the caller's image embedding in place."""
    prior, batch = runs.tiny_prior(), network("prior").batch
    noise = np.stack([batch["x"]] * 3)
    given = {**batch, "image_embed": batch["embed"][::-1].copy(), "noise": noise}
    kept = jax.tree.map(np.copy, given)
    text = TextCondition(given["embed"], given["encodings"], given["mask"])
    losses = [
        prior_loss(prior, prior.params, given["image_embed"], text, given["t"], given["x"])
        for _ in range(2)
    ]
    sample, steps = make_sampler(prior, num_steps=2)
    sample(prior.params, text, given["noise"][: steps.num_draws])
    jax.tree.map(np.testing.assert_array_equal, given, kept)
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def on_eight(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """`training_step` of both networks on every mesh of eight devices."""
    path = tmp_path_factory.mktemp("eight") / "out.npz"
    command = [sys.executable, "-m", "tests.interop.dalle2_pytorch.invariant_runs", str(path)]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    process = subprocess.run(
        command, cwd=repository, env=env, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    with np.load(path) as file:
        return dict(file)


@networks
def test_eight_devices_compute_what_one_does(name: str, on_eight: dict[str, np.ndarray]) -> None:
    """Output and gradients, clipped and not, with rows and with weights split."""
    one = runs.training_step(network(name), 1, 1)
    whole: dict[str, float] = {}
    for key, leaf in one.items():
        part = key.split("/")[0]
        whole[part] = float(np.hypot(whole.get(part, 0.0), np.linalg.norm(leaf)))
    for data, fsdp in runs.MESHES[name]:
        for key, leaf in one.items():
            found = on_eight[f"{name}/{data}x{fsdp}/{key}"]
            size = max(float(np.linalg.norm(leaf)), SMALL * whole[key.split("/")[0]])
            assert np.linalg.norm(found - leaf) <= DEVICE_TOLERANCE * size, key
