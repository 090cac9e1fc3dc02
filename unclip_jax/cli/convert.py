"""unclip convert SOURCE FOLDER: a PyTorch checkpoint as a folder of this package."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unclip_jax.cli.overrides import parse
from unclip_jax.errors import UserError
from unclip_jax.files import missing


@dataclass(frozen=True)
class ConvertOptions:
    """Reads a PyTorch checkpoint without torch and without unpickling, and checks every name and
    shape before anything is written. Karlo, Kandinsky's priors and CLIPs become model folders, for
    `sample.py --model FOLDER`, `UnCLIP.load(FOLDER)` or a recipe's `clip`; other networks become
    folders for `unclip_jax.interop.network_folder.load_network`, those of DALLE2-pytorch for
    `unclip_jax.interop.dalle2_pytorch.folder.load_dalle2`."""

    source: str
    """A file (.safetensors, .pt, .pth, .ckpt, .bin), or a folder in the layout of diffusers,
    Hugging Face, OpenCLIP or Karlo's own files."""
    folder: str
    """Where the result goes."""
    format: Literal[
        "auto", "karlo", "clip", "noised_clip", "glide", "adm", "dalle2_prior", "dalle2_decoder"
    ] = "auto"
    """What it is; auto looks into it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored weights."""
    stages: tuple[str, ...] = ()
    """Karlo: only these of prior, decoder, upsampler_256, upsampler_256_last; the CLIP always
    comes."""
    clip: str | None = None
    """Karlo's own files: the CLIP's folder or file, where it does not lie beside them."""
    coefficients: Literal["original", "diffusers"] = "original"
    """Karlo: the sampler's arithmetic. original is float64 and clips the prior at 10; diffusers
    repeats the rounding of its float32 tables, to compare with it."""
    tokenizer: str | None = None
    """CLIP, Karlo: folder of the vocabulary, if that is neither OpenAI's nor beside the weights."""
    clip_model: str | None = None
    """A CLIP's bare state dict: openai, or a model of OpenCLIP such as ViT-H-14."""
    vision_heads: int | None = None
    """A CLIP's bare state dict: attention heads of the image encoder."""
    text_heads: int | None = None
    """A CLIP's bare state dict, GLIDE: attention heads of the text encoder."""
    activation: Literal["gelu", "quick_gelu"] | None = None
    """A CLIP's bare state dict: of its MLPs."""
    prior_heads: int | None = None
    """Karlo's own files: attention heads of the prior; None is one for 64 channels."""
    head_channels: int | None = None
    """U-Nets without a config: channels of an attention head; None is the published 64."""
    heads: int | None = None
    """U-Nets without a config: attention heads at every level, instead of --head-channels."""
    groups: int = 32
    """U-Nets without a config: groups of the norms."""
    image_size: int | None = None
    """U-Nets without a config: side of the pictures; None is the published one."""
    attention_order: Literal["legacy", "new"] | None = None
    """ADM that is not a published one: how its attention is packed, head by head or [Q | K | V]."""
    depth: int | None = None
    """ADM's classifiers: residual blocks of a level, where the names leave it open."""
    config: str | None = None
    """DALLE2-pytorch: the JSON config that lies beside the weights, if it is not in the file."""
    era: str | None = None
    """DALLE2-pytorch: legacy or current, or the version that wrote the file, such as 1.4.2, where
    the file does not say. Before 1.4.3 the same names mean other networks."""
    weights: Literal["ema", "online"] | None = None
    """DALLE2-pytorch: which copy of the weights; None takes the averaged one where there is one."""


def main(arguments: Sequence[str]) -> int:
    """Writes the folder; returns the exit code."""
    options = parse(ConvertOptions, arguments, default=None, program="unclip convert")
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.interop.detect import detect

    source, folder = Path(options.source).expanduser(), Path(options.folder).expanduser()
    if not source.exists():
        raise UserError(f"{source} {missing(source)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name a new folder")
    began = time.monotonic()
    kind = detect(source) if options.format == "auto" else options.format
    print(f"{source} is {kind}", flush=True)
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        partial.chmod(0o755)  # mkdtemp's is for the owner alone
        _write(options, kind, source, partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}): name another folder") from error
    finally:  # what was interrupted or did not fit leaves nothing behind
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{size / 1e6:.1f} MB in {folder} ({time.monotonic() - began:.0f} s)")
    return 0


