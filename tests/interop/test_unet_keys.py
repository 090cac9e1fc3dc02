"""The two namings of ADM's U-Net, and what a file's shapes tell."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.comparison import (
    TOLERANCE,
    Frozen,
    assert_same_trees,
    contents,
    error,
    random_params,
    run,
)
from unclip_jax.errors import UserError
from unclip_jax.interop.infer_unet import HeadOptions, infer_unet
from unclip_jax.interop.key_map import KeyMap, under
from unclip_jax.interop.layouts import DENSE
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.transfer import export_tensors, import_params
from unclip_jax.interop.unet_keys import (
    AttentionOrder,
    adm_encoder_keys,
    adm_unet_keys,
    diffusers_unet_keys,
)
from unclip_jax.models.unet import UNet, UNetConfig

SMALL = UNetConfig(
    image_size=16,
    channels=8,
    channel_mult=(1, 2),
    depth=(1,),
    attention_resolutions=(8,),
    head_channels=4,
    groups=4,
)
KARLO = UNetConfig(
    image_size=16,
    channels=8,
    channel_mult=(1, 2, 3, 4),
    depth=(3,),
    attention_resolutions=(8, 4, 2),
    head_channels=8,
    context_width=20,
    groups=4,
)
# A file of each kind: attention at one, all and no levels; with and without context; several
# depths; a first level that is narrower than the sinusoids; the additive time embedding.
SHAPES = [
    replace(SMALL, attention_resolutions=(16, 8), context_width=6),
    replace(SMALL, image_size=32, channel_mult=(1, 1, 2), depth=(2,), heads=2, head_channels=64),
    replace(SMALL, image_size=64, channel_mult=(1, 2, 2, 4), attention_resolutions=(32, 8)),
    replace(SMALL, channels=4, channel_mult=(1, 2), time_channels=8, attention_resolutions=()),
    replace(SMALL, channels=4, channel_mult=(3, 5), time_channels=8, out_channels=3),
    replace(SMALL, time_norm="additive", in_channels=7, has_middle_attention=False),
    replace(SMALL, image_size=32, channel_mult=(1, 2, 3), depth=(2, 1, 3), context_width=5),
    replace(SMALL, image_size=8, channel_mult=(1,), depth=(3,), attention_resolutions=()),
]


@cache
def shapes(config: UNetConfig) -> Any:
    """Of the parameters of `UNet`."""
    side = config.image_size
    inputs: list[Any] = [jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32)]
    inputs += [jax.ShapeDtypeStruct((1,), jnp.int32), None]
    if config.context_width is not None:
        inputs.append(jax.ShapeDtypeStruct((1, 2, config.context_width), jnp.float32))
    return jax.eval_shape(UNet(config).init, jax.random.key(0), *inputs)["params"]


def source_names(key_map: KeyMap) -> list[str]:
    return [name for entry in key_map for name in entry.sources]


@pytest.mark.parametrize("config", SHAPES, ids=range(len(SHAPES)))
@pytest.mark.parametrize("naming", ["legacy", "new", "matrix", "diffusers"])
def test_every_parameter_goes_out_and_comes_back(config: UNetConfig, naming: str) -> None:
    key_map = {
        "legacy": lambda: adm_unet_keys(config),
        "new": lambda: adm_unet_keys(config, "new"),
        "matrix": lambda: adm_unet_keys(config, pointwise=DENSE),
        "diffusers": lambda: diffusers_unet_keys(config),
    }[naming]()
    params = random_params(shapes(config))
    tensors = export_tensors(key_map, params)
    names = source_names(key_map)
    assert len(set(names)) == len(names) == len(tensors)
    assert_same_trees(import_params(key_map, tensors, shapes(config), what="file"), params)


@pytest.mark.parametrize("config", SHAPES, ids=range(len(SHAPES)))
def test_shapes_tell_the_network(config: UNetConfig) -> None:
    tensors = export_tensors(adm_unet_keys(config), random_params(shapes(config)))
    options = HeadOptions(groups=4, **head_options(config))
    found = infer_unet(tensors, options, what="file", image_size=config.image_size)
    assert found == config
    # Without the side it is another number for the same network.
    guess = infer_unet(tensors, options, what="file")
    assert guess.image_size == 4 * 2 ** len(config.channel_mult)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes(guess)) == jax.tree.map(
        lambda leaf: leaf.shape, shapes(config)
    )


def head_options(config: UNetConfig) -> dict[str, int]:
    if config.heads is not None:
        return {"heads": config.heads}
    return {"head_channels": config.head_channels}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (UNetConfig(channels=320, context_width=1536), 716),
        (
            UNetConfig(
                image_size=256,
                channels=320,
                attention_resolutions=(),
                has_middle_attention=False,
                time_norm="additive",
            ),
            408,
        ),
    ],
)
def test_karlos_files_in_both_namings(config: UNetConfig, names: int) -> None:
    """Three separate projections are one packed tensor in the other, added ones two."""
    both = (source_names(adm_unet_keys(config)), source_names(diffusers_unet_keys(config)))
    attention = sum(name.endswith("qkv.weight") for name in both[0])
    assert len(both[1]) == names
    assert len(both[1]) - len(both[0]) == attention * (2 * 2 + 2)
    last = f"middle_block.{2 if config.has_middle_attention else 1}.in_layers.0.weight"
    assert last in both[0]


def test_karlos_decoder_in_diffusers_naming() -> None:
    frozen = Frozen("parity_karlo_decoder")
    params = import_params(
        diffusers_unet_keys(KARLO), frozen.tensors(), shapes(KARLO), what="parity_karlo_decoder"
    )
    names = ("in/x", "in/time_condition", "in/context", "in/mask")
    x, condition, context, mask = (frozen[name] for name in names)
    t = np.full(len(x), 500)
    out = run(UNet(KARLO).apply, {"params": params}, x, t, condition, context, mask)
    assert error(out, frozen["out/t500"]) < TOLERANCE

    # The same weights in OpenAI's naming, and back.
    again = adm_unet_keys(KARLO)
    there = from_arrays(contents(export_tensors(again, params)))
    assert infer_unet(there, HeadOptions(8, groups=4), what="file", image_size=16) == KARLO
    assert_same_trees(import_params(again, there, shapes(KARLO), what="file"), params)


@pytest.mark.parametrize("other", ["new", "heads"])
def test_the_order_of_packed_rows_matters(other: str) -> None:
    """The same file read with another order has the same shapes and other weights."""
    config = replace(SMALL, context_width=6)
    tensors = export_tensors(adm_unet_keys(config), random_params(shapes(config)))
    order: AttentionOrder = "new" if other == "new" else "legacy"
    mistaken = config if other == "new" else replace(config, head_channels=8)
    found = import_params(adm_unet_keys(mistaken, order), tensors, shapes(config), what="file")
    expected = import_params(adm_unet_keys(config), tensors, shapes(config), what="file")
    block, block_expected = found["down1_attention0"], expected["down1_attention0"]
    for name in ("qkv", "context_kv"):
        assert not np.array_equal(block[name]["kernel"], block_expected[name]["kernel"])
        assert not np.array_equal(block[name]["bias"], block_expected[name]["bias"])
    np.testing.assert_array_equal(
        block["projection"]["kernel"], block_expected["projection"]["kernel"]
    )


def test_the_first_half_alone() -> None:
    """A classifier's map is the U-Net's without the way up and what follows it."""
    whole, half = (set(source_names(make(SMALL))) for make in (adm_unet_keys, adm_encoder_keys))
    rest = {name for name in whole if name.startswith(("output_blocks.", "out."))}
    assert half == whole - rest
    prefixed = under(adm_encoder_keys(SMALL), target="encoder/", source="model.")
    assert all(name.startswith("model.") for name in source_names(prefixed))


def small_file() -> dict[str, np.ndarray]:
    return contents(export_tensors(adm_unet_keys(SMALL), random_params(shapes(SMALL))))


def test_names_that_do_not_fit_are_told() -> None:
    arrays = small_file()
    arrays["input_blocks.1.0.in_layer.2.weight"] = arrays.pop("input_blocks.1.0.in_layers.2.weight")
    arrays["time_embed.0.bias"] = arrays["time_embed.0.bias"][1:]
    with pytest.raises(UserError, match="1 missing, 1 surplus, 1 misshapen") as caught:
        import_params(adm_unet_keys(SMALL), from_arrays(arrays), shapes(SMALL), what="file")
    details = "\n".join(caught.value.details)
    assert (
        "missing: input_blocks.1.0.in_layers.2: weight (nearest: input_blocks.1.0.in_l" in details
    )
    assert "time_embed.0.bias has shape (31,)" in details


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_blocks.2.0": "input_blocks.2.0.op"}, "resblock_updown"),
        ({"output_blocks.1.2.in_layers.2": "output_blocks.1.2.conv"}, "resblock_updown"),
        ({"input_blocks.2.": None}, "no input_blocks.2: a block is missing"),
        ({"input_blocks.3.0.out_layers.3": None}, "no matrix input_blocks.3.0.out_layers.3.weight"),
        ({"input_blocks.": "down_blocks."}, "no input_blocks"),
        ({"output_blocks.": "up_blocks."}, "no output_blocks"),
        ({"out.2": None}, "no matrix out.2.weight"),
        ({"output_blocks.3": None}, "levels"),
    ],
)
def test_another_network_is_refused(change: dict[str, str | None], message: str) -> None:
    (old, new), *_ = change.items()
    arrays = {}
    for name, array in small_file().items():
        if not name.startswith(old):
            arrays[name] = array
        elif new is not None:
            arrays[name.replace(old, new, 1)] = array
    if new == "input_blocks.2.0.op":
        arrays = {k: v for k, v in arrays.items() if not k.startswith("input_blocks.2.0.op.")}
        arrays["input_blocks.2.0.op.weight"] = np.zeros((8, 8, 3, 3), np.float32)
    with pytest.raises(UserError, match=message):
        infer_unet(from_arrays(arrays), HeadOptions(4, groups=4), what="file")


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(UserError, match="--head-channels 8 and --heads 2 are both given"):
        HeadOptions(8, 2)
    with pytest.raises(UserError, match="groups is 0"):
        HeadOptions(groups=0)
    with pytest.raises(UserError, match="--image-size is 0"):
        infer_unet(from_arrays(small_file()), HeadOptions(groups=4), what="file", image_size=0)
    with pytest.raises(UserError, match="not divisible by groups 32"):
        infer_unet(from_arrays(small_file()), what="file")
