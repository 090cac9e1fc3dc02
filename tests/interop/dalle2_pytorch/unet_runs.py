"""Our side of the runs in `unet_reference`: their weights and noise through the importer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.interop.comparison import GOLDEN, run
from tests.interop.dalle2_pytorch.unet_reference import GUIDANCE, KEPT, REPEATS, Arrays, numbers
from unclip_jax.interop.dalle2_pytorch.decoder import Decoder
from unclip_jax.interop.dalle2_pytorch.decoder_conditioning import LowresDraws
from unclip_jax.interop.dalle2_pytorch.decoder_loss import LossDraws, decoder_loss
from unclip_jax.interop.dalle2_pytorch.decoder_sampling import GivenNoise, Inpainting, sample
from unclip_jax.interop.dalle2_pytorch.unet import evaluate
from unclip_jax.interop.dalle2_pytorch.unet_config import UnetConfig

_MOST_DRAWS = 80


class FrozenRuns:
    """tests/golden/dalle2_unets.npz."""

    def __init__(self) -> None:
        with np.load(GOLDEN / "dalle2_unets.npz") as file:
            self._arrays = dict(file)

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Of a run's tensors."""
        shapes = json.loads(str(self._arrays[f"{name}/shapes"]))
        return {key: tuple(shape) for key, shape in shapes.items()}

    def outputs(self, name: str) -> Arrays:
        found = {key: a for key, a in self._arrays.items() if key.startswith(f"{name}/")}
        return {key.removeprefix(f"{name}/"): a for key, a in found.items() if a.dtype.kind == "f"}


def unet_outputs(config: UnetConfig, params: Any, inputs: Arrays) -> Arrays:
    """plain, dropped and guided (scale 3), of one evaluation: rows do not depend on each other."""
    x, keep = inputs["x"], jnp.repeat(jnp.array([True, False]), len(inputs["x"]))

    def doubled_batch(params: Any, inputs: Arrays) -> jax.Array:
        doubled = {name: jnp.concatenate([a, a]) for name, a in inputs.items()}
        x, t = doubled.pop("x"), doubled.pop("t")
        return evaluate(config, params, x, t, **doubled, image_keep=keep, text_keep=keep)

    plain, dropped = np.split(np.asarray(run(doubled_batch, params, inputs)), 2)
    assert len(plain) == len(x)
    return {"plain": plain, "dropped": dropped, "guided": dropped + 3 * (plain - dropped)}


def decoder_loss_and_norm(decoder: Decoder, inputs: Arrays) -> Arrays:
    """Of the last stage, with the choices of `unet_reference.run_decoder`."""
    config, stage = decoder.config, len(decoder.config.stages) - 1
    one, image, batch = config.stages[stage], inputs["image"], len(inputs["image"])
    lowres, first = None, 0
    if stage:
        assert not isinstance(config.blur_sigma, tuple)
        assert not isinstance(config.blur_kernel_size, tuple)
        first = one.use_noise
        lowres = LowresDraws(
            jnp.ones(batch, bool),
            jnp.full(batch, config.blur_sigma),
            jnp.full(batch, config.blur_kernel_size),
            jnp.asarray(inputs["level"]) if one.use_noise else None,
            jnp.asarray(drawn(image.shape, 0)) if one.use_noise else None,
        )
    draws = LossDraws(
        jnp.asarray(inputs["t"]),
        jnp.asarray(drawn(image.shape, int(first))),
        jnp.asarray(KEPT),
        jnp.asarray(KEPT),
        jnp.ones(batch, bool),
        lowres,
    )

    def loss(params: Any) -> jax.Array:
        return decoder_loss(
            config,
            stage,
            params,
            jnp.asarray(image),
            draws,
            image_embed=jnp.asarray(inputs["image_embed"]),
            text_encodings=inputs.get("text_encodings"),  # pyright: ignore[reportArgumentType]
            reference_compat=True,
        )

    value, gradients = run(jax.value_and_grad(loss), decoder.params[stage])
    squares = [float((leaf**2).sum()) for leaf in jax.tree.leaves(gradients)]
    return {"loss": np.asarray(value), "grad_norm": np.asarray(sum(squares) ** 0.5)}


def decoder_samples(
    decoder: Decoder, inputs: Arrays, kind: str, *, reference_compat: bool = True
) -> np.ndarray:
    """sample, guided (scale 2) or inpainted (left half kept), with the reference's noise."""
    sizes = [stage.image_size for stage in decoder.config.stages]
    batch = len(inputs["image_embed"])
    noise = GivenNoise([drawn((batch, sizes[0], sizes[0], 3), i) for i in range(_MOST_DRAWS)])
    if len(sizes) > 1:
        noise = _CascadeNoise()
    inpainting = None
    if kind == "inpainted":
        mask = jnp.asarray(inputs["mask"])
        inpainting = Inpainting(jnp.asarray(inputs["image"]), mask, REPEATS)

    def make(params: Any) -> jax.Array:
        return sample(
            replace(decoder, params=params),
            noise,
            image_embed=jnp.asarray(inputs["image_embed"]),
            text_encodings=inputs.get("text_encodings"),  # pyright: ignore[reportArgumentType]
            cond_scale=GUIDANCE if kind == "guided" else 1.0,
            inpainting=inpainting,
            reference_compat=reference_compat,
        )

    return np.asarray(run(make, decoder.params))


class _CascadeNoise:
    """The draws of every shape, of which a stage picks those with its numbers."""

    def draw(self, number: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
        stack = jnp.stack([jnp.asarray(drawn(shape, i)) for i in range(_MOST_DRAWS)])
        return stack[number]


def drawn(shape: tuple[int, ...], number: int) -> np.ndarray:
    """What torch was given as its Gaussian number `number`."""
    return numbers(tuple(shape), 0, "noise", number)
