"""Options of the networks: attention that is left out, and shapes that are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import Array

from tests.models.networks import (
    CLIP_CONFIG,
    DECODER,
    SMALL_UNET,
    UNET,
    Network,
    draw,
    random_params,
)
from unclip_jax.errors import UserError
from unclip_jax.models.classifier import Classifier, ClassifierConfig
from unclip_jax.models.layers import Remat
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNet, depth_to_space, space_to_depth


def test_middle_attention_can_be_left_out() -> None:
    config = replace(UNET, context_width=None)
    without = replace(config, has_middle_attention=False)
    x, t = draw(1, 1, 8, 8, 3), np.array([5], np.int32)
    shapes = [jax.eval_shape(UNet(c).init, jax.random.key(0), x, t) for c in (config, without)]
    names = [set(shape["params"]) for shape in shapes]
    assert names[0] - names[1] == {"middle_attention"} and names[1] < names[0]


def test_unet_without_attention_runs_at_multiples_of_its_size() -> None:
    config = replace(UNET, context_width=None, attention_resolutions=(), has_middle_attention=False)
    t = np.array([5], np.int32)
    net = Network(UNet(config), {"x": draw(1, 1, 8, 8, 3), "t": t})
    assert not any("attention" in name for name in net.params)
    large = net(x=draw(2, 1, 16, 24, 3))
    assert large.shape == (1, 16, 24, 6)
    assert np.isfinite(large).all() and large.std() > 0.1


def test_patches_are_folded_and_unfolded() -> None:
    """A channel of a position is one pixel of its patch, and comes back to its place."""
    x = draw(3, 2, 4, 6, 3)
    folded = np.asarray(space_to_depth(x, 2))
    assert folded.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(folded[1, 1, 2], x[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(depth_to_space(folded, 2), x)
    np.testing.assert_array_equal(space_to_depth(x, 1), x)


def test_a_unet_of_patches_works_at_a_fraction_of_the_side() -> None:
    config = replace(UNET, context_width=None, patch_size=2, attention_resolutions=(4,))
    assert config.attends(0) and not config.attends(1)
    net = Network(UNet(config), {"x": draw(1, 2, 8, 8, 3), "t": np.array([5, 6], np.int32)})
    assert net.params["conv_in"]["kernel"].shape[2] == 12
    out = net(x=draw(2, 2, 8, 16, 3))
    assert out.shape == (2, 8, 16, 6) and out.std() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_size": 3}, "patches of 3"),
        ({"depth": (1, 2, 3)}, "depth"),
        ({"image_size": 9}, "image_size"),
        ({"groups": 3}, "groups"),
    ],
)
def test_a_unet_that_cannot_be_built_is_refused(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(UNET, **change)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="head"):
        replace(UNET, heads=3).num_heads(16)
    with pytest.raises(UserError, match="head"):  # 12 is one head of 8 and a half
        replace(UNET, head_channels=8).num_heads(12)
    with pytest.raises(UserError, match="heads"):
        TransformerConfig(width=10, heads=4)
    assert replace(UNET, heads=2).num_heads(12) == 2
    assert replace(UNET, head_channels=8).num_heads(24) == 3


def test_other_wrong_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="patch_size"):
        replace(CLIP_CONFIG, patch_size=3)
    with pytest.raises(UserError, match="context_width"):
        replace(DECODER, unet=replace(UNET, context_width=16))


REMAT: tuple[Remat, ...] = ("none", "block", "dots")
INPUTS = (draw(1, 2, 4, 4, 3), np.array([3, 500], np.int32))


def with_remat(name: str, remat: Remat) -> nn.Module:
    """The smallest U-Net or classifier, with attention at its only level."""
    if name == "unet":
        return UNet(replace(SMALL_UNET, remat=remat))
    encoder = replace(SMALL_UNET, context_width=None, remat=remat)
    return Classifier(ClassifierConfig(num_classes=3, encoder=encoder))


def gradient_of(module: nn.Module) -> Any:
    inputs: Any = INPUTS
    if isinstance(module, UNet):
        inputs = (*INPUTS, draw(6, 2, 32), draw(7, 2, 3, 8))

    def loss(params: Any) -> Array:
        return jnp.sum(jnp.sin(module.apply({"params": params}, *inputs)))  # type: ignore[arg-type]

    return jax.grad(loss), random_params(module, *inputs)


def test_every_remat_of_the_unet_has_the_gradient_of_none() -> None:
    found = {}
    for remat in REMAT:
        gradient, params = gradient_of(with_remat("unet", remat))
        tree = jax.jit(gradient)(params)
        found[remat] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    scale = np.linalg.norm(found["none"])
    for remat in ("block", "dots"):
        assert np.linalg.norm(found[remat] - found["none"]) < 1e-6 * scale


@pytest.mark.parametrize(("name", "attentions"), [("unet", 4), ("classifier", 2)])
def test_dots_computes_attentions_own_products_again(name: str, attentions: int) -> None:
    """Counted in the gradient's program: convolutions, matrix products, SiLUs."""
    counts = {}
    for remat in REMAT:
        gradient, params = gradient_of(with_remat(name, remat))
        text = str(jax.make_jaxpr(gradient)(params))
        words = ("conv_general_dilated[", "dot_general[", "logistic ")
        counts[remat] = np.array([text.count(f"= {word}") for word in words])
    convolutions, products, activations = counts["dots"] - counts["none"]
    assert convolutions == 0 and products == 2 * attentions and activations > 0
    assert (counts["block"] - counts["none"])[:2].min() > 0
