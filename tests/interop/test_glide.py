"""GLIDE's files: frozen runs of the original, the other three networks in torch, refusals."""

from __future__ import annotations

import math
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
    assert_same_files,
    error,
    hollow_tensors,
    quick,
    run,
)
from unclip_jax.errors import UserError
from unclip_jax.interop.glide import (
    GLIDE_BASE,
    GLIDE_INPAINT,
    GLIDE_UPSAMPLE,
    GLIDE_UPSAMPLE_INPAINT,
    GlideOptions,
    glide_key_map,
    glide_shapes,
    import_glide,
    infer_glide,
    load_glide,
)
from unclip_jax.interop.glide_networks import Glide, GlideConfig
from unclip_jax.interop.infer_unet import HeadOptions
from unclip_jax.interop.safetensors_file import write_safetensors
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.transfer import export_tensors, import_params
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.text import TextConfig, TextTransformer
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig

OPTIONS = GlideOptions(HeadOptions(8, groups=4), text_heads=2, image_size=16)
INPUTS = ("in/x", "in/t", "in/tokens", "in/mask")


@cache
def frozen_glide() -> tuple[Frozen, GlideConfig, Any]:
    frozen = Frozen("parity_glide")
    return frozen, *import_glide(frozen.tensors(), OPTIONS, what="parity_glide")


@cache
def frozen_apply() -> Any:
    frozen, config, params = frozen_glide()
    return quick(Glide(config).apply, {"params": params}, *(frozen[name] for name in INPUTS))


def frozen_output(params: Any, **changes: Any) -> np.ndarray:
    frozen, _, _ = frozen_glide()
    inputs = {name: frozen[name] for name in INPUTS} | changes
    return np.asarray(frozen_apply()({"params": params}, *inputs.values()))


def test_base_model_is_glides() -> None:
    frozen, config, params = frozen_glide()
    assert config == GlideConfig(
        UNetConfig(
            image_size=16,
            channels=8,
            channel_mult=(1, 2, 3),
            depth=(2,),
            attention_resolutions=(8, 4),
            head_channels=8,
            context_width=16,
            groups=4,
        ),
        TextConfig(97, 12, TransformerConfig(width=16, depth=2, heads=2)),
    )
    expected = frozen["out/unet"]
    assert error(frozen_output(params), expected) < TOLERANCE
    assert error(frozen_output(params, **{"in/t": frozen["in/t"] - 1}), expected) > TOLERANCE
    whole = np.ones_like(frozen["in/mask"])
    assert not np.array_equal(whole, frozen["in/mask"])
    assert error(frozen_output(params, **{"in/mask": whole}), expected) > 1e-3


def test_text_states_are_glides() -> None:
    frozen, config, params = frozen_glide()
    text = TextTransformer(config.text)
    states, pooled = run(
        text.apply, {"params": params["text"]}, *map(frozen.__getitem__, INPUTS[2:])
    )
    assert error(states, np.moveaxis(frozen["out/states"], 1, -1)) < TOLERANCE
    projection = params["text_to_time"]
    condition = np.asarray(pooled) @ projection["kernel"] + projection["bias"]
    assert error(condition, frozen["out/time_condition"]) < TOLERANCE


def test_base_model_is_a_decoder_of_this_package() -> None:
    frozen, config, params = frozen_glide()
    x, t, tokens, mask = (frozen[name] for name in INPUTS)
    decoder = Decoder(config.decoder())
    out = run(decoder.apply, {"params": params}, x, t, None, None, tokens, mask)
    assert error(out, frozen["out/unet"]) < TOLERANCE
    with pytest.raises(UserError, match="give one of GLIDE's base models"):
        GLIDE_UPSAMPLE.decoder()


@pytest.mark.parametrize(
    "options",
    [replace(OPTIONS, text_heads=4), replace(OPTIONS, heads=HeadOptions(4, groups=4))],
)
def test_wrong_heads_are_another_network(options: GlideOptions) -> None:
    frozen, _, _ = frozen_glide()
    _, mistaken = import_glide(frozen.tensors(), options, what="file")
    assert error(frozen_output(mistaken), frozen["out/unet"]) > 1e-3


