"""Recipe dataclasses that every stage shares, and how a recipe becomes JSON and comes back.

A recipe is a frozen dataclass of frozen dataclasses. It is written as a Python value in `configs/`,
changed on the command line (`cli/overrides.py`), saved as JSON in the run folder and in every
checkpoint, and read back as data: `from_dict` never executes anything.
"""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import sys
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from unclip_jax.errors import UserError, choose
from unclip_jax.printable import printable

T = TypeVar("T")
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class DataConfig:
    """Where (picture, caption) pairs come from, and how they are read."""

    source: str = "emoji"
    """'emoji', 'scenes' composed of them, a folder of pictures with captions, a pattern of tar
    shards, or 'tfds:FOLDER' of an ArrayRecord data set."""
    split: str = "train"
    """Of 'emoji' and 'scenes' (train, test, test_cells) or of a TFDS data set; others have only
    'train'. Of emoji also several: 'train+test_cells'."""
    image_size: int = 64
    """Side of the square training picture in pixels."""
    concepts: tuple[str, ...] = ()
    """Emoji and scenes only (other sources ignore it): the base concepts to keep, by name; empty
    keeps all."""
    repeated: tuple[str, ...] = ()
    """Emoji only: base concepts whose pictures an epoch has `repeats` times. A small model learns
    well what it sees often."""
    repeats: int = 1
    """How often an epoch has the pictures of `repeated`; the others come once."""
    variants: bool = False
    """Emoji only: also the pictures with a skin tone. The default yellow ones and both genders of a
    role ("woman astronaut") are always in."""
    image_key: str = "image"
    """TFDS only: the feature that holds the picture."""
    caption_key: str = "caption"
    """TFDS only: the feature that holds the caption or the captions."""
    embeddings: str | None = None
    """Priors and decoder: a folder that `unclip embed` wrote for this data and CLIP, read instead
    of running the image encoder at every step."""
    shuffle_block: int = 1
    """Neighbouring records that the shuffled order keeps together. With 4, the styles of one emoji
    meet in one batch, where CLIP must tell them apart."""
    cache_dir: str | None = None
    """Where built data sets go; None is $UNCLIP_CACHE, else ~/.cache/unclip_jax."""
    threads: int = 4
    """Threads that read and decode pictures."""
    max_bad_fraction: float = 0.05
    """Stop when more than this share of the pictures cannot be read."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(f"data.image_size is {self.image_size}: give 1 pixel or more")
        if self.repeats < 1:
            raise UserError(f"data.repeats is {self.repeats}: give 1 or more")
        if self.repeats > 1 and self.embeddings is not None:
            raise UserError(
                f"data.embeddings has every picture once, data.repeats is {self.repeats}: leave "
                "one of the two out"
            )
        if self.shuffle_block < 1:
            raise UserError(f"data.shuffle_block is {self.shuffle_block}: give 1 record or more")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"data.max_bad_fraction is {self.max_bad_fraction}: give 0 to 1")


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser with warm-up, an optional cosine decay, clipping and accumulation."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for every kernel (momentum made orthogonal, Jordan 2024) and AdamW for the
    rest. Muon's momentum is 0.95; b1, b2 are AdamW's."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or a cosine to zero at the last step."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled weight decay on all weights that are not gains or biases (Radford et al. 2021)."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; None does not clip."""
    sam_rho: float = 0.0
    """Radius of sharpness-aware minimisation (Foret et al. 2021), the perturbation found by each
    device on its own rows; 0 is the plain gradient. unCLIP's CLIP has 0.1."""
    accumulate: int = 1
    """Micro-batches a step: the gradient is their mean, memory is that of one."""
    mu_dtype: Dtype = "float32"
    """Type of Adam's first moment."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UserError(f"optim.learning_rate is {self.learning_rate}: give a positive number")
        if self.sam_rho < 0:
            raise UserError(f"optim.sam_rho is {self.sam_rho}: give a radius, or 0 for none")
        if self.accumulate < 1:
            raise UserError(f"optim.accumulate is {self.accumulate}: give 1 or more")
        if self.warmup_steps < 0:
            raise UserError(f"optim.warmup_steps is {self.warmup_steps}: give 0 or more")


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved, and which of its checkpoints stay."""

    every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints that stay on disk."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps stay too; 0 keeps none of them."""
    keep_best: int = 0
    """As many stay too, those with the lowest running average of the loss."""
    on_disk_full: Literal["stop", "go_on"] = "stop"
    """When a checkpoint cannot be written: stop with exit code 2, or train on and try again at the
    next one. The checkpoints before it stay good either way."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise UserError(
                f"checkpoint.every is {self.every} and checkpoint.keep {self.keep}: give 1 or more"
            )
        if self.keep_every < 0 or self.keep_best < 0:
            raise UserError(
                f"checkpoint.keep_every is {self.keep_every} and checkpoint.keep_best "
                f"{self.keep_best}: give 0 or more"
            )


@dataclass(frozen=True)
class GuardConfig:
    """What a run does about steps that would spoil its weights."""

    spike: float = 10.0
    """A step is skipped whose loss is more than this many times the highest of the last twenty or
    so, from the sixth on, or whose loss or gradient is not finite; 0 skips only the latter."""
    patience: int = 10
    """Steps skipped in a row after which the run goes back to its newest checkpoint and leaves out
    the data since then."""
    rollbacks: int = 3
    """Times that a run goes back to the same checkpoint before it stops with exit code 3."""

    def __post_init__(self) -> None:
        if self.spike < 0 or 0 < self.spike <= 1:
            raise UserError(f"guard.spike is {self.spike}: give a factor above 1, or 0 for none")
        if self.patience < 1 or self.rollbacks < 0:
            raise UserError(
                f"guard.patience is {self.patience} and guard.rollbacks {self.rollbacks}: give 1 "
                "or more, and 0 or more"
            )


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh, axes ('data', 'fsdp'). One device is the mesh (1, 1)."""

    data: int = -1
    """Devices on the data axis; -1 takes all that fsdp leaves."""
    fsdp: int = 1
    """Devices over which the state is sharded."""
    slices: int = 1
    """Slices, or groups of hosts, between which the network is slow. The data axis runs across them
    and fsdp stays inside one."""
    rule: Literal["fsdp", "zero1"] = "fsdp"
    """What is sharded over fsdp: parameters, EMA and optimiser state; or, with zero1, all but the
    parameters, which every device then holds whole and gathers once a step."""
    topology: str | None = None
    """The accelerators that the recipe is meant for, such as 'v5e:16x16': what `unclip plan`
    compiles for. Training takes the devices that are there."""

    def __post_init__(self) -> None:
        if self.fsdp < 1 or (self.data < 1 and self.data != -1):
            raise UserError(
                f"mesh is (data={self.data}, fsdp={self.fsdp}): give 1 or more, or data=-1"
            )
        if self.slices < 1 or (self.data != -1 and self.data % self.slices):
            raise UserError(
                f"mesh.slices is {self.slices}: give 1 or more, and a mesh.data that it divides"
            )


