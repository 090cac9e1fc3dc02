"""Runs of DALLE2-pytorch itself, of any release, with numbers that need no file.

Weights, inputs and noise come from `numpy.random.RandomState`, whose streams never change; a frozen
run therefore is its configuration, the shapes of its tensors and its outputs. The frozen runs of
tests/golden/dalle2_unets.npz were written by

    PYTHONPATH=.:RELEASE python tests/interop/dalle2_pytorch/unet_reference.py VERSION OUT.npz

with RELEASE the unpacked wheel of that version (0.15.4, 1.1.0, 1.6.0, 1.15.6), and joined.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import zlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

Arrays = dict[str, np.ndarray]

TINY = {
    "dim": 8,
    "image_embed_dim": 12,
    "cond_dim": 10,
    "dim_mults": [1, 2],
    "num_resnet_blocks": 1,
    "attn_dim_head": 4,
    "attn_heads": 2,
    "max_text_len": 5,
    "resnet_groups": 4,
    "cond_on_image_embeds": True,
}
TEXT = {"text_embed_dim": 6, "cond_on_text_encodings": True}
SIDE, BATCH = 8, 2


def numbers(shape: tuple[int, ...], *seed: Any) -> np.ndarray:
    """Standard normal float32, the same for the same seeds for ever."""
    state = np.random.RandomState(zlib.crc32(json.dumps(seed).encode()))
    return state.standard_normal(shape).astype(np.float32)


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Arrays:
    """Tensors that keep activations near 1: gains around 1, kernels by their fan-in."""

    def one(name: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = numbers(shape, seed, name)
        if name.endswith((".g", ".gamma")) or (len(shape) == 1 and name.endswith("weight")):
            return (1 + 0.3 * normal).astype(np.float32)
        if name.endswith(".beta"):
            return np.zeros(shape, np.float32)
        if len(shape) == 1:
            return 0.1 * normal
        if name.startswith("unets.") and name.endswith("to_out.weight"):
            normal *= 0.3  # trajectories of a wild network amplify rounding
        fan_in = 1 if "null" in name else int(np.prod(shape[1:]))
        return normal / np.float32(fan_in**0.5)

    return {name: one(name, tuple(shape)) for name, shape in shapes.items()}


def unet_inputs(config: dict[str, Any], seed: int = 0) -> Arrays:
    """What any U-Net may be given; pictures NHWC, the second text shorter than the first."""
    channels = config.get("channels", 3)
    picture = (BATCH, SIDE, SIDE, channels)
    encodings = numbers((BATCH, 4, config.get("text_embed_dim") or 6), seed, "text")
    encodings[1, 2:] = 0
    inputs = {
        "x": numbers(picture, seed, "x"),
        "t": np.array([3, 640], np.int32),
        "image_embed": numbers((BATCH, config["image_embed_dim"]), seed, "embed"),
        "text_encodings": encodings,
        "lowres_image": numbers(picture, seed, "lowres"),
        "lowres_noise_level": np.array([20, 700], np.int32),
        "self_cond": numbers(picture, seed, "self"),
    }
    wanted = {"x", "t"} | {
        name
        for name, option in (
            ("image_embed", "cond_on_image_embeds"),
            ("text_encodings", "cond_on_text_encodings"),
            ("lowres_image", "lowres_cond"),
            ("lowres_noise_level", "lowres_noise_cond"),
            ("self_cond", "self_cond"),
        )
        if config.get(option)
    }
    return {name: array for name, array in inputs.items() if name in wanted}


def import_package() -> Any:
    """The package; torchvision's CPU wheel lacks two operators that it only names."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_package.library = library  # pyright: ignore[reportFunctionMemberAccess]
    from dalle2_pytorch import dalle2_pytorch

    return dalle2_pytorch


def fill(module: Any, prefix: str = "unets.", seed: int = 0) -> Arrays:
    """Puts `weights` into a Unet or a Decoder; returns its whole state dict."""
    import torch

    state = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    fixed = ("noise_schedulers.", "lowres_conds.")
    shapes = {name: a.shape for name, a in state.items() if not name.startswith(fixed)}
    state |= weights(shapes, seed)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return state


def to_torch(array: np.ndarray) -> Any:
    """Pictures become NCHW."""
    import torch

    array = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.long() if tensor.dtype == torch.int32 else tensor


