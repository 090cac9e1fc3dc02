"""How large a network may be written down: a config from a stranger asks for memory and hours."""

from __future__ import annotations

import dataclasses
import reprlib
from typing import Any

from unclip_jax.errors import UserError

LARGEST = 65_536
"""Of every whole number in a model's config that is not in `EXCEPTIONS`: widths, channels, heads.
The largest in use is 12,288."""
EXCEPTIONS = {
    "depth": 1_024,
    "channel_mult": 256,
    "image_size": 8_192,
    "patch_size": 8_192,
    "context_length": 4_096,
    "num_timesteps": 100_000,
    "vocab_size": 10_000_000,
    "end_of_text": 10_000_000,
    "num_classes": 10_000_000,
    "buckets": 1_000_000,
    "dot_buckets": 1_000_000,
}
_MOST_TOKENS = 65_536
_MOST_BLOCKS = 256
_MAY_BE_ZERO = {"end_of_text", "attention_resolutions", "depth"}


def check_sizes(config: Any) -> None:
    """Every whole number of a frozen dataclass from 1 to its limit, before anything is built.

    A tuple of numbers has 64 at most. A network that is traced block by block has 256 blocks at
    most, and a picture 65,536 patches.

    Raises:
        UserError: names the first field that is not.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) > 64:
            raise UserError(f"{field.name} has {len(numbers)} entries: give 64 or fewer")
        most = EXCEPTIONS.get(field.name, LARGEST)
        least = 0 if field.name in _MAY_BE_ZERO else 1
        for number in numbers:
            if type(number) is int and not least <= number <= most:
                shown = reprlib.repr(number)
                raise UserError(f"{field.name} is {shown}: give {least} to {most}")


def check_patches(image_size: int, patch_size: int) -> None:
    """UserError if a picture has more than 65,536 patches."""
    if (image_size // patch_size) ** 2 > _MOST_TOKENS:
        raise UserError(
            f"image_size {image_size} in patches of {patch_size} gives more than {_MOST_TOKENS}: "
            "make the patches larger"
        )


def check_blocks(depth: tuple[int, ...], levels: int) -> None:
    """UserError if the levels of a U-Net have more than 256 residual blocks together."""
    count = depth[0] * levels if len(depth) == 1 else sum(depth)
    if count > _MOST_BLOCKS:
        raise UserError(f"depth {depth} makes {count} blocks: give {_MOST_BLOCKS} or fewer")
