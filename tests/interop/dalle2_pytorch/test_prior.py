"""Priors from files: which copy, which era, which config; samples and losses of what was read."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.comparison import Frozen
from tests.interop.dalle2_pytorch import prior_reference as reference
from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.era import (
    detect_era,
    parse_version,
    resolve_version,
    semantics_of,
)
from unclip_jax.interop.dalle2_pytorch.prior import ImportedPrior, import_prior, open_prior
from unclip_jax.interop.dalle2_pytorch.prior_loss import prior_loss
from unclip_jax.interop.dalle2_pytorch.prior_sampling import (
    TextCondition,
    best_of,
    ddim_steps,
    draw_noise,
    make_sampler,
    sample_best,
)
from unclip_jax.interop.dalle2_pytorch.schedule import make_noise_schedule
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.torch_archive import write_torch_archive

Arrays = dict[str, np.ndarray]


@cache
def frozen(name: str) -> tuple[Frozen, dict[str, Any], int]:
    """A frozen run, its config, and how many of its draws are DDIM's."""
    run = Frozen(f"dalle2_prior_{name}")
    config = json.loads(str(run["config"]))
    return run, config, config.pop("n_ddim_draws")


def state() -> Arrays:
    return dict(frozen("x0")[0].arrays())


def without(arrays: Arrays, *starts: str) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.startswith(starts)}


def as_former(arrays: Arrays) -> Arrays:
    """The same tensors under the names that they had before 1.9.0."""
    kept = without(arrays, "net.null_")
    return kept | {"net.null_text_embed": arrays["net.null_text_encodings"]}


@cache
def imported(name: str) -> ImportedPrior:
    run, config, _ = frozen(name)
    return import_prior(run.arrays(), config | {"cond_drop_prob": 0.1})


def texts(run: Frozen) -> TextCondition:
    return TextCondition(jnp.asarray(run["in/text_embed"]), jnp.asarray(run["in/enc"]))


# Samples and losses


@pytest.mark.parametrize("name", ["x0", "eps"])
def test_ddim_and_ddpm_follow_the_frozen_trajectories(name: str) -> None:
    run, _, draws = frozen(name)
    noise = np.stack([run[f"noise/{i}"] for i in range(110)])
    prior, text = imported(name), texts(run)
    with jax.default_matmul_precision("highest"):
        sample, steps = make_sampler(prior, num_steps=10, reference_compat=True)
        assert steps.num_draws == draws and len(steps.times) == 9
        ddim = sample(prior.params, text, jnp.asarray(noise[:draws]))
        np.testing.assert_allclose(ddim, run["out/ddim10"], atol=1e-5)
        sample, steps = make_sampler(prior)
        ddpm = sample(prior.params, text, jnp.asarray(noise[draws : draws + steps.num_draws]))
        np.testing.assert_allclose(ddpm, run["out/ddpm"], atol=1e-4)
        if name == "x0":
            # Without the wrong index it is another trajectory, from T - 1 and in all ten calls.
            sample, steps = make_sampler(prior, num_steps=10)
            assert list(steps.times) == [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]
            corrected = sample(prior.params, text, jnp.asarray(noise[: steps.num_draws]))
            assert np.abs(corrected - ddim).max() > 1e-3


