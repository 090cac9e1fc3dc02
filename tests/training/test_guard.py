"""Which steps count, when a run goes back, and what data it then sees."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unclip_jax.config import GuardConfig
from unclip_jax.errors import UserError
from unclip_jax.training.guard import YOUNG, init_guard, running_loss, watch
from unclip_jax.training.rollbacks import GaveUp, Rollbacks, SkipWatch
from unclip_jax.training.state import init_state
from unclip_jax.training.step import make_train_step

SPIKE = 10.0
step_guard = jax.jit(lambda state, loss, norm: watch(state, loss, norm, SPIKE))


def test_running_loss_is_the_average_of_what_counted() -> None:
    state = init_guard()
    assert np.isnan(running_loss(state))
    losses = np.random.default_rng(0).uniform(1, 2, 60)
    for loss in losses:
        is_good, state = step_guard(state, loss, 1.0)
        assert is_good
    weights = 0.98 ** np.arange(60)[::-1]
    np.testing.assert_allclose(running_loss(state), losses @ weights / weights.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "norm", "counts"),
    [
        (float("nan"), 1.0, False),
        (1.0, float("nan"), False),
        (float("inf"), 1.0, False),
        (1.0, float("inf"), False),
        (float("-inf"), 1.0, False),
        (100.0, 1.0, False),
        (20.1, 1.0, False),
        (19.0, 1.0, True),  # the highest of late was 2
        (0.0, 0.0, True),
    ],
)
def test_what_counts(loss: float, norm: float, counts: bool) -> None:
    state = init_guard()
    for i in range(YOUNG):
        _, state = step_guard(state, 1.0 + (i == YOUNG - 1), 1.0)
    is_good, after = step_guard(state, loss, norm)
    assert bool(is_good) == counts
    assert (int(after.skipped), int(after.in_a_row)) == (0, 0) if counts else (1, 1)
    if not counts:
        assert (after.total, after.peak, after.accepted) == (state.total, state.peak, YOUNG)
        _, again = step_guard(after, loss, norm)
        assert (int(again.skipped), int(again.in_a_row)) == (2, 2)
        _, good = step_guard(again, 1.0, 1.0)
        assert (int(good.skipped), int(good.in_a_row)) == (2, 0)


def test_a_young_run_knows_no_spikes() -> None:
    state = init_guard()
    for _ in range(YOUNG - 1):
        _, state = step_guard(state, 0.01, 1.0)
    assert step_guard(state, 1000.0, 1.0)[0]


def test_without_a_factor_only_what_is_not_finite_is_skipped() -> None:
    state = init_guard()
    for _ in range(YOUNG + 5):
        _, state = watch(state, jnp.float32(0.01), jnp.float32(1), 0.0)
    assert watch(state, jnp.float32(1e9), jnp.float32(1), 0.0)[0]
    assert not watch(state, jnp.float32(jnp.nan), jnp.float32(1), 0.0)[0]


def test_a_skipped_step_changes_the_number_and_the_count_alone() -> None:
    def objective(params, frozen, batch, key):
        return jnp.mean((params["kernel"] * batch["x"]) ** 2), {}

    optimizer = optax.adamw(0.1)
    gradient = jax.value_and_grad(objective, has_aux=True)
    step = jax.jit(make_train_step(gradient, optimizer, ema_decay=0.9, spike=SPIKE))
    state = init_state({"kernel": jnp.array([1.0, 2.0])}, optimizer)
    good, bad = {"x": jnp.ones((4, 2))}, {"x": jnp.full((4, 2), jnp.nan)}
    state, _ = step(state, {}, good, jax.random.key(0))
    after, metrics = step(state, {}, bad, jax.random.key(0))
    assert (int(metrics["skipped_steps"]), int(metrics["skipped_in_a_row"])) == (1, 1)
    assert int(after.step) == int(state.step) + 1
    for name in ("params", "ema_params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    # The step after it is that of a run in which it never was, but for its number.
    next_one, _ = step(after, {}, good, jax.random.key(0))
    without, _ = step(state, {}, good, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, next_one.params, without.params)
    jax.tree.map(np.testing.assert_array_equal, next_one.opt_state, without.opt_state)


def test_the_data_between_is_left_out(tmp_path: Path) -> None:
    rollbacks = Rollbacks(tmp_path, GuardConfig())
    assert [rollbacks.first_batch(step) for step in (0, 7)] == [0, 7]
    rollbacks.go_back(25, 20, "bad")
    assert [rollbacks.first_batch(step) for step in (19, 20, 30)] == [19, 25, 35]
    rollbacks.go_back(24, 20, "bad")  # batch 29 was its last
    assert [rollbacks.first_batch(step) for step in (20, 30)] == [29, 39]
    rollbacks.go_back(33, 10, "bad")  # checkpoint 20 was damaged; batch 42 comes next
    assert [rollbacks.first_batch(step) for step in (10, 20)] == [42, 52]
    again = Rollbacks(tmp_path, GuardConfig())
    assert [again.first_batch(step) for step in (9, 10, 20)] == [9, 42, 52]
    rows = [json.loads(line) for line in (tmp_path / "rollbacks.jsonl").read_text().splitlines()]
    assert [row["batch"] for row in rows] == [25, 29, 42]


def test_a_run_that_begins_before_it_went_back_has_not_gone_back(tmp_path: Path) -> None:
    """All checkpoints since were damaged: 20 is reached again, by other steps."""
    rollbacks = Rollbacks(tmp_path, GuardConfig())
    rollbacks.go_back(23, 20, "bad")
    Rollbacks(tmp_path, GuardConfig()).begin_at(20)
    assert Rollbacks(tmp_path, GuardConfig()).first_batch(24) == 27
    rollbacks.begin_at(15)
    assert [rollbacks.first_batch(step) for step in (15, 20, 24)] == [15, 20, 24]
    assert Rollbacks(tmp_path, GuardConfig()).first_batch(24) == 24


def test_it_gives_up_where_nothing_was_saved_since(tmp_path: Path) -> None:
    rollbacks = Rollbacks(tmp_path, GuardConfig(rollbacks=2))
    rollbacks.go_back(25, 20, "bad")
    rollbacks.go_back(25, 20, "bad")
    rollbacks.go_back(45, 40, "bad")
    with pytest.raises(GaveUp, match="step 25: bad; the run has gone back to step 20 2 times") as e:
        rollbacks.go_back(25, 20, "bad")
    assert e.value.exit_code == 3


def test_a_file_that_is_no_list_of_rollbacks(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"step": 1}'):
        (tmp_path / "rollbacks.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"rollbacks\.jsonl cannot be read"):
            Rollbacks(tmp_path, GuardConfig())


@pytest.mark.parametrize("looks", [(), (5,), (4, 5), (3, 4, 5, 6)])
def test_the_step_that_ends_patience_does_not_depend_on_when_it_is_looked_at(
    looks: tuple[int, ...],
) -> None:
    said: list[str] = []
    watched = SkipWatch(2, said.append)
    in_a_row = [0, 0, 0, 0, 1, 2, 0, 0]
    for step, count in enumerate(in_a_row):
        values = {"skipped_in_a_row": count, "loss": jnp.nan, "gradient_norm": jnp.nan}
        watched.add(step, {k: jnp.asarray(v) for k, v in values.items()}, now=step in looks)
        if watched.is_out_of_patience:
            break
    assert watched.step == 5 and len(said) == 2 and "loss nan" in watched.reason
