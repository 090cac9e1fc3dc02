"""Peak memory of converting Karlo at its full size, stage by stage, with random weights.

    python benchmarks/import_memory.py [--stages prior decoder upsampler_256] [--folder FOLDER]

Writes a folder in diffusers' layout with the published shapes (4 to 5 GB for a stage, deleted
afterwards), runs `unclip convert` on it in a process of its own, and prints that process' peak
resident memory beside the bytes of the stage. JAX and CLIP's text encoder, which is converted
first, are in it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unclip_jax.config import DataConfig
from unclip_jax.interop.karlo.configs import upsampler_recipe
from unclip_jax.interop.karlo.keys import decoder_keys, prior_keys, upsampler_keys
from unclip_jax.interop.key_map import KeyMap
from unclip_jax.interop.safetensors_file import write_safetensors
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import flatten

WIDTHS = [320, 640, 960, 1280]
PRIOR = PriorConfig(
    transformer=TransformerConfig(width=2048, depth=20, heads=32),
    embedding_scale=1.0,
    is_whitened=True,
)
DECODER = DecoderConfig(
    unet=UNetConfig(channels=320, context_width=1536),
    text=None,
    embedding_scale=1.0,
    null_embedding="learned",
    masks_padding=True,
)
UPSAMPLER = UNetConfig(
    image_size=256,
    in_channels=6,
    out_channels=3,
    channels=320,
    attention_resolutions=(),
    has_middle_attention=False,
    time_norm="additive",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", nargs="+", default=["prior", "decoder", "upsampler_256"])
    parser.add_argument("--folder", default=None, help="where the 10 GB of a stage go")
    options = parser.parse_args()
    print("| stage | parameters | bytes | peak resident | ratio | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for stage in options.stages:
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            source = Path(place) / "karlo"
            count = _write(source, stage)
            began = time.monotonic()
            peak = _convert(source, Path(place) / "ours", stage)
            print(
                f"| {stage} | {count:,} | {4 * count / 1e9:.2f} GB | {peak / 1e9:.2f} GB | "
                f"{peak / (4 * count):.2f} | {time.monotonic() - began:.0f} |",
                flush=True,
            )


def _write(folder: Path, stage: str) -> int:
    """The stage with random weights, a small text encoder, and their configs; its parameters."""
    _text_encoder(folder)
    if stage == "prior":
        recipe: Recipe = PriorRecipe(clip="", model=PRIOR)
        parts = {"prior": ("", prior_keys(PRIOR, "diffusers"))}
        _json(
            folder / "prior" / "config.json",
            {
                "num_attention_heads": 32,
                "attention_head_dim": 64,
                "num_layers": 20,
                "embedding_dim": 768,
                "num_embeddings": 77,
            },
        )
    elif stage == "decoder":
        diffusion = DiffusionConfig(variance="learned_range")
        data = DataConfig(image_size=64)
        recipe = DecoderRecipe(clip="", model=DECODER, diffusion=diffusion, data=data)
        keys = decoder_keys(DECODER, "diffusers")
        parts = {name: (f"{name}.", keys) for name in ("decoder", "text_proj")}
        _unet_json(folder / "decoder", DECODER.unet)
        _json(
            folder / "text_proj" / "config.json",
            {
                "clip_embeddings_dim": 768,
                "clip_extra_context_tokens": 4,
                "cross_attention_dim": 1536,
                "time_embed_dim": 1280,
            },
        )
    else:
        recipe = upsampler_recipe(UPSAMPLER, DiffusionConfig())
        parts = {"super_res_first": ("", upsampler_keys(UPSAMPLER, "diffusers"))}
        _unet_json(folder / "super_res_first", UPSAMPLER)
    abstract = flatten(jax.eval_shape(lambda: init_params(recipe, jax.random.key(0))))
    for name, (prefix, keys) in parts.items():
        _weights(folder / name, prefix, keys, abstract, has_statistics=stage == "prior")
        scheduler = {"prediction_type": "sample" if stage == "prior" else "epsilon"}
        variance = "learned_range" if stage == "decoder" else "fixed_small_log"
        for kind in ("prior", "decoder", "super_res"):
            path = folder / f"{kind}_scheduler" / "scheduler_config.json"
            _json(path, {**scheduler, "variance_type": variance})
    return sum(int(np.prod(leaf.shape)) for leaf in abstract.values())


def _weights(
    folder: Path, prefix: str, keys: KeyMap, abstract: dict[str, Any], *, has_statistics: bool
) -> None:
    """Random numbers in the shapes that the key map writes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in keys:
        # Layouts only look at axes: a view of one number stands for the parameter.
        leaf = np.broadcast_to(np.float32(0), abstract[entry.target].shape)
        for name, part in zip(entry.sources, entry.layout.write(leaf), strict=True):
            if name.startswith(prefix):
                shapes[name.removeprefix(prefix)] = part.shape
    if has_statistics:
        shapes |= {"clip_mean": (1, 768), "clip_std": (1, 768)}
    random = np.random.default_rng(0)
    arrays = ((n, 0.5 + 0.1 * random.random(s, np.float32)) for n, s in shapes.items())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "diffusion_pytorch_model.safetensors"
    write_safetensors(path, shapes, arrays, np.dtype(np.float32))


def _text_encoder(folder: Path) -> None:
    """CLIP's text encoder of ViT-L/14, in full."""
    from unclip_jax.data.tokenizer import clip_tokenizer
    from unclip_jax.interop.clip import abstract_params
    from unclip_jax.interop.clip_export import export_hf_clip
    from unclip_jax.models.clip import CLIPConfig

    tower = TransformerConfig(width=768, depth=12, heads=12, activation="quick_gelu")
    config = CLIPConfig(embedding_width=768, vision=None, text=tower)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(config))
    export_hf_clip(config, params, clip_tokenizer(), folder / "text_encoder")


def _unet_json(folder: Path, unet: UNetConfig) -> None:
    attends = [unet.attends(level) for level in range(len(unet.channel_mult))]
    kinds = {True: "SimpleCrossAttn{}Block2D", False: "Resnet{}sampleBlock2D"}
    _json(
        folder / "config.json",
        {
            "block_out_channels": WIDTHS,
            "layers_per_block": 3,
            "sample_size": unet.image_size,
            "in_channels": unet.in_channels,
            "out_channels": unet.out_channels,
            "norm_num_groups": 32,
            "attention_head_dim": 64,
            "cross_attention_dim": unet.context_width,
            "class_embed_type": "identity" if unet.context_width else None,
            "down_block_types": [kinds[does].format("Down") for does in attends],
            "up_block_types": [kinds[does].format("Up") for does in reversed(attends)],
            "resnet_time_scale_shift": "scale_shift" if unet.context_width else "default",
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"
            if unet.context_width
            else "UNetMidBlock2D",
            "add_attention": False,
        },
    )


def _json(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def _convert(source: Path, target: Path, stage: str) -> int:
    """Peak resident bytes of `unclip convert`."""
    program = (
        "import resource, sys\n"
        "from unclip_jax.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", program, "convert", str(source), str(target)]
    done = subprocess.run([*command, "--stages", stage], capture_output=True, text=True)
    shutil.rmtree(source)
    if done.returncode:
        raise SystemExit(done.stderr)
    kilobytes = int(done.stdout.splitlines()[-1])
    return kilobytes * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
