"""Image embeddings from a prior: DDPM and DDIM, guidance, best of n.

DALLE2-pytorch's DDIM takes the noise level of the step before for the one that x_t has, starts
below the last timestep and makes one call fewer than it is asked for. Here the levels are those
that x_t has, n steps are n calls and the first is at T - 1; `reference_compat` brings back what the
prior's own version did, for comparisons. (But not the wrong sign that 0.23's DDIM gave the noise.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.era import Semantics
from unclip_jax.interop.dalle2_pytorch.prior import ImportedPrior
from unclip_jax.interop.dalle2_pytorch.prior_config import PriorConfig
from unclip_jax.interop.dalle2_pytorch.schedule import NoiseSchedule


class TextCondition(NamedTuple):
    """Captions as a CLIP sees them."""

    embed: Array
    """[B, dim] float32, the pooled embedding, norm 1."""
    encodings: Array | None = None
    """[B, L, dim] float32, one row per token; zeros are padding unless there is a mask."""
    mask: Array | None = None
    """[B, L] bool, True for a token."""

    def repeated(self, count: int) -> TextCondition:
        """Each caption `count` times in a row."""
        return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), self)


@dataclass(frozen=True, eq=False)
class Steps:
    """The network calls of one sampling run; hash and equality are identity."""

    times: np.ndarray
    """[N] int32, falling."""
    signal: np.ndarray
    """[N] float32: factor of x_0 in the next x; 0 and unused where `is_ddim` is False."""
    fresh: np.ndarray
    """[N] float32: factor of new noise."""
    kept: np.ndarray
    """[N] float32: factor of the predicted noise."""
    draws: np.ndarray
    """[N] bool: whether new noise is drawn after the call."""
    is_ddim: bool

    @property
    def num_draws(self) -> int:
        """Noise arrays that a run needs, the first one included."""
        return 1 + int(self.draws.sum())


Sampler = Callable[[Any, TextCondition, Array], Array]
"""(params, text [B], noise [draws, B, dim]) to embeddings [B, dim], divided by `embed_scale`."""


def ddpm_steps(schedule: NoiseSchedule) -> Steps:
    """Every timestep once (Ho et al. 2020, algorithm 2)."""
    times = np.arange(schedule.timesteps, dtype=np.int32)[::-1]
    fresh = np.exp(0.5 * schedule.posterior_log_variance_clipped[times])
    unused = np.zeros(len(times), np.float32)
    return Steps(times, unused, fresh, unused, times > 0, is_ddim=False)


def ddim_steps(
    schedule: NoiseSchedule,
    num_steps: int,
    *,
    eta: float = 1.0,
    reference: Semantics | None = None,
) -> Steps:
    """`num_steps` calls (Song et al. 2021, eq. 12), the last of which ends at x_0.

    Args:
        num_steps: 1 to T; with `reference` 2 to T - 1.
        eta: 1 draws the noise that DDPM would, 0 draws none.
        reference: the version whose own spacing and levels are wanted.
    """
    times, after = _spacing(schedule.timesteps, num_steps, reference)
    levels = schedule.alphas_cumprod if reference is None else schedule.alphas_cumprod_prev
    levels = levels.astype(np.float64)
    # Where nothing follows, x_0 is the sample.
    now, then = levels[times], np.where(after < 0, 1.0, levels[after])
    with np.errstate(divide="ignore", invalid="ignore"):
        fresh = eta * np.sqrt((1 - now / then) * (1 - then) / (1 - now))
    fresh = np.where(then == 1, 0.0, fresh)
    kept = np.sqrt(np.maximum(1 - then - fresh**2, 0))
    draws = after >= 0 if reference is None else after > 0
    signal, fresh, kept = (
        x.astype(np.float32) for x in (np.sqrt(then), np.where(draws, fresh, 0.0), kept)
    )
    return Steps(times, signal, fresh, kept, draws, is_ddim=True)


def make_sampler(
    prior: ImportedPrior,
    *,
    num_steps: int | None = None,
    cond_scale: float = 1.0,
    eta: float = 1.0,
    reference_compat: bool = False,
    on_step: Callable[[Array], None] | None = None,
) -> tuple[Sampler, Steps]:
    """A jitted sampler and its steps.

    Args:
        num_steps: DDIM steps; T means DDPM, None the config's `sample_timesteps` or T.
        cond_scale: null + (cond - null) * cond_scale; 1 is off.
        eta: of DDIM.
        reference_compat: DDIM as the prior's own version of DALLE2-pytorch does it.
        on_step: is given x after every step, while it runs.
    Raises:
        UserError: guidance where it has no meaning, steps that the chain has not, or noise
            prediction on a chain whose last step has no signal.
    """
    c, schedule = prior.config, prior.schedule
    num_steps = num_steps or c.sample_timesteps or schedule.timesteps
    least = 2 if reference_compat else 1
    if not least <= num_steps <= schedule.timesteps:
        raise UserError(f"num_steps is {num_steps}: choose {least} to {schedule.timesteps}")
    if cond_scale != 1 and (reason := c.why_unguided()):
        raise UserError(f"cond_scale is {cond_scale}, but {reason}: use 1")
    if not (c.predict_x_start or c.predict_v) and schedule.alphas_cumprod[-1] == 0:
        raise UserError(
            f"this prior predicts noise on a {schedule.name} schedule, whose last step has no "
            "signal: x_0 cannot be derived there"
        )
    if num_steps == schedule.timesteps:
        steps = ddpm_steps(schedule)
    else:
        reference = c.net.semantics if reference_compat else None
        steps = ddim_steps(schedule, num_steps, eta=eta, reference=reference)

    @jax.jit
    def sample(params: Any, text: TextCondition, noise: Array) -> Array:
        return _run(prior, steps, cond_scale, reference_compat, on_step, params, text, noise)

    return sample, steps


def draw_noise(key: Array, num_draws: int, batch: int, dim: int) -> Array:
    """[draws, B, dim] standard normal; row i is the same in a batch of any size."""
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch))
    rows = jax.vmap(lambda key: jax.random.normal(key, (num_draws, dim)))(keys)
    return rows.swapaxes(0, 1)


def best_of(text_embed_BD: Array, embeds_BnD: Array) -> Array:
    """The one embedding of n that is nearest to its text by cosine, [B, dim]."""
    cosines_Bn = jnp.einsum("bd,bnd->bn", unit(text_embed_BD), unit(embeds_BnD))
    best_B = jnp.argmax(cosines_Bn, axis=1)
    return jnp.take_along_axis(embeds_BnD, best_B[:, None, None], axis=1)[:, 0]


def sample_best(
    prior: ImportedPrior,
    sampler: tuple[Sampler, Steps],
    text: TextCondition,
    key: Array,
    count: int,
) -> Array:
    """The best of `count` samples for each caption.

    Args:
        sampler: what `make_sampler` returned for this prior.
    Returns:
        [B, dim] float32, of about norm 1, not normalised.
    """
    sample, steps = sampler
    batch, dim = text.embed.shape
    # Noise is drawn per caption, so that a caption's samples do not depend on its neighbours.
    noise = draw_noise(key, steps.num_draws * count, batch, dim)
    noise = noise.reshape(steps.num_draws, count, batch, dim).swapaxes(1, 2)
    noise = noise.reshape(steps.num_draws, batch * count, dim)
    embeds = sample(prior.params, text.repeated(count), noise)
    return best_of(text.embed, embeds.reshape(batch, count, dim))


def predict(
    prior: ImportedPrior,
    params: Any,
    x: Array,
    t: Array,
    text: TextCondition,
    *,
    cond_scale: float = 1.0,
    self_cond: Array | None = None,
) -> Array:
    """The network's guided output, [B, dim]: the null pass drops text and noised embedding."""
    encodings = text.encodings if prior.config.condition_on_text_encodings else None

    def call(drop: Array | None) -> Array:
        return prior.network.apply(
            {"params": params},
            *(x, t, text.embed, encodings),
            text_mask_BL=text.mask if encodings is not None else None,
            self_cond_BD=self_cond,
            drop_text_B=drop,
            drop_image_B=drop,
        )  # pyright: ignore[reportReturnType]

    conditioned = call(None)
    if cond_scale == 1:
        return conditioned
    null = call(jnp.ones(len(x), bool))
    return null + (conditioned - null) * cond_scale


