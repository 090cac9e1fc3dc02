"""torch's archives without torch: the same names, shapes, dtypes and bits that torch reads."""

from __future__ import annotations

import argparse
import io
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.interop.torch_files import (
    program,
    small_clip,
    tensor_program,
    various_objects,
    word,
    write_archive,
)
from unclip_jax.errors import UserError
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.tensors import Tensor, Tensors, from_arrays
from unclip_jax.interop.torch_archive import open_torch, write_torch_archive
from unclip_jax.interop.torch_globals import Opaque

PLAIN = {
    "version": "1.2.3rc1+abc",
    "config": {"dim": 4, "layers": [1, 2], "name": "é", "rate": 0.5, 7: (True, None)},
    "settings": {"width": 8, "nested": {"a": 1}},
    "torch": ["torch.float32", (1, 2), "cuda:1", "torch.strided"],
    "others": [[3], 1 + 2j, b"ab", b"cd", {"a": 2, "b": 1}, 10**30],
    "path": "a/b",
    "default": {"k": [1]},
}


def assert_same(found: Tensors, expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, tensor in found.items():
        array, wanted = tensor.read(), expected[name]
        assert array.shape == tensor.shape == wanted.shape, name
        assert array.dtype == tensor.dtype, name
        if array.dtype == ml_dtypes.bfloat16:
            array = array.astype(np.float32)
        assert array.dtype == wanted.dtype, name
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(wanted).tobytes(), name


def frozen(golden: Path, part: str) -> dict[str, np.ndarray]:
    with np.load(golden / "torch_archive.npz") as file:
        return {k.removeprefix(part): file[k] for k in file.files if k.startswith(part)}


def in_torch(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Every tensor of a tree that torch loaded."""
    import torch

    if isinstance(tree, torch.Tensor):
        tensor = tree.detach()
        return {prefix: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()}
    items = enumerate(tree) if isinstance(tree, list | tuple) else getattr(tree, "items", tuple)()
    return {
        name: array
        for key, child in items
        for name, array in in_torch(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }


# Without torch.


def test_frozen_archive(golden: Path) -> None:
    opened = open_torch(golden / "torch_archive.pt")
    assert opened.kind == "torch"
    numpy_array = {"numpy.array": np.arange(6, dtype=np.int16).reshape(2, 3).T}
    assert_same(opened.tensors, frozen(golden, "archive/") | numpy_array)
    assert opened.tensors["model.kinds.bfloat16"].dtype == ml_dtypes.bfloat16
    assert opened.tree["numpy"]["scalar"] == 1.5
    assert opened.tree["model"]["number"] is opened.tensors["model.number"]
    assert {key: opened.tree[key] for key in PLAIN} == PLAIN
    assert type(opened.tree["config"][7]) is tuple


def test_frozen_torchscript(golden: Path) -> None:
    opened = open_torch(golden / "torch_script.pt")
    assert opened.kind == "torchscript"
    assert_same(opened.tensors, frozen(golden, "script/"))
    assert "visual.transformer.resblocks.1.attn.in_proj_weight" in opened.tensors
    assert opened.tree["visual"]["input_resolution"] == 224
    assert opened.tree["visual"]["sizes"] == [1, 2]


def test_nothing_heavy_is_imported(golden: Path) -> None:
    source = (
        "import sys; from pathlib import Path; from unclip_jax.interop.open_file import open_file;"
        "n = len(open_file(Path(sys.argv[1])).tensors);"
        "assert n > 20 and not {'torch', 'jax', 'numpy._core._pickle'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", source, golden / "torch_archive.pt"], check=True)


@pytest.mark.parametrize("kind", ["FloatStorage", "ComplexFloatStorage", "BFloat16Storage"])
def test_other_byte_order(tmp_path: Path, kind: str) -> None:
    dtypes = {"F": np.float32, "C": np.complex64, "B": ml_dtypes.bfloat16}
    values = np.arange(1, 9).astype(dtypes[kind[0]])
    half = values.dtype.itemsize // (2 if kind[0] == "C" else 1)
    swapped = values.view(f"u{half}").byteswap().tobytes()
    for strides, expected in (((2, 1), values[:6].reshape(3, 2)), ((3, 2), None)):
        part = program(tensor_program((3, 2), strides, count=9 if expected is None else 8))
        content = swapped + swapped[: values.dtype.itemsize]
        text = part.replace(b"FloatStorage", kind.encode())
        other = {"little": "big", "big": "little"}[sys.byteorder]
        path = write_archive(tmp_path / "a.pt", text, {"0": content}, byte_order=other)
        if expected is None:
            longer = np.append(values, values[0])
            expected = np.array([[longer[3 * i + 2 * j] for j in range(2)] for i in range(3)])
        np.testing.assert_array_equal(open_torch(path).tensors[""].read(), expected)


def test_shared_storage_and_slices_read_only_what_they_cover(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32)
    views = {
        "all": ((4, 6), (6, 1), 0),
        "second row": ((6,), (1,), 6),
        "column": ((4,), (6,), 2),
        "transposed": ((6, 4), (1, 6), 0),
        "overlapping": ((5, 3), (2, 1), 1),
        "repeated": ((3, 2), (0, 1), 22),
        "one": ((), (), 23),
    }
    parts = [
        word(name) + tensor_program(shape, strides, offset=offset, count=24)
        for name, (shape, strides, offset) in views.items()
    ]
    path = write_archive(
        tmp_path / "a.pt", program(b"}(", *parts, b"u"), {"0": values.tobytes(), "1": b""}
    )
    found = open_torch(path).tensors
    for name, (shape, strides, offset) in views.items():
        expected = np.lib.stride_tricks.as_strided(
            values[offset:], shape, [4 * stride for stride in strides]
        )
        array = found[name].read()
        np.testing.assert_array_equal(array, expected)
        array[...] = -1  # it is nobody else's, and its elements are their own
        assert (array == -1).all()
        np.testing.assert_array_equal(found[name].read(), expected)


def test_writer_round_trip(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kinds = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_]
    arrays = {f"a.{i}": (random.normal(size=(3, i)) * 9).astype(k) for i, k in enumerate(kinds)}
    arrays |= {"scalar": np.array(2.5, np.float32), "turned": arrays["a.2"].T}
    path = tmp_path / "a.pth"
    write_torch_archive(path, from_arrays(arrays))
    found = open_torch(path).tensors
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name].read(), array)

    plain = {"version": "1.0", "config": {"a": [1, -(2**70), 0.5, None, True], "b": ()}}
    write_torch_archive(path, {**plain, "model": from_arrays(arrays)})
    opened = open_torch(path)
    assert {name: opened.tree[name] for name in plain} == plain
    assert set(opened.tensors) == {f"model.{name}" for name in arrays}


def test_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with pytest.raises(ValueError, match="uint16"):
        write_torch_archive(path, from_arrays({"a": np.zeros(2, np.uint16)}))

    def fail() -> np.ndarray:
        raise RuntimeError("a source went away")

    with pytest.raises(RuntimeError, match="went away"):
        write_torch_archive(path, {"a": Tensor((2,), np.dtype(np.float32), fail)})
    assert list(tmp_path.iterdir()) == []


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from unclip_jax.interop.tensors import Tensor, read_all
from unclip_jax.interop.torch_archive import open_torch, write_torch_archive

def peak():  # of this process; getrusage starts from the peak of the process that forked it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def write():
    make = lambda: np.full((side, side), 1.5, np.float32)
    tensors = {f"t.{i}": Tensor((side, side), np.dtype(np.float32), make) for i in range(10)}
    write_torch_archive(path, tensors)

def read():
    for name, array in read_all(open_torch(path).tensors):
        assert array[0, 0] == array[-1, -1] == 1.5
        del array

path, action, side = Path(sys.argv[1]), sys.argv[2], 1200
before = peak()
{"write": write, "read": read}[action]()
print((peak() - before) / (side * side * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_tensor_in_memory_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "big.pt"
    for action in ("write", "read"):
        result = subprocess.run(
            [sys.executable, "-c", MEMORY, path, action], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        # Of ten tensors; a little is for what the first call imports.
        assert 0.5 < float(result.stdout) < 1.2, action
    assert path.stat().st_size > 57_000_000


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_torch_archive(path, from_arrays({"a": np.ones(1000, np.float32)}))
    tensor = open_torch(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read any more"):
        tensor.read()


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    one = tensor_program((1,), (1,), count=1)
    path = write_archive(
        tmp_path / "a.pt",
        program(b"}(", word("a.b"), one, word("a"), b"}(", word("b"), one, b"uu"),
        {"0": bytes(4)},
    )
    with pytest.raises(UserError, match=r"two tensors called 'a\.b'"):
        open_torch(path)


# What trainers keep beside the weights, written by stand-ins for their classes.


def saved_classes(monkeypatch: pytest.MonkeyPatch, *names: str, base: type = object) -> list[type]:
    """Classes that pickle under these names."""
    classes = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        cls = types.new_class(
            attribute, (base,), {}, lambda names, m=module: names.update(__module__=m)
        )
        parts = module.split(".")
        for parent in (".".join(parts[: n + 1]) for n in range(len(parts))):
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setattr(sys.modules[module], attribute, cls, raising=False)
        classes.append(cls)
    return classes


def with_state(cls: type, **state: Any) -> Any:
    value = object.__new__(cls)
    value.__dict__.update(state)
    return value


def test_lightning_and_omegaconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, node, metadata, callback = saved_classes(
        monkeypatch,
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.nodes.AnyNode",
        "omegaconf.base.ContainerMetadata",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    )
    (attributes,) = saved_classes(
        monkeypatch, "pytorch_lightning.utilities.parsing.AttributeDict", base=dict
    )
    parent = with_state(config, _metadata=with_state(metadata, ref_type=Any))
    child = with_state(config, _content={"x": with_state(node, _val=3)}, _parent=parent)
    parent._content = {"child": child, "rate": with_state(node, _val=0.5)}
    saved = {
        "callbacks": {callback: {"best": 1.0}},
        "hyper_parameters": attributes(width=4),
        "namespace": argparse.Namespace(a=[1]),
        "config": parent,
        "metadata": with_state(metadata, ref_type=int),
    }
    for protocol in (2, 4, 5):
        path = write_archive(tmp_path / "a.ckpt", pickle.dumps(saved, protocol))
        assert open_torch(path).tree == {
            "callbacks": {
                "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": {"best": 1.0}
            },
            "hyper_parameters": {"width": 4},
            "namespace": {"a": [1]},
            "config": {"child": {"x": 3}, "rate": 0.5},
            "metadata": Opaque("omegaconf.base.ContainerMetadata"),
        }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_and_python_values_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "none": np.zeros((0, 2), np.float16),
        "flags": np.array([True, False]),
    }
    values = {"set": {5}, "bytes": b"\xff", "array": bytearray(b"x"), "long": -(2**80), "t": ((),)}
    scalars = {"scalars": [np.float32(0.5), np.int64(7), np.bool_(True)]}
    saved = {"arrays": arrays, **values, **scalars}
    path = write_archive(tmp_path / "a.pt", pickle.dumps(saved, protocol))
    opened = open_torch(path)
    for name, array in arrays.items():
        found = opened.tensors[f"arrays.{name}"].read()
        assert found.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, array)
    del opened.tree["arrays"]
    assert opened.tree == {**values, "set": [5], "array": b"x", "scalars": [0.5, 7, True]}
    assert type(opened.tree["scalars"][2]) is bool


def test_versions_of_older_packaging(tmp_path: Path) -> None:
    """Before 26 a Version kept (epoch, release, dev, pre, post, local) and what it sorts by."""
    header = b"cpackaging.version\nVersion\n)\x81"
    parts = (
        b"cpackaging.version\n_Version\n(K\x01(K\x01K\x02t" + b"(" + word("dev") + b"K\x05t"
        b"(" + word("rc") + b"K\x03t(" + word("post") + b"K\x04t(" + word("x") + b"tt\x81"
    )
    key = word("_key") + b"cpackaging._structures\nInfinityType\n)\x81"
    old = program(header, b"}(", word("_version"), parts, key, b"ub")
    slots = program(header, b"N}(", word("_version"), parts, key, b"u\x86b")
    for text in (old, slots):
        assert open_torch(write_archive(tmp_path / "a.pt", text)).tree == "1!1.2rc3.post4.dev5+x"
    empty = write_archive(tmp_path / "a.pt", program(header))
    assert open_torch(empty).tree == Opaque("packaging.version.Version")


# With torch.


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saves_today(tmp_path: Path, protocol: int) -> None:
    torch = pytest.importorskip("torch")
    saved = various_objects(torch)
    torch.save(saved, tmp_path / "a.pt", pickle_protocol=protocol)
    opened = open_torch(tmp_path / "a.pt")
    arrays = {name: t for name, t in opened.tensors.items() if not name.startswith("numpy.")}
    assert_same(arrays, in_torch(saved))
    assert {key: opened.tree[key] for key in PLAIN} == PLAIN


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(6))
def test_random_modules_and_views(tmp_path: Path, seed: int) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(seed)
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32]
    saved: dict[str, Any] = {}
    for number in range(12):
        shape = tuple(int(n) for n in random.integers(0, 5, random.integers(0, 5)))
        tensor = (torch.randn(shape) * 9).to(dtypes[random.integers(len(dtypes))])
        if tensor.dim():
            tensor = tensor.permute(*(int(axis) for axis in random.permutation(tensor.dim())))
            if tensor.shape[0] > 1:
                tensor = tensor[:: int(random.integers(1, 3))][int(random.integers(2)) :]
        saved[f"n{number}"] = [tensor, {"again": tensor}] if number % 3 == 0 else tensor
    saved["module"] = torch.nn.Sequential(
        torch.nn.Conv2d(3, int(random.integers(1, 5)), 3),
        torch.nn.BatchNorm2d(3),
        torch.nn.LSTM(2, 3),
    ).state_dict()
    torch.save(saved, tmp_path / "a.pt")
    assert_same(open_torch(tmp_path / "a.pt").tensors, in_torch(saved))


@pytest.mark.torch
def test_optimizer_and_scheduler_states(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }
    torch.save(saved, tmp_path / "a.pt")
    opened = open_torch(tmp_path / "a.pt")
    assert_same(opened.tensors, in_torch(saved))
    assert "optimizer.state.1.exp_avg_sq" in opened.tensors
    assert opened.tree["schedule"]["milestones"] == {2: 1, 4: 1}


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_of_today(tmp_path: Path, how: str) -> None:
    torch = pytest.importorskip("torch")
    module = small_clip(torch).eval()
    made = (
        torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.ones(2, 4))
    )
    torch.jit.save(made, tmp_path / "a.pt")
    opened = open_file(tmp_path / "a.pt")
    assert opened.kind == "torchscript"
    assert_same(opened.tensors, in_torch(dict(module.state_dict())))

    torch.jit.save(torch.jit.freeze(made), tmp_path / "frozen.pt")
    tensors = open_file(tmp_path / "frozen.pt").tensors
    assert tensors
    assert all(name.startswith("CONSTANTS.c") for name in tensors)


@pytest.mark.torch
def test_torch_reads_what_is_written(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).state_dict()
    other = {"half": torch.ones(3).half(), "b": torch.ones(2).bfloat16(), "i": torch.arange(3)}
    torch.save({**state, **other, "n": torch.tensor(True)}, tmp_path / "a.pt")
    opened = open_torch(tmp_path / "a.pt")
    write_torch_archive(tmp_path / "b.pth", opened.tensors)
    for mapped in (False, True):
        again = torch.load(tmp_path / "b.pth", weights_only=True, mmap=mapped)
        assert_same(opened.tensors, in_torch(again))
        assert [again[name].dtype for name in other] == [other[name].dtype for name in other]
        again.pop("n")
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).load_state_dict(
            {name: again[name] for name in state}
        )
    tree = {"version": "1", "config": {"a": [1, 2**40, 0.5, None], "t": (False,)}}
    write_torch_archive(tmp_path / "c.pth", {**tree, "model": opened.tensors})
    again = torch.load(tmp_path / "c.pth", weights_only=True)
    assert {name: again[name] for name in tree} == tree
    assert_same(opened.tensors, in_torch(again["model"]))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("what", ["module", "quantized", "sparse", "meta"])
def test_other_things_of_torch_are_refused_by_name(tmp_path: Path, what: str) -> None:
    torch = pytest.importorskip("torch")
    saved = {
        "module": lambda: torch.nn.Linear(2, 2),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "sparse": lambda: torch.ones(2, 2).to_sparse(),
        "meta": lambda: torch.ones(2, device="meta"),
    }[what]()
    torch.save(saved, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt was not loaded: it names 'torch\.") as refused:
        open_torch(tmp_path / "a.pt")
    assert "\n" not in str(refused.value)


@pytest.mark.torch
def test_format_of_before_1_6(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"before 1\.6.*torch\.save\(torch\.load\('a\.pt'"):
        open_file(tmp_path / "a.pt")


# Which file it is.


def test_by_content_whatever_the_name(tmp_path: Path, golden: Path) -> None:
    odd = tmp_path / "model.safetensors"
    odd = odd.with_suffix(".weights")
    odd.write_bytes((golden / "torch_archive.pt").read_bytes())
    assert open_file(odd).kind == "torch"
    odd.write_bytes((golden / "torch_script.pt").read_bytes())
    assert open_file(odd).kind == "torchscript"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"hello world", "no torch archive"),
        (b"PK\3\4" + bytes(40), "no directory at its end"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "run git lfs pull"),
        (b'{"a": 1}', "no weight_map"),
        (bytes(257) + b"ustar" + bytes(250), r"before 1\.6"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        open_file(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_other_zip_and_missing_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"0 data\.pkl"):
        open_file(tmp_path / "a.npz")
    with pytest.raises(UserError, match="cannot be read"):
        open_file(tmp_path / "none.pt")
    with zipfile.ZipFile(tmp_path / "two.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("b/data.pkl", b"")
    with pytest.raises(UserError, match=r"2 data\.pkl"):
        open_file(tmp_path / "two.pt")
