"""The family's noise schedules: against the package's own tables, frozen and live."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.interop.dalle2_pytorch import prior_reference as reference
from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.schedule import (
    TABLES,
    make_noise_schedule,
    matching_schedule,
)

NAMES = ("cosine", "linear", "quadratic", "jsd", "sigmoid")


@pytest.mark.parametrize(("name", "timesteps"), [("cosine", 1000), ("linear", 100)])
def test_tables_equal_the_frozen_ones(name: str, timesteps: int, golden: Path) -> None:
    schedule = make_noise_schedule(name, timesteps)  # pyright: ignore[reportArgumentType]
    frozen = np.load(golden / f"schedule_{name}_{timesteps}.npz")
    compared = [table for table in TABLES if table in frozen.files and table != "p2_loss_weight"]
    assert len(compared) == 12
    for table in compared:
        found = schedule.buffers()[table]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, frozen[table], rtol=2e-6, atol=1e-12, err_msg=table)


def test_known_values() -> None:
    schedule = make_noise_schedule("cosine", 1000)
    np.testing.assert_allclose(
        schedule.betas[[0, 500, 999]], [4.1284224e-05, 0.0031556915, 0.999], rtol=1e-6
    )
    np.testing.assert_allclose(schedule.alphas_cumprod[999], 2.428767e-09, rtol=1e-6)
    logs = schedule.posterior_log_variance_clipped[:2]
    np.testing.assert_allclose(logs, [-46.051701, -10.734082], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("timesteps", [21, 100, 1000])
@pytest.mark.parametrize("p2", [(0.0, 1.0), (0.5, 1.0), (1.0, 2.0)])
@pytest.mark.torch
def test_tables_equal_the_package(name: str, timesteps: int, p2: tuple[float, float]) -> None:
    scheduler = reference.package_or_skip().NoiseScheduler(
        beta_schedule=name,
        timesteps=timesteps,
        loss_type="l2",
        p2_loss_weight_gamma=p2[0],
        p2_loss_weight_k=p2[1],
    )
    theirs = {table: tensor.numpy() for table, tensor in scheduler.state_dict().items()}
    ours = make_noise_schedule(name, timesteps, p2_gamma=p2[0], p2_k=p2[1]).buffers()  # pyright: ignore
    assert list(ours) == list(theirs)
    for table, array in theirs.items():
        np.testing.assert_allclose(ours[table], array, rtol=2e-6, atol=1e-12, err_msg=table)
    found = matching_schedule(theirs, p2_k=p2[1])
    assert (found.name, found.timesteps) == (name, timesteps)
    for table, array in theirs.items():
        np.testing.assert_array_equal(found.buffers()[table], array, err_msg=table)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_tables_stored_in_half_precision_are_recognised(dtype: type) -> None:
    schedule = make_noise_schedule("sigmoid", 250, p2_gamma=1.0)
    halves = {name: table.astype(dtype) for name, table in schedule.buffers().items()}
    found = matching_schedule(halves)
    assert (found.name, found.timesteps) == ("sigmoid", 250)
    np.testing.assert_array_equal(found.betas, schedule.betas)


def test_a_file_without_p2_weights_is_read() -> None:
    tables = make_noise_schedule("cosine", 50).buffers()
    del tables["p2_loss_weight"]
    np.testing.assert_array_equal(matching_schedule(tables).p2_loss_weight, np.ones(50))


@pytest.mark.parametrize("table", TABLES)
def test_a_changed_table_is_refused(table: str) -> None:
    tables = make_noise_schedule("cosine", 50, p2_gamma=1.0).buffers()
    tables[table] = tables[table].copy()
    tables[table][20] *= 1.001
    with pytest.raises(UserError, match="the betas of F" if table == "betas" else table):
        matching_schedule(tables, what="F")


def test_a_missing_table_is_refused() -> None:
    tables = make_noise_schedule("cosine", 50).buffers()
    del tables["posterior_mean_coef1"]
    with pytest.raises(UserError, match="posterior_mean_coef1"):
        matching_schedule(tables)


def test_schedules_that_reach_one_are_refused() -> None:
    for name in ("linear", "quadratic", "sigmoid"):
        with pytest.raises(UserError, match="20 or more"):
            make_noise_schedule(name, 19)
    with pytest.raises(UserError, match="'cubic'"):
        make_noise_schedule("cubic", 100)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="1 or more"):
        make_noise_schedule("cosine", 0)


def test_the_process_and_its_inverses() -> None:
    schedule = make_noise_schedule("cosine", 100)
    x0, noise = (reference.numbers((3, 2, 4), name) for name in ("x0", "noise"))
    t = jnp.array([0, 50, 90])
    xt = schedule.q_sample(x0, t, noise)
    velocity = schedule.velocity(x0, t, noise)
    np.testing.assert_allclose(schedule.start_from_noise(xt, t, noise), x0, atol=2e-4)
    np.testing.assert_allclose(schedule.start_from_velocity(xt, t, velocity), x0, atol=1e-5)
    np.testing.assert_allclose(schedule.noise_from_start(xt, t, x0), noise, atol=1e-3)
    # Noise added on the way from one level to another ends at the other's levels.
    further = schedule.q_sample_from_to(
        x0 * schedule.sqrt_alphas_cumprod[10], t * 0 + 10, t * 0 + 60, 0 * noise
    )
    np.testing.assert_allclose(further, x0 * schedule.sqrt_alphas_cumprod[60], rtol=1e-5)
    # At t = 0 the posterior is x_0 itself.
    np.testing.assert_allclose(schedule.posterior_mean(x0, xt, t * 0), x0, rtol=1e-5, atol=1e-6)


def test_the_last_step_of_jsd_stays_finite() -> None:
    schedule = make_noise_schedule("jsd", 30)
    xt, t = reference.numbers((2, 4), "x"), jnp.array([29, 29])
    assert np.isinf(schedule.sqrt_recip_alphas_cumprod[-1])
    np.testing.assert_allclose(schedule.noise_from_start(xt, t, 3 * xt), xt, rtol=1e-6)
