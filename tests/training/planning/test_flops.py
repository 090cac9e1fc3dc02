"""The counter beside hand counts."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from tests.training import toys
from unclip_jax.errors import UserError
from unclip_jax.models.decoder import Decoder, DecoderConfig
from unclip_jax.models.transformer import Transformer, TransformerConfig
from unclip_jax.models.unet import ResBlock, UNetConfig
from unclip_jax.training.planning.flops import forward_flops, training_flops


def shapes(module: nn.Module, *arguments: jax.Array | jax.ShapeDtypeStruct) -> dict:
    return jax.eval_shape(lambda *rest: module.init(jax.random.key(0), *rest), *arguments)


def array(*size: int, dtype: object = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, dtype)


def test_a_product_and_its_gradients() -> None:
    """[6, 4] @ [4, 5]; the gradient of what is data is not needed."""
    x, w, v = array(6, 4), array(4, 5), array(5, 3)
    assert forward_flops(jnp.matmul, x, w) == 2 * 6 * 4 * 5
    one = training_flops(lambda w, x: jnp.sum(x @ w), w, x)
    assert one == 2 * (2 * 6 * 4 * 5)
    two = training_flops(lambda p, x: jnp.sum((x @ p[0]) @ p[1]), (w, v), x)
    assert two == 2 * (2 * 6 * 4 * 5) + 3 * (2 * 6 * 5 * 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution(stride: int) -> None:
    """[2, 8, 8, 3] → 5 channels, 3 x 3."""
    conv = nn.Conv(5, (3, 3), stride, padding=1)
    x = array(2, 8, 8, 3)
    side = 8 // stride
    expected = 2 * 2 * side * side * 5 * 9 * 3
    assert forward_flops(conv.apply, shapes(conv, x), x) == expected
    loss = training_flops(lambda p, x: jnp.sum(conv.apply(p, x)), shapes(conv, x), x)
    assert loss == 2 * expected


def test_a_transposed_convolution_does_not_multiply_holes() -> None:
    conv = nn.ConvTranspose(5, (4, 4), (2, 2))
    x = array(2, 8, 8, 3)
    assert forward_flops(conv.apply, shapes(conv, x), x) == 2 * 2 * 8 * 8 * 16 * 3 * 5


def test_a_scanned_transformer() -> None:
    """12 width^2 a token and layer in matrices, 2 * length * width in attention."""
    c = TransformerConfig(width=16, depth=3, heads=2)
    x = array(2, 7, 16)
    module, rows = Transformer(c), 2 * 7
    expected = 2 * 3 * rows * (12 * 16 * 16 + 2 * 7 * 16)
    params = shapes(module, x)
    assert forward_flops(module.apply, params, x) == expected
    again = Transformer(replace(c, remat="block"))
    for net in (module, again):  # what is computed again is not work of the model
        whole = training_flops(lambda p, x, net=net: jnp.sum(net.apply(p, x)), params, x)
        first = 2 * rows * 3 * 16 * 16  # the first layer's input is data, but a scan has one body
        assert whole == 3 * expected
        assert first < whole


def test_a_residual_block() -> None:
    c = UNetConfig(image_size=8, channels=8, channel_mult=(1,), groups=4)
    block = ResBlock(c, 16)
    x, time = array(2, 8, 8, 8), array(2, 32)
    pixels = 2 * 8 * 8
    expected = 2 * pixels * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16) + 2 * 2 * 32 * 32
    assert forward_flops(block.apply, shapes(block, x, time), x, time) == expected


def test_a_frozen_network_counts_once() -> None:
    w = array(4, 4)
    x = array(6, 4)
    product = 2 * 6 * 4 * 4

    def loss(w: jax.Array, frozen: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum((x @ frozen) @ w)

    assert training_flops(loss, w, w, x) == product + 2 * product


def test_a_loop_without_a_known_end_is_refused() -> None:
    def run(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 1, lambda y: y @ y, x)

    with pytest.raises(UserError, match="unknown length"):
        forward_flops(run, array(4, 4))


def test_karlos_decoder() -> None:
    """1.22 TFLOP a picture and step, conditioned and not (measured on the published network)."""
    unet = UNetConfig(
        image_size=64,
        channels=320,
        channel_mult=(1, 2, 3, 4),
        depth=(3,),
        attention_resolutions=(32, 16, 8),
        context_width=1536,
    )
    config = DecoderConfig(
        unet=unet,
        text=None,
        clip_text_width=768,
        embedding_width=768,
        num_embedding_tokens=10,
        embedding_scale=1.0,
        null_embedding="learned",
        masks_padding=True,
    )
    given = (
        *(array(2, 64, 64, 3), array(2, dtype=jnp.int32), array(2, 768)),
        *(array(2, dtype=bool), array(2, 77, dtype=jnp.int32), array(2, 77, dtype=bool)),
        *(array(2, 768), array(2, 77, 768)),
    )
    module = Decoder(config)
    flops = forward_flops(module.apply, shapes(module, *given), *given)
    assert flops == pytest.approx(1.22e12, rel=0.01)


def test_every_recipe_is_counted() -> None:
    from unclip_jax.training.planning.abstract_inputs import abstract_inputs
    from unclip_jax.training.planning.plan import step_flops

    clip = toys.recipe("clip")
    names = sorted(path.stem for path in toys.CONFIGS.glob("*.py"))
    for name in names:
        recipe = toys.recipe(name)
        flops = step_flops(recipe, abstract_inputs(recipe, clip))
        assert flops > 1e6, name
        doubled = replace(recipe, batch_size=2 * recipe.batch_size)
        twice = step_flops(doubled, abstract_inputs(doubled, clip))
        assert 1.9 * flops < twice < 2.2 * flops, name  # CLIP compares all pairs
