"""Properties of the parsers that hold for every input, tried on inputs that hypothesis makes.

The same inputs in every run: a test that fails here today failed yesterday too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import pickle
import sys
import tarfile
import types
import typing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.targets import TARGETS, clip, read_prompts
from tests.interop.torch_files import program, tensor_program, word, write_archive
from unclip_jax import config as configs
from unclip_jax.config import from_dict, to_dict
from unclip_jax.data import bpe
from unclip_jax.data.folder_source import FolderSource
from unclip_jax.data.images import BadImage, decode_image
from unclip_jax.data.records import PICTURES
from unclip_jax.data.tar_source import TarSource
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.errors import UserError
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.interop.restricted_pickle import Refused, read_pickle
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.tokenizer_files import write_tokenizer
from unclip_jax.interop.torch_archive import open_torch, write_torch_archive
from unclip_jax.interop.torch_globals import TorchVocabulary
from unclip_jax.samples import Samples
from unclip_jax.training.recipe import STAGES, recipe_from_json, recipe_to_json


def examples(count: int) -> settings:
    """Few, always the same, none of them kept on disk."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of this file."""
    return tmp_path_factory.mktemp("properties")


ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=40)
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


# Whatever the bytes are


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_bytes_are_read_or_refused(target: str) -> None:
    @examples(40)
    @given(st.binary(max_size=600) | TEXT.map(str.encode))
    def check(data: bytes) -> None:
        TARGETS[target](data)

    check()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
IN_JSON = (
    *("recipe_json", "run_config", "sampling_json", "store_manifest", "tokenizer_json"),
    *("hugging_face_tokenizer", "weights_index", "captions_list", "prompts_jsonl"),
)


@pytest.mark.parametrize("target", IN_JSON)
def test_a_changed_field_is_read_or_refused(target: str) -> None:
    """One value of a sound file, anywhere in it, becomes something else."""
    corpus = Path(__file__).parent / "corpus" / target
    sound = {"hugging_face_tokenizer": "fast", "captions_list": "lines", "prompts_jsonl": "lines"}
    sound |= {"store_manifest": "manifest", "tokenizer_json": "trained", "weights_index": "index"}
    sound |= {"recipe_json": "clip", "run_config": "clip", "sampling_json": "defaults"}
    text = (corpus / sound[target]).read_text().splitlines()[0]

    @examples(60)
    @given(st.data(), JSON)
    def check(data: st.DataObject, value: Any) -> None:
        root = node = {"": json.loads(text)}
        key: Any = ""
        for _ in range(data.draw(st.integers(0, 4))):
            if isinstance(node[key], dict | list) and node[key]:
                node = node[key]
                keys = list(node) if isinstance(node, dict) else list(range(len(node)))
                key = data.draw(st.sampled_from(keys))
        node[key] = value
        TARGETS[target](json.dumps(root[""]).encode())

    check()


# Tar shards


NAMES = st.text(st.sampled_from("abc.é日-_ "), min_size=1, max_size=12)
FOLDERS = st.lists(st.text(st.sampled_from("abé日"), min_size=1, max_size=60), max_size=3)
KINDS = [tarfile.REGTYPE] * 6 + [
    tarfile.AREGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
]
ENDINGS = st.sampled_from([*PICTURES, ".PNG", ".txt", ".txt", ".json", ".cls", ""])
MEMBERS = st.lists(
    st.tuples(FOLDERS, NAMES, ENDINGS, st.binary(max_size=600), st.sampled_from(KINDS)),
    max_size=12,
)


