"""Losses and gradients that are split over eight devices: python -m tests.training.replicas_run

A process of its own, because the number of devices is fixed when JAX starts: JAX_NUM_CPU_DEVICES.
Prints one JSON object; `test_contrastive` and `test_sam` compare it with what one device computes.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from tests.training import toys
from unclip_jax.models.clip import CLIP
from unclip_jax.training.contrastive import make_contrastive_loss
from unclip_jax.training.objectives import Metrics, Objective
from unclip_jax.training.objectives.conditions import to_float
from unclip_jax.training.sam import make_sam_gradient, perturb
from unclip_jax.training.stages import init_params

LOSSES: tuple[Literal["softmax", "sigmoid"], ...] = ("softmax", "sigmoid")
ROWS = 24
RHO = 0.3
BOTH = ("data", "fsdp")


def embeddings() -> tuple[np.ndarray, ...]:
    """image and text [24, 6] of unit norm, a scale and a bias."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, ROWS, 6))
    text += image
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    return (*(x.astype(np.float32) for x in rows), np.float32(9.0), np.float32(-2.0))  # type: ignore


def logistic_problem() -> Any:
    """Weights in two leaves, and 8 rows of features with labels: float32."""
    rng = np.random.default_rng(1)
    params = {"w": rng.standard_normal(3), "b": rng.standard_normal(1)}
    batch = {"x": rng.standard_normal((8, 3)), "y": np.array([0, 1, 1, 0, 1, 0, 0, 1.0])}
    single = jax.tree.map(lambda a: a.astype(np.float32), (params, batch))
    return single


def logistic_objective(
    params: Any, frozen: Any, batch: dict[str, Any], key: Any
) -> tuple[Any, Metrics]:
    """Mean of log(1 + exp(-sign (w x + b)))."""
    margin = (2 * batch["y"] - 1) * (batch["x"] @ params["w"] + params["b"])
    return jnp.mean(jax.nn.softplus(-margin)), {"margin": jnp.mean(margin)}


def random_objective(
    params: Any, frozen: Any, batch: dict[str, Any], key: Any
) -> tuple[Any, Metrics]:
    """Its gradient is what the key draws."""
    return params * jax.random.normal(key), {}


def make_mesh(data: int, fsdp: int) -> Mesh:
    devices = jax.devices()[: data * fsdp]
    types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, fsdp), BOTH, axis_types=types, devices=devices)


def contrastive(name: Literal["softmax", "sigmoid"], mesh: Mesh | None) -> dict[str, Any]:
    """Value, accuracy and gradient, and which matrices of logits the compiled program holds."""
    loss = jax.value_and_grad(
        make_contrastive_loss(name, mesh=mesh), argnums=(0, 1, 2, 3), has_aux=True
    )
    inputs = [jnp.asarray(x) for x in embeddings()]
    program = jax.jit(loss).lower(*inputs).compile()
    (value, accuracy), gradients = program(*inputs)
    text = program.as_text() or ""
    return {
        "value": float(value),
        "accuracy": float(accuracy),
        "gradients": [np.asarray(g).tolist() for g in gradients],
        "whole": f"[{ROWS},{ROWS}]" in text,
        "rows": f"[{ROWS // 8},{ROWS}]" in text,
    }


def sam_logistic(mesh: Mesh, axes: tuple[str, ...]) -> dict[str, Any]:
    gradient = jax.jit(make_sam_gradient(logistic_objective, RHO, mesh=mesh, axes=axes))
    params, batch = logistic_problem()
    (loss, metrics), grads = gradient(params, {}, batch, jax.random.key(0))
    found = {"loss": loss, **metrics, **grads}
    return {name: np.asarray(value).tolist() for name, value in found.items()}


def clip_objective(axes: tuple[str, ...]) -> Objective:
    model, loss = CLIP(toys.clip_recipe().model), make_contrastive_loss("softmax", axes=axes)

    def objective(params: Any, frozen: Any, batch: dict[str, Any], key: Any) -> tuple[Any, Metrics]:
        pictures = to_float(batch["image"])
        out: Any = model.apply({"params": params}, pictures, batch["tokens"], train=True)
        value, accuracy = loss(out["image"], out["text"], out["logit_scale"], out["logit_bias"])
        return value, {"accuracy": accuracy}

    return objective


