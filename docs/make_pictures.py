"""The pictures of this site, drawn by the shipped model: python docs/make_pictures.py [NAME ...].

Each function below makes one of docs/pictures/*.webp; without names all are made, in about half an
hour on two CPU cores. A picture is a strip of the model's own 64 x 64, shown at twice its size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from unclip_jax import SamplingConfig, UnCLIP
from unclip_jax.config import DataConfig
from unclip_jax.data.images import decode_image, make_grid, resize_and_crop
from unclip_jax.data.scenes import SceneSource, draw_scene
from unclip_jax.data.tfds_source import EmojiSource
from unclip_jax.diffusion.process import q_sample
from unclip_jax.diffusion.schedule import make_schedule
from unclip_jax.evaluation.pictures import load_pictures

FOLDER = Path(__file__).parent / "pictures"


def emoji(concept: str, style: str) -> np.ndarray:
    """[64, 64, 3] uint8, a picture of the data set."""
    source = EmojiSource(DataConfig(source="emoji", split="train", concepts=(concept,)))
    names = {source[place].name.split("/")[0]: source[place] for place in range(len(source))}
    return decode_image(names[style].image, name=concept)


def strip(
    name: str, pictures: Sequence[np.ndarray] | np.ndarray, columns: int | None = None
) -> None:
    """Write pictures side by side."""
    grid = Image.fromarray(make_grid(np.stack(list(pictures)), columns or len(pictures)))
    grid = grid.resize((grid.width * 2, grid.height * 2), Image.Resampling.LANCZOS)
    grid.save(FOLDER / f"{name}.webp", quality=85, method=6)


def guided(unclip: UnCLIP, scale: float) -> SamplingConfig:
    """The model's sampling with another guidance scale of the decoder."""
    return replace(unclip.sampling, decoder=replace(unclip.sampling.decoder, guidance_scale=scale))


def noising(unclip: UnCLIP) -> None:
    """A picture at seven timesteps of the noising process."""
    chain = make_schedule("cosine")
    x0 = np.asarray(emoji("red apple", "3d"), np.float32) / 127.5 - 1
    t = np.array([0, 100, 250, 400, 550, 700, 850, 999])
    noise = np.random.default_rng(0).standard_normal((len(t), *x0.shape), np.float32)
    noisy = q_sample(chain, jnp.broadcast_to(x0, noise.shape), jnp.asarray(t), jnp.asarray(noise))
    strip("noising", np.asarray((jnp.clip(noisy, -1, 1) + 1) * 127.5).round().astype(np.uint8))


def scenes(unclip: UnCLIP) -> None:
    """The first scenes of the split train."""
    source = SceneSource(DataConfig(source="scenes"))
    strip("scenes", [draw_scene(source.scene(number), 64) for number in range(40)], 10)


def previews(unclip: UnCLIP) -> None:
    """What the decoder makes of the noise after ever more of its steps."""
    shots = {shot.step: shot.images[0] for shot in unclip.stream("rocket, noto style", 1, every=1)}
    strip("previews", [shots[step] for step in (1, 2, 4, 8, 16, 30)])


def guidance(unclip: UnCLIP) -> None:
    """Two prompts, the same noise, guidance 1, 2, 4 and 8."""
    prompts = ["rocket, noto style", "panda, 3d style"]
    parts = [unclip.text_to_image(prompts, 1, 3, guided(unclip, scale)) for scale in (1, 2, 4, 8)]
    strip("guidance", [part.images[row] for row in (0, 1) for part in parts], 4)


def vary(unclip: UnCLIP) -> None:
    """A picture, its reconstruction, and what more noise makes of it."""
    photo = emoji("red apple", "3d")
    parts = [unclip.vary(photo, 1, 1, eta=eta).images[0] for eta in (0.0, 0.3, 0.6, 1.0)]
    drawn = unclip.vary(photo, 2, 1, noise="drawn").images
    strip("vary", [photo, *parts, *drawn])


def interpolate(unclip: UnCLIP) -> None:
    """From a heart to an apple, as a strip and as an animation."""
    ends = [emoji("red heart", "noto"), emoji("red apple", "noto")]
    frames = unclip.interpolate(ends, 9).images
    strip("interpolate", frames)
    moving = [Image.fromarray(frame).resize((128, 128), 1) for frame in [*frames, *frames[-2:0:-1]]]
    moving[0].save(
        FOLDER / "interpolate-animated.webp",
        save_all=True,
        append_images=moving[1:],
        duration=120,
        loop=0,
        quality=80,
    )


