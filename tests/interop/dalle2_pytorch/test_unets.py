"""U-Nets of four eras through the importer: frozen runs, and live ones of the current package."""

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
    assert_same_files,
    error,
    hollow_tensors,
    random_params,
    run,
)
from tests.interop.dalle2_pytorch import unet_reference as reference
from tests.interop.dalle2_pytorch.unet_runs import FrozenRuns, unet_outputs
from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.decoder import import_decoder, import_unet, unet_of
from unclip_jax.interop.dalle2_pytorch.unet import Unet, abstract_params, evaluate, guided
from unclip_jax.interop.dalle2_pytorch.unet_config import UnetConfig, unet_config
from unclip_jax.interop.dalle2_pytorch.unet_era import UnetEra, unet_era
from unclip_jax.interop.dalle2_pytorch.unet_keys import unet_key_map, unused_parameters
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.transfer import export_tensors
from unclip_jax.training.weights import flatten

CASES = [f"{version}/{name}" for version, runs in reference.FROZEN.items() for name in runs]


@cache
def frozen() -> FrozenRuns:
    return FrozenRuns()


def imported(case: str) -> tuple[UnetConfig, Any, dict[str, np.ndarray]]:
    version, name = case.split("/")
    arrays = reference.weights(frozen().shapes(case))
    entry = reference.FROZEN[version][name]
    config = unet_of(unet_config(entry), from_arrays(arrays), recorded=version, what=case)
    return config, import_unet(from_arrays(arrays), config), arrays


@pytest.mark.parametrize("case", CASES)
def test_computes_what_that_release_computed(case: str) -> None:
    config, params, _ = imported(case)
    version, name = case.split("/")
    inputs = reference.unet_inputs(reference.FROZEN[version][name])
    for output, array in unet_outputs(config, params, inputs).items():
        assert error(array, frozen().outputs(case)[output]) < TOLERANCE, output