def sam_clip() -> dict[str, Any]:
    """Eight replicas of two pairs: a perturbation each, one loss over all sixteen pairs.

    The other side, without a mesh: stacked weights, each perturbed by the gradient of its own
    pairs; one plain loss of all embeddings; the sum of the gradients of all the copies.
    """
    recipe, batch = toys.clip_recipe(), toys.batch(16)
    params = jax.jit(lambda key: init_params(recipe, key))(jax.random.key(1))
    local = clip_objective(())
    split = make_sam_gradient(
        clip_objective(BOTH), RHO, ascent=local, mesh=make_mesh(2, 4), axes=BOTH
    )
    (loss, metrics), grads = jax.jit(split)(params, {}, batch, jax.random.key(0))

    parts = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
    model, plain = CLIP(recipe.model), make_contrastive_loss("softmax")

    @jax.jit
    def expected(params: Any) -> tuple[Any, Any, Any]:
        def one(part: Any) -> tuple[Any, Any]:
            value, slope = jax.value_and_grad(lambda p: local(p, {}, part, jax.random.key(0))[0])(
                params
            )
            return value, perturb(params, slope, RHO)

        values, copies = jax.vmap(one)(parts)

        def whole(copies: Any) -> Any:
            out: Any = jax.vmap(
                lambda p, part: model.apply(
                    {"params": p}, to_float(part["image"]), part["tokens"], train=True
                )
            )(copies, parts)
            # A row's cosines carry the temperature of its own replica.
            image, text = (out[name].reshape(16, -1) for name in ("image", "text"))
            scale = jnp.repeat(out["logit_scale"], 2)[:, None]
            to_text = jax.nn.log_softmax(scale * (image @ text.T), axis=1)
            to_image = jax.nn.log_softmax(scale * (text @ image.T), axis=1)
            return -(jnp.trace(to_text) + jnp.trace(to_image)) / 32

        value, gradient = jax.value_and_grad(whole)(copies)
        return value, jnp.mean(values), jax.tree.map(lambda g: jnp.sum(g, axis=0), gradient)

    value, start, gradient = expected(params)

    def unperturbed(params: Any) -> Any:
        images = to_float(jnp.asarray(batch["image"]))
        out: Any = model.apply({"params": params}, images, batch["tokens"], train=True)
        return plain(out["image"], out["text"], out["logit_scale"], out["logit_bias"])[0]

    naive = jax.jit(jax.grad(unperturbed))(params)
    return {
        "loss": [float(loss), float(value)],
        "unperturbed_loss": [float(metrics["unperturbed_loss"]), float(start)],
        "difference": distance(grads, gradient),
        "difference_without_sam": distance(naive, gradient),
    }


def distance(found: Any, expected: Any) -> float:
    """||found - expected|| / ||expected|| over a whole tree."""
    difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), found, expected)
    return float(optax.tree.norm(difference) / optax.tree.norm(expected))


def drawn_on_two_replicas() -> float:
    gradient = make_sam_gradient(random_objective, 0.0, mesh=make_mesh(2, 1))
    _, drawn = jax.jit(gradient)(jnp.ones(()), {}, {"x": jnp.zeros(2)}, jax.random.key(5))
    return float(drawn)


@functools.cache
def on_eight_devices() -> dict[str, Any]:
    """What this module prints, run once for all tests."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.training.replicas_run"],
        cwd=Path(__file__).parents[2],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    found: dict[str, Any] = {
        "contrastive": {
            name: {
                "8x1": contrastive(name, make_mesh(8, 1)),
                "2x4": contrastive(name, make_mesh(2, 4)),
                "none": contrastive(name, None),
            }
            for name in LOSSES
        },
        "sam": {
            "two_devices": sam_logistic(make_mesh(2, 1), BOTH),
            "two_groups": sam_logistic(make_mesh(2, 4), ("data",)),
        },
        "sam_clip": sam_clip(),
        "drawn": drawn_on_two_replicas(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
