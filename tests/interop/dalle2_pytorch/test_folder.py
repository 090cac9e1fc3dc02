"""Converted priors and decoders: read back equal, sampled together, and written for the package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.interop.comparison import Frozen, assert_same_trees, random_params
from tests.interop.dalle2_pytorch import prior_reference, unet_reference
from tests.interop.dalle2_pytorch.unet_runs import FrozenRuns
from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.decoder import Decoder, export_decoder, import_decoder
from unclip_jax.interop.dalle2_pytorch.decoder_sampling import KeyNoise, sample
from unclip_jax.interop.dalle2_pytorch.era import semantics_of
from unclip_jax.interop.dalle2_pytorch.folder import (
    Weights,
    convert_dalle2,
    export_dalle2,
    load_dalle2,
    save_dalle2,
)
from unclip_jax.interop.dalle2_pytorch.prior import (
    ImportedPrior,
    abstract_params,
    export_prior,
    import_prior,
)
from unclip_jax.interop.dalle2_pytorch.prior_config import PriorConfig, PriorNetworkConfig
from unclip_jax.interop.dalle2_pytorch.prior_sampling import (
    TextCondition,
    draw_noise,
    make_sampler,
)
from unclip_jax.interop.dalle2_pytorch.schedule import make_noise_schedule
from unclip_jax.interop.network_folder import load_network
from unclip_jax.interop.safetensors_file import open_safetensors
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.torch_archive import write_torch_archive

NET = PriorNetworkConfig(
    dim=12, depth=2, num_timesteps=20, max_text_len=5, dim_head=4, heads=2, ff_mult=2.5
)
PRIOR = PriorConfig(NET, timesteps=20, text_cond_drop_prob=0.1, image_cond_drop_prob=0.1)


def make_prior(config: PriorConfig = PRIOR, version: tuple[int, ...] = (1, 15, 6)) -> ImportedPrior:
    schedule = make_noise_schedule(config.beta_schedule, config.timesteps)
    params = random_params(abstract_params(config.net))
    return ImportedPrior(config, schedule, params, version, "online", "the top")


def make_decoder(name: str = "cascade", **changes: Any) -> Decoder:
    arrays = unet_reference.weights(FrozenRuns().shapes(f"decoder/{name}"))
    return import_decoder(from_arrays(arrays), unet_reference.DECODERS[name] | changes)


def assert_equal_priors(found: Any, expected: ImportedPrior) -> None:
    assert isinstance(found, ImportedPrior)
    for name in ("config", "version", "weights", "place"):
        assert getattr(found, name) == getattr(expected, name), name
    assert_same_trees(found.params, expected.params)
    tables = expected.schedule.buffers()
    for name, table in found.schedule.buffers().items():
        np.testing.assert_array_equal(table, tables[name])


def test_a_frozen_prior_with_averages(tmp_path: Path) -> None:
    frozen = Frozen("dalle2_prior_eps")
    online = frozen.arrays()
    config = json.loads(str(frozen["config"]))
    config.pop("n_ddim_draws")
    average = {
        name: array * np.float32(1 + ("net.learned" in name)) for name, array in online.items()
    }
    tree = {"model": from_arrays(online), "ema_model": from_arrays(average), "version": "1.15.6"}
    write_torch_archive(tmp_path / "prior.pth", tree)
    (tmp_path / "mine.json").write_text(json.dumps({"prior": config}))
    copies: dict[Weights, Any] = {"ema": average, "online": online}
    for weights, arrays in copies.items():
        said = convert_dalle2(
            "dalle2_prior",
            tmp_path / "prior.pth",
            tmp_path / weights,
            config=tmp_path / "mine.json",
            weights=weights,
        )
        assert f"{weights} weights, DALLE2-pytorch 1.15.6 (cosine attention)" in said
        expected = import_prior(tree, config, weights=weights)
        found: Any = load_dalle2(tmp_path / weights)
        assert_equal_priors(found, expected)
        query = found.params["learned_query"]
        np.testing.assert_array_equal(query, arrays["net.learned_query"])


def test_every_option_of_a_prior_comes_back(tmp_path: Path) -> None:
    network = replace(
        NET,
        num_timesteps=None,
        num_time_embeds=2,
        num_image_embeds=2,
        norm_in=True,
        norm_out=False,
        final_proj=False,
        normformer=True,
        rotary_emb=False,
        self_cond=True,
        semantics=semantics_of((1, 6, 0)),
    )
    config = replace(
        PRIOR,
        net=network,
        timesteps=33,
        beta_schedule="sigmoid",
        sample_timesteps=8,
        text_cond_drop_prob=None,
        loss_type="huber",
        predict_x_start=False,
        predict_v=True,
        condition_on_text_encodings=False,
        image_embed_scale=3.0,
    )
    prior = replace(make_prior(config, (1, 6, 0)), weights="ema", place="ema_model")
    save_dalle2(prior, tmp_path)
    assert_equal_priors(load_dalle2(tmp_path), prior)


@pytest.mark.parametrize("name", ["learned", "cascade"])
def test_a_decoder_comes_back(name: str, tmp_path: Path) -> None:
    decoder, entry = make_decoder(name), unet_reference.DECODERS[name]
    tree = {"version": "1.15.6", "config": {"decoder": entry}, "model": export_decoder(decoder)}
    write_torch_archive(tmp_path / "latest.pth", tree)
    said = convert_dalle2("dalle2_decoder", tmp_path / "latest.pth", tmp_path / "out")
    assert "online weights, DALLE2-pytorch 1.10 or later" in said
    found: Any = load_dalle2(tmp_path / "out")
    assert isinstance(found, Decoder) and found.config == decoder.config
    for one, other in zip(found.params, decoder.params, strict=True):
        assert_same_trees(one, other)
    again = tmp_path / "again"
    convert_dalle2("dalle2_decoder", tmp_path / "latest.pth", again, dtype="bfloat16")
    found = load_dalle2(again)
    tensors = open_safetensors(again / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    rounded = jax.tree.map(
        lambda x: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32), decoder.params[0]
    )
    assert_same_trees(found.params[0], rounded)


def test_a_legacy_decoder_needs_its_era_once(tmp_path: Path) -> None:
    """When it is converted; the folder knows it."""
    arrays = unet_reference.weights(
        {f"unets.0.{name}": s for name, s in FrozenRuns().shapes("1.1.0/text").items()}
    )
    entry = {
        "unets": [unet_reference.FROZEN["1.1.0"]["text"]],
        "image_size": 8,
        "timesteps": 30,
        "learned_variance": False,
    }
    write_torch_archive(tmp_path / "latest.pth", from_arrays(arrays))
    (tmp_path / "decoder_config.json").write_text(json.dumps(entry))
    folder, source = tmp_path / "out", tmp_path / "latest.pth"
    with pytest.raises(UserError, match="name the era"):
        convert_dalle2("dalle2_decoder", source, folder)
    assert not folder.exists()
    said = convert_dalle2("dalle2_decoder", source, folder, version="1.1.0")
    assert "before 1.4.3" in said
    found: Any = load_dalle2(folder)
    expected = import_decoder(from_arrays(arrays), entry, version="1.1.0")
    assert found.config == expected.config
    assert not found.config.stages[0].unet.era.squared_attention_scale
    with pytest.raises(UserError, match="cannot be exported"):
        export_dalle2(folder, tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()


@pytest.mark.torch
def test_the_package_loads_what_is_exported(tmp_path: Path) -> None:
    package = prior_reference.package_or_skip()
    import torch

    job = {"net": {**prior_reference.NET, "self_cond": True}, "prior": prior_reference.PRIOR}
    module, state = prior_reference.make_prior(package, job)
    torch.save(module.state_dict(), tmp_path / "prior.pth")
    convert_dalle2("dalle2_prior", tmp_path / "prior.pth", tmp_path / "prior")
    export_dalle2(tmp_path / "prior", tmp_path / "back.pth")
    fresh, _ = prior_reference.make_prior(package, job, seed=9)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    fresh.load_state_dict(back, strict=True)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name].numpy(), array, err_msg=name)

    entry = unet_reference.DECODERS["cascade"]
    module, state = unet_reference.make_decoder(package, entry)
    torch.save({"model": module.state_dict(), "version": "1.15.6"}, tmp_path / "decoder.pth")
    (tmp_path / "decoder_config.json").write_text(json.dumps({"decoder": entry}))
    convert_dalle2("dalle2_decoder", tmp_path / "decoder.pth", tmp_path / "decoder")
    export_dalle2(load_dalle2(tmp_path / "decoder"), tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    module.load_state_dict(back, strict=True)
    for name, array in state.items():
        if name.startswith("unets."):
            np.testing.assert_array_equal(back[name].numpy(), array, err_msg=name)


def test_a_caption_becomes_a_picture_through_two_folders(tmp_path: Path) -> None:
    """Prior, then decoder; another caption makes another picture."""
    save_dalle2(make_prior(), tmp_path / "prior")
    save_dalle2(make_decoder("dynamic"), tmp_path / "decoder")
    prior, decoder = load_dalle2(tmp_path / "prior"), load_dalle2(tmp_path / "decoder")
    assert isinstance(prior, ImportedPrior) and isinstance(decoder, Decoder)
    rng = np.random.default_rng(0)
    embed = rng.standard_normal((2, NET.dim)).astype(np.float32)
    embed /= np.linalg.norm(embed, axis=1, keepdims=True)
    words = rng.standard_normal((2, 3, NET.dim)).astype(np.float32)
    text = TextCondition(jnp.asarray(embed), jnp.asarray(words))
    sampler, steps = make_sampler(prior, num_steps=4, cond_scale=2.0)
    one = draw_noise(jax.random.key(0), steps.num_draws, 1, NET.dim)
    embeddings = sampler(prior.params, text, jnp.repeat(one, 2, axis=1))  # equal noise for both
    assert embeddings.shape == (2, NET.dim)
    keys = jnp.stack([jax.random.key(1)] * 2)
    pictures = np.asarray(sample(decoder, KeyNoise(keys), image_embed=embeddings))
    assert pictures.shape == (2, 8, 8, 3) and pictures.min() >= 0 and pictures.max() <= 1
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-3


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_dalle2(tmp_path)
    save_dalle2(make_prior(), tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())

    def refused(message: str, **changes: Any) -> None:
        path.write_text(json.dumps(data | changes))
        with pytest.raises(UserError, match=message):
            load_dalle2(tmp_path)

    refused("has a glide of format 1", network="glide")
    refused("of format 2", format=2)
    refused("dept: no such field", config=data["config"] | {"dept": 2})
    refused(
        "2 missing|misshapen", config=data["config"] | {"net": data["config"]["net"] | {"dim": 14}}
    )
    refused("another noise schedule", config=data["config"] | {"beta_schedule": "linear"})
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="load_dalle2"):
        load_network(tmp_path)
    assert_equal_priors(load_dalle2(tmp_path), make_prior())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot be read"):
        load_dalle2(tmp_path)


def test_an_export_has_every_name_of_the_package() -> None:
    """Those of a frozen state dict."""
    run = Frozen("dalle2_prior_x0")
    exported = export_prior(import_prior(run.arrays()))
    assert exported.keys() == run.arrays().keys()
