"""The parsers of this package as fuzz targets: bytes in, and nothing comes out but a refusal.

A target feeds one parser with bytes from a stranger. It returns where the parser read them or
refused them as documented (`UserError`, of which `BadImage` is one); any other exception is a
finding, and so are a hang and memory beyond all proportion, which the callers measure. Where two
ways lead to one answer the target compares them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import json
import math
import pickle
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unclip_jax.config import to_dict
from unclip_jax.data import bpe
from unclip_jax.data.embedding_manifest import Description, Manifest, ShardEntry, StoredData
from unclip_jax.data.embedding_store import open_store
from unclip_jax.data.folder_source import FolderSource
from unclip_jax.data.images import decode_image
from unclip_jax.data.tar_source import TarSource
from unclip_jax.data.tokenizer import Tokenizer, clip_tokenizer
from unclip_jax.errors import UserError
from unclip_jax.generation.model_folder import read_sampling
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.restricted_pickle import Refused, read_pickle
from unclip_jax.interop.tokenizer_files import read_tokenizer
from unclip_jax.interop.torch_archive import open_torch
from unclip_jax.interop.torch_globals import TorchVocabulary
from unclip_jax.samples import Samples
from unclip_jax.training.recipe import recipe_from_json, recipe_to_json
from unclip_jax.training.weights import read_clip_recipe

Target = Callable[[bytes], None]

LONGEST_MESSAGE = 4000
"""Characters: one line that a person reads, whatever the input was."""
_FEW = 50
"""Records or tensors that are read of what a file holds."""
_LARGEST_TENSOR = 1 << 24


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Alive as long as the process; a target overwrites what the call before it wrote."""
    return tempfile.TemporaryDirectory(prefix="fuzz-")


def _folder(name: str) -> Path:
    folder = Path(_scratch().name) / name
    folder.mkdir(exist_ok=True)
    return folder


def _file(name: str, data: bytes) -> Path:
    path = _folder("files") / name
    path.write_bytes(data)
    return path


@contextlib.contextmanager
def documented() -> Iterator[None]:
    """Lets a refusal pass, if a person can read it."""
    said = "refused"
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except UserError as error:
        said = str(error)
    assert 0 < len(said) <= LONGEST_MESSAGE, f"a message of {len(said)} characters"


def tar_shard(data: bytes) -> None:
    """An archive as it is."""
    source = None
    with documented():
        source = TarSource(str(_file("shard.tar", data)))
    for index in range(min(len(source), _FEW) if source else 0):
        with documented():
            assert source is not None and len(source[index].image) <= len(data)


def tar_sealed(data: bytes) -> None:
    """An archive whose headers get the checksum that they need to be read at all."""
    sealed = bytearray(data)
    for start in range(0, len(sealed) - 511, 512):
        if sealed[start + 257 : start + 262] == b"ustar":
            sealed[start + 148 : start + 156] = b" " * 8
            checksum = sum(sealed[start : start + 512])
            sealed[start + 148 : start + 156] = b"%06o\0 " % checksum
    tar_shard(bytes(sealed))


def _read_weights(path: Path, open_weights: Callable[[Path], Any]) -> None:
    with documented():
        for tensor in list(open_weights(path).tensors.values())[:_FEW]:
            if math.prod(tensor.shape) <= _LARGEST_TENSOR:
                with documented():
                    array = tensor.read()
                    assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)


def torch_archive(data: bytes) -> None:
    """A zip archive of torch, all of it."""
    _read_weights(_file("weights.pt", data), open_torch)


def torch_pickle(data: bytes) -> None:
    """The program in such an archive, beside what Python's own unpickler makes of it.

    That one is not allowed a single global, so it agrees on plain data or says nothing.
    """
    vocabulary = TorchVocabulary(Path("weights.pt"), {}, "archive/data/")
    said, pair = "", ()
    try:
        ours = read_pickle(data, vocabulary)
        with contextlib.suppress(Exception):  # that one knows fewer words
            pair = ours, _as_ours(_PlainUnpickler(io.BytesIO(data)).load())
    except Refused as error:
        said = str(error)
    assert len(said) <= LONGEST_MESSAGE and len({*map(repr, pair)}) <= 1