def test_guidance_drops_image_and_text_at_once() -> None:
    config, params, _ = imported("1.15.6/text")
    inputs = reference.unet_inputs(reference.FROZEN["1.15.6"]["text"])

    def guide(params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
        x, t = inputs["x"], inputs["t"]
        conditions = {name: a for name, a in inputs.items() if name not in ("x", "t")}
        return guided(config, params, x, t, 3.0, **conditions)

    expected = frozen().outputs("1.15.6/text")["guided"]
    assert error(run(guide, params, inputs), expected) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_goes_back_bit_by_bit(case: str) -> None:
    config, params, arrays = imported(case)
    kept = {name: array for name, array in arrays.items() if not name.endswith(".beta")}
    assert_same_files(export_tensors(unet_key_map(config), params), kept)


@pytest.mark.parametrize("case", ["0.15.4/lowres", "1.1.0/text", "1.15.6/many"])
def test_every_tensor_matters_but_those_named(case: str) -> None:
    """The gradient of a random projection of the output is zero where a parameter is not used."""
    config, params, _ = imported(case)
    version, name = case.split("/")
    inputs = dict(reference.unet_inputs(reference.FROZEN[version][name]))
    x, t = inputs.pop("x"), inputs.pop("t")
    keep = jnp.array([True, False])
    weight = reference.numbers((*x.shape[:3], config.channels_out or config.channels), "projection")

    def project(params: Any) -> jax.Array:
        output = evaluate(
            config,
            params,
            jnp.asarray(x),
            jnp.asarray(t),
            **inputs,
            image_keep=keep,
            text_keep=keep,
        )
        return (output * weight).sum()

    gradients = flatten(run(jax.grad(project), params))
    dead = {path for path, leaf in gradients.items() if not np.any(np.asarray(leaf))}
    assert {path.split("/")[0] for path in dead} == set(unused_parameters(config))


@pytest.mark.parametrize(
    ("case", "named", "message"),
    [
        ("1.15.6/text", "legacy", "1.14 or later"),
        ("1.15.6/text", "1.1.0", "1.14 or later"),
        ("1.1.0/text", "current", "before 1.10"),
        ("0.15.4/text", "legacy", "before 0.16"),
        ("1.1.0/text", None, "name the era"),
        ("1.1.0/text", "0.20.1", r"before 1\.10"),
    ],
)
def test_refuses_an_era_that_the_file_contradicts(
    case: str, named: str | None, message: str
) -> None:
    tensors = from_arrays(reference.weights(frozen().shapes(case)))
    with pytest.raises(UserError, match=message):
        unet_era(tensors, named=named, what="the file")


def test_recorded_and_named_version_must_agree() -> None:
    tensors = from_arrays(reference.weights(frozen().shapes("1.1.0/text")))
    assert unet_era(tensors, recorded="1.1.0", named="legacy", what="it") == UnetEra.of((1, 1, 0))
    with pytest.raises(UserError, match=r"records DALLE2-pytorch 1\.1\.0"):
        unet_era(tensors, recorded="1.1.0", named="1.6.0", what="it")


def test_old_files_need_no_version_where_their_names_tell() -> None:
    for case in ("0.15.4/text", "0.15.4/lowres", "1.15.6/many"):
        tensors = from_arrays(reference.weights(frozen().shapes(case)))
        version = tuple(int(part) for part in case.split("/")[0].split("."))
        assert unet_era(tensors, what="it") == UnetEra.of(version)


def test_the_same_weights_mean_something_else_in_another_era() -> None:
    config, params, _ = imported("1.6.0/sparse")
    inputs = reference.unet_inputs(reference.FROZEN["1.6.0"]["sparse"])
    legacy = replace(config, era=replace(UnetEra.of((1, 1, 0))))
    outputs = unet_outputs(legacy, params, inputs)["plain"]
    assert error(outputs, frozen().outputs("1.6.0/sparse")["plain"]) > 1e-2


def test_rows_do_not_depend_on_each_other_where_the_widths_are_equal() -> None:
    """With image_embed_dim == cond_dim the original mixes the rows of a batch of four."""
    entry = {
        **reference.SMALLEST,
        "cond_dim": reference.TINY["image_embed_dim"],
        "dim_mults": [1, 1],
    }
    config = unet_config(entry)
    assert not config.projects_image_tokens
    params = random_params(abstract_params(config))
    x, embed = reference.numbers((4, 8, 8, 3), "x"), reference.numbers((4, 12), "embed")

    def forward(params: Any, embed: jax.Array) -> jax.Array:
        return evaluate(config, params, jnp.asarray(x), jnp.arange(4), image_embed=embed)

    before = np.asarray(run(forward, params, embed))
    after = np.asarray(run(forward, params, embed + np.array([0, 1, 0, 0], np.float32)[:, None]))
    np.testing.assert_array_equal(before[[0, 2, 3]], after[[0, 2, 3]])
    assert error(after[1:2], before[1:2]) > 1e-3


def test_compiled_or_not_is_the_same() -> None:
    config = unet_config(reference.SMALLEST)
    params = random_params(abstract_params(config))
    x, embed = reference.numbers((2, 8, 8, 3), "x"), reference.numbers((2, 12), "embed")

    def forward(params: Any) -> jax.Array:
        return evaluate(config, params, jnp.asarray(x), jnp.arange(2), image_embed=embed)

    with jax.default_matmul_precision("highest"):
        assert error(forward(params), run(forward, params)) < TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparse_attn_window": 4}, "'sparse_attn_window' is unknown"),
        ({"dim": None, "self_attn": [True]}, "self_attn has 1 entries for 2 stages"),
        ({"dim_mults": [2, 4]}, "memory_efficient"),
        ({"resnet_groups": 3}, "equal groups"),
        ({"text_embed_dim": None, "cond_on_text_encodings": True}, "text_embed_dim is missing"),
        ({"image_embed_dim": None}, "image_embed_dim is missing"),
        ({"init_dim": 9}, "init_dim is 9"),
        ({"cross_embed_downsample_kernel_sizes": [3]}, "must be even"),
        ({"dim_mults": "two"}, "wrong type"),
    ],
)
def test_configs_that_cannot_be(change: dict[str, Any], message: str) -> None:
    entry = {key: v for key, v in {**reference.TINY, **change}.items() if key != "dim" or v}
    entry.setdefault("dim", 8)
    with pytest.raises(UserError, match=message):
        unet_config(entry)


def test_options_without_effect_are_accepted() -> None:
    dead = {"attend_at_middle": False, "out_dim": 4, "checkpoint_during_training": True}
    assert unet_config({**reference.TINY, **dead}) == unet_config(reference.TINY)


