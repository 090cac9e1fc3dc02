"""What the names in a torch archive mean: a closed list, of which nothing is imported.

Tensors become `Tensor`, which reads its bytes when asked; containers become dicts, lists and
tuples; a `Version`, a path, a device, a dtype becomes its text; the settings that trainers keep
beside the weights (argparse, omegaconf, Lightning) become dicts, or an `Opaque` where their insides
mean nothing here. Modules of TorchScript (`__torch__...`) become dicts of their attributes; their
code is not read.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from unclip_jax.interop.restricted_pickle import Global, Instance, Refused
from unclip_jax.interop.tensors import Tensor
from unclip_jax.interop.torch_storage import DTYPES, STORAGES, Storage
from unclip_jax.interop.zip_index import Span

_REBUILD = {f"torch._utils._rebuild_tensor{suffix}" for suffix in ("", "_v2", "_v3")}
_REWRAP = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_RETYPE = {"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"}
_TENSOR_CLASSES = {
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
}
_NUMPY = {
    f"numpy.{core}.{name}"
    for core in ("core", "_core")
    for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
}
_TYPED_LISTS = {f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool")} | {
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.restore_type_tag",
}
_PATHS = {
    f"{module}.{kind}"
    for module in ("pathlib", "pathlib._local")
    for kind in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
}
_PLAIN_CALLS = {
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.bytes",
    "builtins.complex",
    "builtins.frozenset",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "numpy.dtype",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
}
_CALLED = _REBUILD | _REWRAP | _RETYPE | _NUMPY | _TYPED_LISTS | _PATHS | _PLAIN_CALLS

_AS_DICT = {
    "argparse.Namespace",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
}
_AS_CONTENT = {  # an attribute holds what they are about
    "omegaconf.dictconfig.DictConfig": "_content",
    "omegaconf.listconfig.ListConfig": "_content",
    **{
        f"omegaconf.nodes.{kind}Node": "_val"
        for kind in ("Any", "Boolean", "Float", "Integer", "String")
    },
}
_AS_OPAQUE = {
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "packaging._structures.InfinityType",
    "packaging._structures.NegativeInfinityType",
}
_VERSION, _VERSION_PARTS = "packaging.version.Version", "packaging.version._Version"
_INSTANCES = _AS_DICT | _AS_CONTENT.keys() | _AS_OPAQUE | {_VERSION, _VERSION_PARTS}

_WORDS = {  # classes that stand in a file as keys or values and are not called
    "numpy.ndarray",
    "typing.Any",
    *(f"torch.{name}" for name in DTYPES),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    *(f"builtins.{name}" for name in ("long", "unicode")),  # protocol 2 says so, after Python 2
    *(
        f"{package}.callbacks.{module}.{name}"
        for package in ("pytorch_lightning", "lightning.pytorch")
        for module, name in (
            ("early_stopping", "EarlyStopping"),
            ("lr_monitor", "LearningRateMonitor"),
            ("model_checkpoint", "ModelCheckpoint"),
        )
    ),
}
_SCRIPT = "__torch__."
_MOST_WRAPPINGS = 10
_MOST_DIMENSIONS = 32
_PERMITTED = _CALLED | _INSTANCES | _WORDS | _TENSOR_CLASSES | STORAGES.keys()
_NUMBER_TYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")


@dataclass(frozen=True)
class Opaque:
    """An object that was named and not built."""

    name: str
    """Of its class, 'omegaconf.base.ContainerMetadata'."""


@dataclass(frozen=True)
class TorchVocabulary:
    """The `Vocabulary` of an archive."""

    path: Path
    spans: dict[str, Span]
    """The archive's entries."""
    prefix: str
    """Of the entries that are storages, 'archive/data/'."""
    byte_order: str = "little"

    def permits(self, name: str) -> bool:
        return name in _PERMITTED or name.startswith(_SCRIPT)

    def persistent(self, key: Any) -> Storage:
        match key:
            case ("storage", Global(name), str(number), str(), int(count)) if name in STORAGES:
                dtype = STORAGES[name]
            case _:
                raise Refused("it refers to something outside of it that is no storage")
        span = self.spans.get(self.prefix + number)
        if span is None or not span.is_stored:
            raise Refused(f"its storage {number[:40]!r} is missing or compressed")
        if not 0 <= count * (dtype.itemsize if dtype else 1) <= span.size:
            raise Refused(
                f"its storage {number[:40]!r} has {span.size} bytes, fewer than it claims"
            )
        return Storage(self.path, span, dtype, self.byte_order != sys.byteorder)

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name in _REBUILD:
            return _tensor(name, *arguments)
        if name in _REWRAP and isinstance(arguments[0], Tensor):
            return arguments[0]
        if name in _RETYPE:
            function, cls, inner = arguments[:3]
            if function.name in _REBUILD and cls.name in _TENSOR_CLASSES:
                return _tensor(function.name, *inner)
        if name in _NUMPY:
            return _numpy(name.rpartition(".")[2], arguments)
        if name in _TYPED_LISTS:
            return arguments[0]
        if name in _PATHS and all(type(part) is str for part in arguments):
            return str((PureWindowsPath if "Windows" in name else PurePosixPath)(*arguments))
        return _plain(name, arguments)

    def instance(self, name: str, arguments: tuple[Any, ...]) -> Instance:
        if name not in _INSTANCES and not name.startswith(_SCRIPT):
            raise Refused(f"it makes an object of {name}")
        return Instance(name, arguments)

    def build(self, value: Any, state: Any) -> None:
        if isinstance(value, Instance):
            value.state = state
        elif not (type(value) is dict and type(state) is dict):  # attributes of an OrderedDict
            raise Refused("it changes the state of what has none")

    def finished(self, value: Any) -> Any:
        for _ in range(_MOST_WRAPPINGS):
            if not isinstance(value, Instance):
                break
            if value.name.startswith(_SCRIPT):
                value = value.state
            elif value.name in _AS_CONTENT:
                value = _state(value).get(_AS_CONTENT[value.name])
        if isinstance(value, Global):
            return value.name
        if isinstance(value, Storage):
            dtype = value.dtype or DTYPES["uint8"]
            return value.tensor(0, (value.span.size // dtype.itemsize,), (1,), dtype)
        if not isinstance(value, Instance):
            return value
        if value.name == "numpy.ndarray":
            return _array(*value.state)
        if value.name == "numpy.dtype":
            return str(_number_type(value))
        if value.name in _AS_DICT:
            return {**_state(value), **value.items}
        if value.name == _VERSION:
            return _version(value) or Opaque(value.name)
        return Opaque(value.name)


def _tensor(name: str, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise Refused("it makes a tensor of what is no storage")
    dtype = storage.dtype
    if name.endswith("_v3"):
        dtype = DTYPES.get(more[2].name.removeprefix("torch."))
    if dtype is None:
        raise Refused("it has a tensor of unknown dtype")
    return storage.tensor(offset, shape, strides, dtype)


def _plain(name: str, arguments: tuple[Any, ...]) -> Any:
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.defaultdict", () | (Global() | None,):
            return {}
        case "collections.Counter", (dict(counts),):
            return dict(counts)
        case "builtins.set" | "builtins.frozenset", (list(values),):
            return values
        case "builtins.complex", (float() as real, float() as imaginary):
            return complex(real, imaginary)
        case "builtins.bytes" | "builtins.bytearray", ():
            return b""
        case "builtins.bytearray", (bytes(value),):
            return value
        case "_codecs.encode", (str(text), "latin1"):
            return text.encode("latin1")
        case "torch.Size", (list() | tuple() as sizes,):
            return tuple(sizes)
        case "torch.device", (str(kind),):
            return kind
        case "torch.device", (str(kind), int(number)):
            return f"{kind}:{number:d}"
        case "torch.serialization._get_layout", (str(layout),):
            return layout
        case "numpy.dtype", (str(), *_):
            return Instance("numpy.dtype", arguments)
    raise Refused(f"it calls {name} with arguments that no tensor needs")


def _numpy(name: str, arguments: tuple[Any, ...]) -> Any:
    match name, arguments:
        case "scalar", (Instance() as dtype, bytes(value)):
            return _values(value, _number_type(dtype), ())[()].item()
        case "_reconstruct", (Global("numpy.ndarray"), *_):
            return Instance("numpy.ndarray", ())
        case "_frombuffer", (bytes(data), Instance() as dtype, tuple(shape), str(order)):
            return Instance("numpy.ndarray", (), (1, shape, dtype, order == "F", data))
    raise Refused(f"it calls numpy's {name} with arguments that no array needs")


def _array(_: Any, shape: Any, dtype: Any, is_fortran: Any, data: Any) -> Tensor:
    array = _values(data, _number_type(dtype), shape, "F" if is_fortran else "C")
    native = array.dtype.newbyteorder("=")
    # Copied when it is read: many arrays can be made of the same bytes.
    return Tensor(array.shape, native, lambda: array.astype(native))


def _values(data: Any, dtype: np.dtype, shape: Any, order: Any = "C") -> np.ndarray:
    if type(data) is not bytes or any(type(n) is not int or n < 0 for n in shape):
        raise Refused("it has a numpy array of objects")
    if len(shape) > _MOST_DIMENSIONS:  # or their product alone takes hours
        raise Refused(f"it has a numpy array of {len(shape)} dimensions")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise Refused(f"it has a numpy array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _number_type(dtype: Instance) -> np.dtype:
    (code, *_), state = dtype.arguments, dtype.state
    if dtype.name != "numpy.dtype" or not _NUMBER_TYPE.fullmatch(code):
        raise Refused(f"it has a numpy type {str(code)[:40]!r}, which is no number")
    order = state[1] if type(state) is tuple else "="
    return np.dtype(code).newbyteorder(order if order in ("<", ">") else "=")


def _state(instance: Instance) -> dict[Any, Any]:
    """Attributes; a class with slots has them second."""
    state = instance.state
    if type(state) is tuple and len(state) == 2:
        state = {**(state[0] or {}), **(state[1] or {})}
    return state if type(state) is dict else {}


def _version(instance: Instance) -> str | None:
    """The text of a `packaging.version.Version`, from the parts that its releases keep."""
    if type(instance.state) is tuple and len(instance.state) == 6:
        epoch, release, pre, post, dev, local = instance.state
    else:
        parts = _state(instance).get("_version")
        if not isinstance(parts, Instance) or len(parts.arguments) != 6:
            return None
        epoch, release, dev, pre, post, local = parts.arguments

    def joined(values: Any, separator: str = "") -> str:
        words = (values or ())[:10]
        if not all(type(word) in (str, int) for word in words):  # a list could print without end
            raise Refused("it has a version that is no list of words")
        return separator.join(str(word)[:40] for word in words)

    text = f"{joined((epoch,))}!" if epoch else ""
    text += joined(release, ".") + joined(pre)
    text += f".{joined(post)}" if post else ""
    text += f".{joined(dev)}" if dev else ""
    return text + (f"+{joined(local, '.')}" if local else "")