# The implementation in Python: the one in C allocates as much as a damaged memo index says.
class _PlainUnpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


def _as_ours(value: Any) -> Any:
    """Sets are lists here and mutable bytes are bytes, which no tensor needs to tell apart."""
    if isinstance(value, dict):
        return {_as_ours(key): _as_ours(item) for key, item in value.items()}
    if isinstance(value, list | set | frozenset):
        return [_as_ours(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_as_ours(item) for item in value)
    return bytes(value) if isinstance(value, bytearray) else value


def safetensors(data: bytes) -> None:
    """A safetensors file."""
    _read_weights(_file("weights.safetensors", data), open_file)


def weights_index(data: bytes) -> None:
    """A `*.index.json` in a folder with one sound part and a copy of itself under another name.

    A file in the folder above, which nothing may reach, has other numbers.
    """
    folder = _folder("sharded")
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    part = struct.pack("<Q", len(header)) + header + b"\1"
    (folder / "part.safetensors").write_bytes(part)
    (folder.parent / "model.safetensors").write_bytes(part[:-1] + b"\2")
    (folder / "again").write_bytes(data)
    (folder / "model.safetensors.index.json").write_bytes(data)
    with documented():
        for tensor in open_file(folder).tensors.values():
            assert tensor.read() == [1]


def prompts_txt(data: bytes) -> None:
    """A file of prompts, one a line."""
    _read_prompts("prompts.txt", data)


def prompts_jsonl(data: bytes) -> None:
    """A file of prompts, one JSON object a line."""
    _read_prompts("prompts.jsonl", data)


def _read_prompts(name: str, data: bytes) -> None:
    with documented():
        prompts = read_prompts(_file(name, data))
        assert prompts and all(isinstance(text, str) and text.strip() for text in prompts)


def read_prompts(path: Path) -> list[str]:
    """The package's own, whichever of its modules has it."""
    for module in ("unclip_jax.cli.prompts", "unclip_jax.cli.sample"):
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(module), "read_prompts", None)
            if found is not None:
                return [line.prompt for line in found(path)]
    raise AssertionError("nothing reads prompt files")


def recipe_json(data: bytes) -> None:
    """A recipe as data; what is accepted comes back from its own JSON."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    recipe = None
    with documented():
        recipe = recipe_from_json(given)
    if recipe is not None:
        text = json.dumps(recipe_to_json(recipe), allow_nan=False)
        assert recipe_from_json(json.loads(text)) == recipe


def run_config(data: bytes) -> None:
    """The config.json of a run's folder."""
    folder = _folder("run")
    (folder / "config.json").write_bytes(data)
    with documented():
        read_clip_recipe(folder)


def sampling_json(data: bytes) -> None:
    """The sampling.json of a model's folder."""
    folder = _folder("model")
    (folder / "sampling.json").write_bytes(data)
    with documented():
        read_sampling(folder)


def picture(data: bytes) -> None:
    """A file that says that it is a picture."""
    with documented():
        pixels = decode_image(data, name="picture", max_pixels=1 << 20)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def picture_facts(data: bytes) -> None:
    """A prompt of any characters, through a PNG's metadata and back."""
    prompt = data.decode("utf-8", "surrogateescape")
    facts = {"prompt": prompt, "seed": 1, "index": 0}
    black = np.zeros((1, 1, 3), np.uint8)
    (path, _) = Samples(black[None], None, (facts,)).save(_folder("pictures"))
    assert path.parent == _folder("pictures") and path.name.isascii()
    with Image.open(path) as image:
        found = json.loads(image.info["unclip"])
    assert {name: found[name] for name in facts} == facts
    path.unlink()