def from_torch(tensor: Any) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def run_unet(unet: Any, inputs: Arrays) -> Arrays:
    """Outputs: plain, with everything dropped, and guided with scale 3."""
    import torch

    given = {name: to_torch(array) for name, array in inputs.items()}
    renames = {"lowres_image": "lowres_cond_img"}
    given = {renames.get(name, name): value for name, value in given.items()}
    given.setdefault("image_embed", None)
    if "text_encodings" in given and not hasattr(unet, "text_embed_dim"):
        given["text_mask"] = (given["text_encodings"] != 0).any(-1)  # before 0.23 an argument
    x, t = given.pop("x"), given.pop("t")
    with torch.no_grad():
        outputs = {
            "plain": unet(x, t, **given),
            "dropped": unet(x, t, **given, image_cond_drop_prob=1.0, text_cond_drop_prob=1.0),
            "guided": unet.forward_with_cond_scale(x, t, cond_scale=3.0, **given),
        }
    return {name: from_torch(output) for name, output in outputs.items()}


@contextlib.contextmanager
def given_noise(seed: int = 0) -> Iterator[list[np.ndarray]]:
    """torch's Gaussians come from `numbers`; yields them as they are drawn, NHWC."""
    import torch

    drawn: list[np.ndarray] = []

    def draw(shape: Any, **_: Any) -> Any:
        batch, channels, *size = shape
        drawn.append(numbers((batch, *size, channels), seed, "noise", len(drawn)))
        return to_torch(drawn[-1])

    with (
        mock.patch.object(torch, "randn", draw),
        mock.patch.object(torch, "randn_like", lambda x, **_: draw(x.shape)),
    ):
        yield drawn


FROZEN: dict[str, dict[str, dict[str, Any]]] = {
    "0.15.4": {
        "text": {
            **TINY,
            **TEXT,
            "self_attn": [False, True],
            "sparse_attn": True,
            "memory_efficient": True,
        },
        "lowres": {
            **TINY,
            "lowres_cond": True,
            "nearest_upsample": True,
            "num_resnet_blocks": [1, 2],
        },
    },
    "1.1.0": {
        "text": {
            **TINY,
            **TEXT,
            "self_attn": [False, True],
            "sparse_attn": True,
            "memory_efficient": True,
        },
        "lowres": {
            **TINY,
            "lowres_cond": True,
            "lowres_noise_cond": True,
            "combine_upsample_fmaps": True,
            "resnet_groups": 8,
            "init_cross_embed": False,
            "cond_on_image_embeds": False,
        },
    },
    "1.6.0": {"sparse": {**TINY, "sparse_attn": True, "pixel_shuffle_upsample": False}},
    "1.15.6": {
        "text": {
            **TINY,
            **TEXT,
            "self_attn": [False, True],
            "sparse_attn": True,
            "memory_efficient": True,
        },
        "many": {
            **TINY,
            "combine_upsample_fmaps": True,
            "resnet_groups": 8,
            "resnet_weight_standardization": True,
            "self_cond": True,
            "lowres_cond": True,
            "lowres_noise_cond": True,
            "cosine_sim_self_attn": True,
            "cosine_sim_cross_attn": True,
            "cross_embed_downsample": True,
            "scale_skip_connection": True,
        },
    },
}
"""Runs that the tests know without the package."""


SMALLEST = {**TINY, "dim_mults": [1]}
_DECODER = {"image_size": SIDE, "timesteps": 12, "learned_variance": False}
DECODERS: dict[str, dict[str, Any]] = {
    "learned": {
        **_DECODER,
        "unets": [SMALLEST | TEXT | {"self_cond": True}],
        "predict_x_start": True,
        "learned_variance": True,
        "p2_loss_weight_gamma": 0.5,
        "loss_type": "huber",
    },
    "dynamic": {
        **_DECODER,
        "unets": [SMALLEST],
        "predict_v": True,
        "use_dynamic_thres": True,
        "ddim_sampling_eta": 0.7,
        "sample_timesteps": 4,
        "loss_type": "l1",
        "learned_variance": True,
        "learned_variance_constrain_frac": True,
    },
    "cascade": {
        "unets": [SMALLEST, SMALLEST],
        "image_sizes": [SIDE, 2 * SIDE],
        "timesteps": 30,
        "sample_timesteps": [3, 2],
        "learned_variance": False,
        "use_noise_for_lowres_cond": True,
        "blur_prob": 1.0,
        "blur_sigma": 0.8,
        "blur_kernel_size": 5,
        "predict_x_start": [True, False],
    },
}
"""Decoders whose runs are frozen, by the current release."""
GUIDANCE = 2.0
REPEATS = 2
KEPT = np.array([True, False])
"""Whose conditions are kept in the loss."""


