"""What the verbs classify, caption, index and search share: the model, photos, files of texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unclip_jax.bounded import read_bounded
from unclip_jax.cli.overrides import parse
from unclip_jax.cli.verbs import called
from unclip_jax.errors import UserError
from unclip_jax.files import missing
from unclip_jax.printable import printable

if TYPE_CHECKING:
    from unclip_jax.clip_tools.matches import Match
    from unclip_jax.pipeline import UnCLIP

MAX_TEXTS = 256_000_000
"""Bytes of a file of texts."""
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")
"""Not tab and line feed."""


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """What every verb takes that only looks at pictures."""

    model: str = "emoji"
    """A shipped model, a folder with clip/, or a CLIP's own folder or run."""
    batch_size: int = 32
    """Pictures or texts a device and call."""
    json: bool = False
    """One JSON object a line instead of a table; `--json` alone is enough."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "top", "shard_rows", "threads"):
            value = getattr(self, name, 1)
            if value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}: give 1 or more")


T = TypeVar("T", bound=ClipOptions)


def parse_verb(cls: type[T], verb: str, arguments: Sequence[str]) -> T:
    """The options of a verb; `--json` may stand without its value."""
    spelled: list[str] = []
    for place, argument in enumerate(arguments):
        spelled.append(argument)
        if argument == "--json" and arguments[place + 1 : place + 2] not in (["True"], ["False"]):
            spelled.append("True")
    return parse(cls, spelled, default=None, program=called(verb))


def load_clip_alone(options: ClipOptions) -> UnCLIP:
    """The model's CLIP; its other stages, which may be large, are not read.

    Raises:
        UserError: there is none.
    """
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.generation.sampling import SamplingConfig
    from unclip_jax.pipeline import UnCLIP
    from unclip_jax.training.weights import load_clip

    inside = Path(options.model).expanduser() / "clip"
    clip = load_clip(inside if inside.is_dir() else options.model, as_stored=True)
    return UnCLIP({"clip": clip}, SamplingConfig(batch_size=options.batch_size))


def read_photos(paths: Sequence[str]) -> Iterator[Any]:
    """[H, W, 3] uint8 each, one after the other.

    Raises:
        UserError: one cannot be read.
    """
    from unclip_jax.data.images import decode_image, picture_bytes

    return (decode_image(picture_bytes(path), name=path) for path in paths)


def check_photos(paths: Sequence[str], verb: str) -> None:
    """UserError unless there are photos and each is a file: said before a model is loaded."""
    if not paths:
        raise UserError(f"there is no picture: {called(verb)} photo.png ...")
    for path in paths:
        if Path(path).is_dir():
            raise UserError(f"picture {path} is a folder: name a picture's file")
        if not Path(path).is_file():
            raise UserError(f"picture {path} {missing(path)}")


def read_texts(path: str | Path, option: str) -> list[str]:
    """The lines of a UTF-8 file that are not blank, without white space around them; those that
    begin with # are comments.

    Args:
        option: what the command calls the file.
    Raises:
        UserError: it cannot be read, is not UTF-8, or holds no text; names the line.
    """
    try:
        data = read_bounded(Path(path).expanduser(), MAX_TEXTS)
    except FileNotFoundError:
        raise UserError(f"{option} {path} {missing(path)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{option} {path} cannot be read ({reason}): name a file of texts"
        ) from None
    texts = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{option} {path}:{number} is not UTF-8 ({error.reason}): save the file as UTF-8"
            ) from None
        if line and not line.startswith("#"):
            texts.append(check_text(line, f"{option} {path}:{number}"))
    if not texts:
        raise UserError(f"{option} {path} holds no text: write one a line")
    return texts


def check_text(text: str, where: str) -> str:
    """A text without white space around it.

    Raises:
        UserError: it is empty, or holds control characters or bytes that are not UTF-8.
    """
    text = text.strip()
    if not text:
        raise UserError(f"{where} is empty: write a text, or leave it out")
    if odd := _CONTROL.search(text):
        raise UserError(f"{where} holds the control character {printable(odd[0])}: leave it out")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where} is not text that UTF-8 can hold: write it again") from None
    return text


def print_matches(
    photos: Sequence[str], matches: Sequence[Sequence[Match]], *, as_json: bool
) -> None:
    """For each photo its texts, the best first."""
    for photo, found in zip(photos, matches, strict=True):
        if as_json:
            print_json({"picture": photo, "matches": [asdict(one) for one in found]})
            continue
        print(printable(photo, None))
        for one in found:
            print(f"{one.probability:8.1%}  {one.cosine:+.3f}  {printable(one.text)}")


def print_json(row: dict[str, Any]) -> None:
    """One line; what no UTF-8 can hold stays as JSON's escapes."""
    print(json.dumps(row), flush=True)
