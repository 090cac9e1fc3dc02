"""Which version of DALLE2-pytorch a U-Net was trained with, and what that version computed.

Names and shapes tell a file's age roughly. Within 0.23.3 to 1.9 they do not tell whether it is
older than 1.4.0 or 1.4.3, which changed both attentions: there the version has to be said, it is
never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.era import Version, parse_named_version, parse_version
from unclip_jax.interop.tensors import Tensors

OLDEST: Version = (0, 14)
"""Before it, a U-Net had other skip connections."""
_LEGACY: Version = (1, 3)
"""What `legacy` means for a U-Net: the last before the attentions changed, in 1.4.0 and 1.4.3."""
_LATEST: Version = (9999,)
_NORMS: tuple[Version, Version] = ((0, 16), (0, 23, 3))
"""From the first to before the second, every LayerNorm divided by its largest entry first."""
_PIXEL_SHUFFLE: Version = (0, 21)
_LINEAR_ATTENTION: Version = (1, 4)
_SQUARED_SCALE: Version = (1, 4, 3)
_UNSHUFFLE: Version = (1, 10)
_UNWRAPPED: Version = (1, 14)


@dataclass(frozen=True)
class UnetEra:
    """What changed between releases while tensors kept their names, or changed only their names.

    The defaults are version 1.14.0 and later.
    """

    squared_attention_scale: bool = True
    """Self-attention has the scale 1 / d; since 1.4.3, before it 1 / sqrt(d)."""
    normalized_linear_attention: bool = True
    """Linear attention normalises its values and divides by the area; since 1.4.0."""
    unshuffled_downsample: bool = True
    """Pixel unshuffle and a 1 x 1 convolution; since 1.10.0, before it one of 4 x 4, stride 2."""
    transposed_upsample: bool = False
    """The default upsampling is a transposed 4 x 4 convolution; before 0.21.0."""
    wrapped_cross_attention: bool = False
    """Tensors are named `cross_attn.fn.*`; before 1.14.0."""
    gamma_norms: bool = False
    """LayerNorm gains are named `gamma` and have a constant `beta` beside them; before 0.16.0."""

    @classmethod
    def of(cls, version: Version) -> UnetEra:
        """The era of a release, (1, 1, 0).

        Raises:
            UserError: a release before the present structure, or one whose LayerNorms differ.
        """
        if version < OLDEST or _NORMS[0] <= version < _NORMS[1]:
            raise UserError(
                f"a U-Net of DALLE2-pytorch {_text(version)} computes something else: those of "
                "0.14 and 0.15, and from 0.23.3 on, can be imported"
            )
        return cls(
            squared_attention_scale=version >= _SQUARED_SCALE,
            normalized_linear_attention=version >= _LINEAR_ATTENTION,
            unshuffled_downsample=version >= _UNSHUFFLE,
            transposed_upsample=version < _PIXEL_SHUFFLE,
            wrapped_cross_attention=version < _UNWRAPPED,
            gamma_norms=version < _NORMS[0],
        )


CURRENT_ERA = UnetEra()


def unet_era(
    tensors: Tensors, *, recorded: str | None = None, named: str | None = None, what: str
) -> UnetEra:
    """The era of one U-Net.

    Args:
        tensors: without the prefix `unets.<i>.`.
        recorded: the version that stands in the file.
        named: the version that the user gives, or legacy or current.
        what: how a message calls the file.
    Raises:
        UserError: a version that the tensors contradict, or no version where it is needed.
    """
    first, before, sign = _range(tensors)
    eras = []
    for text, source in ((recorded, "it records"), (named, "you named")):
        if text is None:
            continue
        parse = parse_version if source == "it records" else parse_named_version
        version = _LEGACY if text == "legacy" else parse(text)
        if text == "legacy" and eras and parse_version(recorded or text) < _SQUARED_SCALE:
            continue
        if not first <= version < before:
            bounds = f"{_text(first)} or later" if before == _LATEST else f"before {_text(before)}"
            raise UserError(
                f"{what} was written by DALLE2-pytorch {bounds} ({sign}), but {source} {text}: "
                "correct the era or choose another file"
            )
        eras.append(UnetEra.of(version))
    if len(eras) == 2 and eras[0] != eras[1]:
        raise UserError(
            f"{what} records DALLE2-pytorch {recorded}, which computes something else than the "
            f"{named} that you named: leave the era out"
        )
    if eras:
        return eras[0]
    if first < _SQUARED_SCALE < before:
        raise UserError(
            f"{what} was written by DALLE2-pytorch {_text(first)} to 1.9, which changed its "
            "attention in 1.4 without a trace in the file: name the era (legacy for 1.3 or "
            "earlier, which LAION's decoders are; else the version, such as 1.6.0)"
        )
    return UnetEra.of(first)


def _range(tensors: Tensors) -> tuple[Version, Version, str]:
    """The versions [first, before) that write such tensors, and the sign of it."""

    def some(pattern: str, axes: int | None = None) -> bool:
        return any(
            re.fullmatch(pattern, name) and (axes is None or tensor.shape[2:] == (axes, axes))
            for name, tensor in tensors.items()
        )

    if some(r".*\.gamma"):
        return OLDEST, _NORMS[0], "its norms have a gamma"
    if some(r"ups\.\d+\.3\.weight", 4):
        return OLDEST, _PIXEL_SHUFFLE, "it upsamples by transposed convolutions"
    if not some(r".*\.cross_attn\.fn\..*"):
        return _UNWRAPPED, _LATEST, "its cross-attention is named cross_attn"
    if some(r"downs\.\d+\.[04]\.weight", 4):
        return _NORMS[1], _UNSHUFFLE, "its cross-attention is named cross_attn.fn"
    if some(r"downs\.\d+\.[04]\.1\.weight", 1):
        return _UNSHUFFLE, _UNWRAPPED, "its cross-attention is named cross_attn.fn"
    return _NORMS[1], _UNWRAPPED, "its cross-attention is named cross_attn.fn"


def _text(version: Version) -> str:
    return ".".join(map(str, version))
