"""Pictures: what they say about where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unclip_jax.bounded import parse_json
from unclip_jax.data.images import BadImage, decode_image, picture_bytes
from unclip_jax.data.png_chunks import PngChunks, read_png_chunks
from unclip_jax.data.png_text import SIGNATURE
from unclip_jax.errors import UserError
from unclip_jax.inspection.findings import Finding

KEY = "unclip"
"""The text in which this package's pictures say what they were made from."""
_SIGNATURES = {
    SIGNATURE: "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
}
_GENERATED = b"trainedAlgorithmicMedia"
"""IPTC's word for pictures that a model made, in XMP of any format."""
_LONGEST = 2000


def picture_format(start: bytes) -> str | None:
    """By the first bytes of a file."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    return next((name for sign, name in _SIGNATURES.items() if start.startswith(sign)), None)


def look_at_picture(path: Path, verify: bool) -> Finding:
    """A picture: its size, what it was made from if it says so, and other texts in it.

    Args:
        verify: load the model that it names, and compare its weights with those that the picture
            was drawn with.
    Raises:
        UserError: it cannot be read, or is too large.
    """
    data = picture_bytes(path)
    facts: dict[str, Any] = {"format": picture_format(data[:16]), "bytes": len(data)}
    problems: list[str] = []
    try:
        height, width, _ = decode_image(data, name=path.name).shape
        facts["size"] = f"{width} × {height}"
    except BadImage as error:
        problems.append(error.reason)
    chunks = read_png_chunks(data) if facts["format"] == "PNG" else PngChunks()
    if chunks.damage:
        problems.append(chunks.damage)
    made_from = _made_from(chunks.texts)
    facts["origin"] = _origin(data, chunks, made_from)
    if isinstance(made_from, dict):
        facts |= made_from
        if verify:
            problems += _compare_weights(facts, made_from)
    texts = {key: text for key, text in chunks.texts.items() if key != KEY}
    if texts:
        facts["texts in the file"] = {key: text[:_LONGEST] for key, text in texts.items()}
    return Finding("picture", facts, problems=tuple(problems))


def _made_from(texts: dict[str, str]) -> dict[str, Any] | None:
    """What a picture of this package says; None if it is none."""
    try:
        found = parse_json(texts[KEY])
    except (KeyError, ValueError):
        return None
    return found if isinstance(found, dict) and "seed" in found else None


def _origin(data: bytes, chunks: PngChunks, made_from: dict[str, Any] | None) -> str:
    """Who made it, as far as the file says; a file can say anything."""
    if made_from is not None:
        return "says that unclip_jax drew it"
    if "caBX" in chunks.counts:
        return "has Content Credentials (C2PA), which are not read here"
    if _GENERATED in data:
        return "says that a model generated it (IPTC), not which"
    if "parameters" in chunks.texts or "prompt" in chunks.texts:
        return "says that another program generated it, see its texts"
    return "does not say how it was made"


def _compare_weights(facts: dict[str, Any], made_from: dict[str, Any]) -> list[str]:
    """What differs between the stages that a picture names and those of that model here."""
    from unclip_jax.generation.facts import stage_id
    from unclip_jax.generation.model_folder import read_model

    weights, model = made_from.get("weights"), str(made_from.get("model", ""))
    if not isinstance(weights, dict):
        return ["it does not say with which weights it was drawn"]
    # A shipped model or a folder here, by its name: the picture never names a path.
    name = Path(model).name
    try:
        stages, _ = read_model(name, as_stored=True)
    except UserError as error:
        facts["verified"] = f"no, {error}"
        return []
    other = [
        f"stage {stage} of model {name} has other weights here"
        for stage, found in sorted(weights.items())
        if stage not in stages or stage_id(stages[stage]) != found
    ]
    if not other:
        facts["verified"] = f"the weights are those of model {name}"
    return other
