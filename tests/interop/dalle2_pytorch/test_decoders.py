"""Decoders: configs, files, losses and samples against frozen and live runs of the package."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.comparison import assert_same_trees, error, random_params, run
from tests.interop.dalle2_pytorch import unet_reference as reference
from tests.interop.dalle2_pytorch.unet_runs import (
    FrozenRuns,
    decoder_loss_and_norm,
    decoder_samples,
)
from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.decoder import Decoder, export_decoder, import_decoder
from unclip_jax.interop.dalle2_pytorch.decoder_checkpoint import find_decoder, load_decoder
from unclip_jax.interop.dalle2_pytorch.decoder_conditioning import resized
from unclip_jax.interop.dalle2_pytorch.decoder_config import decoder_config
from unclip_jax.interop.dalle2_pytorch.decoder_loss import decoder_loss, draw_loss
from unclip_jax.interop.dalle2_pytorch.decoder_sampling import (
    KeyNoise,
    plan_steps,
    sample,
    thresholded,
)
from unclip_jax.interop.dalle2_pytorch.unet import abstract_params
from unclip_jax.interop.tensors import from_arrays

NAMES = list(reference.DECODERS)
PICTURES = 1e-4
"""Largest difference of a pixel, as trajectories amplify rounding."""


@cache
def frozen() -> FrozenRuns:
    return FrozenRuns()


@cache
def imported(name: str) -> Decoder:
    arrays = reference.weights(frozen().shapes(f"decoder/{name}"))
    return import_decoder(from_arrays(arrays), reference.DECODERS[name])


@cache
def inputs(name: str) -> dict[str, np.ndarray]:
    return reference.decoder_inputs(reference.DECODERS[name])


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient(name: str) -> None:
    found = decoder_loss_and_norm(imported(name), inputs(name))
    expected = frozen().outputs(f"decoder/{name}")
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("learned", "sample"),
        ("learned", "inpainted"),
        ("dynamic", "sample"),
        ("dynamic", "inpainted"),
        ("cascade", "guided"),
    ],
)
def test_samples(name: str, kind: str) -> None:
    """DDPM with a learned variance, DDIM with noise and a dynamic threshold, a cascade."""
    found = decoder_samples(imported(name), inputs(name), kind)
    assert np.abs(found - frozen().outputs(f"decoder/{name}")[kind]).max() < PICTURES


def test_ddim_ends_at_a_picture() -> None:
    """The package's ends at t = 0, where noise is left, and leaves [0, 1]."""
    package = frozen().outputs("decoder/dynamic")["sample"]
    assert package.max() > 1.01
    found = decoder_samples(
        imported("dynamic"), inputs("dynamic"), "sample", reference_compat=False
    )
    assert found.min() >= 0
    assert found.max() <= 1
    assert error(found, package) > 1e-3


def test_corrected_loss_differs_where_the_package_is_wrong() -> None:
    """The bound's mean with a predicted velocity."""
    decoder, given = imported("dynamic"), inputs("dynamic")
    draws = draw_loss(decoder.config, 0, jax.random.key(0), 2)

    def losses(params: Any) -> list[jax.Array]:
        return [
            decoder_loss(
                decoder.config,
                0,
                params,
                jnp.asarray(given["image"]),
                draws,
                image_embed=jnp.asarray(given["image_embed"]),
                reference_compat=compat,
            )
            for compat in (False, True)
        ]

    corrected, package = run(losses, decoder.params[0])
    assert abs(float(corrected) - float(package)) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_comes_back_from_its_own_export(name: str) -> None:
    decoder = imported(name)
    exported = export_decoder(decoder)
    again = import_decoder(exported, reference.DECODERS[name])
    assert again.config == decoder.config
    assert_same_trees(list(again.params), list(decoder.params))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    decoder = imported("dynamic")
    keys, embed = jax.random.split(jax.random.key(1), 3), jnp.asarray(reference.numbers((3, 12)))

    def make(params: Any) -> tuple[jax.Array, jax.Array]:
        one = replace(decoder, params=params)
        return (
            sample(one, KeyNoise(keys), image_embed=embed),
            sample(one, KeyNoise(keys[1:2]), image_embed=embed[1:2]),
        )

    several, alone = run(make, decoder.params)
    np.testing.assert_allclose(several[1:2], alone, atol=2e-5)
    assert error(several[:1], alone) > 1e-2


def test_every_random_choice_of_training_is_drawn() -> None:
    entry = {**reference.DECODERS["cascade"], "random_crop_sizes": [None, 8]}
    config = decoder_config(entry)
    params = random_params(abstract_params(config.stages[1].unet))
    image = jnp.asarray(inputs("cascade")["image"])

    def losses(params: Any, key: jax.Array) -> jax.Array:
        draws = draw_loss(config, 1, key, 2)
        assert draws.noise.shape == (2, 8, 8, 3)
        return decoder_loss(config, 1, params, image, draws)

    assert np.isfinite(run(losses, params, jax.random.key(0)))


def test_config_is_what_the_cascade_makes_of_it() -> None:
    config = decoder_config({"decoder": reference.DECODERS["cascade"], "seed": 1, "train": {}})
    first, second = (stage.unet for stage in config.stages)
    assert (first.cond_on_image_embeds, second.cond_on_image_embeds) == (True, False)
    assert (first.lowres_cond, second.lowres_cond) == (False, True)
    assert (first.lowres_noise_cond, second.lowres_noise_cond) == (False, True)
    assert [stage.beta_schedule for stage in config.stages] == ["cosine", "linear"]
    learned = decoder_config(reference.DECODERS["learned"])
    assert learned.stages[0].unet.channels_out == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_sizes": [8]}, "one of image_size and image_sizes"),
        ({"unknown_option": 1}, "'unknown_option' is unknown"),
        ({"unets": []}, "no `unets`"),
        ({"loss_type": "l3"}, "l1, l2, huber"),
        ({"sample_timesteps": 13}, "sample_timesteps 13"),
        ({"vae": [{}]}, "VAE"),
        ({"predict_v": [True, True]}, "2 entries for 1"),
    ],
)
def test_configs_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decoder_config({**reference.DECODERS["dynamic"], **change})