@pytest.mark.parametrize("name", ["x0", "eps"])
def test_the_loss_equals_the_frozen_one(name: str) -> None:
    run, prior = frozen(name)[0], imported(name)
    embed = run["in/image_embed"].copy()
    arguments: Any = (embed, texts(run), run["in/t"].astype(np.int32), run["in/noise"])
    with jax.default_matmul_precision("highest"):
        loss = jax.jit(lambda params: prior_loss(prior, params, *arguments))(prior.params)
    np.testing.assert_allclose(loss, run["out/loss"], rtol=1e-5)
    np.testing.assert_array_equal(embed, run["in/image_embed"])


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "l1"},
        {"loss_type": "huber", "predict_x_start": False, "beta_schedule": "linear"},
        {"predict_v": True, "beta_schedule": "sigmoid", "image_embed_scale": 3.0},
        {"training_clamp_l2norm": True, "condition_on_text_encodings": False},
    ],
)
def test_losses_equal_the_package(options: dict[str, Any]) -> None:
    import torch

    net = {**reference.NET, "num_timesteps": 24}
    job = {"net": net, "prior": {"timesteps": 24, **options}}
    theirs, arrays = reference.make_prior(reference.package_or_skip(), job)
    given = reference.inputs(net, 24)
    embed, noise = given["self_cond"] / 4, reference.numbers((2, 16), "loss")
    prior = import_prior(arrays, {"prior": {"net": net, **job["prior"]}})
    text = {"text_embed": torch.from_numpy(given["text_embed"])}
    if options.get("condition_on_text_encodings", True):
        text["text_encodings"] = torch.from_numpy(given["encodings"])
    scaled = torch.from_numpy(embed) * theirs.image_embed_scale
    with torch.no_grad():
        times = torch.from_numpy(given["t"]).long()
        expected = theirs.p_losses(scaled, times, text_cond=text, noise=torch.from_numpy(noise))
    ours = TextCondition(given["text_embed"], given["encodings"])
    with jax.default_matmul_precision("highest"):
        loss = jax.jit(lambda params: prior_loss(prior, params, embed, ours, given["t"], noise))(
            prior.params
        )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_reference_spaces_its_steps_in_float32() -> None:
    """Whole numbers are cut from float32, where 64 / 14 * 7 is not 32."""
    schedule = make_noise_schedule("cosine", 64)
    times = ddim_steps(schedule, 13, reference=semantics_of((1, 1, 0))).times
    assert list(times[:8]) == [59, 54, 50, 45, 41, 36, 31, 27]


def test_the_corrected_ddim_keeps_the_variance_and_the_reference_does_not() -> None:
    """Of standard normal data, whose best x_0 is sqrt(abar) x: the variance is 1 at every level."""
    schedule = make_noise_schedule("cosine", 200)

    def variance(reference_compat: bool) -> float:
        reference = semantics_of((1, 15, 6)) if reference_compat else None
        steps = ddim_steps(schedule, 199, eta=0.0, reference=reference)
        v = 1.0
        for time, signal, fresh, kept in zip(
            steps.times, steps.signal, steps.fresh, steps.kept, strict=True
        ):
            a = schedule.sqrt_alphas_cumprod[time]
            s = schedule.sqrt_one_minus_alphas_cumprod[time]
            # x_0 = a x and noise = (x - a a x) / s = s x.
            v = v * (signal * a + kept * s) ** 2 + fresh**2
        return v

    assert abs(variance(False) - 1) < 0.013  # steps of finite length: (pi / 2)^2 / 199
    assert abs(variance(True) - 1) > 0.04


def test_best_of_n_is_the_nearest_to_the_text() -> None:
    text = jnp.eye(2, 3)
    embeds = jnp.array([[[1, 1, 0], [9, 1, 0]], [[0, 1, 0], [0, 9, 8]]], jnp.float32)
    np.testing.assert_array_equal(best_of(text, embeds), [[9, 1, 0], [0, 1, 0]])


def test_a_caption_is_sampled_alike_in_any_batch() -> None:
    run, prior = frozen("x0")[0], imported("x0")
    sampler, text = make_sampler(prior, num_steps=3), texts(run)
    key = jax.random.key(5)
    together = sample_best(prior, sampler, text, key, 2)
    alone = sample_best(prior, sampler, TextCondition(text.embed[:1], text.encodings[:1]), key, 2)  # pyright: ignore
    assert together.shape == (3, 32)
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)
    noise = draw_noise(key, 4, 3, 5)
    np.testing.assert_array_equal(noise[:, :2], draw_noise(key, 4, 2, 5))
    assert len(np.unique(noise)) == noise.size


def test_sampling_refuses_what_has_no_meaning() -> None:
    run, config, _ = frozen("x0")
    with pytest.raises(UserError, match="without dropping"):
        make_sampler(import_prior(run.arrays(), config), cond_scale=2.0)
    former = import_prior(as_former(state()), config | {"cond_drop_prob": 0.1}, era="legacy")
    with pytest.raises(UserError, match=r"before 1\.9\.0"):
        make_sampler(former, cond_scale=2.0)
    with pytest.raises(UserError, match="choose 1 to 100"):
        make_sampler(imported("x0"), num_steps=101)
    sample, _ = make_sampler(imported("x0"), num_steps=3)
    with pytest.raises(UserError, match="the noise has shape"):
        sample(imported("x0").params, texts(run), jnp.zeros((2, 3, 32)))
    jsd = {f"noise_scheduler.{k}": v for k, v in make_noise_schedule("jsd", 100).buffers().items()}
    without_signal = import_prior(state() | jsd, {"net": config["net"], "predict_x_start": False})
    with pytest.raises(UserError, match="no signal"):
        make_sampler(without_signal)