@dataclass(frozen=True)
class LogConfig:
    """What a run writes while it goes."""

    every: int = 50
    """Steps between lines of metrics.jsonl and of the console."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the extra `track`)."""
    profile_steps: tuple[int, int] | None = None
    """First and last step of a trace in RUN/profile, for XProf; None writes none."""
    preview_every: int = 0
    """Steps between sample grids; 0 makes none."""
    preview_prompts: tuple[str, ...] = ()
    """Captions of the grid, one row each."""
    preview_prior: str | None = None
    """Prior for the grid, a run or an exported folder; None decodes the text embedding itself."""
    preview_columns: int = 4
    """Pictures a caption, seeds 0, 1, ..."""
    preview_steps: int = 50
    """Denoising steps of a preview."""
    preview_guidance: float = 2.0
    """Guidance scale of a preview."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"log.every is {self.every}: give 1 or more")
        if (
            self.profile_steps is not None
            and not 1 <= self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise UserError(
                f"log.profile_steps is {self.profile_steps}: give the first step, from 1 on, and "
                "one that is not before it"
            )


def with_fields(config: T, **values: Any) -> T:
    """A config with these fields changed in it and in every config inside, where they exist."""
    given: Any = config
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name in values and value is not None:
            changes[field.name] = values[field.name]
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_fields(value, **values)
    return dataclasses.replace(given, **changes) if changes else config


def to_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain dicts, lists, numbers and strings, ready for JSON."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """The inverse of `to_dict`; a field that `data` lacks takes its default.

    Raises:
        UserError: a key that `cls` does not have, or a value of another type; names the field.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where or 'config'}: expected an object with fields, found {_repr(data)}")
    hints = _hints(cls)
    known = {field.name for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise UserError(
                f"{where}{printable(key)}: no such field of {cls.__name__}; "
                f"{choose(str(key), sorted(known))}"
            )
    values = {key: _typed(hints[key], value, where + key) for key, value in data.items()}
    try:
        return cls(**values)
    except (TypeError, ArithmeticError, IndexError) as error:
        raise UserError(f"{where or cls.__name__}: {error}") from None


_hints = functools.cache(typing.get_type_hints)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` from JSON as the type `hint`, or a UserError that names `where`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where + ".")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        members = [arg for arg in args if arg is not type(None)]
        is_sequence = isinstance(value, (list, tuple))
        exact = [
            arg
            for arg in members
            if type(value) is arg or (is_sequence and typing.get_origin(arg) is tuple)
        ]
        return _typed((exact or members)[0], value, where)
    if origin is Literal and value in args:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        element = args[0]
        if Ellipsis in args or len(value) == len(args):
            return tuple(_typed(element, item, f"{where}[{i}]") for i, item in enumerate(value))
    # Neither NaN nor an infinity: no comparison that checks a field would notice NaN.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number and abs(typing.cast(float, value)) <= sys.float_info.max:
        return float(typing.cast(float, value))
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise UserError(f"{where} is {_repr(value)}: expected {getattr(hint, '__name__', hint)}")


def _repr(value: Any) -> str:
    """What a message shows of a value, however long or deep it is."""
    return printable(reprlib.repr(value))
