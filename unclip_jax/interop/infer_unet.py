"""What a file in OpenAI's naming tells of its U-Net: everything but heads, groups and order.

Widths are read from shapes, levels and attention from the names that are there. How a projection is
cut into heads and how channels are grouped leaves no trace in a file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from unclip_jax.errors import UserError
from unclip_jax.interop.tensors import Tensors
from unclip_jax.models.unet import UNetConfig

GROUPS = 32
"""Of every published ADM and GLIDE."""


@dataclass(frozen=True)
class HeadOptions:
    """What no shape tells, as the user gave it."""

    head_channels: int | None = None
    """Channels of a head; None is 64 unless `heads` is given."""
    heads: int | None = None
    """A fixed number of heads at every level."""
    groups: int = GROUPS
    """Of the GroupNorms."""

    def __post_init__(self) -> None:
        if self.head_channels is not None and self.heads is not None:
            raise UserError(
                f"--head-channels {self.head_channels} and --heads {self.heads} are both given: "
                "give one of them"
            )
        for name in ("head_channels", "heads", "groups"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} is {value}: give 1 or more")


@dataclass(frozen=True)
class _Level:
    width: int
    depth: int
    attends: bool


@dataclass(frozen=True)
class _Block:
    """One numbered entry of `input_blocks`."""

    width: int
    attends: bool


def infer_unet(
    tensors: Tensors,
    options: HeadOptions | None = None,
    *,
    what: str,
    image_size: int | None = None,
) -> UNetConfig:
    """The U-Net that the file holds.

    Args:
        what: how a message calls the file.
        image_size: the side the network is meant for; None is that of OpenAI's recipes,
            4 * 2 ** levels. Any multiple of 2 ** (levels - 1) computes the same.
    Raises:
        UserError: no such U-Net, or one with parts that `UNet` does not have.
    """
    depths = _depths_from_output_blocks(tensors, what)
    blocks = _input_blocks(tensors, what)
    levels = _levels(blocks, [depth + 1 for depth in depths], what)
    out = _shape(tensors, "out.2.weight", what)
    return _config(tensors, options, levels, what, image_size, out_channels=out[0])


def infer_encoder(
    tensors: Tensors,
    options: HeadOptions | None = None,
    *,
    what: str,
    depth: int | None = None,
) -> UNetConfig:
    """The first half of a U-Net, as a classifier has it. `out_channels` has no meaning.

    Args:
        depth: residual blocks of a level; None finds the one number that fits the names.
    Raises:
        UserError: as `infer_unet`; also where more than one depth fits.
    """
    blocks = _input_blocks(tensors, what)
    fits = {}
    for blocks_each in range(2, len(blocks) + 2):
        if (len(blocks) + 1) % blocks_each or depth not in (None, blocks_each - 1):
            continue
        count = (len(blocks) + 1) // blocks_each
        try:
            levels = _levels(blocks, [blocks_each] * count, what)
        except UserError:
            continue
        fits[blocks_each - 1] = levels
    if len(fits) != 1:
        found = " or ".join(str(n) for n in fits) or "none that is the same at every level"
        raise UserError(f"{what} may have a depth of {found}: give that of a level with --depth")
    (levels,) = fits.values()
    positions = _shape(tensors, "out.2.positional_embedding", what)[-1] - 1
    side = math.isqrt(max(positions, 0))
    if side < 1 or side * side != positions:
        raise UserError(f"{what} pools {positions} positions, which is no square: restore the file")
    image_size = side * 2 ** (len(levels) - 1)
    return _config(tensors, options, levels, what, image_size, out_channels=3)


def _config(
    tensors: Tensors,
    options: HeadOptions | None,
    levels: list[_Level],
    what: str,
    image_size: int | None,
    out_channels: int,
) -> UNetConfig:
    options = options or HeadOptions()
    side = 4 << len(levels) if image_size is None else image_size
    if side < 1:
        raise UserError(f"--image-size is {side}: give 1 or more")
    sinusoids = _shape(tensors, "time_embed.0.weight", what)[1]
    widths = [level.width for level in levels]
    # OpenAI's `num_channels` is the number of sinusoids; a first level of half of it leaves
    # multiples that are not whole, so the unit is then what divides every width.
    unit = sinusoids if all(width % sinusoids == 0 for width in widths) else math.gcd(*widths)
    time_rows = _shape(tensors, "input_blocks.1.0.emb_layers.1.weight", what)[0]
    context = next((t.shape[1] for n, t in tensors.items() if n.endswith(".encoder_kv.weight")), 0)
    depths = tuple(level.depth for level in levels)
    sides = [side // 2**i for i, level in enumerate(levels) if level.attends]
    head: dict[str, Any] = {}
    if options.head_channels is not None:
        head["head_channels"] = options.head_channels
    return UNetConfig(
        image_size=side,
        in_channels=_shape(tensors, "input_blocks.0.0.weight", what)[1],
        out_channels=out_channels,
        channels=unit,
        channel_mult=tuple(width // unit for width in widths),
        time_channels=None if unit == sinusoids else sinusoids,
        depth=depths[:1] if len(set(depths)) == 1 else depths,
        attention_resolutions=tuple(sides),
        has_middle_attention="middle_block.1.qkv.weight" in tensors,
        heads=options.heads,
        context_width=context or None,
        time_norm="scale_shift" if time_rows == 2 * widths[0] else "additive",
        groups=options.groups,
        **head,
    )


def _depths_from_output_blocks(tensors: Tensors, what: str) -> list[int]:
    """Residual blocks of each level, the finest first.

    On the way up a level has one numbered block more than on the way down, and but for the finest
    it ends with one that holds a second residual block, which doubles the resolution.
    """
    depths, size = [], 0
    for number in range(_count(tensors, "output_blocks", what)):
        start = f"output_blocks.{number}"
        if any(f"{start}.{i}.conv.weight" in tensors for i in (1, 2)):
            raise _resampled_without_block(what, start)
        size += 1
        if any(f"{start}.{i}.in_layers.0.weight" in tensors for i in (1, 2)):
            depths.append(size - 1)
            size = 0
    if size < 2 or any(depth < 1 for depth in depths):
        raise UserError(f"{what} has output blocks that make no levels: it is no U-Net of ADM's")
    return [size - 1, *reversed(depths)]


def _input_blocks(tensors: Tensors, what: str) -> list[_Block]:
    """The numbered blocks of the way down, without the convolution at its start."""
    blocks = []
    for number in range(1, _count(tensors, "input_blocks", what)):
        start = f"input_blocks.{number}"
        if f"{start}.0.op.weight" in tensors:
            raise _resampled_without_block(what, start)
        width = _shape(tensors, f"{start}.0.out_layers.3.weight", what)[0]
        blocks.append(_Block(width, f"{start}.1.qkv.weight" in tensors))
    return blocks


def _levels(blocks: list[_Block], sizes: list[int], what: str) -> list[_Level]:
    """`sizes` are the numbered blocks of each level, its halving included; the last has none."""
    levels, start = [], 0
    for i, size in enumerate(sizes):
        depth, is_last = size - 1, i == len(sizes) - 1
        own = blocks[start : start + size - is_last]
        start += size - is_last
        one_kind = len(set(own[:depth])) == 1 and len({block.width for block in own}) == 1
        if len(own) != size - is_last or not one_kind or (not is_last and own[-1].attends):
            raise UserError(f"{what} has input blocks that make no levels: it is no U-Net of ADM's")
        levels.append(_Level(own[0].width, depth, own[0].attends))
    if start != len(blocks):
        raise UserError(
            f"{what} has {len(blocks)} input blocks, but its levels ask for {start}: it is no "
            "U-Net of ADM's"
        )
    return levels


def _count(tensors: Tensors, part: str, what: str) -> int:
    """How many numbered blocks there are, checked to be without a gap."""
    names = (re.match(rf"{part}\.(\d+)\.", name) for name in tensors)
    found = {int(match[1]) for match in names if match}
    if not found:
        raise UserError(f"{what} has no {part}: it is no U-Net in OpenAI's naming")
    for number in range(len(found)):
        if number not in found:
            raise UserError(
                f"{what} has no {part}.{number}: a block is missing, or it halves the picture "
                "without a residual block, which cannot be read"
            )
    return len(found)


def _shape(tensors: Tensors, name: str, what: str) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].shape) < 2:
        raise UserError(f"{what} has no matrix {name}: it is no U-Net in OpenAI's naming")
    return tensors[name].shape


def _resampled_without_block(what: str, name: str) -> UserError:
    return UserError(
        f"{what} changes the resolution by a plain convolution ({name}): only networks with "
        "residual blocks there (resblock_updown) can be read"
    )
