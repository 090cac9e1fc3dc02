"""Key maps: which tensors of a foreign file each of our parameters is made of.

A format is a function from its config to a list of entries. The list is data: it is read in one
direction to import and in the other to export, and it can be checked against a file before
anything of it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from unclip_jax.interop.layouts import CONV, DENSE, SAME, Joined, Layout, PerHead, Stacked


@dataclass(frozen=True)
class Entry:
    """One parameter."""

    target: str
    """Its path in our tree, 'unet/conv_in/kernel'."""
    sources: tuple[str, ...]
    """Names in the file."""
    layout: Layout = SAME


KeyMap = list[Entry]


def same(target: str, source: str, layout: Layout = SAME) -> KeyMap:
    """A bare parameter."""
    return [Entry(target, (source,), layout)]


def dense(target: str, source: str, *, bias: bool = True, kernel: Layout = DENSE) -> KeyMap:
    """A Linear, or with another `kernel` layout what is one here."""
    return [
        Entry(f"{target}/kernel", (f"{source}.weight",), kernel),
        *([Entry(f"{target}/bias", (f"{source}.bias",))] if bias else []),
    ]


def conv(target: str, source: str, *, bias: bool = True) -> KeyMap:
    """A Conv2d."""
    return dense(target, source, bias=bias, kernel=CONV)


def norm(target: str, source: str) -> KeyMap:
    """A LayerNorm or GroupNorm with gain and bias."""
    return [
        Entry(f"{target}/scale", (f"{source}.weight",)),
        Entry(f"{target}/bias", (f"{source}.bias",)),
    ]


def packed(target: str, source: str, heads: int, parts: int = 3, kernel: Layout = DENSE) -> KeyMap:
    """A projection whose rows are packed head by head."""
    return [
        Entry(f"{target}/kernel", (f"{source}.weight",), PerHead(heads, parts, kernel)),
        Entry(f"{target}/bias", (f"{source}.bias",), PerHead(heads, parts, SAME)),
    ]


def joined(target: str, sources: Iterable[str], *, bias: bool = True) -> KeyMap:
    """Separate Linears as one, side by side."""
    names = list(sources)
    kernels, biases = (tuple(f"{name}.{part}" for name in names) for part in ("weight", "bias"))
    return [
        Entry(f"{target}/kernel", kernels, Joined(len(names))),
        *([Entry(f"{target}/bias", biases, Joined(len(names), SAME))] if bias else []),
    ]


def under(entries: KeyMap, *, target: str = "", source: str = "") -> KeyMap:
    """The same with prefixes, '/' and '.' included."""
    return [
        replace(
            entry,
            target=target + entry.target,
            sources=tuple(source + name for name in entry.sources),
        )
        for entry in entries
    ]


def stacked(depth: int, layer: Callable[[int], KeyMap]) -> KeyMap:
    """`depth` equal layers, whose entries have the same targets, as one stack each."""
    layers = [layer(i) for i in range(depth)]
    return [
        Entry(
            rows[0].target,
            tuple(name for entry in rows for name in entry.sources),
            Stacked(depth, rows[0].layout, len(rows[0].sources)),
        )
        for rows in zip(*layers, strict=True)
    ]
