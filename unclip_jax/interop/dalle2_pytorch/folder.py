"""DALLE2-pytorch's priors and decoders as folders of this package, and as its own files again.

    config.json                 {"format": 1, "network": "dalle2_prior", "config": {...}, ...}
    model.safetensors           float32 or bfloat16, names as in the parameter tree; a decoder's
                                begin with `unet0/`, `unet1/` ...
    noise_schedule.safetensors  of a prior: its schedule's tables, float32 as in the file

The config says what the version that wrote the weights computed, so reading needs no version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np

from unclip_jax.bounded import read_json
from unclip_jax.config import Dtype, from_dict, to_dict
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.interop.dalle2_pytorch import prior as priors
from unclip_jax.interop.dalle2_pytorch import unet as unets
from unclip_jax.interop.dalle2_pytorch.decoder import Decoder, export_decoder
from unclip_jax.interop.dalle2_pytorch.decoder_checkpoint import load_decoder
from unclip_jax.interop.dalle2_pytorch.decoder_config import DecoderConfig
from unclip_jax.interop.dalle2_pytorch.era import parse_version
from unclip_jax.interop.dalle2_pytorch.prior import ImportedPrior, export_prior, open_prior
from unclip_jax.interop.dalle2_pytorch.prior_config import PriorConfig
from unclip_jax.interop.dalle2_pytorch.schedule import matching_schedule
from unclip_jax.interop.key_map import same
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.safetensors_file import open_safetensors, write_safetensors
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.torch_archive import write_torch_archive
from unclip_jax.interop.transfer import import_params
from unclip_jax.training.weights import flatten

Weights = Literal["ema", "online"]
Kind = Literal["dalle2_prior", "dalle2_decoder"]
FORMAT = 1
_CONFIGS = ("decoder_config.json", "config.json")
"""What a decoder's config beside its weights is called."""


def convert_dalle2(
    kind: str,
    source: Path,
    folder: Path,
    *,
    config: Path | None = None,
    version: str | None = None,
    weights: Weights | None = None,
    dtype: Dtype = "float32",
) -> str:
    """Write a file of DALLE2-pytorch as the folder described above.

    Args:
        kind: dalle2_prior or dalle2_decoder.
        source: the file, or a folder with it.
        config: its JSON config; None takes what is in the file or beside it.
        version: the version that wrote it, or legacy or current, where the file does not tell.
        weights: which copy; None takes the averaged one where there is one.
    Returns:
        One line: what it is, which weights, and what era's arithmetic.
    Raises:
        UserError: the file does not fit, or its era has to be said; then nothing is written.
    """
    if kind == "dalle2_prior":
        prior = open_prior(source, config, era=version, weights=weights)
        save_dalle2(prior, folder, dtype, source=source.name)
        depth, width = prior.config.net.depth, prior.config.net.dim
        said = (
            f"diffusion prior, {depth} layers of width {width}: {prior.weights} weights, "
            f"{describe_era(prior)}"
        )
        if prior.has_config:
            return said
        return said + (
            "; no config was found, so the package's defaults are assumed for what no tensor tells "
            "(predicts x_0, no clamp, scale sqrt(dim)): name one with --config if it was otherwise"
        )
    decoder, kept = open_decoder(source, config, version=version, weights=weights)
    save_dalle2(decoder, folder, dtype, source=source.name, weights=kept)
    sizes = ", ".join(str(stage.image_size) for stage in decoder.config.stages)
    return f"decoder of {sizes} pixels: {kept} weights, {describe_era(decoder)}"


def open_decoder(
    source: Path,
    config: Path | None = None,
    *,
    version: str | None = None,
    weights: Weights | None = None,
) -> tuple[Decoder, Weights]:
    """A decoder from its file, and which copy of its weights that is.

    Args:
        config: its JSON; None takes what is in the file, else `decoder_config.json` or
            `config.json` beside it.
        version, weights: as for `convert_dalle2`.
    """
    opened = open_file(source)
    entry = decoder_entry(source, config)
    decoder = load_decoder(source, entry, version=version, weights=weights)
    has_averages = weights != "online" and any(name.startswith("ema.") for name in opened.tensors)
    return decoder, "ema" if has_averages else "online"


def decoder_entry(source: Path, config: Path | None = None) -> Mapping[str, Any] | None:
    """A decoder's JSON config as it stands in `config`, in its file or beside it; None: nowhere."""
    opened = open_file(source)
    entry: Any = opened.tree.get("config") if isinstance(opened.tree, Mapping) else None
    if config is None and entry is None:
        beside = (opened.path.parent / name for name in _CONFIGS)
        config = next((path for path in beside if path.is_file()), None)
    try:
        if config is not None:
            entry = config.read_text(encoding="utf-8")
        entry = json.loads(entry) if isinstance(entry, str) else entry
    except (OSError, ValueError) as error:
        raise UserError(
            f"{config or source}: the config cannot be read ({error}): give the decoder's JSON"
        ) from error
    return entry if isinstance(entry, Mapping) else None


