"""Layouts there and back, and what is said of files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.errors import UserError
from unclip_jax.interop.key_map import Entry, KeyMap, conv, dense, joined, norm, packed, stacked
from unclip_jax.interop.layouts import (
    CONV,
    DENSE,
    POINTWISE,
    SAME,
    Joined,
    Layout,
    PerHead,
    Squeezed,
    Stacked,
)
from unclip_jax.interop.safetensors_file import open_safetensors, write_safetensors
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.transfer import export_tensors, import_params, read_params

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


LAYOUTS: list[tuple[Layout, list[tuple[int, ...]], tuple[int, ...]]] = [
    (SAME, [(3, 2)], (3, 2)),
    (SAME, [()], ()),
    (DENSE, [(6, 4)], (4, 6)),
    (CONV, [(6, 4, 3, 5)], (3, 5, 4, 6)),
    (POINTWISE, [(6, 4, 1)], (4, 6)),
    (Squeezed((0, 1)), [(1, 1, 5)], (5,)),
    (PerHead(2), [(12, 4)], (4, 12)),
    (PerHead(3, 2, SAME), [(12,)], (12,)),
    (Joined(3), [(2, 5)] * 3, (5, 6)),
    (Stacked(2, DENSE), [(6, 4)] * 2, (2, 4, 6)),
    (Stacked(2, Joined(3), 3), [(2, 5)] * 6, (2, 5, 6)),
]


@pytest.mark.parametrize(("layout", "foreign", "ours"), LAYOUTS)
def test_a_layout_knows_its_shape_and_its_inverse(
    layout: Layout, foreign: list[tuple[int, ...]], ours: tuple[int, ...]
) -> None:
    arrays = [normal(*shape) for shape in foreign]
    read = layout.read(iter(arrays))
    assert read.shape == ours == layout.shape(foreign)
    back = layout.write(read)
    assert len(back) == len(arrays)
    for array, again in zip(arrays, back, strict=True):
        np.testing.assert_array_equal(array, again)


@pytest.mark.parametrize(
    ("layout", "foreign"),
    [
        (DENSE, [(6,)]),
        (POINTWISE, [(6, 4, 2)]),
        (PerHead(5), [(12, 4)]),
        (Joined(3), [(2, 5), (2, 5)]),
        (Joined(2), [(2, 5), (2, 6)]),
        (Stacked(2, DENSE), [(6, 4), (6, 5)]),
    ],
)
def test_a_layout_refuses_other_shapes(layout: Layout, foreign: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="needs"):
        layout.shape(foreign)


def test_rows_head_by_head_become_all_queries_then_all_keys() -> None:
    # Two heads of one channel, as q0 k0 v0 q1 k1 v1.
    rows = np.array([10, 20, 30, 11, 21, 31], np.float32)
    sorted_rows = PerHead(2, 3, SAME).read(iter([rows]))
    np.testing.assert_array_equal(sorted_rows, [10, 11, 20, 21, 30, 31])


def _map() -> KeyMap:
    return [
        *dense("in", "first"),
        *conv("conv", "second", bias=False),
        *norm("norm", "third"),
        *stacked(
            2,
            lambda i: [
                *packed("blocks/qkv", f"layers.{i}.qkv", heads=2),
                *joined("blocks/kv", [f"layers.{i}.k", f"layers.{i}.v"], bias=False),
            ],
        ),
        Entry("scale", ("scale",)),
    ]


def _file() -> dict[str, np.ndarray]:
    arrays = {
        "first.weight": normal(3, 2),
        "first.bias": normal(3),
        "second.weight": normal(4, 3, 3, 3),
        "third.weight": normal(4),
        "third.bias": normal(4),
        "scale": np.asarray(2.5, np.float32),
    }
    for i in range(2):
        arrays |= {f"layers.{i}.qkv.weight": normal(12, 4), f"layers.{i}.qkv.bias": normal(12)}
        arrays |= {f"layers.{i}.k.weight": normal(4, 4), f"layers.{i}.v.weight": normal(4, 4)}
    return arrays


def _shapes() -> Any:
    struct = jax.ShapeDtypeStruct
    return {
        "in": {"kernel": struct((2, 3), jnp.float32), "bias": struct((3,), jnp.float32)},
        "conv": {"kernel": struct((3, 3, 3, 4), jnp.float32)},
        "norm": {"scale": struct((4,), jnp.float32), "bias": struct((4,), jnp.float32)},
        "blocks": {
            "qkv": {
                "kernel": struct((2, 4, 12), jnp.float32),
                "bias": struct((2, 12), jnp.float32),
            },
            "kv": {"kernel": struct((2, 4, 8), jnp.float32)},
        },
        "scale": struct((), jnp.float32),
    }


def test_there_and_back_through_files(tmp_path: Path) -> None:
    arrays = _file()
    params = import_params(_map(), from_arrays(arrays), _shapes(), what="file")
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, _shapes())
    np.testing.assert_array_equal(params["in"]["kernel"], arrays["first.weight"].T)
    np.testing.assert_array_equal(
        params["blocks"]["kv"]["kernel"][1, :, :4], arrays["layers.1.k.weight"].T
    )

    back = export_tensors(_map(), params)
    assert {name: tensor.shape for name, tensor in back.items()} == {
        name: array.shape for name, array in arrays.items()
    }
    path = tmp_path / "back.safetensors"
    shapes = {name: tensor.shape for name, tensor in back.items()}
    given = ((name, tensor.read()) for name, tensor in back.items())
    write_safetensors(path, shapes, given, np.dtype(np.float32))
    for name, tensor in open_safetensors(path).items():
        np.testing.assert_array_equal(tensor.read(), arrays[name])


def test_half_precision_comes_as_float32() -> None:
    arrays = {name: array.astype(np.float16) for name, array in _file().items()}
    params = import_params(_map(), from_arrays(arrays), _shapes(), what="file")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["in"]["bias"], arrays["first.bias"].astype(np.float32))


def _refused(arrays: dict[str, np.ndarray], **options: Any) -> UserError:
    read: list[str] = []
    tensors = from_arrays(arrays)
    for name, tensor in tensors.items():
        object.__setattr__(tensor, "read", lambda name=name: read.append(name))
    with pytest.raises(UserError) as caught:
        read_params(_map(), tensors, _shapes(), what="x.pt", **options)
    assert read == []  # nothing was loaded
    assert "x.pt" in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def test_missing_and_surplus_names_are_listed_with_the_nearest() -> None:
    arrays = _file()
    arrays["layers.0.query_key_value.weight"] = arrays.pop("layers.0.qkv.weight")
    arrays["extra.weight"] = normal(2)
    del arrays["third.weight"], arrays["third.bias"]
    error = _refused(arrays)
    assert "3 missing, 2 surplus" in str(error)
    assert "missing: third: bias, weight" in error.details
    assert any(line.startswith("surplus: extra: weight") for line in error.details)
    assert any("layers.0.qkv" in line and "nearest: layers.0.q" in line for line in error.details)


def test_a_shape_that_does_not_fit_is_named() -> None:
    arrays = _file()
    arrays["first.weight"] = normal(5, 2)
    arrays["layers.1.qkv.weight"] = normal(12, 3)
    error = _refused(arrays)
    assert "2 misshapen" in str(error)
    assert any("first.weight" in line and "(5, 2)" in line for line in error.details)
    assert any("layers.0.qkv.weight and 1 more" in line for line in error.details)


def test_quantised_weights_are_refused() -> None:
    arrays = _file()
    arrays["first.weight"] = arrays["first.weight"].astype(np.int8)
    error = _refused(arrays)
    assert "1 of no floating type" in str(error) and "first.weight is int8" in error.details[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    arrays = _file()
    arrays["first.weight"][1, 1] = value
    with pytest.raises(UserError, match=r"x\.pt: first\.weight has 1 values of .* not finite"):
        import_params(_map(), from_arrays(arrays), _shapes(), what="x.pt")


def test_names_are_ignored_only_as_a_whole() -> None:
    arrays = _file() | {"position_ids": np.arange(3), "old.position_ids": np.arange(3)}
    error = _refused(arrays, ignored=("position_ids",))
    assert "1 surplus" in str(error)
    params = import_params(
        _map(), from_arrays(arrays), _shapes(), what="x.pt", ignored=(r"(old\.)?position_ids",)
    )
    assert set(params) == set(_shapes())


def test_a_map_that_leaves_a_parameter_empty_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="does not fill"):
        import_params(_map()[1:], from_arrays(_file()), _shapes(), what="x.pt")
