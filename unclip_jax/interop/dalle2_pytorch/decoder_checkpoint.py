"""Where in a file of DALLE2-pytorch the decoder is, and what it says about itself.

A file is a decoder's state dict, that of a whole DALLE2 (`decoder.unets...`), a tracker's
{version, config, model}, or a trainer's dump {model, version, ema, ...}. A trainer's moving
averages take the place of the weights they average.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.decoder import Decoder, import_decoder, with_averages
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.tensors import Tensor, Tensors, without_prefix

Weights = Literal["ema", "online"]

_MARK = "unets.0.null_text_embed"


def load_decoder(
    path: Path,
    config: Path | Mapping[str, Any] | None = None,
    *,
    version: str | None = None,
    weights: Weights | None = None,
) -> Decoder:
    """A decoder from its file.

    Args:
        path: of the weights.
        config: `decoder_config.json` or what is in it; None where the file holds it.
        version: of the package that wrote the file, or legacy or current, if the file does not say.
        weights: ema or online; None takes the averaged weights where there are any.
    Raises:
        UserError: no decoder or no config in the file, or what `import_decoder` refuses.
    """
    opened = open_file(path)
    tree = opened.tree if isinstance(opened.tree, Mapping) else {}
    entry = tree.get("config") if config is None else config
    try:
        if isinstance(entry, Path):
            entry = entry.read_text(encoding="utf-8")
        if isinstance(entry, str):
            entry = json.loads(entry)
    except (OSError, ValueError) as error:
        raise UserError(f"{config or path}: the config cannot be read ({error})") from error
    if not isinstance(entry, Mapping):
        raise UserError(f"{path} holds no config: give the decoder_config.json that lies beside it")
    noted = tree.get("version")
    recorded = None if noted is None or isinstance(noted, Tensor) else str(noted)
    tensors = find_decoder(opened.tensors, weights, what=str(path))
    return import_decoder(tensors, entry, recorded=recorded, version=version, what=str(path))


def find_decoder(tensors: Tensors, weights: Weights | None = None, *, what: str) -> Tensors:
    """The decoder's state dict in a file, with names from `unets.0.` on.

    Raises:
        UserError: there is none, or no averages where they are asked for.
    """
    places = [name.removesuffix(_MARK) for name in tensors if f".{name}".endswith(f".{_MARK}")]
    if not places:
        raise UserError(f"{what} holds no decoder of DALLE2-pytorch (no tensor {_MARK})")
    place = min(places, key=len)
    model = without_prefix(tensors, place)
    averages = without_prefix(tensors, "ema.")
    if not place:  # a state dict, which a trainer's dump is not
        model = {name: tensor for name, tensor in model.items() if name not in averages}
    if weights == "ema" and not averages:
        raise UserError(f"{what} holds no averaged weights: take its online weights")
    return with_averages(model, averages) if averages and weights != "online" else model
