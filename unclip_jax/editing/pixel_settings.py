"""What can be asked of an edit that keeps pixels: plain data, as in `settings`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from unclip_jax.errors import UserError

MAX_SIDE = 16384
"""Of a window, and of what an extension adds at a side."""


@dataclass(frozen=True)
class Repainting:
    """What every edit takes that draws beside known pixels."""

    prompt: str = ""
    """What is to be seen there; the prior makes an image embedding of it. Empty draws what goes
    with the photo, by CLIP's embedding of what the first square knows of it."""
    negative: str = ""
    """A prompt that guidance leads away from."""
    window: int | None = None
    """Side in pixels of the squares that the model sees at a time; None chooses, see the verb."""
    resamples: int = 5
    """Times that the decoder walks each stretch of its steps (RePaint). More joins better and takes
    as many times longer; 1 is the plain sampler. A model's stage decoder_inpaint walks once."""
    jump_length: int = 5
    """Steps that it goes back at a time."""
    blend: float = 8.0
    """Pixels of each stage in which what was drawn passes from the photo's tone at the border to
    its own (a screened Poisson problem); 0 leaves it as it was drawn."""

    def __post_init__(self) -> None:
        if self.window is not None and not 8 <= self.window <= MAX_SIDE:
            raise UserError(f"window is {self.window}: give 8 to {MAX_SIDE} pixels")
        for name in ("resamples", "jump_length"):
            if not 1 <= getattr(self, name) <= 100:
                raise UserError(f"{name} is {getattr(self, name)}: give 1 to 100")
        if not (self.blend == 0 or 1 <= self.blend <= 64):  # nan is neither
            raise UserError(f"blend is {self.blend}: give 1 to 64 pixels, or 0 for none")


@dataclass(frozen=True)
class Inpaint(Repainting):
    """A masked part of a photo painted anew; every pixel that is not masked stays the byte it was.

    Without --window the model sees a square around the mask, as large as --context says, and no
    larger than what it draws without enlarging, nor than the photo; a larger mask is painted square
    by square. --upsample names the last upsampler that may be used; None is all that help.
    """

    verb: ClassVar[str] = "inpaint"
    context: float = 2.0
    """Side of that square over the longer side of the mask's bounding box."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.context <= 100:
            raise UserError(f"context is {self.context}: give 1 to 100 times the mask's side")


@dataclass(frozen=True)
class Outpaint(Repainting):
    """A photo continued beyond its borders; every pixel of it stays the byte it was.

    Without --window the model sees squares as wide as the short side of the result, and no larger
    than what it draws without enlarging. Each is half full of what is known where that can be, and
    what one has drawn is known to the next.
    """

    verb: ClassVar[str] = "outpaint"
    left: int = 0
    """Pixels to add there."""
    right: int = 0
    """Pixels to add there."""
    top: int = 0
    """Pixels to add there."""
    bottom: int = 0
    """Pixels to add there."""
    zoom_out: float = 1.0
    """Factor on both sides of the photo, which stays in the middle; the pixels above come on top.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("left", "right", "top", "bottom"):
            if not 0 <= getattr(self, name) <= MAX_SIDE:
                raise UserError(f"{name} is {getattr(self, name)}: give 0 to {MAX_SIDE} pixels")
        if not (math.isfinite(self.zoom_out) and 1 <= self.zoom_out <= 16):
            raise UserError(f"zoom_out is {self.zoom_out}: give 1 to 16")
        if self.zoom_out == 1 and not self.left + self.right + self.top + self.bottom:
            raise UserError(
                "nothing is to be added: give --left, --right, --top, --bottom or --zoom-out"
            )

    def margins(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Pixels that a picture of this size gets: (top, bottom, left, right)."""
        rows, columns = (round(side * self.zoom_out) - side for side in (height, width))
        return (
            self.top + rows // 2,
            self.bottom + rows - rows // 2,
            self.left + columns // 2,
            self.right + columns - columns // 2,
        )


@dataclass(frozen=True)
class Upscale:
    """Any picture, of any size and aspect, through the upsamplers.

    A picture that is drawn at 4 times its side takes the upsampler that was trained for its size,
    if the model has both. Large ones are drawn in tiles (--tile).
    """

    verb: ClassVar[str] = "upscale"
    factor: Literal[4, 16] = 4
    """On both sides; 16 goes through both upsamplers."""

    def __post_init__(self) -> None:
        if self.factor not in (4, 16):
            raise UserError(f"factor is {self.factor}: give 4 or 16")


PixelEdit = Inpaint | Outpaint | Upscale
"""Edits that keep the pixels that they are given."""
