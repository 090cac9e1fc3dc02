"""unclip embed CLIP --data.source DATA --out FOLDER: what CLIP makes of a data set, computed once.

A prior or a decoder whose recipe names the folder in `data.embeddings` reads the embeddings from it
instead of running CLIP's image encoder at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unclip_jax.cli.overrides import parse
from unclip_jax.config import DataConfig
from unclip_jax.errors import UserError

if TYPE_CHECKING:
    import jax

    from unclip_jax.data.embedding_manifest import Description
    from unclip_jax.data.embedding_shard import Encoders
    from unclip_jax.training.weights import Stage


@dataclass(frozen=True)
class EmbedOptions:
    """CLIP embeddings, captions and token ids of every picture, for training without the encoder.

    Killed and run again with the same options it continues. Give the --data options of the recipe.
    """

    clip: str
    """The CLIP: a run folder, an exported folder, or a shipped model's name."""
    out: str = "embeddings"
    """Folder for the embeddings."""
    data: DataConfig = DataConfig()
    """The pictures. CLIP sees them at data.image_size, resized to its own size."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the stored embeddings."""
    text: bool = False
    """Also store the text embedding of every caption."""
    shard_rows: int = 16384
    """Pictures a file. A killed run loses at most one file of each process."""
    batch_size: int = 64
    """Pictures a device and call."""
    process_index: int | None = None
    """Which of `process_count` machines this is, from 0; None is JAX's own process."""
    process_count: int | None = None
    """Machines that share the folder and the work; they need not know of each other."""

    def __post_init__(self) -> None:
        for name in ("shard_rows", "batch_size"):
            if getattr(self, name) < 1:
                given = getattr(self, name)
                raise UserError(f"--{name.replace('_', '-')} is {given}: give 1 or more")
        if self.data.embeddings is not None:
            raise UserError(
                "--data.embeddings is for training: name the folder to write with --out"
            )
        if self.data.repeats > 1:
            raise UserError(
                f"--data.repeats is {self.data.repeats}: a store has every picture once, leave it "
                "out"
            )
        index, count = self.process_index, self.process_count
        if (index is None) != (count is None):
            raise UserError("--process-index and --process-count belong together: give both")
        if index is not None and count is not None and not 0 <= index < count:
            raise UserError(
                f"--process-index is {index} of --process-count {count}: count from 0 to "
                f"{max(count, 1) - 1}"
            )


def main(arguments: Sequence[str]) -> int:
    """Writes the folder; returns the exit code."""
    options = parse(EmbedOptions, arguments, default=None, program="unclip embed")
    out = Path(options.out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    import jax

    from unclip_jax.data.bad_records import BadRecords
    from unclip_jax.data.embedding_writer import write_store
    from unclip_jax.data.sources import open_source
    from unclip_jax.training.weights import load_clip

    index, count = options.process_index, options.process_count
    if index is None or count is None:
        index, count = jax.process_index(), jax.process_count()
    clip = load_clip(options.clip)
    source = open_source(options.data)
    made_of = describe(clip, options, len(source))
    manifest = write_store(
        out,
        source,
        made_of,
        make_encoders(clip, options.batch_size, options.text),
        process_index=index,
        process_count=count,
        threads=options.data.threads,
        bad=BadRecords(max_fraction=options.data.max_bad_fraction),
        say=lambda line: print(line, flush=True),
    )
    if not manifest.finished:
        print(f"{out}: the shards of process {index} are written, others are still missing")
        return 0
    captions = sum(entry.captions for entry in manifest.shards)
    unreadable = sum(entry.unreadable for entry in manifest.shards)
    size = sum(entry.bytes for entry in manifest.shards) / 1e6
    print(
        f"{out}: {made_of.rows:,} pictures ({unreadable:,} unreadable) and {captions:,} captions, "
        f"CLIP {made_of.clip_id}, {size:,.1f} MB"
    )
    return 0


def describe(clip: Stage, options: EmbedOptions, rows: int) -> Description:
    """The store that these options ask for.

    Raises:
        UserError: the stage is not a CLIP, or there are no pictures.
    """
    from unclip_jax.data.embedding_manifest import Description, StoredData, tokenizer_id
    from unclip_jax.training.recipes.clip import CLIPRecipe

    if not isinstance(clip.recipe, CLIPRecipe):
        raise UserError(f"{options.clip} is not a CLIP: name the run or folder of one")
    assert clip.tokenizer is not None
    if rows == 0:
        raise UserError(f"data.source {options.data.source!r}: there are no pictures")
    return Description(
        clip_id=clip.clip_id,
        tokenizer_id=tokenizer_id(clip.tokenizer),
        data=StoredData.of(options.data),
        rows=rows,
        width=clip.recipe.model.embedding_width,
        context_length=clip.tokenizer.context_length,
        vocab_size=clip.tokenizer.vocab_size,
        dtype=options.dtype,
        has_text=options.text,
        shard_rows=options.shard_rows,
    )


def make_encoders(clip: Stage, batch_size: int, has_text: bool) -> Encoders:
    """CLIP's two encoders over all devices of this process, `batch_size` rows on each.

    The picture's is the one that training uses on the fly, so that the embeddings are the same.
    """
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from unclip_jax.data.embedding_shard import Encoders
    from unclip_jax.models.clip import CLIP, stage_embedding
    from unclip_jax.training.objectives.conditions import encode_image
    from unclip_jax.training.recipes.clip import CLIPRecipe

    assert isinstance(clip.recipe, CLIPRecipe) and clip.tokenizer is not None
    model = CLIP(clip.recipe.model)
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(clip.params, NamedSharding(mesh, PartitionSpec()))

    @jax.jit
    def of_images(params: Any, images: jax.Array) -> jax.Array:
        return encode_image(model, params, images)

    @jax.jit
    def of_tokens(params: Any, tokens: jax.Array) -> jax.Array:
        text, _ = model.apply({"params": params}, tokens, method=CLIP.encode_text)
        return stage_embedding(model.config, text)

    def image(images: np.ndarray) -> jax.Array:
        return of_images(params, jax.device_put(images, rows))

    def text(tokens: np.ndarray) -> jax.Array:
        return of_tokens(params, jax.device_put(tokens, rows))

    return Encoders(image, text if has_text else None, clip.tokenizer, batch_size * len(devices))
