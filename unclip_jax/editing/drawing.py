"""An edit → pictures with what they were made from, the best candidate first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unclip_jax.editing.job import Job
from unclip_jax.editing.latent_drawing import draw_latents
from unclip_jax.editing.latents import latent_sampling
from unclip_jax.editing.pixel_settings import Inpaint, Outpaint, PixelEdit, Upscale
from unclip_jax.editing.repainting import draw_repainted, repaint_sampling
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
from unclip_jax.editing.upscaling import draw_upscaled
from unclip_jax.errors import UserError
from unclip_jax.generation.bundle import Bundle
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.text_to_image import usable_prior
from unclip_jax.printable import count_of
from unclip_jax.samples import Samples

Edit = LatentEdit | PixelEdit


def draw_edit(
    bundle: Bundle,
    edit: Edit,
    pictures: Sequence[np.ndarray],
    num_images: int | None = None,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    *,
    prior: str = "diffusion",
    upsample: int | None = None,
    indices: Sequence[int] | None = None,
) -> Samples:
    """The pictures of an edit.

    Args:
        pictures: [H, W, 3] uint8 each, of any size; edits on latents read their central squares.
            `Inpaint` takes the photo and its mask [H, W] bool, True where it is painted anew.
        num_images: candidates; None is 4, or 1 where nothing is drawn or a picture is upscaled.
        seed: candidate i is drawn with fold_in(key(seed), i).
        sampling: None is `edit_sampling` of the edit and the model's own.
        prior: see `UnCLIP.text_to_image`.
        upsample: of edits on latents the side of the pictures, see `UnCLIP.text_to_image`; of
            `Inpaint` and `Outpaint` the last upsampler that may be used, None being all there are.
        indices: only these pictures, by the index that is in their metadata.
    Returns:
        the pictures: a strip for each candidate, or where a candidate is one picture, those nearest
        to what was asked for first (see `scores`).
    Raises:
        UserError: another number of pictures than the edit takes, or a stage that is missing.
    """
    check_pictures(edit, len(pictures))
    how = sampling or edit_sampling(edit, bundle.sampling)
    usable = usable_prior(bundle, prior) if reads_prior(edit) else "none"
    job = Job(bundle, pictures, how, seed, usable, upsample)
    if isinstance(edit, Inpaint | Outpaint):
        return draw_repainted(job, edit, num_images, indices)
    if isinstance(edit, Upscale):
        return draw_upscaled(job, edit, num_images, indices)
    return draw_latents(job, edit, num_images, indices)


def check_pictures(edit: Edit, count: int) -> None:
    """UserError unless an edit can start from so many pictures."""
    least, most = {
        Vary: (1, 1),
        Reconstruct: (1, 100),
        Interpolate: (2, 100),
        Diff: (1, 1),
        Mix: (0, 100),
        Components: (1, 1),
        CompareConditioning: (0, 0),
        Inpaint: (2, 2),  # the photo and its mask
        Outpaint: (1, 1),
        Upscale: (1, 1),
    }[type(edit)]
    if not least <= count <= most:
        wanted = count_of(least, "picture") if least == most else f"{least} or more pictures"
        raise UserError(f"{edit.verb} starts from {wanted}, not from {count}")
    if isinstance(edit, Mix) and count + len(edit.texts) < 1:
        raise UserError("there is nothing to mix: give pictures, or texts, or both")


def edit_sampling(edit: Edit, default: SamplingConfig) -> SamplingConfig:
    """How an edit is sampled unless the call says otherwise, by a model whose own is `default`."""
    if isinstance(edit, Inpaint | Outpaint):
        return repaint_sampling(default)
    return default if isinstance(edit, Upscale) else latent_sampling(edit, default)


def reads_prior(edit: Edit) -> bool:
    """Whether the prior draws something for an edit."""
    if isinstance(edit, Inpaint | Outpaint):
        return bool(edit.prompt)
    return isinstance(edit, CompareConditioning) or (isinstance(edit, Mix) and bool(edit.texts))
