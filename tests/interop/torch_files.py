"""Archives for the tests: whatever data.pkl and entries a test wants, with torch and without it.

`tests/golden/torch_archive.pt` is `torch.save(various_objects(torch), ...)` and
`torch_script.pt` is `torch.jit.save(torch.jit.script(small_clip(torch)), ...)`, by torch 2.13;
`torch_archive.npz` holds the tensors of both, as torch itself reads them (bfloat16 as float32). The
script's `debug_pkl` entries, which name source files, were taken out of the archive.
"""

from __future__ import annotations

import argparse
import collections
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def write_archive(
    path: Path,
    program: bytes,
    storages: dict[str, bytes] | None = None,
    *,
    byte_order: str = "little",
    extra: dict[str, bytes] | None = None,
) -> Path:
    """A zip archive as torch lays it out."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", byte_order)
        for name, content in (storages or {}).items():
            archive.writestr(f"archive/data/{name}", content)
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return path


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def number(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor_program(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    offset: int = 0,
    count: int,
    kind: str = "FloatStorage",
    key: str = "0",
) -> bytes:
    """The instructions that leave one tensor on the stack."""
    storage = b"(" + word("storage") + f"ctorch\n{kind}\n".encode() + word(key) + word("cpu")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(count)
        + b"tQ"
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def program(*instructions: bytes) -> bytes:
    return b"\x80\x02" + b"".join(instructions) + b"."


def various_objects(torch: Any) -> dict[str, Any]:
    """A checkpoint with every kind of thing that is read."""
    from packaging.version import parse

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Any:
        return torch.randn(shape, generator=generator)

    big = random(6, 8)
    marked = torch.nn.Parameter(random(2))
    marked.note = "an attribute"
    kinds = ["float64", "float16", "bfloat16", "complex64", "complex128"]
    kinds += ["int64", "int32", "int16", "int8", "uint8"]
    model = collections.OrderedDict(
        {
            "plain.weight": big,
            "parameter": torch.nn.Parameter(random(3, 2)),
            "marked": marked,
            "buffer": torch.nn.Buffer(random(2)),
            "row": big[3],
            "column": big[:, 3],
            "part": big[1:4, 2:7:2],
            "transposed": big.T,
            "permuted": random(2, 3, 4).permute(2, 0, 1),
            "expanded": random(4, 1).expand(4, 5),
            "number": torch.tensor(2.5),
            "empty": torch.zeros(0, 3),
            "mask": random(5) > 0,
            "unsigned": torch.tensor([1, 65535], dtype=torch.uint16),
            **{f"kinds.{kind}": (random(7) * 50).abs().to(getattr(torch, kind)) for kind in kinds},
        }
    )
    model._metadata = collections.OrderedDict({"": {"version": 1}})  # pyright: ignore
    return {
        "version": parse("1.2.3rc1+abc"),
        "config": {"dim": 4, "layers": [1, 2], "name": "é", "rate": 0.5, 7: (True, None)},
        "model": model,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "settings": argparse.Namespace(width=8, nested={"a": 1}),
        "numpy": {"array": np.arange(6, dtype=np.int16).reshape(2, 3).T, "scalar": np.float64(1.5)},
        "torch": [torch.float32, torch.Size([1, 2]), torch.device("cuda", 1), torch.strided],
        "others": [{3}, 1 + 2j, bytearray(b"ab"), b"cd", collections.Counter("aab"), 10**30],
        "path": Path("a/b"),
        "default": collections.defaultdict(list, {"k": [1]}),
    }


def small_clip(torch: Any) -> Any:
    """A module that is named like OpenAI's CLIP, with a transformer of two blocks."""
    nn = torch.nn
    torch.manual_seed(1)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_proj_weight = nn.Parameter(torch.randn(12, 4))
            self.out_proj = nn.Linear(4, 4)

        def forward(self, x):  # annotated below
            return self.out_proj(x @ self.in_proj_weight[:4].t())

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.ln_1 = Attention(), nn.LayerNorm(4)

        def forward(self, x):  # annotated below
            return x + self.attn(self.ln_1(x))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.resblocks = nn.Sequential(Block(), Block())

        def forward(self, x):  # annotated below
            return self.resblocks(x)

    class Visual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = Transformer()
            self.input_resolution = 224
            self.sizes = [1, 2]
            self.proj = nn.Parameter(torch.randn(4, 3).half())

        def forward(self, x):  # annotated below
            return self.transformer(x) @ self.proj.float()

    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = Visual()
            self.logit_scale = nn.Parameter(torch.tensor(2.5))
            self.register_buffer("input_resolution", torch.tensor(224))

        def forward(self, x):  # annotated below
            return self.visual(x) * self.logit_scale.exp() + torch.ones(3)

    for cls in (
        Attention,
        Block,
        Transformer,
        Visual,
        Clip,
    ):  # its annotations name a module that is an argument here
        cls.forward.__annotations__ = {"x": torch.Tensor, "return": torch.Tensor}
    return Clip()
