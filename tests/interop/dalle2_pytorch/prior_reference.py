"""Runs of DALLE2-pytorch's own priors, of any release, with numbers that need no file.

Weights, inputs and noise come from `numpy.random.RandomState`, whose streams never change; a frozen
run therefore is its options, the shapes of its tensors and its outputs. Those of
tests/golden/dalle2_prior_eras.npz were written by

    PYTHONPATH=.:RELEASE python tests/interop/dalle2_pytorch/prior_reference.py VERSION OUT.npz

with RELEASE the unpacked wheel of each version in `FROZEN`, and joined.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
import zlib
from typing import Any
from unittest import mock

import numpy as np

Arrays = dict[str, Any]

NET = {"dim": 16, "depth": 2, "max_text_len": 5, "dim_head": 8, "heads": 3, "num_timesteps": 20}
PRIOR = {"timesteps": 20, "cond_drop_prob": 0.1}
BATCH = 2
FROZEN: dict[str, dict[str, dict[str, Any]]] = {
    # With DDPM: the DDIM of these releases has the noise with the wrong sign.
    "0.23.2": {"norms": {"net": {**NET, "norm_in": True}, "prior": PRIOR, "steps": 20}},
    "1.1.0": {
        "learned_time": {"net": {**NET, "normformer": True}, "prior": PRIOR, "steps": 6},
        "sinusoids": {
            "net": {
                **NET,
                "num_timesteps": None,
                "num_time_embeds": 2,
                "num_image_embeds": 2,
                "num_text_embeds": 2,
                "norm_out": False,
                "rotary_emb": False,
                "final_proj": False,
            },
            "prior": {**PRIOR, "predict_x_start": False},
            "steps": 7,
        },
    },
    "1.4.2": {"clamp": {"net": NET, "prior": {**PRIOR, "sampling_clamp_l2norm": True}, "steps": 5}},
    "1.6.0": {"clamp": {"net": NET, "prior": {**PRIOR, "sampling_clamp_l2norm": True}, "steps": 6}},
    "1.8.4": {
        "self_cond": {
            "net": {**NET, "self_cond": True, "num_image_embeds": 2},
            "prior": PRIOR,
            "steps": 3,
        }
    },
    "1.10.2": {
        "guided": {
            "net": {**NET, "num_text_embeds": 2},
            "prior": PRIOR,
            "steps": 6,
            "cond_scale": 2.5,
        }
    },
    "1.10.6": {
        "sinusoids": {
            "net": {**NET, "num_timesteps": None},
            "prior": {**PRIOR, "sampling_clamp_l2norm": True},
            "steps": 6,
            "cond_scale": 2.0,
        }
    },
    "1.12.0": {
        "self_cond": {
            "net": {**NET, "self_cond": True},
            "prior": {**PRIOR, "predict_x_start": False},
            "steps": 3,
            "cond_scale": 2.0,
        }
    },
    "1.15.6": {
        "many": {
            "net": {**NET, "self_cond": True, "num_timesteps": None, "ff_mult": 2.5},
            "prior": {
                **PRIOR,
                "predict_v": True,
                "sampling_final_clamp_l2norm": True,
                "init_image_embed_l2norm": True,
            },
            "steps": 6,
            "cond_scale": 2.0,
        }
    },
}


def numbers(shape: tuple[int, ...], *seed: Any) -> Any:
    """Standard normal float32, the same for the same seeds for ever."""
    state = np.random.RandomState(zlib.crc32(json.dumps(seed).encode()))
    return state.standard_normal(shape).astype(np.float32)


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Arrays:
    """Tensors that keep activations near 1: gains around 1, kernels by their fan-in."""

    def one(name: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = numbers(shape, seed, name)
        if name.endswith(".g"):
            return 1 + 0.3 * normal
        if "rel_pos_bias" in name:  # 128 or 1024 times as much in some eras
            return normal * np.float32(0.02)
        return normal * np.float32(shape[-1] ** -0.5) if name.endswith("weight") else normal

    return {name: one(name, tuple(shape)) for name, shape in shapes.items()}


def is_constant(name: str) -> bool:
    """Whether a prior computes the tensor instead of learning it."""
    return name.startswith("noise_scheduler.") or name.endswith("rotary_emb.freqs")


def inputs(net: dict[str, Any], timesteps: int, *, extra: int = 0, seed: int = 0) -> Arrays:
    """The network's arguments; the second text is shorter, all are `extra` longer than allowed."""
    dim = net["dim"]
    embed = numbers((BATCH, dim), seed, "text")
    encodings = numbers((BATCH, net["max_text_len"] + extra, dim), seed, "encodings")
    encodings[1, 2:] = 0
    return {
        "x": 2 * numbers((BATCH, dim), seed, "x"),
        "t": np.array([timesteps // 5, timesteps - 1], np.int32),
        "text_embed": embed / np.linalg.norm(embed, axis=-1, keepdims=True),
        "encodings": encodings,
        "self_cond": numbers((BATCH, dim), seed, "self"),
    }


def import_package() -> Any:
    """The package; torchvision's CPU wheel lacks operators, new setuptools lack a module."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_package.library = library  # pyright: ignore[reportFunctionMemberAccess]
    sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources"))
    from dalle2_pytorch import dalle2_pytorch

    return dalle2_pytorch


def package_or_skip() -> Any:
    """The installed package; the test is skipped where there is none."""
    import pytest

    for name in ("torch", "dalle2_pytorch"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    return import_package()


def make_prior(package: Any, job: dict[str, Any], seed: int = 0) -> tuple[Any, Arrays]:
    """A filled DiffusionPrior and its state dict."""
    import torch

    net = package.DiffusionPriorNetwork(**job["net"])
    prior = package.DiffusionPrior(net, image_embed_dim=job["net"]["dim"], **job["prior"]).eval()
    state = {name: tensor.numpy().copy() for name, tensor in prior.state_dict().items()}
    state |= weights({n: a.shape for n, a in state.items() if not is_constant(n)}, seed)
    prior.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return prior, state


def run_network(prior: Any, given: Arrays, job: dict[str, Any]) -> Arrays:
    """Outputs with text, without its encodings, and guided where the job guides."""
    import torch

    net = prior.net
    x, t, *_ = arguments = [torch.from_numpy(array) for array in given.values()]
    options = dict(zip(("text_embed", "text_encodings", "self_cond"), arguments[2:], strict=True))
    if not job["net"].get("self_cond"):
        del options["self_cond"]
    with torch.no_grad():
        found = {
            "plain": net(x, t.long(), **options),
            "no_encodings": net(x, t.long(), **{**options, "text_encodings": None}),
        }
        if (scale := job.get("cond_scale", 1.0)) != 1:
            found["guided"] = net.forward_with_cond_scale(x, t.long(), cond_scale=scale, **options)
    return {name: output.numpy() for name, output in found.items()}


def run_sampler(
    prior: Any, given: Arrays, job: dict[str, Any], steps: int, seed: int = 0
) -> np.ndarray:
    """`p_sample_loop` with `noise` instead of torch's, divided by the scale as later ones do."""
    import torch

    count = 0

    def draw(*_: Any, **__: Any) -> Any:
        nonlocal count
        count += 1
        return torch.from_numpy(noise(job["net"]["dim"], count, seed)[-1])

    text = {"text_embed": given["text_embed"], "text_encodings": given["encodings"]}
    text = {name: torch.from_numpy(array) for name, array in text.items()}
    with (
        torch.no_grad(),
        mock.patch.object(torch, "randn", draw),
        mock.patch.object(torch, "randn_like", draw),
    ):
        sample = prior.p_sample_loop(
            (BATCH, job["net"]["dim"]),
            text_cond=text,
            cond_scale=job.get("cond_scale", 1.0),
            timesteps=steps,
        )
    # What divides does so at the end of this loop since self-conditioning came, before in sample().
    divides = "normalized_image_embed" in prior.p_sample_loop.__wrapped__.__code__.co_varnames
    return (sample if divides else sample / prior.image_embed_scale).numpy()


def noise(dim: int, count: int, seed: int = 0) -> Any:
    """The first `count` draws, [count, B, dim]."""
    return np.stack([numbers((BATCH, dim), seed, "noise", i) for i in range(count)])


def main(version: str, path: str) -> None:
    package, arrays = import_package(), {}
    for name, job in FROZEN[version].items():
        prior, state = make_prior(package, job)
        given = inputs(job["net"], job["prior"]["timesteps"])
        shapes = {n: a.shape for n, a in state.items() if not is_constant(n)}
        run = f"{version}/{name}"
        arrays[f"{run}/shapes"] = np.array(json.dumps(shapes))
        found = run_network(prior, given, job)
        found["sample"] = run_sampler(prior, given, job, job["steps"])
        found |= {
            f"constant/{n}": a for n, a in state.items() if n.endswith("0.0.rotary_emb.freqs")
        }
        arrays |= {f"{run}/{key}": array for key, array in found.items()}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
