"""What can be asked of an edit: plain data, which a command line and a picture's metadata hold.

`unclip_jax.editing.drawing.draw_edit` draws it. An edit and its input pictures, a seed and an index
decide a picture, so that the metadata of one are enough to draw it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from unclip_jax.errors import UserError

Noise = Literal["inverted", "drawn"]
MAX_FRAMES = 1000


@dataclass(frozen=True)
class Vary:
    """Other pictures of the same: the CLIP embedding of a picture decoded again, from its own noise
    and with more (Ramesh et al. 2022, section 3.1)."""

    verb: ClassVar[str] = "vary"
    eta: float = 1.0
    """Noise that the sampler adds: 0 reconstructs the picture, 1 varies it most."""
    noise: Noise = "inverted"
    """What the decoder starts from: the noise that decodes to the picture, or noise of the seed's,
    which keeps nothing but what CLIP saw."""
    caption: str = ""
    """What the decoder reads beside the embedding."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta is {self.eta}: give 0 (reconstruct) to 1 (vary most)")


@dataclass(frozen=True)
class Reconstruct:
    """Pictures inverted and decoded again: what embedding and noise together hold of them (Ramesh
    et al. 2022, section 3)."""

    verb: ClassVar[str] = "reconstruct"


@dataclass(frozen=True)
class Interpolate:
    """From one picture to the next, and the next (Ramesh et al. 2022, section 3.2)."""

    verb: ClassVar[str] = "interpolate"
    frames: int = 9
    """Pictures on the way, the ends included."""
    noise: Noise = "inverted"
    """inverted: of each end, with slerp between, so that the ends reconstruct. drawn: one of the
    seed's for the whole way, so that every seed takes another."""

    def __post_init__(self) -> None:
        _check_frames(self.frames)


@dataclass(frozen=True)
class Diff:
    """A picture led from one description to another by the difference of their text embeddings
    (Ramesh et al. 2022, section 3.3)."""

    verb: ClassVar[str] = "diff"
    to: str = ""
    """What it is to become."""
    from_caption: str = ""
    """What it is (`--from` will do); empty leads towards `to` alone."""
    frames: int = 9
    """Pictures on the way, the picture itself included."""
    theta: float = 0.5
    """How far the last one goes, 0 to 1; the paper takes 0.25 to 0.50."""

    def __post_init__(self) -> None:
        if not self.to.strip():
            raise UserError("to is empty: say what the picture is to become")
        _check_frames(self.frames)
        if not 0 < self.theta <= 1:
            raise UserError(f"theta is {self.theta}: give a number above 0, up to 1")


@dataclass(frozen=True)
class Mix:
    """One picture from several pictures and texts: the weighted mean of their CLIP embeddings."""

    verb: ClassVar[str] = "mix"
    texts: tuple[str, ...] = ()
    """Each becomes an image embedding by the prior."""
    weights: tuple[float, ...] = ()
    """Of the pictures, then of the texts; empty weighs all alike. A negative one leads away."""
    caption: str | None = None
    """What the decoder reads; None is the text, if there is one and no other."""
    negative: str = ""
    """A prompt that guidance leads away from."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(weight) for weight in self.weights) or (
            self.weights and not any(self.weights)
        ):
            raise UserError(f"weights is {self.weights}: give finite numbers, not all of them 0")


@dataclass(frozen=True)
class Components:
    """A picture decoded from ever more principal components of its embedding (Ramesh et al. 2022,
    figure 7). The components are those of the model's autoregressive prior."""

    verb: ClassVar[str] = "pca"
    components: tuple[int, ...] = ()
    """How many are kept in each picture; those beyond what the model has are left out. Empty takes
    the paper's 20, 30, 40, 80, 120, 160, 200, 320 of 320, as shares of what the model has."""

    def __post_init__(self) -> None:
        if any(count < 1 for count in self.components):
            raise UserError(f"components is {self.components}: give numbers of 1 or more")


@dataclass(frozen=True)
class CompareConditioning:
    """The same caption and noise decoded three ways (Ramesh et al. 2022, figure 8): from the
    caption alone, from the text embedding as if it were an image's, from the prior's embedding."""

    verb: ClassVar[str] = "compare-conditioning"
    prompt: str
    """What to draw."""


LatentEdit = Vary | Reconstruct | Interpolate | Diff | Mix | Components | CompareConditioning
"""Edits that choose what the decoder draws from."""


def _check_frames(frames: int) -> None:
    if not 2 <= frames <= MAX_FRAMES:
        raise UserError(f"frames is {frames}: give 2 to {MAX_FRAMES}")