# Eras


def test_eras() -> None:
    current, former = {"null_text_embeds", "null_text_encodings"}, {"null_text_embed"}
    assert detect_era(current) == "current"
    assert detect_era(current, "1.15.6") == "current"
    assert detect_era(former) is None
    assert detect_era(former, "1.4.2") == "legacy"
    assert detect_era(former, "1.1") == "legacy"
    assert detect_era(former, "1.4.3") == detect_era(former, "1.6.0") == "current"
    assert parse_version("v1.10.0+cpu") == (1, 10, 0)
    assert resolve_version(former, "1.1.0", "legacy", "F") == (1, 1, 0)
    assert semantics_of((1, 4, 2)).attention == "dot"
    assert semantics_of((1, 4, 3)).attention == "cosine"
    assert semantics_of((0, 23, 2)).bias_scale == 8 * semantics_of((0, 23, 3)).bias_scale == 1024


@pytest.mark.parametrize(
    ("keys", "recorded", "named", "message"),
    [
        ("null_text_embed", None, None, "name the era"),
        ("null_text_embed", None, "current", "1.8 or earlier"),
        ("null_text_embed", None, "1.15.6", "1.8 or earlier"),
        ("null_text_embeds", None, "legacy", "1.9.0 or later"),
        ("null_text_embeds", None, "1.1", "1.9.0 or later"),
        ("null_text_embeds", "1.1.0", None, "it records 1.1.0"),
        ("null_text_embed", "1.1.0", "1.6.0", "computes something else"),
        ("null_text_embed", None, "0.15.4", "older than 0.23.2"),
        ("null_text_embed", None, "newest", "'newest' is unknown"),
        ("null_text_embeds", None, "9.9.9", "newer than 1.15.6"),
        ("something", None, "legacy", "no prior"),
    ],
)
def test_eras_that_contradict_the_file_are_refused(
    keys: str, recorded: str | None, named: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        semantics_of(resolve_version({keys}, recorded, named, "F"))
    assert "\n" not in str(caught.value)


def test_the_era_is_asked_for_and_changes_the_network() -> None:
    former = as_former(state())
    with pytest.raises(UserError, match="name the era"):
        import_prior(former)
    legacy, middle = (import_prior(former, era=era) for era in ("1.1", "1.6.0"))
    assert legacy.config.net.semantics.attention == "dot"
    assert middle.config.net.semantics.attention == "cosine"
    with pytest.raises(UserError, match=r"1\.9\.0 or later"):
        import_prior(state(), era="legacy")


# Files


def test_the_network_is_inferred() -> None:
    run, config, _ = frozen("x0")
    told, inferred = import_prior(run.arrays(), config), import_prior(run.arrays())
    assert told.config.net == inferred.config.net
    assert (inferred.schedule.name, inferred.schedule.timesteps) == ("cosine", 100)
    net = {"net": {**config["net"], "self_cond": True, "ff_dropout": 0.05, "normformer": False}}
    assert import_prior(run.arrays(), {"prior": net}).config.net.self_cond


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": {"depth": 3}}, "depth 3, but the tensors say 2"),
        ({"net": {"num_timesteps": None}}, "num_timesteps None"),
        ({"net": {"ff_mult": 2}}, "ff_mult"),
        ({"net": {"dept": 2}}, "'dept'"),
        ({"net": {}, "timesteps": 50}, "timesteps 50"),
        ({"net": {}, "beta_schedule": "linear"}, "beta_schedule linear"),
        ({"net": {}, "image_embed_dim": 768}, "image_embed_dim 768"),
        ({"net": {}, "sample_steps": 10}, "'sample_steps'"),
        ({"net": {}, "loss_type": "l3"}, "'l3'"),
    ],
)
def test_a_config_of_another_prior_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_prior(state(), change)


