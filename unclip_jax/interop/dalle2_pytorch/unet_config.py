"""What one U-Net of a DALLE2-pytorch decoder is made of, read from its JSON.

Field names are the file's own, so that a config can be compared with it line by line. What a
release changed without renaming a tensor is in `unet_era`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.unet_era import CURRENT_ERA, UnetEra

Downsample = Literal["unshuffle", "conv4x4", "cross_embed"]
Upsample = Literal["pixel_shuffle", "nearest", "transposed"]
StageAttention = Literal["none", "full", "linear"]

_COMBINER_GROUPS = 8
_DEAD = frozenset({"attend_at_middle", "out_dim", "checkpoint_during_training"})
"""Options that never change a number: two are read nowhere, one saves memory in training."""


@dataclass(frozen=True)
class Stage:
    """One resolution."""

    width_in: int
    width_out: int
    width: int
    """Of the blocks on the way down; on the way up it is `width_out`."""
    groups: int
    blocks: int
    """Besides the first, which has no cross-attention on the way down."""
    attention: StageAttention
    cross: bool
    """Its blocks attend to the conditioning tokens: all but the finest stage's."""
    last: bool


@dataclass(frozen=True)
class UnetConfig:
    """One U-Net. Options that hold for every stage may be given once."""

    dim: int
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    channels: int = 3
    channels_out: int | None = None
    """Twice the channels where a variance is learned; None: as `channels`."""
    init_dim: int | None = None
    image_embed_dim: int | None = None
    text_embed_dim: int | None = None
    cond_dim: int | None = None
    """Width of the conditioning tokens; None: `dim`."""
    num_image_tokens: int = 4
    num_time_tokens: int = 2
    cond_on_image_embeds: bool = False
    cond_on_text_encodings: bool = False
    add_image_embeds_to_time: bool = True
    max_text_len: int = 256
    num_resnet_blocks: int | tuple[int, ...] = 2
    resnet_groups: int | tuple[int, ...] = 8
    resnet_weight_standardization: bool = False
    self_attn: bool | tuple[bool, ...] = False
    sparse_attn: bool = False
    """Linear attention in the stages without `self_attn`."""
    attn_dim_head: int = 32
    attn_heads: int = 16
    cosine_sim_self_attn: bool = False
    cosine_sim_cross_attn: bool = False
    lowres_cond: bool = False
    lowres_noise_cond: bool = False
    self_cond: bool = False
    init_cross_embed: bool = True
    init_cross_embed_kernel_sizes: tuple[int, ...] = (3, 7, 15)
    init_conv_kernel_size: int = 7
    cross_embed_downsample: bool = False
    cross_embed_downsample_kernel_sizes: tuple[int, ...] = (2, 4)
    memory_efficient: bool = False
    scale_skip_connection: bool = False
    pixel_shuffle_upsample: bool = True
    nearest_upsample: bool = False
    """As it was called before 0.21.0."""
    combine_upsample_fmaps: bool = False
    final_conv_kernel_size: int = 1
    lowres_in_last_conv: bool = True
    """The low-resolution image is given to the last convolution too; old files do without."""
    era: UnetEra = CURRENT_ERA

    def __post_init__(self) -> None:
        stages = len(self.dim_mults)
        for name in ("num_resnet_blocks", "resnet_groups", "self_attn"):
            value = getattr(self, name)
            value = tuple(value) if isinstance(value, (tuple, list)) else (value,) * stages
            if len(value) != stages:
                raise _fault(f"{name} has {len(value)} entries for {stages} stages")
            object.__setattr__(self, name, value)
        if not stages or self.dim < 4 or self.dim % 2:
            raise _fault(f"dim {self.dim} and dim_mults {self.dim_mults}: dim must be even, from 4")
        if self.init_dim not in (None, self.dim):
            raise _fault(f"init_dim is {self.init_dim}, which only works as dim ({self.dim})")
        if self.dim_mults[0] != 1 and not self.memory_efficient:
            raise _fault(f"dim_mults begins with {self.dim_mults[0]}, which needs memory_efficient")
        if self.cond_on_image_embeds and not self.image_embed_dim:
            raise _fault("image_embed_dim is missing and the U-Net is given image embeddings")
        if self.cond_on_text_encodings and not self.text_embed_dim:
            raise _fault("text_embed_dim is missing and cond_on_text_encodings is set")
        for name in ("init_conv_kernel_size", "final_conv_kernel_size"):
            if getattr(self, name) % 2 == 0:
                raise _fault(f"{name} is {getattr(self, name)}, which must be odd")
        self._check_parity("init_cross_embed_kernel_sizes", 1)
        self._check_parity("cross_embed_downsample_kernel_sizes", 0)
        widths = [(self.dim, self.groups[0]), (self.width_mid, self.groups[-1])]
        widths += [
            (w, stage.groups) for stage in self.stages for w in (stage.width, stage.width_out)
        ]
        widths += [(self.dim, _COMBINER_GROUPS)] if self.combine_upsample_fmaps else []
        for width, groups in widths:
            if width % groups:
                raise _fault(f"{width} channels are not {groups} equal groups (resnet_groups)")

    @property
    def groups(self) -> tuple[int, ...]:
        """`resnet_groups` of every stage."""
        return self.resnet_groups  # pyright: ignore[reportReturnType]

    @property
    def token_width(self) -> int:
        """Of the conditioning tokens."""
        return self.cond_dim or self.dim

    @property
    def time_width(self) -> int:
        """Of the vector that scales and shifts every block."""
        return 4 * self.dim

    @property
    def width_mid(self) -> int:
        """Of the coarsest stage."""
        return self.dim * self.dim_mults[-1]

    @property
    def channels_in(self) -> int:
        """Of the first convolution: the noised image, self-conditioning, low resolution."""
        return self.channels * (1 + self.lowres_cond + self.self_cond)

    @property
    def width_last(self) -> int:
        """Channels that the last convolution is given."""
        return self.dim + self.channels * (self.lowres_cond and self.lowres_in_last_conv)

    @property
    def projects_image_tokens(self) -> bool:
        """A Linear makes the image tokens; there is none where the widths are equal."""
        return self.cond_on_image_embeds and self.image_embed_dim != self.token_width

    @property
    def adds_image_to_time(self) -> bool:
        """The image embedding is also added to the time vector."""
        return self.cond_on_image_embeds and self.add_image_embeds_to_time

    @property
    def downsample(self) -> Downsample:
        """How a stage halves the resolution."""
        if self.cross_embed_downsample:
            return "cross_embed"
        return "unshuffle" if self.era.unshuffled_downsample else "conv4x4"

    @property
    def upsample(self) -> Upsample:
        """How a stage doubles it."""
        if self.era.transposed_upsample:
            return "nearest" if self.nearest_upsample else "transposed"
        return "pixel_shuffle" if self.pixel_shuffle_upsample else "nearest"

    @property
    def size_multiple(self) -> int:
        """Height and width of an image must be multiples of this."""
        return 2 ** (len(self.dim_mults) - 1 + self.memory_efficient)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """From the finest to the coarsest."""
        widths = (self.dim, *(self.dim * multiple for multiple in self.dim_mults))
        count = len(self.dim_mults)
        blocks: Any = self.num_resnet_blocks
        full: Any = self.self_attn
        rows = zip(pairwise(widths), self.groups, blocks, full, strict=True)
        return tuple(
            Stage(
                width_in,
                width_out,
                width_out if self.memory_efficient else width_in,
                groups,
                blocks,
                "full" if full else "linear" if self.sparse_attn else "none",
                cross=i > 0,
                last=i == count - 1,
            )
            for i, ((width_in, width_out), groups, blocks, full) in enumerate(rows)
        )

    def _check_parity(self, name: str, parity: int) -> None:
        sizes = getattr(self, name)
        if not sizes or any(size % 2 != parity for size in sizes):
            raise _fault(f"{name} {sizes} must be {'odd' if parity else 'even'} sizes")


def unet_config(entry: Mapping[str, Any], era: UnetEra = CURRENT_ERA) -> UnetConfig:
    """One entry of a decoder config's `unets`.

    Options without effect are dropped; `null` stands for the default.

    Raises:
        UserError: an option that no release had, or values that do not fit together.
    """
    known = {field.name for field in fields(UnetConfig)} - {"era", "lowres_in_last_conv"}
    unknown = sorted(set(entry) - known - _DEAD)
    if unknown:
        raise _fault(f"the option {unknown[0]!r} is unknown (of {', '.join(unknown)})")
    if "dim" not in entry:
        raise _fault("dim is missing")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in entry.items()
        if name in known and value is not None
    }
    for name, value in values.items():
        if not all(
            isinstance(one, int) for one in (value if isinstance(value, tuple) else [value])
        ):
            raise _fault(f"{name} has the wrong type ({value!r})")
    try:
        return UnetConfig(**values, era=era)
    except TypeError as error:
        raise _fault(f"a value has the wrong type ({error})") from error


def _fault(reason: str) -> UserError:
    return UserError(f"U-Net config: {reason}; give the config that the file was trained with")
