"""What a picture's file says about how it was made, for people, for tools, and for us.

Facts are the settings that decide a picture, as a dict that JSON can hold. They are written with
the versions of what computes and compresses, so that two files with equal facts have equal bytes
(on one kind of machine): a job that continues after an upgrade draws all pictures anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

KEY = "unclip"
"""Of the text in a PNG that holds the facts as JSON."""
FORMAT = 1
"""Of the facts; a reader refuses another."""
DECIDING = ("unclip_jax", "jax", "jaxlib", "numpy", "pillow")
"""Packages on which the bytes depend."""
_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_COMPOSITES = ("inpaint", "outpaint")
"""Verbs whose pictures hold pixels of the picture that they start from."""
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' xmlns:xmp="http://ns.adobe.com/xap/1.0/" Iptc4xmpExt:DigitalSourceType="{source}"'
    ' xmp:CreatorTool="{tool}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


@cache
def versions() -> dict[str, str]:
    """Of `DECIDING`, as they are installed."""
    found = {}
    for name in DECIDING:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a clone on the path
            found[name] = "unknown"
    return found


def whole_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with format and versions, as they are written."""
    return {**facts, "format": FORMAT, "versions": versions()}


def facts_text(facts: Mapping[str, Any]) -> str:
    """`whole_facts` as JSON; equal facts give equal texts."""
    return utf8_json(whole_facts(facts))


def picture_texts(facts: Mapping[str, Any], width: int, height: int) -> dict[str, str]:
    """The texts of a PNG, in order: the facts, the `parameters` that other tools read, the mark
    that it was generated, and by what."""
    tool = f"unclip_jax {versions()['unclip_jax']}"
    is_composite = facts.get("verb") in _COMPOSITES
    kind = "compositeWithTrainedAlgorithmicMedia" if is_composite else "trainedAlgorithmicMedia"
    return {
        KEY: facts_text(facts),
        "parameters": parameters_text(facts, width, height),
        "XML:com.adobe.xmp": _XMP.format(source=_SOURCE + kind, tool=tool),
        "Software": tool,
    }


def parameters_text(facts: Mapping[str, Any], width: int, height: int) -> str:
    """The settings as stable-diffusion-webui writes them: prompt, negative prompt, and a line of
    `Name: value`, values with commas, colons or line feeds in JSON's quotes."""
    decoder = facts.get("sampling", {}).get("decoder", {})
    weights = facts.get("weights", {})
    settings = {
        "Steps": decoder.get("num_steps"),
        "Sampler": decoder.get("method"),
        "CFG scale": decoder.get("guidance_scale"),
        "Seed": facts.get("seed"),
        "Index": facts.get("index"),
        "Size": f"{width}x{height}",
        "Model hash": weights.get("decoder", "")[:10] or None,
        "Model": facts.get("model") or None,
        "Version": f"unclip_jax {versions()['unclip_jax']}",
    }
    line = ", ".join(f"{k}: {_quoted(v)}" for k, v in settings.items() if v is not None)
    negative = facts.get("negative") or facts.get("edit", {}).get("negative")
    lines = [facts.get("prompt", ""), *([f"Negative prompt: {negative}"] if negative else [])]
    return _utf8("\n".join([*lines, line]))


def _quoted(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return json.dumps(text, ensure_ascii=False) if set(",:\n") & set(text) else text


def utf8_json(value: Any) -> str:
    """JSON that UTF-8 can hold, whatever a prompt holds."""
    return _utf8(json.dumps(value, ensure_ascii=False))


def _utf8(text: str) -> str:
    # A prompt that was no UTF-8 has surrogates, which PNG cannot hold; Python's escapes of them are
    # JSON's.
    return text.encode(errors="backslashreplace").decode()
