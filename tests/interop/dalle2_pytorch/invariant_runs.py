"""A prior and a U-Net behind one face, on any number of devices.

    JAX_NUM_CPU_DEVICES=8 python -m tests.interop.dalle2_pytorch.invariant_runs OUT.npz

A process of its own, because the number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.interop.comparison import GOLDEN, hollow_tensors
from tests.interop.dalle2_pytorch import optimizer_reference, prior_reference, unet_reference
from unclip_jax.config import MeshConfig
from unclip_jax.interop.dalle2_pytorch.decoder import import_unet
from unclip_jax.interop.dalle2_pytorch.optimizer import clip_by_norm
from unclip_jax.interop.dalle2_pytorch.prior import ImportedPrior, import_prior
from unclip_jax.interop.dalle2_pytorch.unet import abstract_params, evaluate
from unclip_jax.interop.dalle2_pytorch.unet_config import unet_config
from unclip_jax.interop.dalle2_pytorch.unet_keys import unet_key_map
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.training import sharding
from unclip_jax.training.weights import flatten

BATCH = 8
MESHES = {"prior": [(8, 1), (2, 4)], "unet": [(2, 4)]}
NAMES = tuple(MESHES)
_CLIP = 0.1
_UNET = {
    **unet_reference.TINY,
    **unet_reference.TEXT,
    "dim_mults": [1],
    "sparse_attn": True,
    "memory_efficient": True,
}

Batch = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Network:
    """One network; batches are {x, t, embed, encodings, mask, drop_embed, drop_text}, arrays."""

    params: Any
    batch: Batch
    apply: Callable[[Any, Batch], jax.Array]


def network(name: str) -> Network:
    """'prior' or 'unet', with text, and nobody's condition dropped."""
    return _prior() if name == "prior" else _unet()


def tiny_prior() -> ImportedPrior:
    """That of the frozen training run."""
    job = optimizer_reference.STEPS_JOB
    with np.load(GOLDEN / "dalle2_prior_training.npz") as file:
        shapes, rates = json.loads(str(file["steps/shapes"])), file["steps/freqs"]
    state = prior_reference.weights(shapes, optimizer_reference.SEED)
    for layer in range(job["net"]["depth"]):
        state[f"net.causal_transformer.layers.{layer}.0.rotary_emb.freqs"] = rates
    return import_prior(state, {"prior": {"net": job["net"], **job["prior"]}})


def _prior() -> Network:
    prior = tiny_prior()
    dim, length = prior.config.net.dim, prior.config.net.max_text_len
    embed = prior_reference.numbers((BATCH, dim), "text")
    batch = {
        "x": 2 * prior_reference.numbers((BATCH, dim), "x"),
        "t": np.arange(BATCH, dtype=np.int32),
        "embed": embed / np.linalg.norm(embed, axis=-1, keepdims=True),
        "encodings": prior_reference.numbers((BATCH, length, dim), "encodings"),
        **_choices(length),
    }

    def apply(params: Any, batch: Batch) -> Any:
        return prior.network.apply(
            {"params": params},
            *(batch["x"], batch["t"], batch["embed"], batch["encodings"]),
            text_mask_BL=batch["mask"],
            drop_text_B=batch["drop_text"],
            drop_image_B=batch["drop_embed"],
        )

    return Network(prior.params, batch, apply)


def _unet() -> Network:
    config = unet_config(_UNET)
    hollow = hollow_tensors(unet_key_map(config), abstract_params(config))
    tensors = from_arrays(unet_reference.weights({n: t.shape for n, t in hollow.items()}))
    side, length = unet_reference.SIDE, config.max_text_len
    batch = {
        "x": unet_reference.numbers((BATCH, side, side, 3), "x"),
        "t": np.arange(BATCH, dtype=np.int32) * 100,
        "embed": unet_reference.numbers((BATCH, _UNET["image_embed_dim"]), "embed"),
        "encodings": unet_reference.numbers((BATCH, length, _UNET["text_embed_dim"]), "text"),
        **_choices(length),
    }

    def apply(params: Any, batch: Batch) -> jax.Array:
        return evaluate(
            config,
            params,
            batch["x"],
            batch["t"],
            image_embed=batch["embed"],
            text_encodings=batch["encodings"],
            text_mask=batch["mask"],
            image_keep=~batch["drop_embed"],
            text_keep=~batch["drop_text"],
        )

    return Network(import_unet(tensors, config), batch, apply)


def _choices(length: int) -> Batch:
    """Masks that reach from all tokens to one, and nothing dropped."""
    last = np.arange(BATCH) % length
    mask = np.arange(length) <= last[:, None]
    nobody = np.zeros(BATCH, bool)
    return {"mask": mask, "drop_embed": nobody, "drop_text": nobody}


def training_step(net: Network, data: int, fsdp: int) -> dict[str, np.ndarray]:
    """Output, gradient and clipped gradient on a mesh of data x fsdp devices.

    Not a step of Adam: it makes whole steps of the smallest gradients, which are rounding.
    """
    clip = clip_by_norm(_CLIP)

    def step(params: Any, batch: Batch) -> Any:
        def loss_of(params: Any) -> Any:
            output = net.apply(params, batch)
            return jnp.mean((output - batch["x"]) ** 2), output

        (_, output), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        clipped, _ = clip.update(gradient, clip.init(params))
        return {"output": output, "gradient": gradient, "clipped": clipped}

    mesh = sharding.make_mesh(MeshConfig(data=data, fsdp=fsdp))
    params = jax.device_put(net.params, sharding.infer_shardings(net.params, mesh))
    batch = jax.device_put(net.batch, sharding.batch_sharding(mesh))
    if fsdp > 1:
        assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
    with jax.default_matmul_precision("highest"):
        options: Any = {"xla_backend_optimization_level": 0}
        compiled = jax.jit(step).lower(params, batch).compile(compiler_options=options)
    found = compiled(params, batch)
    assert len(found["output"].sharding.device_set) == data * fsdp
    return {name: np.asarray(leaf) for name, leaf in flatten(found).items()}


def main(path: str) -> None:
    assert jax.device_count() == 8
    sharding.SMALLEST_SHARDED = 64  # these networks' arrays are small: split them all the same
    arrays = {}
    for name in NAMES:
        net = network(name)
        for data, fsdp in MESHES[name]:
            found = training_step(net, data, fsdp)
            arrays |= {f"{name}/{data}x{fsdp}/{key}": leaf for key, leaf in found.items()}
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