def diff(unclip: UnCLIP) -> None:
    """A red heart led to a blue one."""
    photo = emoji("red heart", "3d")
    made = unclip.diff(photo, "blue heart, 3d style", "red heart, 3d style", 7, theta=1.0)
    strip("diff", made.images)


def mix(unclip: UnCLIP) -> None:
    """Two pictures and what the model makes of both, by weight."""
    one, two = emoji("red apple", "noto"), emoji("panda", "noto")
    weights = ((0.75, 0.25), (0.5, 0.5), (0.25, 0.75))
    parts = [unclip.mix([one, two], weights=pair, num_images=1).images[0] for pair in weights]
    strip("mix", [one, *parts, two])


def pca(unclip: UnCLIP) -> None:
    """A picture from ever more components of its embedding, and the picture."""
    photo = emoji("rocket", "noto")
    strip("pca", [*unclip.pca(photo, (4, 8, 16, 32, 64, 96, 128)).images, photo])


def compare_conditioning(unclip: UnCLIP) -> None:
    """A caption alone, its text embedding, the prior's embedding: two noises."""
    made = unclip.compare_conditioning("red apple, 3d style", 2)
    strip("compare-conditioning", made.images, made.frames)


def inpaint(unclip: UnCLIP) -> None:
    """A picture, what is known of it, and two ways to go on from that, for two prompts."""
    photo = emoji("red apple", "noto")
    mask = np.zeros(photo.shape[:2], bool)
    mask[:, 34:] = True
    known = np.where(mask[..., None], 160, photo).astype(np.uint8)
    rows = []
    for prompt in ("red apple, noto style", "blue heart, noto style"):
        rows += [photo, known, *unclip.inpaint(photo, mask, prompt, 2).images]
    strip("inpaint", rows, 4)


def outpaint(unclip: UnCLIP) -> None:
    """The left half of a picture, continued to the right twice as far, two ways."""
    photo = emoji("red apple", "noto")[:, :36]
    made = unclip.outpaint(photo, "red apple, noto style", 2, right=28).images
    start = np.full_like(made[0], 160)
    start[:, :36] = photo
    strip("outpaint", [start, *made])


def upscale(unclip: UnCLIP) -> None:
    """64 pixels by bicubic interpolation and by the upsampler, and the truth."""
    source = EmojiSource(
        DataConfig(source="emoji", split="train", image_size=256, concepts=("guitar",))
    )
    records = [source[place] for place in range(len(source))]
    truth = decode_image(next(r.image for r in records if r.name.startswith("noto")), name="guitar")
    small = resize_and_crop(truth, 64)
    plain = np.asarray(Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC))
    sharp = unclip.upsample(small[None], jax.random.split(jax.random.key(0), 1), 256)[0]
    grid = Image.fromarray(make_grid(np.stack([plain, sharp, truth]), 3))
    grid.save(FOLDER / "upscale.webp", quality=88, method=6)


def samples(unclip: UnCLIP) -> None:
    """Unselected: twelve pictures evenly spaced over each split, and what seed 0 draws for their
    captions; of the first four also at 256 pixels, of the first at 1024."""
    large: dict[int, list[np.ndarray]] = {256: [], 1024: []}
    for split in ("train", "test_cells", "test"):
        shown = load_pictures(split, 64, limit=12)
        print(split, *shown.captions, sep="\n  ", flush=True)
        drawn = unclip.text_to_image(shown.captions, 1)
        strip(f"samples-{split}", [*shown.images, *drawn.images], 12)
        for size, count in ((256, 4), (1024, 1)):
            large[size] += unclip.text_to_image(shown.captions[:count], 1, upsample=size).images
    for size, columns in ((256, 4), (1024, 3)):
        grid = Image.fromarray(make_grid(np.stack(large[size]), columns))
        grid.save(FOLDER / f"samples-{size}.webp", quality=80, method=6)


DRAWN: tuple[Callable[[UnCLIP], None], ...] = (
    noising,
    scenes,
    previews,
    guidance,
    vary,
    interpolate,
    diff,
    mix,
    pca,
    compare_conditioning,
    inpaint,
    outpaint,
    upscale,
    samples,
)


def main(names: Sequence[str]) -> None:
    """Make the pictures that are named, or all."""
    unclip = UnCLIP.load("emoji")
    for draw in DRAWN:
        if not names or draw.__name__ in names:
            print(draw.__name__, flush=True)
            draw(unclip)


if __name__ == "__main__":
    main(sys.argv[1:])
