"""UnCLIP: a model, what it draws from text, every edit that it makes to a picture, and what its
CLIP tells about pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unclip_jax.clip_tools.captions import rank_captions
from unclip_jax.clip_tools.index import PictureIndex
from unclip_jax.clip_tools.index_writer import Indexed, write_index
from unclip_jax.clip_tools.matches import Match, Matches
from unclip_jax.clip_tools.search import Hit, search
from unclip_jax.clip_tools.zero_shot import TEMPLATES, classify
from unclip_jax.diffusion.inpainting import Resampling
from unclip_jax.editing.drawing import draw_edit
from unclip_jax.editing.pixel_settings import Inpaint, Outpaint, Upscale
from unclip_jax.editing.settings import (
    CompareConditioning,
    Components,
    Diff,
    Interpolate,
    Mix,
    Noise,
    Reconstruct,
    Vary,
)
from unclip_jax.generation.bundle import Bundle
from unclip_jax.generation.drawing import Drawn, Request, draw
from unclip_jax.generation.facts import make_facts
from unclip_jax.generation.model_folder import read_model
from unclip_jax.generation.previews import Preview, stream_previews
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.text_to_image import (
    make_requests,
    text_batches,
    text_programs,
    usable_prior,
)
from unclip_jax.samples import Samples


@dataclass(frozen=True, eq=False)
class UnCLIP(Bundle):
    """A frozen bundle of stages, and what people do with them.

    The stages can be called alone (`Bundle`): encode_text, encode_image, sample_prior, decode,
    invert and upsample. Picture `index` of (prompt, seed) is drawn with fold_in(key(seed), index).
    """

    @classmethod
    def load(
        cls, source: str | Path | dict[str, Any], only: Collection[str] | None = None
    ) -> UnCLIP:
        """A shipped model by name, a folder with a folder a stage, or {stage: folder}.

        Args:
            only: of its stages those of these names, such as ("clip", "prior", "decoder"); None is
                all. What is left out takes neither time nor memory.
        Raises:
            UserError: nothing there, or stages that were trained for another CLIP.
        """
        stages, sampling = read_model(source, only=only, as_stored=True)
        return cls(stages, sampling, source if isinstance(source, str) else "")

    def text_to_image(
        self,
        prompts: str | Sequence[str],
        num_images: int = 4,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        negative: str = "",
        prior: str = "diffusion",
        upsample: int | None = None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Samples:
        """Pictures for prompts, `num_images` each, in the order of the prompts.

        Args:
            seed: picture i of every prompt is drawn with fold_in(key(seed), i).
            negative: a prompt that guidance leads away from.
            prior: see `sample_prior`; "none" draws no image embedding, and the decoder sees the
                caption alone, as GLIDE. A decoder that knows no embeddings always does.
            upsample: 256 or 1024, the side of the pictures; None is the decoder's own.
            on_stage: told the name of each stage before it runs.
        Raises:
            UserError: no prompt, or a stage is missing.
        """
        requests = make_requests(prompts, num_images, seed, negative)
        parts = list(
            self.draw(requests, sampling, prior=prior, upsample=upsample, on_stage=on_stage)
        )
        vectors = [part.embeddings for part in parts if part.embeddings is not None]
        facts = self.facts(requests, sampling, prior=prior, upsample=upsample)
        images = np.concatenate([part.images for part in parts])
        return Samples(images, np.concatenate(vectors) if vectors else None, tuple(facts))

    def draw(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        *,
        prior: str = "diffusion",
        upsample: int | None = None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Iterator[Drawn]:
        """Pictures for any number of requests, as a stream of micro-batches in their order.

        While the caller is busy with one micro-batch the devices draw the next. The arguments are
        those of `text_to_image`; mistakes are raised before anything is computed.
        """
        how = sampling or self.sampling
        if not requests:
            return iter(())
        links, batches = text_batches(self, requests, how, usable_prior(self, prior), upsample)
        return draw(self.runner, links, batches, how.stages_at_once, on_stage)

    def stream(
        self,
        prompts: str | Sequence[str],
        num_images: int = 4,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        every: int = 5,
        negative: str = "",
        prior: str = "diffusion",
        upsample: int | None = None,
    ) -> Iterator[Preview]:
        """`text_to_image` as it goes: what the pictures look like after every `every` steps of the
        decoder, and last the pictures. Another `every` compiles nothing."""
        how = sampling or self.sampling
        requests = make_requests(prompts, num_images, seed, negative)
        return stream_previews(self, requests, how, usable_prior(self, prior), upsample, every)

    def facts(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        *,
        prior: str = "diffusion",
        upsample: int | None = None,
    ) -> list[dict[str, Any]]:
        """What each picture was made from, as it is written into its file."""
        facts_of = self.make_facts(sampling, prior=prior, upsample=upsample)
        return [facts_of(request) for request in requests]

    def make_facts(
        self,
        sampling: SamplingConfig | None = None,
        *,
        prior: str = "diffusion",
        upsample: int | None = None,
    ) -> Callable[[Request], dict[str, Any]]:
        """The same as a function of one request, for more of them than the memory should hold."""
        how, prior = sampling or self.sampling, usable_prior(self, prior)
        programs = text_programs(self, how, prior, upsample)
        names = sorted({name for program in programs for name in program.stages})
        weights = {name: self.stage_id(name) for name in names}
        return make_facts(how, prior, upsample, self.name, weights)

    def vary(
        self,
        picture: np.ndarray,
        num_images: int | None = None,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        eta: float = 1.0,
        noise: Noise = "inverted",
        caption: str = "",
        upsample: int | None = None,
    ) -> Samples:
        """Variations of a picture, the nearest to it first; see `Vary`, and `draw_edit`.

        Args:
            picture: [H, W, 3] uint8, of which the central square is read.
            eta: 0 reconstructs, 1 varies most.
        """
        edit = Vary(eta, noise, caption)
        return draw_edit(self, edit, [picture], num_images, seed, sampling, upsample=upsample)

    def reconstruct(
        self,
        pictures: Sequence[np.ndarray],
        sampling: SamplingConfig | None = None,
        *,
        upsample: int | None = None,
    ) -> Samples:
        """Each picture inverted and decoded again, which shows what the decoder can hold."""
        return draw_edit(self, Reconstruct(), pictures, 1, 0, sampling, upsample=upsample)

    def interpolate(
        self,
        pictures: Sequence[np.ndarray],
        frames: int = 9,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        noise: Noise = "inverted",
        num_images: int | None = None,
        upsample: int | None = None,
    ) -> Samples:
        """From each picture to the next, see `Interpolate`; `num_images` ways of `frames` each."""
        edit = Interpolate(frames, noise)
        return draw_edit(self, edit, pictures, num_images, seed, sampling, upsample=upsample)

    def diff(
        self,
        picture: np.ndarray,
        to: str,
        from_caption: str = "",
        frames: int = 9,
        sampling: SamplingConfig | None = None,
        *,
        theta: float = 0.5,
        upsample: int | None = None,
    ) -> Samples:
        """A picture on the way from one description to another, see `Diff`."""
        edit = Diff(to, from_caption, frames, theta)
        return draw_edit(self, edit, [picture], 1, 0, sampling, upsample=upsample)

    def mix(
        self,
        pictures: Sequence[np.ndarray] = (),
        texts: Sequence[str] = (),
        weights: Sequence[float] = (),
        num_images: int | None = None,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        caption: str | None = None,
        negative: str = "",
        prior: str = "diffusion",
        upsample: int | None = None,
    ) -> Samples:
        """Pictures of everything that is given together, see `Mix`."""
        edit = Mix(tuple(texts), tuple(weights), caption, negative)
        return draw_edit(
            self, edit, pictures, num_images, seed, sampling, prior=prior, upsample=upsample
        )

    def pca(
        self,
        picture: np.ndarray,
        components: Sequence[int] = (),
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        upsample: int | None = None,
    ) -> Samples:
        """A picture from ever more components of its embedding, see `Components`."""
        edit = Components(tuple(components))
        return draw_edit(self, edit, [picture], 1, seed, sampling, upsample=upsample)

    def compare_conditioning(
        self,
        prompt: str,
        num_images: int | None = None,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        prior: str = "diffusion",
        upsample: int | None = None,
    ) -> Samples:
        """A caption decoded three ways, `num_images` times; see `CompareConditioning`."""
        edit = CompareConditioning(prompt)
        return draw_edit(self, edit, (), num_images, seed, sampling, prior=prior, upsample=upsample)

    def inpaint(
        self,
        photo: np.ndarray,
        mask: np.ndarray,
        prompt: str = "",
        num_images: int | None = None,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        negative: str = "",
        window: int | None = None,
        context: float = 2.0,
        resampling: Resampling = Resampling(),
        blend: float = 8.0,
        prior: str = "diffusion",
        upsample: int | None = None,
    ) -> Samples:
        """A part of a photo painted anew, see `Inpaint`; the rest stays byte by byte.

        Args:
            photo: [H, W, 3] uint8, of any size and aspect.
            mask: [H, W] bool, True where it is painted; `editing.masks.read_mask` reads files.
            upsample: the last upsampler that may be used; None is all there are.
        Returns:
            pictures of the photo's size, the nearest to the prompt around the mask first.
        """
        shared = (window, resampling.resamples, resampling.jump_length, blend)
        edit = Inpaint(prompt, negative, *shared, context)
        inputs = (photo, np.asarray(mask, bool))
        return draw_edit(
            self, edit, inputs, num_images, seed, sampling, prior=prior, upsample=upsample
        )

    def outpaint(
        self,
        photo: np.ndarray,
        prompt: str = "",
        num_images: int | None = None,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        zoom_out: float = 1.0,
        negative: str = "",
        window: int | None = None,
        resampling: Resampling = Resampling(),
        blend: float = 8.0,
        prior: str = "diffusion",
        upsample: int | None = None,
    ) -> Samples:
        """A photo continued by so many pixels at each side, see `Outpaint`; arguments as
        `inpaint`."""
        shared = (window, resampling.resamples, resampling.jump_length, blend)
        edit = Outpaint(prompt, negative, *shared, left, right, top, bottom, zoom_out)
        return draw_edit(
            self, edit, [photo], num_images, seed, sampling, prior=prior, upsample=upsample
        )

    def upscale(
        self,
        photo: np.ndarray,
        factor: Literal[4, 16] = 4,
        num_images: int | None = None,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> Samples:
        """A picture of any size and aspect through the upsamplers, see `Upscale`."""
        return draw_edit(self, Upscale(factor), [photo], num_images, seed, sampling)

    def classify(
        self,
        pictures: Iterable[np.ndarray],
        labels: Sequence[str],
        templates: Sequence[str] = TEMPLATES,
    ) -> Matches:
        """How likely each label is for each picture, see `clip_tools.zero_shot`."""
        return classify(self, pictures, labels, templates)

    def rank_captions(self, picture: np.ndarray, captions: Sequence[str]) -> list[Match]:
        """All captions, the one that describes a picture of [H, W, 3] uint8 best first."""
        found = rank_captions(self, [picture], captions)
        return found.best(len(found.texts))[0]

    def index(self, folder: str | Path, out: str | Path, **options: Any) -> Indexed:
        """Index the pictures under a folder, or bring their index up to date; the options are those
        of `clip_tools.index_writer.write_index`."""
        return write_index(self, folder, out, **options)

    def search(
        self,
        index: PictureIndex | str | Path,
        text: str | Sequence[str] = (),
        pictures: Sequence[np.ndarray] = (),
        weights: Sequence[float] = (),
        k: int = 10,
    ) -> tuple[Hit, ...]:
        """The pictures of an index nearest to all that is given, see `clip_tools.search`."""
        texts = (text,) if isinstance(text, str) else tuple(text)
        return search(self, index, texts, pictures, weights, k)