@functools.cache
def clip() -> Tokenizer:
    """CLIP's, made once: its tables take a second."""
    return clip_tokenizer()


def tokenizer_text(data: bytes) -> None:
    """A caption of any characters: a row of ids, and the words again."""
    text = data.decode("utf-8", "surrogateescape")
    tokenizer = clip()
    (row,) = tokenizer([text])
    assert row.shape == (77,) and row.dtype == np.int32
    assert row[0] == tokenizer.sot_id and row.max() == tokenizer.eot_id
    words = bpe.split_words(bpe.clean_text(text))
    if bpe.SOT not in words and bpe.EOT not in words:
        assert tokenizer.decode(tokenizer.encode(text)) == " ".join(words).strip()


def tokenizer_json(data: bytes) -> None:
    """A tokenizer.json; what is accepted reads captions."""
    with documented():
        tokenizer = Tokenizer.load(_file("tokenizer.json", data))
        (row,) = tokenizer(["a red apple, 3d style"])
        tokenizer.decode(row)
        tokenizer.decode(range(tokenizer.vocab_size))
        assert Tokenizer.from_json(tokenizer.to_json()) == tokenizer


def hugging_face_tokenizer(data: bytes) -> None:
    """The same in Hugging Face's files: one, or vocab.json and merges.txt with a NUL between."""
    folder = _folder("hugging_face")
    for path in folder.iterdir():
        path.unlink()
    first, cut, second = data.partition(b"\0")
    (folder / ("vocab.json" if cut else "tokenizer.json")).write_bytes(first)
    if cut:
        (folder / "merges.txt").write_bytes(second)
    with documented():
        read_tokenizer(folder, 16)


def captions_list(data: bytes) -> None:
    """captions.jsonl of a folder with one picture."""
    _read_folder("captions.jsonl", data)


def captions_text(data: bytes) -> None:
    """The .txt beside a picture."""
    _read_folder("a.txt", data)


def _read_folder(name: str, data: bytes) -> None:
    folder = _folder(f"with-{name}")
    (folder / "a.png").write_bytes(b"")
    (folder / name).write_bytes(data)
    with documented():
        source = FolderSource(str(folder))
        captions = source[0].captions
        assert captions and all(isinstance(text, str) and text.strip() for text in captions)


STORED = Description(
    clip_id="clip",
    tokenizer_id="tokenizer",
    data=StoredData("emoji", "train", 8, (), False, "image", "caption"),
    rows=2,
    width=2,
    context_length=8,
    vocab_size=600,
    dtype="float32",
    has_text=True,
    shard_rows=2,
)
"""Of the store whose parts the next two targets replace."""


def store_manifest(data: bytes) -> None:
    """The manifest.json of an embedding store."""
    folder = _folder("manifest")
    (folder / "manifest.json").write_bytes(data)
    with documented():
        open_store(folder)


def store_shard(data: bytes) -> None:
    """A shard of an embedding store, to which the manifest is made to fit."""
    folder = _folder("shard")
    (folder / "shard-00000.safetensors").write_bytes(data)
    entry = ShardEntry(2, 3, 0, len(data), hashlib.sha256(data).hexdigest())
    manifest = Manifest(1, True, STORED, (entry,))
    (folder / "manifest.json").write_text(json.dumps(to_dict(manifest)))
    with documented():
        store = open_store(folder)
        for row in range(len(store)):
            with documented():
                store.embeddings([row])
                store.tokens(row, 0)
                store.text_embeddings(row)
                assert isinstance(store[row].name, str)


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        tar_shard,
        tar_sealed,
        torch_archive,
        torch_pickle,
        safetensors,
        weights_index,
        prompts_txt,
        prompts_jsonl,
        recipe_json,
        run_config,
        sampling_json,
        picture,
        picture_facts,
        tokenizer_text,
        tokenizer_json,
        hugging_face_tokenizer,
        captions_list,
        captions_text,
        store_manifest,
        store_shard,
    )
}
"""By the name that is also the corpus folder's."""
