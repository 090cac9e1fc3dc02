"""The training loss of a prior, with everything random handed in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.interop.dalle2_pytorch.prior import ImportedPrior
from unclip_jax.interop.dalle2_pytorch.prior_sampling import TextCondition, start_of, unit


def prior_loss(
    prior: ImportedPrior,
    params: Any,
    image_embed: Array,
    text: TextCondition,
    t: Array,
    noise: Array,
    *,
    drop_text: Array | None = None,
    drop_image: Array | None = None,
    use_self_cond: Array | None = None,
    dropout_key: Array | None = None,
    reference_compat: bool = False,
) -> Array:
    """Mean of the loss over all entries.

    Args:
        params: of the network.
        image_embed: [B, dim] float32, norm 1; it is scaled here.
        t: [B] int32 in [0, T).
        noise: [B, dim] float32, standard normal.
        drop_text, drop_image: [B] bool, whose condition is left out.
        use_self_cond: [B] bool, who gets a first prediction as a token; nobody by default.
        dropout_key: for a network with dropout; None has none.
        reference_compat: self-conditioning gets the network's output, as in DALLE2-pytorch, even
            where that is no x_0, which it gets when it is sampled.
    Returns:
        float32 scalar.
    """
    c, schedule, network = prior.config, prior.schedule, prior.network
    x0 = image_embed * c.embed_scale
    xt = schedule.q_sample(x0, t, noise)
    encodings = text.encodings if c.condition_on_text_encodings else None
    conditions: dict[str, Any] = {"text_mask_BL": text.mask if encodings is not None else None}
    inputs = (xt, t, text.embed, encodings)
    if c.net.self_cond and use_self_cond is not None:
        first: Any = network.apply({"params": params}, *inputs, **conditions)
        if not reference_compat:
            first = start_of(c, schedule, xt, t, first)
        first = jax.lax.stop_gradient(first)
        conditions["self_cond_BD"] = jnp.where(use_self_cond[:, None], first, 0)
    output: Any = network.apply(
        {"params": params},
        *inputs,
        **conditions,
        drop_text_B=drop_text,
        drop_image_B=drop_image,
        deterministic=dropout_key is None,
        rngs={} if dropout_key is None else {"dropout": dropout_key},
    )
    if c.predict_x_start and c.training_clamp_l2norm:
        output = unit(output) * c.embed_scale
    if c.predict_v:
        target = schedule.velocity(x0, t, noise)
    else:
        target = x0 if c.predict_x_start else noise
    return jnp.mean(_loss(c.loss_type, output - target))


def _loss(name: str, error: Array) -> Array:
    if name == "l2":
        return error**2
    size = jnp.abs(error)
    return size if name == "l1" else jnp.where(size < 1, 0.5 * error**2, size - 0.5)
