"""GLIDE's noised CLIP: a frozen run of the original, other encoders in torch, what is refused."""

from __future__ import annotations

import math
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
    quick,
    run,
)
from unclip_jax.errors import UserError
from unclip_jax.generation.steering import make_clip_steering
from unclip_jax.interop.glide_clip import (
    NoisedCLIPOptions,
    export_noised_clip,
    import_noised_clip,
    infer_noised_clip,
    load_noised_clip,
    noised_clip_key_map,
    noised_clip_shapes,
)
from unclip_jax.interop.safetensors_file import write_safetensors
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.transfer import import_params
from unclip_jax.models.clip import MAX_LOGIT_SCALE, CLIPConfig, normalize
from unclip_jax.models.noised_clip import NoisedCLIP, NoisedCLIPConfig
from unclip_jax.models.transformer import TransformerConfig

OPTIONS = NoisedCLIPOptions(2, 2)
TOWER = TransformerConfig(width=16, depth=2, heads=2)


@cache
def frozen_clip() -> tuple[Frozen, NoisedCLIPConfig, Any]:
    frozen = Frozen("parity_noised_clip")
    image, text = frozen.tensors("image."), frozen.tensors("text.")
    return frozen, *import_noised_clip(image, text, OPTIONS, what="parity_noised_clip")


def both(config: NoisedCLIPConfig) -> Any:
    """(params, picture, t, tokens, last position) → both embeddings as GLIDE takes them."""
    model = NoisedCLIP(config)

    def embed(params: Any, x: Any, t: Any, tokens: Any, last: Any) -> Any:
        image: Any = model.apply({"params": params}, x, t, method=NoisedCLIP.encode_image)
        out: Any = model.apply({"params": params}, tokens, method=NoisedCLIP.encode_text)
        # GLIDE is told where a caption ends; ours ends with its largest id, which these do not.
        text = jnp.take_along_axis(out[1], last[:, None, None], axis=1)[:, 0]
        return image, text @ params["text"]["projection"]["kernel"]

    return embed


@cache
def frozen_embed() -> Any:
    frozen, config, params = frozen_clip()
    inputs = [frozen[f"in/{name}"] for name in ("x", "t", "tokens")]
    return quick(both(config), params, *inputs, frozen["in/length"] - 1)


def frozen_embeddings(params: Any) -> tuple[Any, Any]:
    frozen, _, _ = frozen_clip()
    inputs = [frozen[f"in/{name}"] for name in ("x", "t", "tokens")]
    return frozen_embed()(params, *inputs, frozen["in/length"] - 1)


def test_embeddings_are_glides() -> None:
    frozen, config, params = frozen_clip()
    assert config == NoisedCLIPConfig(
        CLIPConfig(
            20,
            16,
            4,
            TOWER,
            TOWER,
            vocab_size=97,
            context_length=12,
            initial_logit_scale=MAX_LOGIT_SCALE,
        )
    )
    image, text = frozen_embeddings(params)
    assert error(normalize(image), frozen["out/image"]) < TOLERANCE
    assert error(normalize(text), frozen["out/text"]) < TOLERANCE


def test_steering_is_glides() -> None:
    frozen, config, params = frozen_clip()
    text = jnp.asarray(frozen["out/text"])
    steer = make_clip_steering(NoisedCLIP(config), params, text, scale=3.0)
    assert error(run(steer, frozen["in/x"], frozen["in/t"]), frozen["out/gradient"]) < TOLERANCE


def test_export_is_the_two_files_again(tmp_path: Path) -> None:
    frozen, config, params = frozen_clip()
    paths = []
    for name, tensors in zip(("image", "text"), export_noised_clip(config, params), strict=True):
        arrays = frozen.arrays(f"{name}.")
        assert_same_files(tensors, arrays)
        paths.append(tmp_path / f"clip_{name}_enc.safetensors")
        shapes = {key: array.shape for key, array in arrays.items()}
        write_safetensors(paths[-1], shapes, contents(tensors).items(), np.dtype(np.float32))
    again, params = load_noised_clip(paths[0], paths[1], OPTIONS)
    assert again == config
    assert_same_files(export_noised_clip(config, params)[0], frozen.arrays("image."))


def test_what_the_files_cannot_hold_is_refused() -> None:
    _, config, params = frozen_clip()
    with pytest.raises(UserError, match=r"logit_scale is 3, .* it must be ln 100"):
        export_noised_clip(config, params | {"logit_scale": np.float32(3)})
    blocks = params["text"]["transformer"]["blocks"]
    bias = blocks["qkv"]["bias"].copy()
    assert not np.any(bias[:, 16:32])
    bias[1, 20] = 1e-3
    blocks = blocks | {"qkv": blocks["qkv"] | {"bias": bias}}
    changed = params | {"text": params["text"] | {"transformer": {"blocks": blocks}}}
    with pytest.raises(UserError, match="a bias of the keys is not zero"):
        export_noised_clip(config, changed)
    before, after = frozen_embeddings(params), frozen_embeddings(changed)
    assert error(after[1], before[1]) < TOLERANCE  # as the message says


