"""CLIPs to compare: ours as one compiled function, the same in torch, and inputs for both."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.interop.clip import abstract_params
from unclip_jax.interop.layouts import DENSE
from unclip_jax.models.clip import CLIP, CLIPConfig

TOLERANCE = 1e-5
_kept_alive: list[Any] = []


def live(name: str) -> Any:
    """A package that needs torch, or a skipped test where it is not installed."""
    torch = pytest.importorskip("torch")
    try:
        import_module("torchvision")
    except ImportError:
        pass
    except RuntimeError:
        # A wheel for a torch with another accelerator: its operators are missing, and nothing
        # here calls them. Declared, they let it be imported.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _kept_alive.append(library)
    return pytest.importorskip(name)


def outputs(config: CLIPConfig, params: Any, images: Any, tokens: Any) -> dict[str, np.ndarray]:
    """`image`, `text` (raw embeddings) and `states` of ours; no `image` of a text encoder."""
    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, _compiled(config)(params, images, tokens))


_functions: dict[CLIPConfig, Any] = {}


def _compiled(config: CLIPConfig) -> Any:
    if config not in _functions:

        def run(params: Any, images: Any, tokens: Any) -> dict[str, Any]:
            clip, variables = CLIP(config), {"params": params}
            text, states = clip.apply(variables, tokens, method=CLIP.encode_text)
            out = {"text": text, "states": states}
            if config.vision is not None:
                out["image"] = clip.apply(variables, images, method=CLIP.encode_image)
            return out

        _functions[config] = jax.jit(run)
    return _functions[config]


def inputs(config: CLIPConfig, seed: int, end_of_text: int | None = None) -> tuple[Any, Any]:
    """Pictures in [-1, 1] and rows of ids with an end of text, three of each."""
    rng = np.random.default_rng(seed)
    side, length = config.image_size, config.context_length
    images = rng.uniform(-1, 1, (3, side, side, 3)).astype(np.float32)
    end = config.vocab_size - 1 if end_of_text is None else end_of_text
    tokens = rng.integers(1, min(end, config.vocab_size - 1), (3, length))
    for row, at in zip(tokens, (length - 1, length // 2, 2), strict=True):
        row[at:] = 0
        row[at] = end
    return images, tokens.astype(np.int32)


def normalised(config: CLIPConfig, images: np.ndarray) -> Any:
    """The same pictures as torch's encoders take them: NCHW, with CLIP's mean and deviation."""
    import torch

    mean, std = np.asarray(config.image_mean), np.asarray(config.image_std)
    pixels = ((images.astype(np.float64) + 1) / 2 - mean) / std
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def assert_close(found: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    """Every row to 1e-5 of its norm."""
    for name, wanted in expected.items():
        wanted, got = np.asarray(wanted), found[name]
        assert got.shape == wanted.shape
        for a, b in zip(got, wanted, strict=True):
            assert np.linalg.norm(a - b) <= TOLERANCE * np.linalg.norm(b), name


def is_close(found: dict[str, np.ndarray], expected: dict[str, Any]) -> bool:
    try:
        assert_close(found, expected)
    except AssertionError:
        return False
    return True


def random_params(config: CLIPConfig, seed: int) -> Any:
    """Parameters of which none is zero or one, so that each has an influence."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, shape: Any) -> Any:
        scale = 0.5 / np.sqrt(shape.shape[-2]) if len(shape.shape) > 1 else 0.2
        centre = 1.0 if path[-1].key in ("scale", "logit_scale") else 0.0
        return jnp.asarray(centre + scale * rng.standard_normal(shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def shake(module: Any, seed: int) -> Any:
    """A torch module whose parameters are random, biases and gains included; ready to compare."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn_like(parameter)
            if "norm" in name or ".ln_" in name or name.startswith("ln_"):
                parameter.add_(0.2 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise * 0.7 / parameter.shape[-1] ** 0.5)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.add_(0.1 * noise)
    return module.eval()


def state_arrays(module: Any) -> dict[str, np.ndarray]:
    """A torch module's state dict as numpy arrays."""
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def save_arrays(arrays: dict[str, np.ndarray], path: Path) -> Path:
    """A safetensors file of them."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(x).reshape(x.shape) for name, x in arrays.items()}, path)
    return path


def hf_from_openai(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """OpenAI's state dict in Hugging Face's names, written down independently of the key maps."""
    renamed = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    out = {}
    for name, array in weights.items():
        if name in renamed:
            out[renamed[name]] = array
        elif name in ("visual.proj", "text_projection"):
            own = "visual_projection" if name == "visual.proj" else name
            out[f"{own}.weight"] = DENSE.write(array)[0]
        elif ".resblocks." in name:
            tower = "vision_model" if name.startswith("visual") else "text_model"
            layer, rest = name.split(".resblocks.")[1].split(".", 1)
            base = f"{tower}.encoder.layers.{layer}"
            for old, new in (
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
                ("attn.out_proj", "self_attn.out_proj"),
            ):
                rest = rest.replace(old, new)
            if "in_proj" in rest:
                kind = rest.rpartition("_")[2]
                for part, rows in zip("qkv", np.split(array, 3), strict=True):
                    out[f"{base}.self_attn.{part}_proj.{kind}"] = rows
            else:
                out[f"{base}.{rest}"] = array
        else:
            own = name.replace("visual.ln_pre", "vision_model.pre_layrnorm")
            own = own.replace("visual.ln_post", "vision_model.post_layernorm")
            out[own.replace("ln_final", "text_model.final_layer_norm")] = array
    return out
