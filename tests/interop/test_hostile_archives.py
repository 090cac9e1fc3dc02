"""Archives that somebody made to harm the reader: refused in one line, and nothing of them runs."""

from __future__ import annotations

import functools
import io
import os
import pickle
import random
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.interop.torch_files import number, program, tensor_program, word, write_archive
from unclip_jax.errors import UserError
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.torch_archive import open_torch, write_torch_archive


def refusal(path: Path) -> str:
    """The message with which the archive is refused."""
    with pytest.raises(UserError) as refused:
        open_torch(path)
    message = str(refused.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 600
    return message


# Programs that call something. Each is first run by the real unpickler, which it does harm.


class Called:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Chained:
    """Pickles as an object whose state sets off a call."""

    def __init__(self, call: Called) -> None:
        self.inner = call

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def harmful_programs(sentinel: Path) -> dict[str, tuple[bytes, str]]:
    """Programs that make the sentinel file, with the global that each is refused for."""
    command, code = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w').close()"
    shell = word(command)
    system = os.system.__module__ + ".system"
    programs = {
        f"reduce, protocol {protocol}": (pickle.dumps(Called(os.system, command), protocol), system)
        for protocol in range(6)
    }
    programs |= {
        "eval": (pickle.dumps(Called(eval, code), 2), "builtins.eval"),
        "exec": (pickle.dumps(Called(exec, code), 4), "builtins.exec"),
        "partial": (
            pickle.dumps(Called(functools.partial(os.system, command)), 2),
            "functools.partial",
        ),
        "getattr": (
            program(
                _global("builtins.getattr")
                + (_global("builtins.getattr") + _global("os.path") + word("os") + b"\x86R")
                + (word("system") + b"\x86R" + shell + b"\x85R")
            ),
            "builtins.getattr",
        ),
        "attribute as __setstate__": (
            program(
                _global("argparse.Namespace") + b")\x81}" + word("__setstate__"),
                _global("os.system") + b"sb" + shell + b"b",
            ),
            "os.system",
        ),
        "new object": (
            program(
                _global("builtins.bytes") + _global("builtins.map") + _global("os.system"),
                b"](" + shell + b"e\x86\x81\x85\x81",
            ),
            "builtins.map",
        ),
        "state": (pickle.dumps(Chained(Called(os.system, command)), 2), "Chained"),
        "inside a tensor's name": (
            pickle.dumps({"model": {"weight": [Called(os.system, command)]}}, 2),
            system,
        ),
        "old instance": (b"(" + shell + b"ios\nsystem\n.", "INST"),
        "old object": (b"(" + _global("os.system") + shell + b"o.", "os.system"),
        "stack global": (
            program(word("os"), word("system"), b"\x93", shell, b"\x85R"),
            "os.system",
        ),
        "memoised name": (
            program(word("os"), b"q\x000", b"h\x00", word("system"), b"\x93", shell, b"\x85R"),
            "os.system",
        ),
        "dotted name": (
            b"\x80\x04" + word("os") + word("path.os.system") + b"\x93" + shell + b"\x85R.",
            "os.path.os.system",
        ),
    }
    return programs


HARMFUL = sorted(harmful_programs(Path("sentinel")))


@pytest.mark.parametrize("name", HARMFUL)
def test_a_call_is_refused_and_not_made(name: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    text, named = harmful_programs(sentinel)[name]
    message = refusal(write_archive(tmp_path / "a.pt", text))
    assert named in message
    assert not sentinel.exists()
    pickle.loads(text)  # the control: whoever unpickles it is harmed
    assert sentinel.exists()


TENSOR = tensor_program((2,), (1,), count=2)
SCRIPT = _global("__torch__.Module")
REFUSED = {
    "an unknown global that is not called": (_global("os.system"), "os.system"),
    "torch.load": (_global("torch.load") + word("b.pt") + b"\x85R", "torch.load"),
    "torch.hub": (_global("torch.hub.load") + b")R", "torch.hub.load"),
    "a module of torch": (_global("torch.nn.modules.linear.Linear") + b")\x81", "Linear"),
    "torch, by another way": (word("torch") + word("_utils.os.system") + b"\x93", "os.system"),
    "a class called": (_global("argparse.Namespace") + b")R", "argparse.Namespace"),
    "a script's class called": (SCRIPT + b")R", "__torch__.Module"),
    "a function made an object": (_global("_codecs.encode") + b")\x81", "_codecs.encode"),
    "codecs that are none": (
        _global("_codecs.encode") + word("x") + word("rot13") + b"\x86R",
        "_codecs.encode",
    ),
    "a tensor's state": (TENSOR + b"}b", "state"),
    "a function's state": (_global("_codecs.encode") + b"}b", "state"),
    "a list's state": (b"]}b", "state"),
    "a call of a text": (word("os.system") + b")R", "no global"),
    "a call of a tensor": (TENSOR + b")R", "no global"),
    "a call without arguments": (_global("torch.Size") + b"]R", "something else than arguments"),
    "a name that is no text": (word("os") + b"K\x01\x93", "something else than a word"),
    "extension 1": (b"\x82\x01", "EXT1"),
    "extension 2": (b"\x83\x01\x00", "EXT2"),
    "extension 4": (b"\x84\x01\x00\x00\x00", "EXT4"),
    "a persistent text": (b"Pstorage\n", "PERSID"),
    "another persistent": (b"(" + word("module") + b"K\x01tQ", "no storage"),
    "a persistent number": (b"K\x01Q", "no storage"),
    "a storage of another class": (
        b"(" + word("storage") + _global("collections.OrderedDict") + word("0") + word("cpu")
        + b"K\x01tQ",
        "no storage",
    ),
    "an object with arguments by name": (_global("argparse.Namespace") + b")}\x92", "NEWOBJ_EX"),
    "a buffer out of band": (b"\x97", "NEXT_BUFFER"),
    "a retyped call": (
        _global("torch._tensor._rebuild_from_type_v2") + b"(" + _global("_codecs.encode")
        + _global("torch.Tensor") + b"(" + word("x") + word("latin1") + b"t}tR",
        "_rebuild_from_type_v2",
    ),
    "a tensor of no storage": (
        _global("torch._utils._rebuild_tensor_v2") + b"(K\x00K\x00))\x89}tR",
        "no storage",
    ),
    "numpy objects": (
        _global("numpy.dtype") + word("O8") + b"\x89\x88\x87R",
        "no number",
    ),
    "a list as key": (b"}(]K\x01u", "no plain value"),
    "a deep key": (b"}(((ttK\x01u", "no plain value"),
    "a large key": (b"}(" + number(2**70) + b"K\x01u", "no plain value"),
    "items of a list": (b"](K\x01K\x02u", "no dictionary"),
    "an odd number of items": (b"}(K\x01u", "no dictionary"),
    "an append to a dictionary": (b"}K\x01a", "no list"),
    "nothing": (b"", "damaged"),
    "two values": (b"NN", "damaged"),
    "a missing memo": (b"h\x05", "damaged"),
    "a missing mark": (b"Nt", "damaged"),
    "an unknown instruction": (b"\xff", "damaged"),
    "a text beyond the end": (b"X\xff\xff\xff\x7fabc", "damaged"),
    "a number of many digits": (b"I" + b"9" * 100_000 + b"\n", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_no_tensor_needs_is_refused(name: str, tmp_path: Path) -> None:
    instructions, reason = REFUSED[name]
    path = write_archive(tmp_path / "a.pt", program(instructions), {"0": bytes(8)})
    assert reason in refusal(path)


def test_the_same_without_the_fault_is_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.pt", program(TENSOR), {"0": bytes(8)})
    assert set(open_torch(path).tensors) == {""}
    path = write_archive(tmp_path / "a.pt", program(SCRIPT, b")\x81}", word("a"), b"K\x01sb"))
    assert open_torch(path).tree == {"a": 1}


# Programs that grow.


def laughs(levels: int) -> bytes:
    """Lists of ten of the list before, each named once."""
    text = b"](NNNNNNNNNNe"
    for level in range(levels):
        text += b"q" + bytes([level]) + b"](" + (b"h" + bytes([level])) * 10 + b"e"
    return program(b"(" + text + b"t")


BOMBS = {
    "a billion laughs": (laughs(9), "grows"),
    "a list that contains itself": (program(b"]q\x00h\x00a"), "contains itself"),
    "a script that is its own state": (program(SCRIPT, b")\x81q\x00h\x00b"), "Module"),
    "a dictionary in itself": (program(b"}q\x00", word("a"), b"h\x00s"), "contains itself"),
    "nested tuples": (program(b")" + b"\x85" * 100_000), "nested"),
    "nested lists": (program(b"]" * 5000 + b"a" * 4999), "nested"),
    "a million values": (program(b"](" + b"N" * 2_100_000 + b"e"), "grows"),
    "marks": (program(b"(" * 100_000), "damaged"),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_what_grows_is_refused(name: str, tmp_path: Path) -> None:
    text, reason = BOMBS[name]
    path = write_archive(tmp_path / "a.pt", text)
    started = time.monotonic()
    if name == "a script that is its own state":
        assert type(open_torch(path).tree).__name__ == "Opaque"
    else:
        assert reason in refusal(path)
    assert time.monotonic() - started < 20


def test_a_smaller_laugh_is_read(tmp_path: Path) -> None:
    opened = open_torch(write_archive(tmp_path / "a.pt", laughs(2)))
    assert np.asarray(opened.tree[-1], object).shape == (10, 10, 10)


def test_too_many_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip_jax.interop.restricted_pickle._MOST_STEPS", 1000)
    path = write_archive(tmp_path / "a.pt", program(b"N0" * 501, b"N"))
    assert "more than 1,000 instructions" in refusal(path)
    assert open_torch(write_archive(tmp_path / "a.pt", program(b"N0" * 400, b"N"))).tree is None


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ({"shape": (3,), "strides": (1,), "count": 2}, "beyond its 8 bytes"),
        ({"shape": (2,), "strides": (1,), "offset": 1, "count": 2}, "beyond its 8 bytes"),
        ({"shape": (2,), "strides": (2,), "count": 2}, "beyond its 8 bytes"),
        ({"shape": (2,), "strides": (1,), "count": 3}, "fewer than it claims"),
        ({"shape": (2,), "strides": (1,), "count": -1}, "fewer than it claims"),
        ({"shape": (2,), "strides": (1,), "count": 2, "key": "1"}, "missing"),
        ({"shape": (2,), "strides": (1,), "count": 2, "key": "../data.pkl"}, "missing"),
        (
            {"shape": (2,), "strides": (1,), "count": 2, "kind": "DoubleStorage"},
            "fewer than it claims",
        ),
        ({"shape": (-1,), "strides": (1,), "count": 2}, "no numbers"),
        ({"shape": (2,), "strides": (-1,), "count": 2}, "no numbers"),
        ({"shape": (2,), "strides": (1,), "offset": -1, "count": 2}, "begins nowhere"),
        ({"shape": (2, 1), "strides": (1,), "count": 2}, "2 sizes and 1 strides"),
        ({"shape": (2**40,), "strides": (0,), "count": 2}, "expanded"),
        ({"shape": (2**32, 2**32), "strides": (0, 0), "count": 2}, "more bytes than there are"),
        ({"shape": (0, 2**63), "strides": (0, 0), "count": 2}, "more bytes than there are"),
        ({"shape": (1,) * 40, "strides": (1,) * 40, "count": 2}, "40 sizes"),
    ],
)
def test_tensors_that_lie(tmp_path: Path, tensor: dict[str, Any], reason: str) -> None:
    text = program(tensor_program(**tensor))
    assert reason in refusal(write_archive(tmp_path / "a.pt", text, {"0": bytes(8)}))


def test_a_stride_that_is_not_used_can_be_anything(tmp_path: Path) -> None:
    text = program(tensor_program((1, 2, 1), (2**80, 1, 2**40), count=2))
    path = write_archive(tmp_path / "a.pt", text, {"0": np.array([1, 2], np.float32).tobytes()})
    np.testing.assert_array_equal(open_torch(path).tensors[""].read(), [[[1], [2]]])


# Zip archives that lie.


def sound(path: Path) -> bytes:
    write_torch_archive(path, from_arrays({"a": np.arange(3.0), "b": np.ones((2, 2))}))
    return path.read_bytes()


def test_entries_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    content = sound(path)
    assert len(open_torch(path).tensors) == 2

    def refused(changed: bytes) -> str:
        path.write_bytes(changed)
        return refusal(path)

    directory = content.index(b"PK\1\2")
    first = content.index(b"archive/data/0")
    second = content.index(b"archive/data/1")
    listed = content.index(b"archive/data/0", directory)
    listed_second = content.index(b"archive/data/1", directory)
    end = content.rindex(b"PK\5\6")

    def put(offset: int, value: bytes) -> bytes:
        return content[:offset] + value + content[offset + len(value) :]

    assert "two names" in refused(put(first, b"archive/data/7"))
    assert "two names" in refused(put(listed, b"archive/data/1"))
    both = put(listed, b"archive/data/1")
    assert "occurs twice" in refused(both[:first] + b"archive/data/1" + both[first + 14 :])
    for name in (
        b"../hive/data/0",
        b"/rchive/data/0",
        b"c:chive/data/0",
        b"archive\\data/0",
        b"archive/data/\n",
    ):
        assert "an entry is called" in refused(put(listed, name))
    header, second_header = listed - 46, listed_second - 46
    offset_of_first = content[header + 42 : header + 46]
    assert "overlaps" in refused(put(second_header + 42, offset_of_first))
    assert "no header of its own" in refused(put(second_header + 42, struct.pack("<I", second)))
    assert "beyond" in refused(put(header + 20, struct.pack("<2I", 10**6, 10**6)))
    assert "overlaps" in refused(put(header + 20, struct.pack("<2I", 100, 100)))
    assert "two sizes" in refused(put(header + 20, struct.pack("<2I", 24, 10**9)))
    assert "encrypted" in refused(put(header + 8, b"\1\0"))
    assert "directory" in refused(b"PK\3\4" + content)
    assert "directory" in refused(content + b"junk")
    assert "another length" in refused(put(end + 8, struct.pack("<2H", 4, 4)))
    assert "cut off" in refused(put(end + 8, struct.pack("<2H", 6, 6)))
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError):
            open_torch(path)


def test_directory_that_claims_too_much(tmp_path: Path) -> None:
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**9, 10**9, 0, 4)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 4, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "a.pt"
    path.write_bytes(b"PK\3\4" + wide + locator + end)
    assert "claims 1000000000 entries" in refusal(path)


@pytest.mark.parametrize("packed", ["data.pkl", "data/0"])
def test_compressed_entries(tmp_path: Path, packed: str) -> None:
    """A gigabyte of zeros is a megabyte in a zip: what is read is never unpacked."""
    path = tmp_path / "a.pt"
    contents = {"data.pkl": program(TENSOR), "data/0": bytes(1000)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            method = zipfile.ZIP_DEFLATED if name == packed else zipfile.ZIP_STORED
            archive.writestr(f"archive/{name}", content, method)
    assert "compressed" in refusal(path)


def test_a_pickle_of_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip_jax.interop.torch_archive._LARGEST_PICKLE", 100)
    path = write_archive(tmp_path / "a.pt", program(word("x" * 100)))
    assert "has 108 bytes" in refusal(path)


def test_byte_order_that_is_none(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.pt", program(TENSOR), {"0": bytes(8)}, byte_order="middle")
    assert "byte order" in refusal(path)


# Whatever is changed, the answer is an archive or a refusal.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of escapes in texts
@pytest.mark.parametrize("where", ["pickle", "zip"])
def test_random_damage(tmp_path: Path, golden: Path, where: str) -> None:
    generator = random.Random(0)
    source = (golden / "torch_archive.pt").read_bytes()
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        text = archive.read("torch_archive/data.pkl")
        storages = {
            name.rpartition("/")[2]: archive.read(name)
            for name in archive.namelist()
            if "/data/" in name
        }
    path = tmp_path / "a.pt"
    outcomes: set[str] = set()
    for _ in range(1500 if where == "pickle" else 300):
        damaged = bytearray(text if where == "pickle" else source)
        for _ in range(generator.randint(1, 4)):
            position = generator.randrange(len(damaged))
            action = generator.randrange(3)
            if action == 0:
                damaged[position] = generator.randrange(256)
            elif action == 1:
                del damaged[position : position + generator.randint(1, 9)]
            else:
                damaged[position:position] = generator.randbytes(generator.randint(1, 5))
        if where == "pickle":
            write_archive(path, bytes(damaged), storages)
        else:
            path.write_bytes(bytes(damaged))
        try:
            opened = open_torch(path)
            for tensor in opened.tensors.values():
                assert tensor.read().shape == tensor.shape
            outcomes.add("opened")
        except UserError as error:
            outcomes.add("one line" if "\n" not in str(error) else str(error))
    assert outcomes == {"opened", "one line"}
