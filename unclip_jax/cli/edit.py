"""The verbs of sample.py that start from pictures, or probe the model: vary, interpolate, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from unclip_jax.cli.drawing_options import DrawingOptions, sampling_of
from unclip_jax.cli.overrides import parse
from unclip_jax.cli.prompts import check_prompts
from unclip_jax.cli.verbs import called
from unclip_jax.editing.pixel_settings import Inpaint, Outpaint, PixelEdit, Upscale
from unclip_jax.editing.settings import (
    CompareConditioning,
    Components,
    Diff,
    Interpolate,
    LatentEdit,
    Mix,
    Reconstruct,
    Vary,
)
from unclip_jax.errors import UserError
from unclip_jax.printable import count_of


@dataclass(frozen=True, kw_only=True)
class EditOptions(DrawingOptions):
    """What every edit takes."""

    num_images: int | None = None
    """Candidates, the best first; None is 4, or 1 where nothing is drawn."""


@dataclass(frozen=True, kw_only=True)
class VaryOptions(Vary, EditOptions):
    __doc__ = Vary.__doc__

    photo: str
    """The picture; its central square is read."""


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(Reconstruct, EditOptions):
    __doc__ = Reconstruct.__doc__

    photos: tuple[str, ...]
    """Pictures; their central squares are read."""


@dataclass(frozen=True, kw_only=True)
class StripOptions(EditOptions):
    """What edits take whose pictures are a way from here to there."""

    animation: Literal["webp", "gif", "none"] = "webp"
    """Also write the way as a moving picture, animation_CANDIDATE.webp or .gif."""


@dataclass(frozen=True, kw_only=True)
class InterpolateOptions(Interpolate, StripOptions):
    __doc__ = Interpolate.__doc__

    photos: tuple[str, ...]
    """Two pictures or more; their central squares are read."""


@dataclass(frozen=True, kw_only=True)
class DiffOptions(Diff, StripOptions):
    __doc__ = Diff.__doc__

    photo: str
    """The picture; its central square is read."""


@dataclass(frozen=True, kw_only=True)
class MixOptions(Mix, EditOptions):
    __doc__ = Mix.__doc__

    photos: tuple[str, ...]
    """Pictures; none mixes texts alone."""


@dataclass(frozen=True, kw_only=True)
class ComponentsOptions(Components, EditOptions):
    __doc__ = Components.__doc__

    photo: str
    """The picture; its central square is read."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(CompareConditioning, EditOptions):
    __doc__ = CompareConditioning.__doc__


@dataclass(frozen=True, kw_only=True)
class InpaintOptions(Inpaint, EditOptions):
    __doc__ = Inpaint.__doc__

    photo: str
    """The picture, of any size and aspect."""
    mask_and_prompt: tuple[str, ...]
    """A picture of the photo's size that is white, or transparent, where it is painted; left out
    where the photo itself is transparent there. Then the prompt, in quotes."""


@dataclass(frozen=True, kw_only=True)
class OutpaintOptions(Outpaint, EditOptions):
    __doc__ = Outpaint.__doc__

    photo: str
    """The picture, of any size and aspect."""
    words: tuple[str, ...]
    """The prompt, in quotes."""


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions(Upscale, EditOptions):
    __doc__ = Upscale.__doc__

    photo: str
    """The picture, of any size and aspect."""