def test_dumps_of_trainers_and_trackers() -> None:
    online = state()
    average = {
        name: array + ("net." in name and "freqs" not in name) for name, array in online.items()
    }
    average = {name: array.astype(np.float32) for name, array in average.items()}
    dump = {
        "model": online | {"clip.visual.proj": np.zeros(3)},
        "ema": {f"ema_model.{k}": v for k, v in average.items()}
        | {f"online_model.{k}": v for k, v in online.items()}
        | {"initted": np.ones(1), "step": np.ones(1)},
        "ema_model": average,
        "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
        "version": "1.15.6",
        "step": np.ones(1),
    }
    flat = {f"{part}.{k}": v for part in ("model", "ema_model") for k, v in dump[part].items()}
    nested_average = {"ema_model": dump["ema"]}
    for checkpoint, place in (
        (dump, "ema_model"),
        (flat, "ema_model"),
        (nested_average, "ema_model.ema_model"),
    ):
        prior = import_prior(checkpoint)
        assert (prior.weights, prior.place) == ("ema", place)
        np.testing.assert_array_equal(prior.params["learned_query"], average["net.learned_query"])
    prior = import_prior(dump, weights="online")
    assert (prior.weights, prior.place) == ("online", "model")
    np.testing.assert_array_equal(prior.params["learned_query"], online["net.learned_query"])
    tracked = {
        "version": "1.15.6",
        "config": {"prior": {"net": {}, "timesteps": 100}},
        "model": online,
    }
    assert import_prior(tracked).config.text_cond_drop_prob == 0
    whole = {f"prior.{name}": array for name, array in online.items()} | {"decoder.x": np.ones(1)}
    assert import_prior(whole).place == "prior"
    with pytest.raises(UserError, match="only online weights"):
        import_prior(online, weights="ema")
    with pytest.raises(UserError, match="no prior"):
        import_prior({"unet.weight": np.ones(3)})


def test_a_wrong_missing_or_surplus_tensor_is_named() -> None:
    whole, name = state(), "net.causal_transformer.layers.1.0.to_q.weight"
    with pytest.raises(UserError, match="1 missing"):
        import_prior(without(whole, name))
    with pytest.raises(UserError, match="1 misshapen"):
        import_prior(whole | {name: np.ones((32, 31), np.float32)})
    with pytest.raises(UserError, match="1 surplus"):
        import_prior(whole | {"net.extra": np.ones(3)})
    with pytest.raises(UserError, match=r"belong to nothing known \(extra\)"):
        import_prior(whole | {"extra": np.ones(3)})
    run, config, _ = frozen("x0")
    first = [name for name in whole if name.startswith("net.") and ".layers.1." not in name]
    for lost in first:  # with a config, nothing that is lost is taken for an option
        with pytest.raises(UserError, match=r"missing|lacks|no prior|the config says"):
            import_prior(without(run.arrays(), lost), config)
    freqs = "net.causal_transformer.layers.1.0.rotary_emb.freqs"
    with pytest.raises(UserError, match="a rotation with theta"):
        import_prior(whole | {freqs: whole[freqs] * np.float32(1.1)})
    with pytest.raises(UserError, match=r"lacks .*freqs"):
        import_prior(without(whole, freqs))
    betas = whole["noise_scheduler.betas"] * np.float32(1.1)
    with pytest.raises(UserError, match="the betas of"):
        import_prior(whole | {"noise_scheduler.betas": betas})


def test_a_folder_with_weights_and_a_config(tmp_path: Path) -> None:
    run, config, _ = frozen("x0")
    tree = {"model": from_arrays(run.arrays()), "version": "1.15.6"}
    write_torch_archive(tmp_path / "latest.pth", tree)
    text = json.dumps({"prior": config | {"cond_drop_prob": 0.2}, "data": {}, "train": {}})
    (tmp_path / "prior_config.json").write_text(text)
    prior = open_prior(tmp_path)
    assert prior.config.text_cond_drop_prob == 0.2 and prior.version == (1, 15, 6)
    expected = imported("x0").params["learned_query"]
    np.testing.assert_array_equal(prior.params["learned_query"], expected)
    (tmp_path / "prior_config.json").write_text("{")
    with pytest.raises(UserError, match=r"prior_config\.json cannot be read"):
        open_prior(tmp_path / "latest.pth")