def test_export_is_the_file_again(tmp_path: Any) -> None:
    frozen, config, params = frozen_glide()
    arrays, path = frozen.arrays(), tmp_path / "base.safetensors"
    exported = export_tensors(glide_key_map(config), params)
    assert_same_files(exported, arrays)
    shapes = {name: tensor.shape for name, tensor in exported.items()}
    contents = ((name, tensor.read()) for name, tensor in exported.items())
    write_safetensors(path, shapes, contents, np.dtype(np.float32))
    again, params = load_glide(path, OPTIONS)
    assert again == config
    assert_same_files(export_tensors(glide_key_map(again), params), arrays)


def test_every_tensor_of_the_file_is_read() -> None:
    """Whichever is changed, the output is another."""
    frozen, config, params = frozen_glide()
    before, rng = frozen_output(params), np.random.default_rng(0)
    arrays, key_map, abstract = frozen.arrays(), glide_key_map(config), glide_shapes(config)
    for name, array in arrays.items():
        noise = rng.standard_normal(array.shape).astype(np.float32)
        changed = from_arrays(arrays | {name: array + noise})
        other = import_params(key_map, changed, abstract, what="file")
        assert error(frozen_output(other), before) > 1e-4, name


@pytest.mark.parametrize(
    ("config", "parameters", "names"),
    [
        (GLIDE_BASE, 385_030_726, 783),
        (GLIDE_UPSAMPLE, 398_361_286, 797),
        (GLIDE_INPAINT, 385_037_638, 783),
        (GLIDE_UPSAMPLE_INPAINT, 398_368_198, 797),
    ],
)
def test_published_files_are_recognised(config: GlideConfig, parameters: int, names: int) -> None:
    abstract = glide_shapes(config)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract)) == parameters
    tensors = hollow_tensors(glide_key_map(config), abstract)
    assert len(tensors) == names
    assert infer_glide(tensors, what="file") == config


VARIANTS: list[tuple[int, dict[str, Any], HeadOptions, int]] = [
    (3, {"num_head_channels": 4, "attention_ds": (1, 2)}, HeadOptions(4, groups=4), 1),
    (6, {"num_res_blocks": 2, "channel_mult": (1, 1, 2)}, HeadOptions(8, groups=4), 3),
    (7, {"num_heads": 2, "num_head_channels": None}, HeadOptions(heads=2, groups=4), 2),
    (10, {"model_channels": 12, "num_head_channels": 6}, HeadOptions(6, groups=4), 2),
]


@pytest.mark.parametrize(("channels", "arguments", "heads", "depth"), VARIANTS)
def test_other_networks_in_torch(
    channels: int, arguments: dict[str, Any], heads: HeadOptions, depth: int
) -> None:
    """All four kinds, each with other widths, depths and heads."""
    torch = pytest.importorskip("torch")
    from tests.interop.adm_reference import Network, resized  # imports torch

    width = 12
    network = Network(**arguments, in_channels=channels, seed=channels)
    rng = np.random.default_rng(channels)
    x, known = rng.standard_normal((2, 2, 3, 8, 8)).astype(np.float32)
    mask = rng.integers(0, 2, (2, 1, 8, 8)).astype(np.float32)
    small = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    tokens, seen = rng.integers(0, 30, (2, 5)), np.arange(5) < np.array([[3], [5]])
    t = np.array([997, 0])

    text = network.caption(
        torch.tensor(tokens), torch.tensor(seen), vocab=30, width=width, depth=depth, heads=3
    )
    parts = [x]
    if channels in (7, 10):
        parts += [known * mask, mask]
    inputs = [torch.tensor(part).double() for part in parts]
    if channels in (6, 10):
        inputs.append(resized(torch.tensor(small).double(), inputs[0]))
    emb = network.time(torch.tensor(t)) + text[0]
    expected = network.unet(torch.cat(inputs, dim=1), emb, text[1]).numpy()

    arrays = network.state.arrays()
    options = GlideOptions(heads, text_heads=3)
    config, params = import_glide(from_arrays(arrays), options, what="file")
    assert_same_files(export_tensors(glide_key_map(config), params), arrays)
    low_resolution = nhwc(small) if config.is_upsampler else None
    hole = (nhwc(known), nhwc(mask)) if config.is_inpainting else (None, None)
    out = run(
        Glide(config).apply, {"params": params}, nhwc(x), t, tokens, seen, low_resolution, *hole
    )
    assert error(out, nhwc(expected)) < TOLERANCE