def listed_by_tarfile(path: Path) -> dict[str, tuple[bytes, bytes]]:
    """(picture, caption) of every complete sample, by its key, as tarfile finds them."""
    parts: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            folder, _, base = member.name.rpartition("/")
            stem, dot, ending = base.partition(".")
            if file is not None and stem and dot:
                key = f"{folder}/{stem}" if folder else stem
                parts.setdefault(key, {})["." + ending.lower()] = file.read()
    found = {}
    for key, part in parts.items():
        picture = next((part[ending] for ending in PICTURES if ending in part), None)
        caption = part.get(".txt", part.get(".json"))
        if picture is not None and caption is not None:
            found[key] = picture, caption
    return found


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_index_equals_tarfiles(form: int, folder: Path) -> None:
    path = folder / "shard.tar"

    @examples(60)
    @given(MEMBERS, st.booleans())
    def check(members: list[tuple[Any, ...]], has_facts: bool) -> None:
        with tarfile.open(path, "w", format=form) as archive:
            for folders, name, ending, data, kind in members:
                member = tarfile.TarInfo("/".join([*folders, name + ending]))
                member.type, member.linkname = kind, "a" if kind == tarfile.SYMTYPE else ""
                member.size = len(data) if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
                member.pax_headers = {"comment": name} if has_facts else {}
                try:
                    archive.addfile(member, io.BytesIO(data))
                except ValueError:  # a name that USTAR has no room for
                    assume(False)
        expected = listed_by_tarfile(path)
        source = TarSource(str(path)) if expected else ()
        assert len(source) == len(expected)
        reasons = {"no caption"}
        for index, (key, (picture, caption)) in enumerate(expected.items()):
            try:
                record = source[index]
            except BadImage as error:
                reasons.add(error.reason)
                continue
            assert (record.name, record.image) == (f"shard.tar/{key}", picture)
            assert all(text in caption.decode(errors="replace") for text in record.captions)
        assert reasons == {"no caption"}

    check()


# Pickles and archives of torch


KEYS = TEXT | st.integers(-(2**59), 2**59) | st.booleans() | st.none() | st.binary(max_size=9)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=300)
PLAIN = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS | st.tuples(KEYS, KEYS), inner, max_size=4)
    ),
    max_leaves=20,
)


def read_with(program: bytes) -> Any:
    return read_pickle(program, TorchVocabulary(Path("weights.pt"), {}, "archive/data/"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_what_pickle_reads(protocol: int) -> None:
    @examples(60)
    @given(PLAIN, st.booleans())
    @example([{"shared": (1,)}, float("nan")], True)
    def check(value: Any, is_twice: bool) -> None:
        value = [value, value] if is_twice else value
        # repr, because NaN is not equal to itself and 1 is to True.
        assert repr(read_with(pickle.dumps(value, protocol))) == repr(value)

    check()


@examples(150)
@given(st.sampled_from(sorted(sys.stdlib_module_names)), st.data(), st.integers(2, 5))
def test_no_other_global_is_read_or_imported(module: str, data: st.DataObject, kind: int) -> None:
    """A word of a standard module, named as each protocol names it, and called."""
    words = st.sampled_from(["system", "eval", "open", "Popen", "run", "loads", "get"]) | TEXT
    name = data.draw(words.filter(lambda text: "\n" not in text))
    path = f"{module}.{name}"
    assume(not TorchVocabulary(Path(), {}, "").permits(path))
    named = word(module) + word(name) + b"\x93" if kind >= 4 else f"c{path}\n".encode()
    if kind < 4:
        named = f"c{module}\n{name}\n".encode("utf-8", "surrogatepass")
    before = set(sys.modules)
    for call in (b"", b")R", word("x") + b"\x85R", b")\x81", b")\x81}b"):
        with pytest.raises(Refused):
            read_with(b"\x80\x04" + named + call + b".")
    assert set(sys.modules) <= before | {"tests"}


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@examples(60)
@given(st.dictionaries(st.text("abc._", min_size=1, max_size=8), SHAPES, max_size=4), st.data())
def test_tensors_of_any_shape_come_back(
    folder: Path, shapes: dict[str, tuple[int, ...]], data: st.DataObject
) -> None:
    kinds = st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_])
    arrays = {
        name: np.arange(math.prod(shape)).astype(data.draw(kinds)).reshape(shape)
        for name, shape in shapes.items()
    }
    path = folder / "weights.pt"
    write_torch_archive(path, from_arrays(arrays))
    tensors = open_torch(path).tensors
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        read = tensors[name].read()
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


@examples(100)
@given(SHAPES.filter(bool), st.data(), st.integers(0, 8))
def test_views_are_numpys_or_refused(
    folder: Path, shape: tuple[int, ...], data: st.DataObject, offset: int
) -> None:
    """Any strides over 40 numbers: what numpy makes of them, and nothing beyond the numbers."""
    strides = tuple(data.draw(st.integers(0, 12)) for _ in shape)
    stored = np.arange(40, dtype=np.float32)
    view = tensor_program(shape, strides, offset=offset, count=40)
    path = write_archive(
        folder / "view.pt", program(b"}" + word("w") + view + b"s"), {"0": stored.tobytes()}
    )
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= 40:
        with pytest.raises(UserError):
            open_torch(path)
        return
    read = open_torch(path).tensors["w"].read()
    steps = tuple(4 * stride for stride in strides)
    expected = np.lib.stride_tricks.as_strided(stored[offset:], shape, steps)
    np.testing.assert_array_equal(read, expected)