def save_dalle2(
    network: ImportedPrior | Decoder,
    folder: Path,
    dtype: Dtype = "float32",
    *,
    source: str = "",
    weights: Weights = "online",
) -> None:
    """Write the folder described above.

    Args:
        source: name of the file it comes from.
        weights: of a decoder; a prior says it itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"weights": weights}
    if isinstance(network, ImportedPrior):
        version = ".".join(map(str, network.version))
        facts = {"weights": network.weights, "place": network.place, "version": version}
        tables = network.schedule.buffers()
        shapes = {name: table.shape for name, table in tables.items()}
        path = folder / "noise_schedule.safetensors"
        write_safetensors(path, shapes, tables.items(), np.dtype(np.float32))
        leaves = flatten(network.params)
    else:
        leaves = flatten(_numbered(network.params))
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    arrays = ((name, np.asarray(leaf)) for name, leaf in leaves.items())
    write_safetensors(folder / "model.safetensors", shapes, arrays, kind)
    data = {
        "format": FORMAT,
        "network": "dalle2_prior" if isinstance(network, ImportedPrior) else "dalle2_decoder",
        "source": source,
        **facts,
        "config": to_dict(network.config),
    }
    text = json.dumps(data, indent=1) + "\n"
    write_whole(folder / "config.json", text.encode())


def load_dalle2(folder: str | Path) -> ImportedPrior | Decoder:
    """What `convert_dalle2` wrote, with float32 parameters.

    Raises:
        UserError: no such folder, or files that are damaged or do not fit each other.
    """
    folder = Path(folder)
    path, weights = folder / "config.json", folder / "model.safetensors"
    try:
        data = read_json(path)
        kind, found, config = data["network"], data["format"], data["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): name a folder that `unclip convert` wrote"
        ) from error
    if kind not in get_args(Kind) or found != FORMAT:
        raise UserError(
            f"{path} has a {kind} of format {found}: this reads a DALLE2-pytorch prior or decoder "
            f"of format {FORMAT}"
        )
    if kind == "dalle2_decoder":
        cascade = from_dict(DecoderConfig, config, f"{path}: ")
        shapes = _numbered([unets.abstract_params(stage.unet) for stage in cascade.stages])
        params = _read(weights, shapes)
        return Decoder(cascade, tuple(params[name] for name in shapes))
    prior = from_dict(PriorConfig, config, f"{path}: ")
    tables = open_safetensors(folder / "noise_schedule.safetensors")
    arrays = {name: tensor.read() for name, tensor in tables.items()}
    schedule = matching_schedule(arrays, what=str(folder / "noise_schedule.safetensors"))
    if (schedule.name, schedule.timesteps) != (prior.beta_schedule, prior.timesteps):
        raise UserError(
            f"{folder} has the tables of another noise schedule than its config says: convert the "
            "file again"
        )
    kept: Weights = "ema" if data.get("weights") == "ema" else "online"
    version, place = parse_version(str(data.get("version"))), str(data.get("place"))
    params = _read(weights, priors.abstract_params(prior.net))
    return ImportedPrior(prior, schedule, params, version, kept, place)


def export_dalle2(network: str | Path | ImportedPrior | Decoder, path: Path) -> None:
    """Write the state dict that DALLE2-pytorch's `load_state_dict` takes, strictly, as a .pth.

    Args:
        network: a folder of ours, or what `load_dalle2` returns; without its CLIP.
        path: where; `torch.load(path, weights_only=True)` reads it.
    Raises:
        UserError: a decoder of before 1.10, which the package computes differently today.
    """
    if not isinstance(network, ImportedPrior | Decoder):
        network = load_dalle2(network)
    if isinstance(network, ImportedPrior):
        write_torch_archive(path, from_arrays(export_prior(network)))
    else:
        write_torch_archive(path, export_decoder(network))


def describe_era(network: ImportedPrior | Decoder) -> str:
    """Whose arithmetic it is, in words."""
    if isinstance(network, ImportedPrior):
        attention = network.config.net.semantics.attention
        return f"DALLE2-pytorch {'.'.join(map(str, network.version))} ({attention} attention)"
    era = network.config.stages[0].unet.era
    if era.transposed_upsample:
        return "DALLE2-pytorch before 0.21"
    if not era.squared_attention_scale:
        return "DALLE2-pytorch before 1.4.3"
    return f"DALLE2-pytorch {'1.10 or later' if era.unshuffled_downsample else '1.4.3 to 1.9'}"


def _numbered(params: Any) -> dict[str, Any]:
    return {f"unet{number}": tree for number, tree in enumerate(params)}


def _read(weights: Path, abstract: Any) -> Any:
    key_map = [entry for name in flatten(abstract) for entry in same(name, name)]
    return import_params(key_map, open_safetensors(weights), abstract, what=str(weights))
