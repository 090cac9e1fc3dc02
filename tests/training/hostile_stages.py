"""Exported stages from strangers: each is refused, with these words, before anything is built.

`python -m tests.training.hostile_stages FOLDER` loads every stage in FOLDER in a process of its own
and prints, as JSON, the words, the seconds and the megabytes that each took.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Edit = Callable[[Path], None]


def set_field(path: str, value: Any) -> Edit:
    """One value of config.json, named as 'recipe.model.transformer.width'."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        place = config
        *parents, last = path.split(".")
        for name in parents:
            place = place[name]
        place[last] = value
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def replace_text(file: str, old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return edit


def write(file: str, content: bytes) -> Edit:
    return lambda folder: (folder / file).write_bytes(content) and None


def pipe(file: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return edit


def sparse(file: str, size: int) -> Edit:
    def edit(folder: Path) -> None:
        with (folder / file).open("wb") as out:
            out.truncate(size)

    return edit


def edit_header(change: Callable[[dict[str, Any]], None]) -> Edit:
    """Change what model.safetensors says of its tensors; their bytes stay."""

    def edit(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        rest = data[8 + length :]
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + rest)

    return edit


def _announce(size: int) -> Edit:
    def edit(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + data[8:])

    return edit


def _overlap(header: dict[str, Any]) -> None:
    first, second = sorted(header, key=lambda name: header[name]["data_offsets"])[:2]
    header[second]["data_offsets"][0] = header[first]["data_offsets"][0]


def _overflow(header: dict[str, Any]) -> None:
    header[next(iter(header))]["shape"] = [2**62, 4]


def _beyond(header: dict[str, Any]) -> None:
    last = max(header, key=lambda name: header[name]["data_offsets"])
    header[last]["data_offsets"][1] = 2**63


def _another_dtype(header: dict[str, Any]) -> None:
    header["query"]["dtype"] = "I16"


def _many_headers(folder: Path) -> None:
    """20 MB of empty tensors, which the library would unpack to 20 times that."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"t{n}": entry for n in range(300_000)}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


DEEP = b"[" * 100_000 + b"]" * 100_000
MODEL = "recipe.model."
CASES: dict[str, tuple[Edit, str]] = {
    "unknown key": (set_field(MODEL + "hue", 1), "hue"),
    "unknown key with an escape": (set_field(MODEL + "\x1b[2J", 1), r"\\x1b"),
    "width 10^9": (set_field(MODEL + "transformer.width", 10**9), "width is 1000000000"),
    "depth 10^6": (set_field(MODEL + "transformer.depth", 10**6), "depth is 1000000"),
    "depth 10^400": (set_field(MODEL + "transformer.depth", 10**400), "depth is 10"),
    "depth of 10,000 digits": (
        replace_text("config.json", '"depth": 2', '"depth": 1' + "0" * 10_000),
        "config.json",
    ),
    "negative width": (set_field(MODEL + "transformer.width", -64), "width is -64"),
    "no heads": (set_field(MODEL + "transformer.heads", 0), "heads is 0"),
    "context 10^6": (set_field(MODEL + "context_length", 10**6), "context_length is 1000000"),
    "timesteps 10^9": (set_field("recipe.diffusion.num_timesteps", 10**9), "num_timesteps is"),
    "NaN": (set_field("recipe.text_drop", float("nan")), "text_drop is nan"),
    "infinity": (set_field("recipe.ema_decay", float("inf")), "ema_decay is inf"),
    "a float of 10^400": (set_field("recipe.ema_decay", 10**400), "ema_decay is 10"),
    "a width of text": (set_field(MODEL + "transformer.width", "64"), "width is '64'"),
    "a width that is true": (set_field(MODEL + "transformer.width", True), "width is True"),
    "a width of 1 MB": (set_field(MODEL + "transformer.width", "x" * 900_000), "width is 'xx"),
    "a pair of one": (set_field("recipe.log.profile_steps", [1]), "profile_steps"),
    "a list as transformer": (set_field(MODEL + "transformer", [1]), "expected an object"),
    "another step": (set_field("step", "7"), "step"),
    "deep nesting": (write("config.json", b'{"recipe": ' + DEEP + b"}"), "nested too deeply"),
    "a key twice": (
        replace_text("config.json", '"format": 1', '"format": 1, "format": 1'),
        "a name twice",
    ),
    "a config of 2 GB": (sparse("config.json", 2**31), "the limit is"),
    "a config that is a pipe": (pipe("config.json"), "not a regular file"),
    "a deep tokenizer": (write("tokenizer.json", DEEP), "tokenizer"),
    "a tokenizer of 2 GB": (sparse("tokenizer.json", 2**31), "tokenizer"),
    "a tokenizer that is a pipe": (pipe("tokenizer.json"), "tokenizer"),
    "a tokenizer of context 10^9": (
        replace_text("tokenizer.json", '"context_length": 12', '"context_length": 1000000000'),
        "context_length is 1000000000",
    ),
    "a tokenizer with a key twice": (
        replace_text("tokenizer.json", '"kind"', '"kind": "clip", "kind"'),
        "tokenizer",
    ),
    "merges that are numbers": (
        replace_text("tokenizer.json", '"merges": [', '"merges": [1, '),
        "tokenizer",
    ),
    "a header of 2^63 bytes": (_announce(2**63), "header of"),
    "a header beyond the end": (_announce(5_000_000), "model.safetensors cannot be read"),
    "a header of 20 MB": (_many_headers, "header of"),
    "a header nested deeply": (
        write("model.safetensors", struct.pack("<Q", len(DEEP)) + DEEP),
        "model.safetensors cannot be read",
    ),
    "tensors that overlap": (edit_header(_overlap), "model.safetensors cannot be read"),
    "a shape that overflows": (edit_header(_overflow), "model.safetensors cannot be read"),
    "a tensor beyond the end": (edit_header(_beyond), "model.safetensors cannot be read"),
    "another dtype": (edit_header(_another_dtype), "query is I16"),
    "weights that are a pipe": (pipe("model.safetensors"), "not a regular file"),
    "weights of zeros": (sparse("model.safetensors", 2**34), "model.safetensors cannot be read"),
    # As large as is allowed: the shapes are computed, and nothing else.
    "the largest that is allowed": (
        lambda folder: (
            [
                set_field(MODEL + f"transformer.{name}", value)(folder)
                for name, value in {"width": 65_536, "depth": 1024, "heads": 1024}.items()
            ]
            and None
        ),
        r"config\.json needs",
    ),
}


def make_all(whole: Path, root: Path) -> None:
    """A copy of the stage in `whole` for every case, damaged as it says: ROOT/0, ROOT/1, ..."""
    for number, (edit, _) in enumerate(CASES.values()):
        folder = Path(shutil.copytree(whole, root / str(number)))
        edit(folder)


def save_whole(folder: Path) -> None:
    """A tiny prior with random weights, of which one is NaN: that is allowed."""
    import jax

    from tests.training import toys
    from unclip_jax.data.tokenizer import train_bpe
    from unclip_jax.training.stages import init_params
    from unclip_jax.training.weights import Stage, save_stage

    recipe = toys.prior_recipe()
    params = toys.random_like(jax.eval_shape(lambda: init_params(recipe, jax.random.key(0))))
    params["query"] = np.full_like(params["query"], np.nan)
    tokenizer = train_bpe(["a red apple", "a blue book"], vocab_size=530, context_length=12)
    save_stage(Stage(recipe, params, tokenizer, 7, "0123456789abcdef"), folder)


def main() -> None:
    """Prints [[words, seconds, megabytes], ...] in the order of `CASES`."""
    from tests.data.hostile_pictures import memory
    from unclip_jax.errors import UserError
    from unclip_jax.training.weights import load_stage

    root = Path(sys.argv[1])
    load_stage(root / "whole")
    found = []
    for number in range(len(CASES)):
        Path("/proc/self/clear_refs").write_text("5")
        before, began, words = memory("VmRSS"), time.monotonic(), ""
        try:
            load_stage(root / str(number))
        except UserError as error:
            words = str(error)
        found.append((words, time.monotonic() - began, memory("VmHWM") - before))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
