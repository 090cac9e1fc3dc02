"""The Inception network whose features FID, KID and precision are defined on.

TensorFlow's graph "inception-2015-12-05" up to `pool3`: not the Inception of torchvision, whose
weights and pooling differ and move FID by whole points. Batch normalisation without a scale is
folded into the convolutions (`inception_weights.py`), so a layer is a convolution and a ReLU. The
names of the layers are those of the TorchScript that the weights come from.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

SIDE = 299
"""Of the pictures, in pixels."""
WIDTH = 2048
"""Of the features."""


class Layer(nn.Module):
    """Convolution, its normalisation folded in, and ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] → [B, H', W', features]."""
        x = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            [(pad, pad) for pad in self.padding],
            # TF32 on a GPU and bfloat16 on a TPU would change the features in the third digit.
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )(x)
        return nn.relu(x)


def _average(x: Array) -> Array:
    """3 × 3 means over what lies inside the picture, as TensorFlow pads."""
    padding: Any = [(1, 1), (1, 1)]
    return nn.avg_pool(x, (3, 3), (1, 1), padding, count_include_pad=False)


def _largest(x: Array) -> Array:
    padding: Any = [(1, 1), (1, 1)]
    return nn.max_pool(x, (3, 3), (1, 1), padding)


def _halve(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


_Same3 = partial(Layer, kernel=(3, 3), padding=(1, 1))
_Row7 = partial(Layer, kernel=(1, 7), padding=(0, 3))
_Column7 = partial(Layer, kernel=(7, 1), padding=(3, 0))
_Half3 = partial(Layer, kernel=(3, 3), stride=2)


class BlockA(nn.Module):
    """35 × 35: 1 × 1, 5 × 5, two 3 × 3, pooling."""

    pooled: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, 35, 35, C] → [B, 35, 35, 224 + pooled]."""
        five = Layer(48, name="tower.conv")(x)
        five = Layer(64, (5, 5), padding=(2, 2), name="tower.conv_1")(five)
        three = Layer(64, name="tower_1.conv")(x)
        three = _Same3(96, name="tower_1.conv_1")(three)
        three = _Same3(96, name="tower_1.conv_2")(three)
        pool = Layer(self.pooled, name="tower_2.conv")(_average(x))
        return jnp.concatenate([Layer(64, name="conv")(x), five, three, pool], axis=-1)


class BlockB(nn.Module):
    """From 35 × 35 to 17 × 17."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, 35, 35, 288] → [B, 17, 17, 768]."""
        three = Layer(64, name="tower.conv")(x)
        three = _Same3(96, name="tower.conv_1")(three)
        three = _Half3(96, name="tower.conv_2")(three)
        return jnp.concatenate([_Half3(384, name="conv")(x), three, _halve(x)], axis=-1)


class BlockC(nn.Module):
    """17 × 17: 1 × 1, 7 × 7 in two and in four strips, pooling."""

    inner: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, 17, 17, 768] → the same."""
        two = Layer(self.inner, name="tower.conv")(x)
        two = _Row7(self.inner, name="tower.conv_1")(two)
        two = _Column7(192, name="tower.conv_2")(two)
        four = Layer(self.inner, name="tower_1.conv")(x)
        four = _Column7(self.inner, name="tower_1.conv_1")(four)
        four = _Row7(self.inner, name="tower_1.conv_2")(four)
        four = _Column7(self.inner, name="tower_1.conv_3")(four)
        four = _Row7(192, name="tower_1.conv_4")(four)
        pool = Layer(192, name="tower_2.conv")(_average(x))
        return jnp.concatenate([Layer(192, name="conv")(x), two, four, pool], axis=-1)


class BlockD(nn.Module):
    """From 17 × 17 to 8 × 8."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, 17, 17, 768] → [B, 8, 8, 1280]."""
        three = _Half3(320, name="tower.conv_1")(Layer(192, name="tower.conv")(x))
        seven = _Row7(192, name="tower_1.conv_1")(Layer(192, name="tower_1.conv")(x))
        seven = _Column7(192, name="tower_1.conv_2")(seven)
        seven = _Half3(192, name="tower_1.conv_3")(seven)
        return jnp.concatenate([three, seven, _halve(x)], axis=-1)


class BlockE(nn.Module):
    """8 × 8: 1 × 1, two towers that end in a row and a column, pooling.

    The last block pools by the maximum: an oddity of the 2015 graph that the weights rely on.
    """

    is_last: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, 8, 8, C] → [B, 8, 8, 2048]."""
        a = Layer(384, name="tower_conv")(x)
        b = _Same3(384, name="tower_1_conv_1")(Layer(448, name="tower_1_conv")(x))
        row = partial(Layer, 384, (1, 3), padding=(0, 1))
        column = partial(Layer, 384, (3, 1), padding=(1, 0))
        pool = _largest(x) if self.is_last else _average(x)
        parts = [
            Layer(320, name="conv")(x),
            row(name="tower_mixed_conv")(a),
            column(name="tower_mixed_conv_1")(a),
            row(name="tower_1_mixed_conv")(b),
            column(name="tower_1_mixed_conv_1")(b),
            Layer(192, name="tower_2_conv")(pool),
        ]
        return jnp.concatenate(parts, axis=-1)


class Inception(nn.Module):
    """Pictures to `pool3` (Szegedy et al. 2016; Heusel et al. 2017 for its use)."""

    @nn.compact
    def __call__(self, pictures: Array) -> Array:
        """Features.

        Args:
            pictures: [B, 299, 299, 3] float32, 0 ... 255.
        Returns:
            [B, 2048] float32, not negative.
        """
        x = (pictures - 128) / 128
        x = _Half3(32, name="conv")(x)
        x = Layer(32, (3, 3), name="conv_1")(x)
        x = _halve(_Same3(64, name="conv_2")(x))
        x = Layer(80, name="conv_3")(x)
        x = _halve(Layer(192, (3, 3), name="conv_4")(x))
        x = BlockA(32, name="mixed")(x)
        x = BlockA(64, name="mixed_1")(x)
        x = BlockA(64, name="mixed_2")(x)
        x = BlockB(name="mixed_3")(x)
        for number, inner in enumerate((128, 160, 160, 192), 4):
            x = BlockC(inner, name=f"mixed_{number}")(x)
        x = BlockD(name="mixed_8")(x)
        x = BlockE(is_last=False, name="mixed_9")(x)
        x = BlockE(is_last=True, name="mixed_10")(x)
        return x.mean(axis=(1, 2))
