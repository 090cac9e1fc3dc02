"""ADM's files: frozen runs of the original, networks of other shapes in torch, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.comparison import (
    TOLERANCE,
    Frozen,
    assert_same_files,
    contents,
    error,
    hollow_tensors,
    quick,
    random_params,
    run,
)
from unclip_jax.errors import UserError
from unclip_jax.generation.steering import make_classifier_steering
from unclip_jax.interop.adm import (
    ADM_64,
    ADM_64_TO_256,
    ADM_128,
    ADM_256,
    ADM_256_UNCONDITIONAL,
    ADM_512,
    PUBLISHED,
    ADMFormat,
    ADMOptions,
    import_adm,
    infer_adm,
    load_adm,
)
from unclip_jax.interop.adm_networks import ADM, ADMConfig
from unclip_jax.interop.infer_unet import HeadOptions
from unclip_jax.interop.safetensors_file import write_safetensors
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.transfer import export_tensors, import_params
from unclip_jax.models.classifier import Classifier, ClassifierConfig
from unclip_jax.models.unet import UNetConfig

TINY = HeadOptions(8, groups=4)
FROZEN_OPTIONS = ADMOptions(TINY, "legacy", image_size=16)


def count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@cache
def frozen_adm() -> tuple[Frozen, ADMFormat, Any]:
    frozen = Frozen("parity_adm")
    return frozen, *import_adm(frozen.tensors(), FROZEN_OPTIONS, what="parity_adm")


@cache
def frozen_adm_apply() -> Any:
    frozen, found, params = frozen_adm()
    inputs = (frozen["in/x"], frozen["in/t"], frozen["in/label"])
    return quick(found.module().apply, {"params": params}, *inputs)


@cache
def frozen_classifier() -> tuple[Frozen, ADMFormat, Any]:
    frozen = Frozen("parity_classifier")
    return frozen, *import_adm(frozen.tensors(), ADMOptions(TINY), what="parity_classifier")


def frozen_output(params: Any, **changes: Any) -> np.ndarray:
    frozen, _, _ = frozen_adm()
    inputs = {name: frozen[f"in/{name}"] for name in ("x", "t", "label")} | changes
    return np.asarray(frozen_adm_apply()({"params": params}, *inputs.values()))


def test_diffusion_model_is_adms() -> None:
    frozen, found, params = frozen_adm()
    assert found.network == ADMConfig(
        UNetConfig(
            image_size=16,
            channels=8,
            channel_mult=(1, 2, 3),
            depth=(1,),
            attention_resolutions=(8, 4),
            head_channels=8,
            groups=4,
        ),
        num_classes=10,
    )
    assert error(frozen_output(params), frozen["out/unet"]) < TOLERANCE
    assert error(frozen_output(params, t=frozen["in/t"] - 1), frozen["out/unet"]) > TOLERANCE
    assert error(frozen_output(params, label=1 + frozen["in/label"]), frozen["out/unet"]) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        replace(FROZEN_OPTIONS, attention_order="new"),
        replace(FROZEN_OPTIONS, heads=HeadOptions(4, groups=4)),
        replace(FROZEN_OPTIONS, heads=HeadOptions(heads=2, groups=4)),
    ],
)
def test_a_wrong_option_is_another_network(options: ADMOptions) -> None:
    """The order of packed rows depends on the heads, so that even the weights are others."""
    frozen, _, params = frozen_adm()
    _, mistaken = import_adm(frozen.tensors(), options, what="file")
    assert not np.array_equal(
        mistaken["unet"]["down2_attention0"]["qkv"]["kernel"],
        params["unet"]["down2_attention0"]["qkv"]["kernel"],
    )
    assert error(frozen_output(mistaken), frozen["out/unet"]) > 1e-3


def test_classifier_is_adms() -> None:
    frozen, found, params = frozen_classifier()
    assert isinstance(found.network, ClassifierConfig)
    assert (found.network.num_classes, found.network.encoder.image_size) == (10, 16)
    model, x, t = Classifier(found.network), frozen["in/x"], frozen["in/t"]
    assert error(run(model.apply, {"params": params}, x, t), frozen["out/logits"]) < TOLERANCE
    steer = make_classifier_steering(model, params, jnp.asarray(frozen["in/label"]))
    assert error(run(steer, x, t), frozen["out/gradient"]) < TOLERANCE


@pytest.mark.parametrize("read", [frozen_adm, frozen_classifier])
def test_export_is_the_file_again(read: Any) -> None:
    frozen, found, params = read()
    assert_same_files(export_tensors(found.key_map(), params), frozen.arrays())


def test_every_tensor_of_the_file_is_read() -> None:
    """Whichever is changed, the output is another."""
    frozen, found, params = frozen_adm()
    before, rng = frozen_output(params), np.random.default_rng(0)
    arrays, key_map, abstract = frozen.arrays(), found.key_map(), found.abstract()
    for name, array in arrays.items():
        noise = rng.standard_normal(array.shape).astype(np.float32)
        changed = from_arrays(arrays | {name: array + noise})
        other = import_params(key_map, changed, abstract, what="file")
        assert error(frozen_output(other), before) > 1e-4, name


@pytest.mark.parametrize(
    ("published", "parameters"),
    [
        (ADM_64, 295_904_454),
        (ADM_128, 421_529_606),
        (ADM_256, 553_838_086),
        (ADM_256_UNCONDITIONAL, 552_814_086),
        (ADM_512, 558_997_638),
        (ADM_64_TO_256, 311_795_910),
    ],
)
def test_published_sizes(published: ADMFormat, parameters: int) -> None:
    assert count(published.abstract()) == parameters


@pytest.mark.parametrize("published", PUBLISHED)
def test_published_files_are_recognised_by_their_shapes(published: ADMFormat) -> None:
    """With heads and order, which no shape tells; an option of the user's wins."""
    tensors = hollow_tensors(published.key_map(), published.abstract())
    assert infer_adm(tensors, what="file") == published
    options = ADMOptions(HeadOptions(heads=2), "new")
    other = infer_adm(tensors, options, what="file")
    unet = other.network.unet if isinstance(other.network, ADMConfig) else other.network.encoder
    assert (unet.heads, other.attention_order) == (2, "new")