def nhwc(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def test_inpainting_without_a_picture_knows_nothing() -> None:
    """As with a mask of zeros, whatever the picture."""
    unet = UNetConfig(
        image_size=8,
        in_channels=7,
        channels=4,
        channel_mult=(1,),
        depth=(1,),
        attention_resolutions=(),
        has_middle_attention=False,
        head_channels=4,
        context_width=4,
        groups=2,
    )
    config = GlideConfig(unet, TextConfig(9, 3, TransformerConfig(4, 1, 1)), is_inpainting=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), glide_shapes(config)
    )
    x, known = rng.standard_normal((2, 1, 8, 8, 3)).astype(np.float32)
    mask = np.zeros((1, 8, 8, 1), np.float32)
    inputs = ({"params": params}, x, np.array([5]), np.array([[1, 2, 3]]), np.ones((1, 3), bool))
    apply = Glide(config).apply
    nothing = run(apply, *inputs)
    with_picture = quick(apply, *inputs, None, known, mask)
    assert error(with_picture(*inputs, None, known, mask), nothing) < TOLERANCE
    assert error(with_picture(*inputs, None, known, 1 - mask), nothing) > 1e-3


def test_words_that_the_text_encoder_predicted_in_training_are_left_out() -> None:
    frozen, config, _ = frozen_glide()
    head = {"unemb.weight": np.zeros((97, 16), np.float32), "unemb.bias": np.zeros(97, np.float32)}
    again, _ = import_glide(from_arrays(frozen.arrays() | head), OPTIONS, what="file")
    assert again == config


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"final_ln.bias": None}, OPTIONS, "1 missing"),
        ({"final_norm.bias": np.zeros(16, np.float32)}, OPTIONS, "1 surplus"),
        ({"padding_embedding": np.zeros((11, 16), np.float32)}, OPTIONS, "1 misshapen"),
        ({"transformer_proj.weight": None}, OPTIONS, "1 missing"),
        ({"token_embedding.weight": None}, OPTIONS, "no matrix token_embedding.weight"),
        (
            {"input_blocks.0.0.weight": np.zeros((8, 4, 3, 3), np.float32)},
            OPTIONS,
            "4 input channels: GLIDE's networks have 3, 6, 7, 10",
        ),
        ({}, replace(OPTIONS, text_heads=None), "not a multiple of 64: give --text-heads"),
        ({}, replace(OPTIONS, text_heads=3), "not divisible by heads 3"),
    ],
)
def test_a_file_that_does_not_fit(
    changes: dict[str, Any], options: GlideOptions, message: str
) -> None:
    frozen, _, _ = frozen_glide()
    arrays = {k: v for k, v in (frozen.arrays() | changes).items() if v is not None}
    with pytest.raises(UserError, match=message):
        import_glide(from_arrays(arrays), options, what="file")


def test_inputs_that_a_network_does_not_have_are_refused() -> None:
    _, config, _ = frozen_glide()
    x = jnp.zeros((1, 16, 16, 3))
    inputs = (x, jnp.zeros(1, jnp.int32), jnp.zeros((1, 12), jnp.int32), jnp.ones((1, 12), bool))

    def init(config: GlideConfig, *extra: Any) -> None:
        jax.eval_shape(Glide(config).init, jax.random.key(0), *inputs, *extra)

    with pytest.raises(UserError, match="does not read a small picture"):
        init(config, x)
    with pytest.raises(UserError, match="go together, and only to an inpainting network"):
        init(config, None, x, x[..., :1])
    inpainting = GlideConfig(replace(config.unet, in_channels=7), config.text, is_inpainting=True)
    with pytest.raises(UserError, match="give both or none"):
        init(inpainting, None, x)
    upsampler = GlideConfig(replace(config.unet, in_channels=6), config.text, is_upsampler=True)
    with pytest.raises(UserError, match="needs a small picture"):
        init(upsampler)


def test_configs_are_checked() -> None:
    with pytest.raises(UserError, match=r"in_channels is 3: .* give 7"):
        GlideConfig(is_inpainting=True)
    with pytest.raises(UserError, match="context_width 8 must equal"):
        GlideConfig(UNetConfig(context_width=8))
    with pytest.raises(UserError, match="--text-heads is 0"):
        GlideOptions(text_heads=0)