EDITS: dict[str, tuple[type[LatentEdit | PixelEdit], type[EditOptions]]] = {
    "vary": (Vary, VaryOptions),
    "reconstruct": (Reconstruct, ReconstructOptions),
    "interpolate": (Interpolate, InterpolateOptions),
    "diff": (Diff, DiffOptions),
    "mix": (Mix, MixOptions),
    "pca": (Components, ComponentsOptions),
    "compare-conditioning": (CompareConditioning, CompareOptions),
    "inpaint": (Inpaint, InpaintOptions),
    "outpaint": (Outpaint, OutpaintOptions),
    "upscale": (Upscale, UpscaleOptions),
}
"""Verbs, what they ask for, and their options."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
"""Names of files that are pictures, as they end."""
_ALIASES = {"--from": "--from-caption"}
"""What a field cannot be called in Python."""


def edit_pictures(verb: str, arguments: Sequence[str]) -> int:
    """Run a verb of `EDITS`; returns the exit code."""
    kind, options_of = EDITS[verb]
    spelled = [_ALIASES.get(one, one) for one in arguments]
    options: Any = parse(options_of, spelled, default=None, program=called(verb))
    mask, options = _positional(options)
    edit = kind(**{field.name: getattr(options, field.name) for field in fields(kind)})
    paths = [options.photo] if hasattr(options, "photo") else list(getattr(options, "photos", ()))
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    check_prompts([text for text in texts_of(edit) if text])
    pictures = read_with_mask(paths[0], mask) if verb == "inpaint" else read_pictures(paths)

    from unclip_jax.cli.progress import PictureProgress
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.editing.drawing import check_pictures, draw_edit, edit_sampling
    from unclip_jax.files import check_folder
    from unclip_jax.pipeline import UnCLIP

    check_pictures(edit, len(pictures))
    check_folder(out)
    unclip = UnCLIP.load(options.model)
    how = sampling_of(options, edit_sampling(edit, unclip.sampling))
    unclip.runner.on_compile = PictureProgress(0).compiling
    samples = draw_edit(
        unclip,
        edit,
        pictures,
        options.num_images,
        options.seed,
        how,
        prior=options.prior,
        upsample=options.upsample,
    )
    frames = samples.frames
    columns = frames if frames > 1 else None
    *paths, grid = samples.save(out, columns, has_metadata=not options.no_metadata)
    if getattr(options, "animation", "none") != "none":
        save_animations(out, samples, options.animation)
    print(f"{count_of(len(paths), 'picture')} in {out}, side by side in {grid}")
    return 0


def save_animations(out: Path, samples: Any, kind: str) -> None:
    """A moving picture for each strip."""
    from unclip_jax.data.images import encode_animation
    from unclip_jax.files import write_whole

    for start in range(0, len(samples.images), samples.frames):
        strip = samples.images[start : start + samples.frames]
        name = f"animation_{start // samples.frames}.{kind}"
        write_whole(out / name, encode_animation(strip, kind))


def _positional(options: Any) -> tuple[str | None, Any]:
    """The mask's path, if one is given, and the options with the prompt in its place."""
    words = list(getattr(options, "mask_and_prompt", getattr(options, "words", ())))
    mask = None
    if words and hasattr(options, "mask_and_prompt"):
        # One word is the mask if it is a file, or meant to be one.
        is_path = Path(words[0]).suffix.lower() in PICTURES or Path(words[0]).is_file()
        mask = words.pop(0) if len(words) > 1 or is_path else None
    if len(words) > 1 or (words and options.prompt):
        raise UserError(
            f"{words[-1]!r} is one prompt too many: write one, in quotes, after the pictures"
        )
    return mask, replace(options, prompt=words[0]) if words else options


def texts_of(edit: LatentEdit | PixelEdit) -> list[str]:
    """All text that an edit was given."""
    found: list[str] = []
    for field in fields(edit):
        value = getattr(edit, field.name)
        values = value if isinstance(value, tuple) else (value,)
        found += [one for one in values if isinstance(one, str)]
    return found


def read_pictures(paths: Sequence[str]) -> list[Any]:
    """[H, W, 3] uint8 each.

    Raises:
        UserError: one cannot be read.
    """
    from unclip_jax.data.images import decode_image, picture_bytes

    return [decode_image(picture_bytes(path), name=path) for path in paths]


def read_with_mask(photo: str, mask: str | None) -> list[Any]:
    """[H, W, 3] uint8 and [H, W] bool: a photo, and what of it is painted.

    Args:
        mask: a picture; None takes what is transparent in the photo.
    Raises:
        UserError: one cannot be read, they do not fit, or there is no mask.
    """
    from unclip_jax.cli.progress import say
    from unclip_jax.data.images import picture_bytes
    from unclip_jax.editing.masks import check_mask, read_mask, read_photo_with_hole

    if mask is None:
        return [*read_photo_with_hole(picture_bytes(photo), name=photo)]
    picture, found = read_pictures([photo])[0], read_mask(picture_bytes(mask), name=mask)
    check_mask(picture, found, name=mask)
    if not found.any():
        say(f"{mask} is empty: {photo} stays as it is; make white what is to be painted")
    return [picture, found]
