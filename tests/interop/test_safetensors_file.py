"""safetensors read and written here: as the library does, and nothing that it refuses gets in."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from tests.interop.torch_files import program, tensor_program, write_archive
from tests.room import no_room
from unclip_jax.errors import UserError
from unclip_jax.interop.open_file import find_weights, open_file
from unclip_jax.interop.safetensors_file import (
    open_safetensors,
    open_sharded,
    write_safetensors,
)
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.torch_archive import write_torch_archive


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    kinds = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", "c8"]
    made = {f"kind.{kind}": (random.normal(size=(3, 2)) * 9).astype(kind) for kind in kinds[:-1]}
    made["kind.bf16"] = random.normal(size=4).astype(ml_dtypes.bfloat16)
    return made | {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32)}


def write_raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("seed", range(3))
def test_reads_what_the_library_writes(tmp_path: Path, seed: int) -> None:
    made = arrays(seed)
    safetensors.numpy.save_file(made, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = open_safetensors(tmp_path / "a.safetensors")
    assert set(found) == set(made)
    for name, array in made.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        read = found[name].read()
        assert read.tobytes() == array.tobytes() and read.shape == array.shape
        if read.size:
            read[...] = 0  # an array of its own


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_library_reads_what_is_written(tmp_path: Path, dtype: Any) -> None:
    made = {
        name: np.asarray(array).astype(dtype)
        for name, array in arrays().items()
        if name in ("kind.f8", "scalar", "empty")
    }
    made["turned"] = made["kind.f8"].T
    path = tmp_path / "a.safetensors"
    shapes = {name: array.shape for name, array in made.items()}
    for metadata in (None, {"format": "pt"}):
        write_safetensors(path, shapes, reversed(made.items()), np.dtype(dtype), metadata)
        with safe_open(path, "np") as file:
            assert file.metadata() == metadata
        loaded = safetensors.numpy.load_file(path)
        assert set(loaded) == set(open_safetensors(path)) == set(made)
        for name, array in made.items():
            assert loaded[name].dtype == array.dtype
            np.testing.assert_array_equal(loaded[name], array)


def test_writing_fails_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"the one before")
    one = np.ones((2, 3), np.float32)
    shapes = {"a": (2, 3), "b": (2, 3)}
    for given in ([("a", one)], [("a", one), ("b", one.T)]):
        with pytest.raises(ValueError, match="b"):
            write_safetensors(path, shapes, given, one.dtype)
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


FOUR, EIGHT = bytes(4), bytes(8)
HOSTILE: dict[str, tuple[Any, bytes, str]] = {
    "overlap": ({"a": entry(0, 8, [2]), "b": entry(4, 8)}, EIGHT, "does not begin"),
    "the same bytes twice": ({"a": entry(0, 4), "b": entry(0, 4)}, FOUR, "does not begin"),
    "a gap": ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "does not begin"),
    "bytes before": ({"a": entry(4, 8)}, EIGHT, "does not begin"),
    "bytes after": ({"a": entry(0, 4)}, EIGHT, "the file 8"),
    "bytes beyond": ({"a": entry(0, 8, [2])}, FOUR, "the file 4"),
    "negative": ({"a": entry(-4, 0)}, b"", "does not begin"),
    "backwards": ({"a": entry(0, 4), "b": entry(4, 0, [-1])}, FOUR, "does not begin"),
    "a negative size": ({"a": entry(0, 4, [-1])}, FOUR, "no list of numbers"),
    "two negative sizes": ({"a": entry(0, 4, [-1, -1])}, FOUR, "no list of numbers"),
    "a product that wraps to 0": ({"a": entry(0, 0, [2**62, 4])}, b"", "has 0 bytes"),
    "a product that wraps to 1": ({"a": entry(0, 4, [2**32 + 1] * 2)}, FOUR, "has 4 bytes"),
    "a huge size": ({"a": entry(0, 4, [10**40])}, FOUR, "has 4 bytes"),
    "too many axes": ({"a": entry(0, 4, [1] * 70)}, FOUR, "has 4 bytes"),
    "another size": ({"a": entry(0, 4, [2])}, FOUR, "has 4 bytes"),
    "another dtype": ({"a": entry(0, 4, [1], "F64")}, FOUR, "has 4 bytes"),
    "no dtype": ({"a": entry(0, 4, [1], "F31")}, FOUR, "unknown dtype 'F31'"),
    "a dtype that is none": ({"a": {**entry(0, 4), "dtype": []}}, FOUR, "unhashable"),
    "a shape of texts": ({"a": entry(0, 4, ["1"])}, FOUR, "no list of numbers"),
    "a shape that is a text": ({"a": entry(0, 4, "1")}, FOUR, "no list of numbers"),
    "a shape of fractions": ({"a": entry(0, 4, [1.0])}, FOUR, "no list of numbers"),
    "a shape of truths": ({"a": entry(0, 4, [True])}, FOUR, "no list of numbers"),
    "an offset that is a fraction": ({"a": entry(0.0, 4)}, FOUR, "does not begin"),  # type: ignore
    "three offsets": ({"a": {**entry(0, 4), "data_offsets": [0, 4, 4]}}, FOUR, ""),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, FOUR, "data_offsets"),
    "an entry that is a list": ({"a": [1]}, FOUR, ""),
    "a list": ([], b"", ""),
    "a number": (1, b"", ""),
    "one name twice": (
        b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4)).encode(),) * 2),
        FOUR,
        "twice",
    ),
    "one field twice": (
        b'{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}',
        FOUR,
        "twice",
    ),
    "deep": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b"", "recursion"),
    "many digits": (b'{"a":' + b"9" * 100_000 + b"}", b"", ""),
    "no text": (b'{"\xff":1}', b"", "utf-8"),
    "a name of two lines": ({"a\nb": entry(0, 4, [2])}, FOUR, r"a\nb"),
    "cut off": (b'{"a":', b"", ""),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_header_that_lies(tmp_path: Path, name: str) -> None:
    header, data, reason = HOSTILE[name]
    path = write_raw(tmp_path / "a.safetensors", header, data)
    for opens in (open_safetensors, open_file):
        with pytest.raises(UserError) as refused:
            opens(path)
        message = str(refused.value)
        assert str(path) in message and reason in message and "\n" not in message
    if name != "one name twice":  # the library takes one of them
        with pytest.raises((SafetensorError, ValueError)):
            safetensors.numpy.load_file(path)


@pytest.mark.parametrize("length", [0, 3, 10**6, 10**9, 2**63, 2**64 - 1])
def test_a_header_length_that_lies(tmp_path: Path, length: int) -> None:
    path = write_raw(tmp_path / "a.safetensors", {"a": entry(0, 4)}, FOUR, length=length)
    with pytest.raises(UserError, match="restore the file"):
        open_safetensors(path)
    with pytest.raises(UserError):
        open_file(path)


def test_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(arrays(), path)
    content = path.read_bytes()
    assert len(open_file(path).tensors) == len(arrays())
    for cut in [*range(0, len(content), 5), len(content) - 1]:
        path.write_bytes(content[:cut])
        with pytest.raises(UserError):
            open_file(path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.ones(1000, np.float32)}, path)
    tensor = open_safetensors(path)["a"]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read any more"):
        tensor.read()


# Shards and folders.


def write_index(folder: Path, names: dict[str, str], name: str) -> Path:
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return path


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards(tmp_path: Path, ending: str) -> None:
    made = {f"layer.{i}": np.full(3, i, np.float32) for i in range(4)}
    names = {}
    for shard in range(2):
        part = dict(list(made.items())[2 * shard : 2 * shard + 2])
        file = f"model-{shard}.{ending}"
        names |= dict.fromkeys(part, file)
        if ending == "bin":
            write_torch_archive(tmp_path / file, from_arrays(part))
        else:
            safetensors.numpy.save_file(part, tmp_path / file)
    index = write_index(tmp_path, names, f"model.{ending}.index.json")
    for opened in (open_file(index), open_file(tmp_path)):
        assert {name: list(t.read()) for name, t in opened.tensors.items()} == {
            name: list(array) for name, array in made.items()
        }
    write_index(tmp_path, {**names, "layer.9": f"model-0.{ending}"}, index.name)
    with pytest.raises(UserError, match=r"promises 'layer\.9'"):
        open_file(index)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"weight_map": {"a": "../a.safetensors"}}', "not a file beside it"),
        ('{"weight_map": {"a": "/a.safetensors"}}', "not a file beside it"),
        ('{"weight_map": {"a": "..", "b": "x"}}', ""),
        ('{"weight_map": {"a": 3}}', ""),
        ('{"weight_map": ["a"]}', "no weight_map"),
        ('{"model_type": "clip"}', "no weight_map"),
        ('{"weight_map": {"a": "a", "a": "b"}}', "twice"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors"),
        ('{"weight_map": {"a": "i.index.json"}}', "index inside an index"),
        ('{"weight_map": ' + "[" * 100_000, "recursion"),
        ("{", ""),
    ],
)
def test_an_index_that_lies(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "i.index.json"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        open_file(path)
    assert reason in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(UserError):
        open_sharded(path)


def test_the_weights_file_of_a_folder(tmp_path: Path) -> None:
    def put(name: str) -> None:
        if name.endswith("safetensors"):
            safetensors.numpy.save_file({name: np.ones(1)}, tmp_path / name)
        else:
            write_torch_archive(tmp_path / name, from_arrays({name: np.ones(1)}))

    with pytest.raises(UserError, match="has no weights file"):
        open_file(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    # Each of these is preferred to those before it.
    for name in (
        "weights.ckpt",
        "my.safetensors",
        "open_clip_pytorch_model.bin",
        "pytorch_model.bin",
        "diffusion_pytorch_model.bin",
        "open_clip_model.safetensors",
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
    ):
        put(name)
        assert find_weights(tmp_path).name == name
        assert set(open_file(tmp_path).tensors) == {name}


@pytest.mark.parametrize("names", [("a.safetensors", "b.safetensors"), ("a.pt", "b.bin")])
def test_a_folder_with_several(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"several weights files \({names[0]}, {names[1]}\)"):
        open_file(tmp_path)


def test_safetensors_is_told_by_its_content(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"a": np.ones(1)}, tmp_path / "a.bin")
    opened = open_file(tmp_path / "a.bin")
    assert opened.kind == "safetensors" and set(opened.tree) == {"a"}
    assert opened.path == tmp_path / "a.bin"
    text = program(tensor_program((1,), (1,), count=1))
    write_archive(tmp_path / "b.bin", text, {"0": FOUR})
    assert open_file(tmp_path / "b.bin").kind == "torch"


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, kind: str) -> None:
    """The file of before, nothing half-written, and one line."""
    path, arrays = tmp_path / "weights", {"a": np.ones((100, 100), np.float32)}
    path.write_bytes(b"before")
    shapes = {name: array.shape for name, array in arrays.items()}
    write: Callable[[], None] = {
        "torch": lambda: write_torch_archive(path, from_arrays(arrays)),
        "safetensors": lambda: write_safetensors(
            path, shapes, arrays.items(), np.dtype(np.float32)
        ),
    }[kind]
    with no_room(5000), pytest.raises(UserError, match=r"cannot write .*weights .File too large"):
        write()
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["weights"]