def test_a_file_on_disk(tmp_path: Path) -> None:
    frozen, _, _ = frozen_adm()
    arrays, path = frozen.arrays(), tmp_path / "64x64_diffusion.safetensors"
    shapes = {name: array.shape for name, array in arrays.items()}
    write_safetensors(path, shapes, arrays.items(), np.dtype(np.float32))
    found, params = load_adm(path, FROZEN_OPTIONS)
    assert_same_files(export_tensors(found.key_map(), params), arrays)


VARIANTS: list[tuple[dict[str, Any], HeadOptions]] = [
    ({"new_order": True, "num_classes": 5, "num_head_channels": 4}, HeadOptions(4, groups=4)),
    (
        {"model_channels": 12, "num_heads": 3, "num_head_channels": None, "attention_ds": (1, 2)},
        HeadOptions(heads=3, groups=4),
    ),
    (
        {
            "model_channels": 16,
            "channel_mult": (0.5, 1, 1.5),
            "attention_ds": (4,),
            "groups": 2,
            "num_classes": 3,
        },
        HeadOptions(8, groups=2),
    ),
    (
        {"num_res_blocks": 2, "channel_mult": (1, 1), "scale_shift": False, "out_channels": 3},
        TINY,
    ),
    ({"in_channels": 6, "num_classes": 7, "attention_ds": ()}, TINY),
]


@pytest.mark.parametrize(("arguments", "options"), VARIANTS, ids=range(len(VARIANTS)))
def test_other_networks_in_torch(arguments: dict[str, Any], options: HeadOptions) -> None:
    torch = pytest.importorskip("torch")
    from tests.interop.adm_reference import Network, resized  # imports torch

    seed = 17 * len(arguments) + arguments.get("in_channels", 3)
    network, rng = Network(**arguments, seed=seed), np.random.default_rng(seed)
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    t, y = np.array([999, 3]), np.array([0, 2])
    small = rng.standard_normal((2, 3, 2, 2)).astype(np.float32)
    is_upsampler = network.in_channels == 6

    emb = network.time(torch.tensor(t))
    if network.num_classes is not None:
        emb = emb + network.label(torch.tensor(y))
    inputs = torch.tensor(x).double()
    if is_upsampler:
        low = resized(torch.tensor(small).double(), inputs)
        inputs = torch.cat([inputs, low], dim=1)
    expected = network.unet(inputs, emb)

    order = "new" if network.new_order else "legacy"
    arrays = network.state.arrays()
    found, params = import_adm(from_arrays(arrays), ADMOptions(options, order), what="file")
    assert_same_files(export_tensors(found.key_map(), params), arrays)
    labels = y if network.num_classes is not None else None
    low_resolution = nhwc(small) if is_upsampler else None
    out = run(found.module().apply, {"params": params}, nhwc(x), t, labels, low_resolution)
    assert error(out, nhwc(expected.numpy())) < TOLERANCE