def _write(options: ConvertOptions, kind: str, source: Path, folder: Path) -> None:
    if kind == "karlo":
        _karlo(options, source, folder)
    elif kind == "clip":
        _clip(options, source, folder)
    elif kind in ("glide", "adm"):
        _network(options, kind, source, folder)
    elif kind == "noised_clip":
        _noised_clip(options, source, folder)
    else:
        _dalle2(options, kind, source, folder)


def _karlo(options: ConvertOptions, source: Path, folder: Path) -> None:
    from unclip_jax.interop.karlo.source import open_karlo

    model = open_karlo(
        source,
        clip=_path(options.clip),
        tokenizer=_path(options.tokenizer),
        coefficients=options.coefficients,
        prior_heads=options.prior_heads,
        heads=_heads(options),
        image_size=options.image_size,
    )
    odd = sorted(set(options.stages) - set(model.stages))
    if odd:
        raise UserError(f"{source} has no {odd[0]}: it has {', '.join(model.stages)}")
    if options.stages:
        model = model.only(set(options.stages))
    model.write(folder, options.dtype)
    print(f"stages: clip, {', '.join(model.stages)}")


def _clip(options: ConvertOptions, source: Path, folder: Path) -> None:
    from unclip_jax.interop.clip import import_clip
    from unclip_jax.interop.clip_stage import clip_stage
    from unclip_jax.interop.clip_state_dict import StateDictOptions
    from unclip_jax.training.weights import save_stage

    given = StateDictOptions(
        options.clip_model, options.vision_heads, options.text_heads, options.activation
    )
    tokenizer = _path(options.tokenizer)
    stage = clip_stage(import_clip(source, tokenizer=tokenizer, options=given))
    save_stage(stage, folder / "clip", options.dtype)
    print(f"stages: clip ({stage.clip_id})")


def _network(options: ConvertOptions, kind: str, source: Path, folder: Path) -> None:
    from unclip_jax.interop.adm import ADMOptions, infer_adm
    from unclip_jax.interop.glide import IGNORED, GlideOptions, glide_key_map, infer_glide
    from unclip_jax.interop.network_folder import ForeignNetwork
    from unclip_jax.interop.open_file import open_file

    tensors, what = open_file(source).tensors, str(source)
    if kind == "glide":
        given = GlideOptions(_heads(options), options.text_heads, options.image_size)
        config = infer_glide(tensors, given, what=what)
        network = ForeignNetwork(config, glide_key_map(config), tensors, what, IGNORED)
    else:
        order, size, depth = options.attention_order, options.image_size, options.depth
        found = infer_adm(tensors, ADMOptions(_heads(options), order, size, depth), what=what)
        network = ForeignNetwork(found.network, found.key_map(), tensors, what)
    network.write(folder, options.dtype)


def _noised_clip(options: ConvertOptions, source: Path, folder: Path) -> None:
    from unclip_jax.interop.noised_clip_stage import noised_clip_stage
    from unclip_jax.training.weights import save_stage

    stage = noised_clip_stage(source, options.vision_heads, options.text_heads)
    save_stage(stage, folder / "noised_clip", options.dtype)
    print("stages: noised_clip")


def _dalle2(options: ConvertOptions, kind: str, source: Path, folder: Path) -> None:
    from unclip_jax.interop.dalle2_pytorch.folder import convert_dalle2

    said = convert_dalle2(
        kind,
        source,
        folder,
        config=_path(options.config),
        version=options.era,
        weights=options.weights,
        dtype=options.dtype,
    )
    print(said)


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given).expanduser()


def _heads(options: ConvertOptions) -> Any:
    from unclip_jax.interop.infer_unet import HeadOptions

    return HeadOptions(options.head_channels, options.heads, options.groups)