def test_tables_must_be_the_configs() -> None:
    tensors, entry = export_decoder(imported("cascade")), reference.DECODERS["cascade"]
    with pytest.raises(UserError, match="schedule of 30 steps"):
        import_decoder(tensors, {**entry, "beta_schedule": "cosine"})
    with pytest.raises(UserError, match="another p2 weight"):
        import_decoder(tensors, {**entry, "p2_loss_weight_gamma": 1.0})


def test_other_tensors_are_named() -> None:
    tensors, entry = export_decoder(imported("learned")), reference.DECODERS["learned"]
    other = from_arrays({"clip.visual": np.zeros(1)})
    import_decoder({**tensors, **other}, entry)
    with pytest.raises(UserError, match="latent diffusion"):
        import_decoder({**tensors, **from_arrays({"vaes.0.x": np.zeros(1)})}, entry)
    with pytest.raises(UserError, match="no decoder has"):
        import_decoder({**tensors, **from_arrays({"net.x": np.zeros(1)})}, entry)
    with pytest.raises(UserError, match="no stage for"):
        import_decoder({**tensors, **from_arrays({"unets.1.x": np.zeros(1)})}, entry)


def test_averages_take_the_place_of_weights() -> None:
    tensors, entry = export_decoder(imported("learned")), reference.DECODERS["learned"]
    dump = {f"model.{name}": tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if name.startswith("unets."):
            averaged = from_arrays({"it": tensor.read() * 2})["it"]
            dump[f"ema.{name.removeprefix('unets.').replace('.', '.ema_model.', 1)}"] = averaged
    online = find_decoder(dump, "online", what="it")
    averaged = find_decoder(dump, what="it")
    assert online.keys() == averaged.keys() == tensors.keys()
    name = "unets.0.to_out.weight"
    np.testing.assert_array_equal(averaged[name].read(), 2 * online[name].read())
    import_decoder(averaged, entry)
    with pytest.raises(UserError, match="no averaged weights"):
        find_decoder(tensors, "ema", what="it")


def test_gradient_is_finite_where_the_package_has_none() -> None:
    """At t = 0 a variance far below the schedule's overflows the bound's other term."""
    decoder, given = imported("learned"), inputs("learned")
    params = {**decoder.params[0], "out": jax.tree.map(lambda a: a * 30, decoder.params[0]["out"])}
    given = {**given, "t": np.array([0, 0], np.int32)}
    loose = replace(decoder, params=(params,))
    assert np.isfinite(decoder_loss_and_norm(loose, given)["grad_norm"])


def test_numbers_that_the_rules_fix() -> None:
    x = jnp.arange(8.0).reshape(1, 1, 8, 1).repeat(8, axis=1)
    assert resized(x, 4)[0, 0, :, 0].tolist() == [0, 2, 4, 6]
    config = replace(decoder_config(reference.DECODERS["dynamic"]), use_dynamic_thres=True)
    values = jnp.array([-3, -1, 0.5, 2]).reshape(1, 2, 2, 1)
    expected = [-1, -0.35088, 0.17544, 0.70175]
    np.testing.assert_allclose(thresholded(config, values).ravel(), expected, atol=1e-5)
    assert plan_steps(1000, 250).t.tolist()[-2:] == [7, 3]
    assert plan_steps(1000, 250).t_next[-1] == -1
    assert plan_steps(1000, 250, reference_compat=True).t_next[-1] == 0


@pytest.mark.parametrize("kind", ["tracker", "raw"])
def test_a_file_of_the_package_and_back(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.interop.dalle2_pytorch.test_unets import current_package

    package = current_package()
    entry = reference.DECODERS["cascade"]
    module, state = reference.make_decoder(package, entry)
    file = {"version": "1.15.6", "config": {"decoder": entry}, "model": module.state_dict()}
    torch.save(file if kind == "tracker" else file["model"], tmp_path / "latest.pth")
    decoder = load_decoder(tmp_path / "latest.pth", None if kind == "tracker" else entry)
    exported = {
        name: torch.from_numpy(np.array(t.read())) for name, t in export_decoder(decoder).items()
    }
    module.load_state_dict(exported, strict=True)
    for name, array in state.items():
        if name.startswith("unets."):
            np.testing.assert_array_equal(exported[name].numpy(), array)


def test_live_loss_and_samples() -> None:
    from tests.interop.dalle2_pytorch.test_unets import current_package

    package = current_package()
    entry = {
        "unets": [reference.SMALLEST | {"self_cond": True, "cond_dim": 6}],
        "image_size": 8,
        "timesteps": 40,
        "sample_timesteps": 5,
        "beta_schedule": "sigmoid",
        "predict_x_start": True,
        "ddim_sampling_eta": 1.0,
        "p2_loss_weight_gamma": 1.0,
        "p2_loss_weight_k": 0.5,
        "learned_variance": True,
        "auto_normalize_img": True,
    }
    module, state = reference.make_decoder(package, entry)
    given = {**reference.decoder_inputs(entry), "t": np.array([1, 30], np.int32)}
    expected = reference.run_decoder(package, module, given)
    decoder = import_decoder(from_arrays(state), entry)
    found = decoder_loss_and_norm(decoder, given)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    for kind in ("guided", "inpainted"):
        assert np.abs(decoder_samples(decoder, given, kind) - expected[kind]).max() < PICTURES
