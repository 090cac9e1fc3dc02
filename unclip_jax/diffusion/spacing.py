"""Which steps of the training chain a sampler visits: lists of indices, least noise first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.errors import UserError

# Timesteps of `log_snr_timesteps` lie evenly between these lambda, and at the chain's two ends.
_LOG_SNR_WINDOW = (-4.5, 3.5)


def spaced_timesteps(num_timesteps: int, spec: int | str | Sequence[int]) -> np.ndarray:
    """Which steps of a chain to visit, as ADM and GLIDE choose them.

    Args:
        num_timesteps: length of the chain.
        spec: 25 or "25": that many, evenly spaced from the first to the last (1 is the last alone).
            "10,10,3,2,2": so many in each of five equal sections, least noise first. "ddim25":
            every k-th from 0, for the integer k that gives 25. "fast27": GLIDE's upsampler, the
            five sections above with 999, the last of 1000, replaced by 997. A sequence of ints:
            those timesteps.
    Returns:
        int32, increasing.
    Raises:
        UserError: a spec that cannot be read, or more steps than there are.
    """
    if isinstance(spec, (int, np.integer)):
        spec = str(int(spec))
    if not isinstance(spec, str):
        return np.array(sorted(spec), dtype=np.int32)
    if spec == "fast27":
        steps = _sections(num_timesteps, [10, 10, 3, 2, 2], spec)
        # DDIM from the very last step of an eps-network shows artifacts: abar is nearly 0 there.
        return np.array([*steps[:-1], num_timesteps - 3], dtype=np.int32)
    if spec.startswith("ddim"):
        count = _count(spec[len("ddim") :], spec)
        for stride in range(1, num_timesteps + 1):
            if len(range(0, num_timesteps, stride)) == count:
                return np.arange(0, num_timesteps, stride, dtype=np.int32)
        raise UserError(
            f"steps {spec!r}: no integer stride gives {count} of {num_timesteps} timesteps; "
            "give another number, or the number without 'ddim'"
        )
    counts = [_count(part, spec) for part in spec.split(",")]
    return np.array(_sections(num_timesteps, counts, spec), dtype=np.int32)


def _sections(num_timesteps: int, counts: list[int], spec: str) -> list[int]:
    if counts == [1]:
        # ADM would return step 0, which takes pure noise for an almost clean sample.
        return [num_timesteps - 1]
    steps: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = num_timesteps // len(counts) + (section < num_timesteps % len(counts))
        if size < count:
            raise UserError(
                f"steps {spec!r}: {count} steps do not fit into {size} timesteps; give fewer"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            steps.append(start + round(position))
            # Added up, not multiplied: the rounding decides some steps, and ADM adds.
            position += stride
        start += size
    return steps


def _count(text: str, spec: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(
            f"steps {spec!r}: give a number such as 250, 'ddim50', 'fast27', or numbers a section "
            "such as '10,10,3,2,2'"
        )
    return int(text)


def log_snr_timesteps(schedule: Schedule, num_steps: int) -> np.ndarray:
    """Both ends, and between them even distances of the log signal-to-noise ratio (DPM-Solver, Lu
    et al. 2022).

    Evenly from lambda = 3.5 to -4.5: a cosine chain goes on to 5 and -9.9, but there a few
    timesteps have most of the way. The ends stay: without the noisiest timestep a chain starts
    where data already has a mean, and a white background is lost. Each level takes the nearest
    timestep that is free.

    Args:
        schedule: the training chain, N steps.
        num_steps: 1 to N; 1 is the noisiest alone.
    Returns:
        int32 [num_steps], increasing, from 0 to N - 1.
    Raises:
        UserError: a number that is not in that range.
    """
    total = len(schedule)
    if not 1 <= num_steps <= total:
        raise UserError(f"num_steps is {num_steps}: give 1 to {total}, the timesteps there are")
    if num_steps == 1:
        return np.array([total - 1], np.int32)
    levels = schedule.log_snr
    low, high = max(levels[-1], _LOG_SNR_WINDOW[0]), min(levels[0], _LOG_SNR_WINDOW[1])
    wanted = np.linspace(high, low, num_steps - 2)
    inside = np.abs(levels[:, None] - wanted).argmin(axis=0)
    nearest = np.concatenate([[0], inside, [total - 1]])
    order = np.arange(num_steps)
    # Where several share a timestep, the later ones move up, and down again at the chain's end.
    moved_up = np.maximum.accumulate(nearest - order) + order
    return np.minimum(moved_up, total - num_steps + order).astype(np.int32)