# Recipes


def configs_of(cls: type) -> st.SearchStrategy[Any]:
    """Configs of a class, with as many fields of their type as the class takes."""
    return fields_of(cls).map(functools.partial(_made, cls))


def fields_of(cls: type) -> st.SearchStrategy[dict[str, Any]]:
    """Some fields of a class by name."""
    hints = typing.get_type_hints(cls)
    fields = {
        field.name: of_type(hints[field.name])
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
    }
    return st.fixed_dictionaries({}, optional=fields)


def _made(cls: type, values: dict[str, Any]) -> Any:
    """With as many of the values as it takes."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        try:
            cls(**kept, **{name: value})
            kept[name] = value
        except UserError:
            continue
    return cls(**kept)


def of_type(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return configs_of(typing.cast(type, hint))
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(of_type, args))
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        is_any = args[-1] is Ellipsis
        return (
            st.lists(of_type(args[0]), max_size=3).map(tuple)
            if is_any
            else st.tuples(*map(of_type, args))
        )
    plain = {int: st.integers(-2, 2000), str: TEXT, bool: st.booleans(), type(None): st.none()}
    return st.floats(0, 1e4) if hint is float else plain[hint]


SHARED = (
    *(configs.DataConfig, configs.OptimConfig, configs.CheckpointConfig, configs.MeshConfig),
    *(configs.LogConfig, SamplerConfig, SamplingConfig),
)


@pytest.mark.parametrize("cls", SHARED, ids=lambda cls: cls.__name__)
def test_configs_come_back_from_json(cls: type) -> None:
    @examples(50)
    @given(configs_of(cls))
    def check(config: Any) -> None:
        assert from_dict(cls, json.loads(json.dumps(to_dict(config)))) == config

    check()


@pytest.mark.parametrize("stage", STAGES)
def test_recipes_come_back_from_json(stage: str) -> None:
    sound = json.loads((Path(__file__).parent / "corpus" / "recipe_json" / stage).read_text())
    recipe = recipe_from_json(sound)
    shared = {"data": configs.DataConfig, "optim": configs.OptimConfig, "log": configs.LogConfig}

    @examples(15)
    @given(st.fixed_dictionaries({name: fields_of(cls) for name, cls in shared.items()}))
    def check(values: dict[str, Any]) -> None:
        changed = recipe
        for part, fields in values.items():
            for name, value in fields.items():
                with contextlib.suppress(UserError):  # what does not suit the rest stays
                    new = dataclasses.replace(getattr(changed, part), **{name: value})
                    changed = dataclasses.replace(changed, **{part: new})
        assert recipe_from_json(json.loads(json.dumps(recipe_to_json(changed)))) == changed

    check()


# Texts


@examples(100)
@given(st.lists(ANY_TEXT, max_size=3))
def test_any_text_becomes_a_row_of_ids(texts: list[str]) -> None:
    rows = clip()(texts)
    assert rows.shape == (len(texts), 77) and rows.dtype == np.int32
    assert (rows[:, 0] == 49406).all() and (rows.max(axis=-1, initial=49407) == 49407).all()
    for text, row in zip(texts, rows, strict=True):
        words = bpe.split_words(bpe.clean_text(text))
        assert np.count_nonzero(row == 49407) == 1 + words.count(bpe.EOT) or len(words) > 20
        if bpe.SOT not in words and bpe.EOT not in words:
            assert clip().decode(clip().encode(text)) == " ".join(words)


def merged_one_rank_at_a_time(pieces: list[str], ranks: dict[bpe.Merge, int]) -> list[str]:
    """Byte-pair merging as its authors wrote it, which looks at all pairs before every merge."""
    while pairs := [pair for pair in itertools.pairwise(pieces) if pair in ranks]:
        best, merged = min(pairs, key=ranks.__getitem__), []
        for piece in pieces:
            if merged and not merged[-1][1] and (merged[-1][0], piece) == best:
                merged[-1] = (merged[-1][0] + piece, True)
            else:
                merged.append((piece, False))
        pieces = [piece for piece, _ in merged]
    return pieces


PIECES = st.sampled_from(["a", "b", "ab", "ba", "aa", "aab", "abb"])


@examples(400)
@given(
    st.lists(st.sampled_from("ab"), max_size=30),
    st.lists(st.tuples(PIECES, PIECES), unique=True, max_size=20),
)
def test_merges_are_the_slow_ones(letters: list[str], merges: list[bpe.Merge]) -> None:
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    assert bpe.merge_pieces(list(letters), ranks) == merged_one_rank_at_a_time(letters, ranks)


def test_ids_are_transformers(folder: Path) -> None:
    """On cleaned texts of old letters: ours mends the encoding first, and theirs does not; which of
    the newest code points are letters depends on the version of Unicode."""
    transformers = pytest.importorskip("transformers")
    ours = train_bpe(["a red apple, 3d style", "a red café"] * 2, 540, 16)
    write_tokenizer(ours, folder)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)

    @examples(100)
    @given(st.text(st.characters(max_codepoint=0x24F) | st.sampled_from("日本🍎😀ß≠"), max_size=40))
    def check(text: str) -> None:
        text = bpe.clean_text(text)
        assume(not {bpe.SOT, bpe.EOT} & set(bpe.split_words(text)) and text == bpe.clean_text(text))
        assert theirs(text)["input_ids"][1:-1] == ours.encode(text)

    check()


LINES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=30)
    .map(str.strip)
    .filter(lambda text: text and text[0] not in "#\ufeff"),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_prompts_are_the_lines_of_a_file(end: str, folder: Path) -> None:
    @examples(60)
    @given(LINES)
    def check(lines: list[str]) -> None:
        (folder / "p.txt").write_bytes(end.join(lines).encode())
        rows = [json.dumps({"prompt": line}, ensure_ascii=False) for line in lines]
        (folder / "p.jsonl").write_bytes(end.join(rows).encode())
        assert read_prompts(folder / "p.txt") == read_prompts(folder / "p.jsonl") == lines

    check()


@examples(60)
@given(LINES)
def test_captions_are_the_lines_of_a_list(folder: Path, lines: list[str]) -> None:
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    (pictures / "a.png").write_bytes(b"")
    rows = [json.dumps({"file": "a.png", "text": line}, ensure_ascii=False) for line in lines]
    (pictures / "captions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert FolderSource(str(pictures))[0].captions == tuple(lines)


# Pictures


@examples(60)
@given(ANY_TEXT, st.integers(0, 2**32 - 1), st.dictionaries(ANY_TEXT, JSON, max_size=2))
def test_facts_survive_a_png(folder: Path, prompt: str, seed: int, more: dict[str, Any]) -> None:
    facts = {**more, "prompt": prompt, "seed": seed, "index": 0}
    samples = Samples(np.full((1, 2, 3, 3), 7, np.uint8), None, (facts,))
    path, _ = samples.save(folder / "facts")
    assert path.parent == folder / "facts" and path.name.isascii()
    with Image.open(path) as image:
        found = json.loads(image.info["unclip"])
    own = [name for name in facts if name not in ("format", "versions")]
    assert json.dumps([found[name] for name in own]) == json.dumps([facts[name] for name in own])
    assert (decode_image(path.read_bytes(), name="a") == 7).all()
    path.unlink()


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
}


@pytest.mark.parametrize(("form", "mode"), [(f, mode) for f in MODES for mode in MODES[f]])
def test_pictures_of_any_mode_are_what_was_saved(form: str, mode: str) -> None:
    @examples(8)
    @given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
    def check(height: int, width: int, draws: Any) -> None:
        rng = np.random.default_rng(draws.getrandbits(32))
        bands = {"LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}.get(mode, ())
        dtype = np.uint16 if mode == "I;16" else np.uint8
        top = np.iinfo(dtype).max
        pixels = rng.integers(0, top, (height, width, *bands), dtype, endpoint=True)
        stored = mode if mode not in ("1", "P") else "L"
        image = Image.frombytes(stored, (width, height), pixels.tobytes()).convert(mode)
        out = io.BytesIO()
        image.save(out, form, **({"lossless": True} if form == "WEBP" else {}))
        read = decode_image(out.getvalue(), name="picture").astype(int)
        assert read.shape == (height, width, 3)
        if form == "JPEG":
            return
        if mode == "I;16":
            expected = np.repeat(np.round(pixels / 257)[..., None], 3, axis=-1)
        elif mode in ("LA", "RGBA"):
            alpha = pixels[..., -1:] / 255
            expected = pixels[..., :-1] * alpha + 255 * (1 - alpha)
        else:
            expected = np.asarray(image.convert("RGB"))
        assert np.abs(read - expected).max() <= (1 if mode in ("I;16", "LA", "RGBA") else 0)

    check()
