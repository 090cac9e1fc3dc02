"""Training runs of DALLE2-pytorch's priors with numbers that need no file (see `prior_reference`).

tests/golden/dalle2_prior_training.npz was written by

    PYTHONPATH=. python tests/interop/dalle2_pytorch/optimizer_reference.py OUT.npz

with dalle2-pytorch 1.15.6 and torch 2.13.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from unittest import mock

import numpy as np

from tests.interop.dalle2_pytorch.prior_reference import (
    NET,
    Arrays,
    import_package,
    is_constant,
    make_prior,
    numbers,
)

PAIRS = 64
STEPS_JOB: dict[str, Any] = {
    "net": {**NET, "normformer": True},
    "prior": {"timesteps": 20, "cond_drop_prob": 0.3},
    "optimizer": {"lr": 3e-4, "wd": 1e-2, "eps": 1e-6, "betas": (0.9, 0.99)},
    "clip": 0.5,
    "steps": 3,
    "batch": 4,
}
"""The three steps whose weights are frozen.

With `SEED`: with 0 one weight's first gradient is 1e-6, as small as eps, and torch's own result for
that weight moves by 2e-6 when the weights before change by their last bit.
"""
SEED = 1
CURVE_JOB: dict[str, Any] = {
    **STEPS_JOB,
    "net": {**NET, "depth": 1},
    "optimizer": {**STEPS_JOB["optimizer"], "lr": 3e-3},
    "steps": 200,
    "batch": 16,
}
"""The longer run of which the losses are frozen."""


def stream(job: dict[str, Any], seed: int = 0) -> Arrays:
    """Everything that the steps of a run are given, [steps, batch, ...].

    Of 64 captions and images; an image's embedding is mostly a linear map of its caption's.
    """
    dim, length = job["net"]["dim"], job["net"]["max_text_len"]
    steps, batch = job["steps"], job["batch"]
    text = numbers((PAIRS, dim), seed, "captions")
    image = text @ numbers((dim, dim), seed, "map") / dim**0.5
    image = image + np.float32(0.3) * numbers((PAIRS, dim), seed, "images")
    encodings = numbers((PAIRS, length, dim), seed, "tokens")
    encodings[np.arange(length) > np.arange(PAIRS)[:, None] % length] = 0
    state = np.random.RandomState(seed)
    rows = state.randint(0, PAIRS, (steps, batch))
    drop = job["prior"].get("cond_drop_prob", 0.0)
    return {
        "image_embed": _unit(image)[rows],
        "text_embed": _unit(text)[rows],
        "encodings": encodings[rows],
        "t": state.randint(0, job["prior"]["timesteps"], (steps, batch)).astype(np.int32),
        "drop_text": state.random_sample((steps, batch)) < drop,
        "drop_image": state.random_sample((steps, batch)) < drop,
        "noise": numbers((steps, batch, dim), seed, "step noise"),
    }


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def train(package: Any, prior: Any, job: dict[str, Any], given: Arrays) -> Arrays:
    """losses and grad_norms (before clipping), [steps] float64, and the state dict in the end."""
    import pytorch_warmup
    import torch
    from dalle2_pytorch.optimizer import get_optimizer

    optimizer = get_optimizer(prior.parameters(), **job["optimizer"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    if job.get("cosine"):
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=job["cosine"])
    warmup = pytorch_warmup.LinearWarmup(optimizer, job.get("warmup", 1))
    losses, norms = [], []
    for step in range(job["steps"]):
        now = {name: torch.from_numpy(array[step].copy()) for name, array in given.items()}
        keeps = [~now["drop_text"], ~now["drop_image"]]
        condition = {"text_embed": now["text_embed"], "text_encodings": now["encodings"]}
        with mock.patch.object(package, "prob_mask_like", side_effect=keeps):
            loss = prior.p_losses(
                now["image_embed"] * prior.image_embed_scale,
                now["t"].long(),
                text_cond=condition,
                noise=now["noise"],
            )
        loss.backward()
        limit = job["clip"] or float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(prior.parameters(), limit).item())
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        with warmup.dampening():
            scheduler.step()
    state = {name: tensor.detach().numpy().copy() for name, tensor in prior.state_dict().items()}
    return {"losses": np.array(losses), "grad_norms": np.array(norms), **state}


def main(path: str) -> None:
    package, arrays = import_package(), {}
    for name, job in {"steps": STEPS_JOB, "curve": CURVE_JOB}.items():
        prior, state = make_prior(package, job, SEED)
        shapes = {n: a.shape for n, a in state.items() if not is_constant(n)}
        found = train(package, prior.train(), job, stream(job, SEED))
        kept = {"losses", "grad_norms"} | (set(shapes) if name == "steps" else set())
        arrays[f"{name}/shapes"] = np.array(json.dumps(shapes))
        arrays |= {f"{name}/{key}": found[key] for key in sorted(kept)}
        rates = [key for key in state if key.endswith("0.0.rotary_emb.freqs")]
        arrays[f"{name}/freqs"] = state[rates[0]]
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