def decoder_inputs(entry: dict[str, Any]) -> Arrays:
    """Images in [0, 1], conditions, timesteps and noise levels; what to keep is the left half."""
    side = entry.get("image_size") or entry["image_sizes"][-1]
    encodings = unet_inputs({**TINY, **TEXT})["text_encodings"]
    mask = np.zeros((BATCH, side, side), bool)
    mask[:, :, : side // 2] = True
    return {
        "image": 1 / (1 + np.exp(-numbers((BATCH, side, side, 3), "image"))),
        "image_embed": numbers((BATCH, TINY["image_embed_dim"]), "embed"),
        **({"text_encodings": encodings} if entry["unets"][0].get("text_embed_dim") else {}),
        "t": np.array([0, entry["timesteps"] - 2], np.int32),
        "level": np.array([70, 900], np.int32),
        "mask": mask,
    }


def make_decoder(package: Any, entry: dict[str, Any]) -> tuple[Any, Arrays]:
    """A decoder of a config, filled, and its state dict."""
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
    unets = [
        package.Unet(**{key: tuple(v) if isinstance(v, list) else v for key, v in unet.items()})
        for unet in options.pop("unets")
    ]
    decoder = package.Decoder(tuple(unets), **options)
    return decoder, fill(decoder)


def run_decoder(package: Any, decoder: Any, inputs: Arrays) -> Arrays:
    """Loss and gradient norm of the last U-Net with every coin showing True, and samples.

    Outputs: loss, grad_norm, sample, guided (scale 2) and, of one U-Net, inpainted.
    """
    import torch

    given = {name: to_torch(array) for name, array in inputs.items()}
    conditions = {name: given[name] for name in ("image_embed", "text_encodings") if name in given}
    integers = [given["t"], given["level"]]
    package_random = mock.patch.object(package.random, "random", return_value=0.0)
    masks = mock.patch.object(
        package,
        "prob_mask_like",
        lambda shape, prob, device: (
            torch.from_numpy(KEPT) if 0 < prob < 1 else torch.full(shape, prob == 1)
        ),
    )
    randint = mock.patch.object(torch, "randint", side_effect=integers)
    with package_random, masks, randint, given_noise():
        count = len(decoder.unets)
        loss = decoder(given["image"].float(), unet_number=count, **conditions)
    loss.backward()
    squares = [(p.grad**2).sum() for p in decoder.parameters() if p.grad is not None]
    outputs = {
        "loss": loss.detach().numpy(),
        "grad_norm": torch.stack(squares).sum().sqrt().numpy(),
    }

    def sample(**options: Any) -> np.ndarray:
        with given_noise(), contextlib.redirect_stderr(io.StringIO()):
            return from_torch(decoder.sample(**conditions, **options))

    outputs["sample"] = sample()
    outputs["guided"] = sample(cond_scale=GUIDANCE)
    if count == 1:
        outputs["inpainted"] = sample(
            inpaint_image=given["image"].float(),
            inpaint_mask=given["mask"],
            inpaint_resample_times=REPEATS,
        )
    return outputs


def main(version: str, path: str) -> None:
    package = import_package()
    arrays = {}
    for name, config in FROZEN[version].items():
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
        unet = package.Unet(**options)
        shapes = {key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()}
        fill(unet)
        arrays[f"{version}/{name}/shapes"] = np.array(json.dumps(shapes))
        for output, array in run_unet(unet, unet_inputs(config)).items():
            arrays[f"{version}/{name}/{output}"] = array
    for name, entry in DECODERS.items() if version == "1.15.6" else ():
        decoder, state = make_decoder(package, entry)
        shapes = {key: array.shape for key, array in state.items() if key.startswith("unets.")}
        arrays[f"decoder/{name}/shapes"] = np.array(json.dumps(shapes))
        for output, array in run_decoder(package, decoder, decoder_inputs(entry)).items():
            arrays[f"decoder/{name}/{output}"] = array
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