@pytest.mark.parametrize(
    ("arguments", "depth"),
    [
        ({"channel_mult": (1, 2), "num_res_blocks": 2, "attention_ds": (2,)}, None),
        ({"channel_mult": (0.5, 1, 1), "num_head_channels": 4, "model_channels": 16}, 1),
    ],
)
def test_other_classifiers_in_torch(arguments: dict[str, Any], depth: int | None) -> None:
    torch = pytest.importorskip("torch")
    from tests.interop.adm_reference import Network  # imports torch

    network = Network(**arguments, seed=3)
    x = np.random.default_rng(3).standard_normal((2, 3, 12, 12)).astype(np.float32)
    t = np.array([999, 3])
    expected = network.classify(torch.tensor(x).double(), torch.tensor(t), classes=6)

    arrays = network.state.arrays()
    heads = HeadOptions(network.num_head_channels, groups=4)
    options = ADMOptions(heads, depth=depth)
    found, params = import_adm(from_arrays(arrays), options, what="file")
    assert_same_files(export_tensors(found.key_map(), params), arrays)
    out = run(found.module().apply, {"params": params}, nhwc(x), t)
    assert error(out, expected.numpy()) < TOLERANCE


def nhwc(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def small_classifier(attention_resolutions: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Of one width, so that only attention tells the levels apart."""
    encoder = UNetConfig(
        image_size=16,
        channels=8,
        channel_mult=(1, 1),
        depth=(2,),
        attention_resolutions=attention_resolutions,
        head_channels=8,
        groups=4,
    )
    found = ADMFormat(ClassifierConfig(4, encoder))
    return contents(export_tensors(found.key_map(), random_params(found.abstract())))


def test_a_classifier_whose_depth_is_open_asks_for_it() -> None:
    options = ADMOptions(TINY)
    tensors = from_arrays(small_classifier(()))
    with pytest.raises(UserError, match=r"may have a depth of 1 or 2 or 5: give that of a level"):
        infer_adm(tensors, options, what="file")
    for depth, levels in ((1, 3), (2, 2), (5, 1)):
        found = infer_adm(tensors, replace(options, depth=depth), what="file").network
        assert isinstance(found, ClassifierConfig)
        assert found.encoder.channel_mult == (1,) * levels
        assert found.encoder.image_size == 8 * 2 ** (levels - 1)
    with pytest.raises(UserError, match="give that of a level"):
        infer_adm(tensors, replace(options, depth=3), what="file")
    attending = infer_adm(from_arrays(small_classifier((8,))), options, what="file").network
    assert isinstance(attending, ClassifierConfig)
    assert attending.encoder.channel_mult == (1, 1)


def test_what_no_shape_tells_is_asked_for() -> None:
    frozen, _, _ = frozen_adm()
    with pytest.raises(UserError, match="give --attention-order legacy"):
        import_adm(frozen.tensors(), ADMOptions(TINY), what="file")
    with pytest.raises(UserError, match="do not divide into heads of 64"):
        import_adm(frozen.tensors(), ADMOptions(HeadOptions(groups=4), "legacy"), what="file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_emb.bias": np.zeros(32, np.float32)}, "1 surplus"),
        ({"out.0.bias": None}, "1 missing"),
        ({"label_emb.weight": np.zeros((10, 31), np.float32)}, "1 misshapen"),
        ({"transformer_proj.weight": np.zeros((32, 16), np.float32)}, "read it as GLIDE"),
    ],
)
def test_a_file_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    frozen, _, _ = frozen_adm()
    arrays = {k: v for k, v in (frozen.arrays() | changes).items() if v is not None}
    with pytest.raises(UserError, match=message):
        import_adm(from_arrays(arrays), FROZEN_OPTIONS, what="file")


def test_a_classifier_with_another_pool_is_refused() -> None:
    arrays = {k: v for k, v in small_classifier((8,)).items() if not k.startswith("out.2.")}
    arrays["out.3.weight"] = np.zeros((4, 8, 1, 1), np.float32)
    with pytest.raises(UserError, match="neither output blocks nor a pool with attention"):
        infer_adm(from_arrays(arrays), ADMOptions(TINY), what="file")


def test_inputs_that_a_network_does_not_have_are_refused() -> None:
    small = UNetConfig(
        image_size=8, channels=8, channel_mult=(1,), depth=(1,), head_channels=8, groups=4
    )
    x, t, y = jnp.zeros((1, 8, 8, 3)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)

    def init(config: ADMConfig, *inputs: Any) -> None:
        jax.eval_shape(ADM(config).init, jax.random.key(0), x, t, *inputs)

    with pytest.raises(UserError, match="needs labels"):
        init(ADMConfig(small, 5))
    with pytest.raises(UserError, match="does not read labels"):
        init(ADMConfig(small, None), y)
    with pytest.raises(UserError, match="does not read a small picture"):
        init(ADMConfig(small, 5), y, x)
    upsampler = ADMConfig(replace(small, in_channels=6), None, is_upsampler=True)
    with pytest.raises(UserError, match="needs a small picture"):
        init(upsampler)
    init(upsampler, None, x[:, :4, :4])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"unet": UNetConfig(context_width=8)}, "context_width is 8"),
        ({"unet": UNetConfig(in_channels=5), "is_upsampler": True}, "in_channels is 5"),
    ],
)
def test_configs_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ADMConfig(**fields)
