"""Which version of DALLE2-pytorch a prior was trained with, and what that version computed.

The same tensors mean different networks: version 1.4.3 changed the attention from dot products to
cosines without renaming anything, and 1.9.0 renamed what it had to. Where the names leave it open,
the version has to be said; it is never guessed.

The dates of the changes were read from the released packages, of which one at either side of each
change was compared.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

from unclip_jax.errors import UserError

Era = Literal["legacy", "current"]
Version = tuple[int, ...]

OLDEST: Version = (0, 23, 2)
"""Before it, priors had no learned padding and another text mask."""
NEWEST: Version = (1, 15, 6)
_COSINE: Version = (1, 4, 3)
_NULL_TOKENS: Version = (1, 9, 0)
_NAMED: dict[str, Version] = {"legacy": (1, 4, 2), "current": NEWEST}

_CURRENT_KEY = "null_text_embeds"
_FORMER_KEY = "null_text_embed"


@dataclass(frozen=True)
class Semantics:
    """What a network of one version computes; the defaults are those of 1.12.1 and later."""

    attention: Literal["cosine", "dot"] = "cosine"
    """cosine: 16 times the cosine of query and key. dot: q k^T / sqrt(head width). Until 1.4.2."""
    bias_scale: float = 1.0
    """Factor of the relative position bias: a softmax trick scaled it, until 1.4.2, unnoticed."""
    stable_norms: bool = False
    """Every norm divides by the largest entry first, not only the last one. Until 0.23.2."""
    null_tokens: bool = True
    """There are tokens for a dropped text and a dropped image, so that guidance has an effect."""
    drops_text_embed: bool = True
    """A dropped text drops the pooled embedding too; 1.9.0 to 1.10.3 dropped only the encodings."""
    whole_sinusoids: bool = False
    """Sinusoids of the timestep are cut to whole numbers, as integer tensors were until 1.10.7."""
    self_cond_is_query: bool = False
    """With self-conditioning, a second copy of the image tokens and the self-conditioning token
    stand where the learned query should. Until 1.12.0."""
    ddim_from_zero: bool = False
    """The sampler's step times are spaced from 0 instead of from -1. Until 1.10.2."""
    unclamped_noise: Literal["never", "eps", "always"] = "never"
    """When DDIM takes the noise as it was predicted instead of from the clamped x_0: with every
    objective until 1.10.4, only when noise is predicted until 1.12.2."""


def semantics_of(version: Version) -> Semantics:
    """What `version` computed.

    Raises:
        UserError: a version older than 0.23.2.
    """
    if version < OLDEST:
        raise UserError(
            f"version {_text(version)} of DALLE2-pytorch is older than 0.23.2, whose priors are "
            "the oldest that can be read"
        )
    dot = version < _COSINE
    return Semantics(
        attention="dot" if dot else "cosine",
        bias_scale=(1024.0 if version < (0, 23, 3) else 128.0) if dot else 1.0,
        stable_norms=version < (0, 23, 3),
        null_tokens=version >= _NULL_TOKENS,
        drops_text_embed=version >= (1, 10, 4),
        whole_sinusoids=version < (1, 10, 8),
        self_cond_is_query=version < (1, 12, 1),
        ddim_from_zero=version < (1, 10, 3),
        unclamped_noise=(
            "always" if version < (1, 10, 5) else "eps" if version < (1, 12, 3) else "never"
        ),
    )


def parse_version(text: str) -> Version:
    """'1.4.2' as (1, 4, 2); also 'legacy' (1.4.2) and 'current' (1.15.6).

    Raises:
        UserError: anything else.
    """
    if text in _NAMED:
        return _NAMED[text]
    if not (match := re.fullmatch(r"v?(\d+(?:\.\d+)*)(?:[-+.a-z].*)?", text.strip())):
        raise UserError(
            f"era {text!r} is unknown: give a version of DALLE2-pytorch such as 1.4.2 or 1.15.6, "
            "or legacy or current"
        )
    return tuple(int(part) for part in match[1].split("."))


def parse_named_version(text: str) -> Version:
    """As `parse_version`, of what a user gives: no version that is not there yet."""
    version = parse_version(text)
    if version > NEWEST:
        raise UserError(
            f"era {text!r} is newer than {_text(NEWEST)}, the newest that is known: give the "
            "version that wrote the file, or current"
        )
    return version


def detect_era(names: Container[str], version: str | None = None) -> Era | None:
    """Which attention a prior needs; None where the names alone leave it open.

    Args:
        names: of a prior's network, without 'net.'.
        version: of the package that wrote the file, if known.
    Raises:
        UserError: names that contradict the version, or a prior that is too old.
    """
    if version is None:
        return "current" if _is_current(names, "the file") else None
    found = resolve_version(names, version, None, "the file")
    return "legacy" if found < _COSINE else "current"


def resolve_version(
    names: Container[str], recorded: str | None, named: str | None, what: str
) -> Version:
    """The version whose maths a prior has.

    Args:
        names: of its network, without 'net.'.
        recorded: the version that stands in the file.
        named: the version or era that the user gives, which is needed where nothing else tells.
        what: how a message calls the file.
    Raises:
        UserError: what the user gives contradicts the file, or nothing tells the version.
    """
    is_current = _is_current(names, what)
    given = parse_named_version(named) if named is not None else None
    noted = parse_version(recorded) if recorded is not None else None
    for version, source in ((given, "you named"), (noted, "it records")):
        if version is not None and (version >= _NULL_TOKENS) != is_current:
            shown = named if version is given else recorded
            key, since = (
                (_CURRENT_KEY, "1.9.0 or later") if is_current else (_FORMER_KEY, "1.8 or earlier")
            )
            raise UserError(
                f"{what} was written by DALLE2-pytorch {since} (it has {key}), but {source} {shown}"
                ": correct the era or choose another file"
            )
    if given is not None and noted is not None and semantics_of(given) != semantics_of(noted):
        raise UserError(
            f"{what} records DALLE2-pytorch {_text(noted)}, which computes something else than "
            f"the {named} that you named: leave the era out"
        )
    version = noted or given
    if version is None and not is_current:
        raise UserError(
            f"{what} was written by DALLE2-pytorch 0.23 to 1.8, which changed its attention in "
            "1.4.3 without a trace: name the era (legacy for 1.4.2 or earlier, which LAION's "
            "priors are; else the version, such as 1.6.0)"
        )
    return version or NEWEST


def _is_current(names: Container[str], what: str) -> bool:
    if _CURRENT_KEY in names:
        return True
    if _FORMER_KEY in names:
        return False
    raise UserError(
        f"{what} has neither {_CURRENT_KEY} nor {_FORMER_KEY}: it is no prior of DALLE2-pytorch "
        "0.23.2 or later"
    )


def _text(version: Version) -> str:
    return ".".join(map(str, version))