def start_of(c: PriorConfig, schedule: NoiseSchedule, x: Array, t: Array, output: Array) -> Array:
    """x_0 from the network's output, not clamped."""
    if c.predict_v:
        return schedule.start_from_velocity(x, t, output)
    return output if c.predict_x_start else schedule.start_from_noise(x, t, output)


def unit(x: Array) -> Array:
    """Scaled to norm 1 along the last axis."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _run(
    prior: ImportedPrior,
    steps: Steps,
    cond_scale: float,
    reference_compat: bool,
    on_step: Callable[[Array], None] | None,
    params: Any,
    text: TextCondition,
    noise: Array,
) -> Array:
    c, schedule = prior.config, prior.schedule
    if noise.shape != (steps.num_draws, *text.embed.shape):
        raise UserError(
            f"the noise has shape {noise.shape}: it must be {(steps.num_draws, *text.embed.shape)}"
        )
    unclamped = c.net.semantics.unclamped_noise if reference_compat else "never"
    takes_output = not (c.predict_x_start or c.predict_v) and unclamped != "never"

    def step(carry: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[Any, None]:
        x, previous = carry
        time, signal, fresh, kept, drawn = now
        t = jnp.full(len(x), time)
        self_cond = previous if c.net.self_cond else None
        output = predict(prior, params, x, t, text, cond_scale=cond_scale, self_cond=self_cond)
        raw = start_of(c, schedule, x, t, output)
        x0 = _clamped(c, raw)
        new = noise[drawn]
        if not steps.is_ddim:
            x = schedule.posterior_mean(x0, x, t) + jnp.where(time > 0, fresh, 0) * new
        else:
            basis = raw if unclamped == "always" else x0
            rest = output if takes_output else schedule.noise_from_start(x, t, basis)
            x = signal * x0 + fresh * new + kept * rest
        if on_step is not None:
            jax.debug.callback(on_step, x, ordered=True)
        return (x, x0), None

    start = noise[0]
    if c.init_image_embed_l2norm:
        start = unit(start) * c.embed_scale
    # A step that draws nothing reads the array before; its factor is 0.
    drawn = np.cumsum(steps.draws)
    rows = (steps.times, steps.signal, steps.fresh, steps.kept, drawn)
    (x, _), _ = jax.lax.scan(step, (start, jnp.zeros_like(start)), tuple(map(jnp.asarray, rows)))
    if c.sampling_final_clamp_l2norm and c.predict_x_start:
        x = unit(x) * c.embed_scale
    return x / c.embed_scale


def _clamped(c: PriorConfig, x0: Array) -> Array:
    if not c.predict_x_start:
        return jnp.clip(x0, -1, 1)
    return unit(x0) * c.embed_scale if c.sampling_clamp_l2norm else x0


def _spacing(
    timesteps: int, num_steps: int, reference: Semantics | None
) -> tuple[np.ndarray, np.ndarray]:
    """Times of the calls and those that they lead to, -1 for x_0."""
    if reference is None:
        grid = np.round(np.linspace(-1, timesteps - 1, num_steps + 1))
    elif reference.ddim_from_zero:
        grid = _float32_grid(0, timesteps, num_steps + 2)[:-1]
    else:
        grid = _float32_grid(-1, timesteps, num_steps + 1)[:-1]
    falling = grid.astype(np.int32)[::-1]
    return falling[:-1], falling[1:]


def _float32_grid(first: int, last: int, count: int) -> np.ndarray:
    """Evenly spaced numbers as the reference has them: a float32 step, each half from its own end.

    They are cut to whole numbers, where the last bit decides; PyTorch's product and sum are fused.
    """
    step = float(np.float32(last - first) / np.float32(count - 1))
    index = np.arange(count)
    grid = np.where(index < count // 2, first + step * index, last - step * (count - 1 - index))
    return grid.astype(np.float32)
