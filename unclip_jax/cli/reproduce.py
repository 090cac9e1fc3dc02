"""sample.py from PICTURE: the same picture again, from its own metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_jax.cli.edit import EDITS, read_pictures
from unclip_jax.cli.overrides import parse
from unclip_jax.cli.verbs import called
from unclip_jax.errors import UserError
from unclip_jax.files import missing

if TYPE_CHECKING:
    from unclip_jax.editing.reproduction import Origin


@dataclass(frozen=True, kw_only=True)
class FromOptions:
    """A picture again, from its own metadata, with the same bytes; exit code 1 if they are not."""

    picture: str
    """A PNG that `text` or an edit wrote."""
    input: tuple[str, ...] = ()
    """The files of the pictures that it started from, in any order, if it is of an edit."""
    model: str | None = None
    """The folder of the model that drew it; None will do for a shipped one."""
    out: str = "out"
    """Folder for the picture, which keeps its name. Other bytes of that name are not replaced."""


def draw_picture_again(arguments: Sequence[str]) -> int:
    """Runs `from`; returns the exit code."""
    options = parse(FromOptions, arguments, default=None, program=called("from"))
    path = Path(options.picture)
    text = read_metadata(path)
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.cli.progress import PictureProgress, say
    from unclip_jax.data.images import encode_png
    from unclip_jax.data.provenance import picture_texts
    from unclip_jax.editing.reproduction import check_weights, draw_again, find_inputs, read_origin
    from unclip_jax.files import check_folder
    from unclip_jax.pipeline import UnCLIP

    out = Path(options.out)
    try:
        origin = read_origin(text, {verb: kind for verb, (kind, _) in EDITS.items()})
        pictures = read_inputs(options.input, origin.facts["verb"])
        find_inputs(origin, pictures)
        check_folder(out)
        unclip = UnCLIP.load(_model(options.model, origin))
        check_weights(unclip, origin)
        if odd := origin.other_versions():
            say(f"it was drawn with {', '.join(odd)}: the last bits may differ")
        with PictureProgress(1) as progress:
            unclip.runner.on_compile = progress.compiling
            image = draw_again(unclip, origin, pictures)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    data = encode_png(image, picture_texts(origin.facts, *image.shape[1::-1]))
    return _write(data, image, path, out)


def read_inputs(paths: Sequence[str], verb: str) -> list[Any]:
    """What a picture of this verb may have started from: the pictures in these files, and where
    there are masks what each is as a mask, and without its transparency.

    Raises:
        UserError: one cannot be read.
    """
    pictures = read_pictures(paths)
    if verb != "inpaint":
        return pictures
    from unclip_jax.data.images import decode_with_alpha, picture_bytes
    from unclip_jax.editing.masks import read_mask

    for path in paths:
        data = picture_bytes(path)
        pictures += [decode_with_alpha(data, name=path)[0], read_mask(data, name=path)]
    return pictures


def read_metadata(path: Path) -> str:
    """The text of a PNG that says what it was made from.

    Raises:
        UserError: the file cannot be read, is cut off, or has none.
    """
    from unclip_jax.data.png_text import read_png_text
    from unclip_jax.data.provenance import KEY

    try:
        text = read_png_text(path, KEY) if path.is_file() else None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if not path.exists():
        raise UserError(f"{path} {missing(path)}")
    if text is None:
        raise UserError(
            f"{path} holds no metadata of ours: name a whole PNG that sample.py wrote with metadata"
        )
    return text


def _model(given: str | None, origin: Origin) -> str:
    """What to load. A name from a file is never a path: only those that are shipped will do."""
    from unclip_jax.training.weights import SHIPPED

    name = origin.facts["model"]
    if given is None and name not in SHIPPED:
        raise UserError(f"it was drawn by a model {name!r}: name its folder with --model")
    return given or name


def _write(data: bytes, image: Any, path: Path, out: Path) -> int:
    """Put the picture into `out`, and say whether it is the same."""
    from unclip_jax.data.images import decode_image, picture_bytes
    from unclip_jax.files import write_whole

    before = picture_bytes(path)
    target = out / path.name
    is_same = data == before
    if target.exists() and picture_bytes(target) != data:
        raise UserError(
            f"{target} is there with other bytes than were drawn now: name another folder with "
            "--out"
        )
    if not target.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(target, data)
    if is_same:
        print(f"{target} is {path} byte for byte")
        return 0
    then = decode_image(before, name=str(path))
    pixels = "other pixels"
    if then.shape == image.shape:
        most = int(abs(then.astype(int) - image.astype(int)).max())
        pixels = f"pixels that differ by at most {most} of 255" if most else "the same pixels"
    print(f"{target} is not {path} byte for byte: it has {pixels}")
    return 1