def test_every_tensor_of_the_files_is_read() -> None:
    """Whichever is changed, an output is another."""
    frozen, config, params = frozen_clip()
    before, rng = np.concatenate(frozen_embeddings(params)), np.random.default_rng(0)
    key_map, abstract = noised_clip_key_map(config), noised_clip_shapes(config)
    abstract = {name: tree for name, tree in abstract.items() if name != "logit_scale"}
    arrays = frozen.arrays()
    for name, array in arrays.items():
        noise = rng.standard_normal(array.shape).astype(np.float32)
        changed = from_arrays(arrays | {name: array + noise})
        other = import_params(key_map, changed, abstract, what="files")
        assert error(np.concatenate(frozen_embeddings(params | other)), before) > 1e-4, name


def test_published_sizes() -> None:
    """Of the files, which have no bias on the keys and no temperature."""
    config = NoisedCLIPConfig()
    abstract = noised_clip_shapes(config)
    counts = {
        side: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract[side]))
        for side in ("vision", "text")
    }
    assert counts == {"vision": 86_443_776 + 12 * 768, "text": 71_679_488 + 12 * 512}
    names = [name for entry in noised_clip_key_map(config) for name in entry.sources]
    assert sum(name.startswith("image.") for name in names) == 188
    assert sum(name.startswith("text.") for name in names) == 185


@pytest.mark.parametrize(
    ("widths", "depths", "heads", "patch", "side"),
    [((12, 8), (1, 3), (3, 1), 2, 6), ((128, 64), (2, 1), (None, None), 4, 8)],
)
def test_other_encoders_in_torch(
    widths: tuple[int, int],
    depths: tuple[int, int],
    heads: tuple[int | None, int | None],
    patch: int,
    side: int,
) -> None:
    torch = pytest.importorskip("torch")
    from tests.interop.adm_reference import NoisedEncoder  # imports torch

    image_encoder, text_encoder = (
        NoisedEncoder(width, depth, given or width // 64, seed=width)
        for width, depth, given in zip(widths, depths, heads, strict=True)
    )
    rng = np.random.default_rng(side)
    x = rng.uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    t, tokens, last = np.array([49, 0]), rng.integers(0, 30, (2, 7)), np.array([6, 2])
    image = image_encoder.image(torch.tensor(x).double(), torch.tensor(t), patch, timesteps=50)
    text = text_encoder.text(torch.tensor(tokens), torch.tensor(last), vocab=30)

    files = (image_encoder.state.arrays(), text_encoder.state.arrays())
    config, params = import_noised_clip(
        from_arrays(files[0]), from_arrays(files[1]), NoisedCLIPOptions(*heads), what="files"
    )
    assert (config.num_timesteps, config.clip.image_size) == (50, side)
    for exported, arrays in zip(export_noised_clip(config, params), files, strict=True):
        assert_same_files(exported, arrays)
    found = run(both(config), params, x.transpose(0, 2, 3, 1), t, tokens, last)
    assert error(found[0], image.numpy()) < TOLERANCE
    assert error(found[1], text.numpy()) < TOLERANCE


@pytest.mark.parametrize(
    ("side", "name", "array", "message"),
    [
        ("image", "blocks.input.w_t", None, "no blocks.input.w_t of 2 axes"),
        ("image", "blocks.input.w_pos", np.zeros((16, 16), np.float32), "16 positions"),
        ("image", "blocks.output.f.w", np.zeros((24, 16), np.float32), "not of one CLIP"),
        ("text", "blocks.block_0.f_attn.f_k.b", np.zeros(16, np.float32), "1 surplus"),
        ("text", "blocks.block_1.f_attn.f_q.b", None, "1 missing"),
        ("text", "blocks.block_1.f_attn.f_q.b", np.zeros(15, np.float32), "1 misshapen"),
    ],
)
def test_files_that_do_not_fit(side: str, name: str, array: Any, message: str) -> None:
    frozen, _, _ = frozen_clip()
    files = {key: frozen.arrays(f"{key}.") for key in ("image", "text")}
    files[side] = {k: v for k, v in (files[side] | {name: array}).items() if v is not None}
    image, text = (from_arrays(arrays) for arrays in files.values())
    with pytest.raises(UserError, match=message):
        import_noised_clip(image, text, OPTIONS, what="files")


def test_options_are_checked() -> None:
    frozen, _, _ = frozen_clip()
    image, text = frozen.tensors("image."), frozen.tensors("text.")
    with pytest.raises(UserError, match="swap the two"):
        infer_noised_clip(text, image, OPTIONS, what="files")
    with pytest.raises(UserError, match="not a multiple of 64: give --text-heads"):
        infer_noised_clip(image, text, NoisedCLIPOptions(2), what="files")
    with pytest.raises(UserError, match="--vision-heads is 0"):
        NoisedCLIPOptions(0)