def test_tensors_that_do_not_fit_are_named() -> None:
    config, _, arrays = imported("1.15.6/text")
    wrong = dict(arrays)
    wrong["extra.weight"] = wrong.pop("mid_block1.time_mlp.1.weight")
    wrong["to_out.bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError, match="1 missing, 1 surplus, 1 misshapen") as caught:
        import_unet(from_arrays(wrong), config)
    assert any("mid_block1.time_mlp.1" in line for line in caught.value.details)


def test_an_image_that_the_stages_cannot_halve() -> None:
    config = unet_config(reference.TINY)
    with pytest.raises(UserError, match="multiple of 2"):
        jax.eval_shape(
            Unet(config).init,
            jax.random.key(0),
            jnp.zeros((1, 7, 8, 3)),
            jnp.zeros(1),
            image_embed=jnp.zeros((1, 12)),
        )


def test_the_64_pixel_decoder_of_laion_has_its_published_size() -> None:
    """982,623,118 values in decoder/v1.0.2/latest.pth, the noise schedule's tables included."""
    unet = {
        "dim": 320,
        "cond_dim": 512,
        "image_embed_dim": 768,
        "text_embed_dim": 768,
        "cond_on_text_encodings": True,
        "channels": 3,
        "dim_mults": [1, 2, 3, 4],
        "num_resnet_blocks": 4,
        "attn_heads": 8,
        "attn_dim_head": 64,
        "sparse_attn": True,
        "memory_efficient": True,
        "self_attn": [False, True, True, True],
    }
    config = unet_config(
        {**unet, "cond_on_image_embeds": True, "channels_out": 6}, UnetEra.of((1, 1))
    )
    tensors = hollow_tensors(unet_key_map(config), abstract_params(config))
    count = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    assert count + 13 * 1000 == 982_623_118
    entry = {
        "unets": [unet],
        "image_sizes": [64],
        "learned_variance": True,
        "beta_schedule": ["cosine"],
    }
    with pytest.raises(UserError, match="name the era"):
        import_decoder({f"unets.0.{name}": tensor for name, tensor in tensors.items()}, entry)


LIVE = [
    {
        "memory_efficient": True,
        "cross_embed_downsample": True,
        "dim_mults": [2, 1],
        "self_attn": True,
    },
    {
        "sparse_attn": True,
        "self_attn": [False, False, True],
        "dim_mults": [1, 2, 3],
        **reference.TEXT,
    },
    {"pixel_shuffle_upsample": False, "init_cross_embed": False, "final_conv_kernel_size": 3},
    {"lowres_cond": True, "self_cond": True, "num_resnet_blocks": [2, 1], "resnet_groups": [2, 4]},
    {
        "cosine_sim_self_attn": True,
        "cosine_sim_cross_attn": True,
        "add_image_embeds_to_time": False,
    },
    {"cond_dim": None, "channels": 4, "num_image_tokens": 2, "num_time_tokens": 3, "dim": 16},
    {
        "combine_upsample_fmaps": True,
        "memory_efficient": True,
        "resnet_groups": 8,
        "dim_mults": [1, 1],
    },
]


@pytest.mark.parametrize("change", LIVE, ids=str)
def test_computes_what_the_package_computes(change: dict[str, Any]) -> None:
    package = current_package()
    entry = {**reference.TINY, **change}
    unet = package.Unet(**{key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()})
    arrays = reference.fill(unet, seed=5)
    config = unet_of(unet_config(entry), from_arrays(arrays), what="it")
    params, inputs = import_unet(from_arrays(arrays), config), reference.unet_inputs(entry, seed=7)
    expected = reference.run_unet(unet, inputs)
    for output, array in unet_outputs(config, params, inputs).items():
        assert error(array, expected[output]) < TOLERANCE, output


def test_equal_widths_agree_with_the_package_for_one_image() -> None:
    package = current_package()
    entry = {**reference.TINY, "cond_dim": reference.TINY["image_embed_dim"]}
    unet = package.Unet(**entry)
    arrays, inputs = reference.fill(unet), reference.unet_inputs(entry)
    config = unet_config(entry)
    params = import_unet(from_arrays(arrays), config)
    first = {name: array[:1] for name, array in inputs.items()}
    found = unet_outputs(config, params, inputs)["plain"][:1]
    assert error(found, reference.run_unet(unet, first)["plain"]) < TOLERANCE


def current_package() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("einops")
    try:
        package = reference.import_package()
    except ImportError as missing:
        pytest.skip(str(missing))
    return package
