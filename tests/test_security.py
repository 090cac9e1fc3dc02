"""Nothing that is read is executed, pictures have one way in, SECURITY.md names tests that exist.

The scan reads the syntax tree, not the text: what is imported and what is called. What it lets
through is listed with the reason; an entry that is not needed any more fails too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# Modules that execute what they load, or start something.
MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("yaml", "ruamel", "jsonpickle", "code", "codeop", "runpy", "subprocess", "pty", "ctypes"),
    *("imp", "zipimport", "importlib", "xmlrpc"),
}
FINE = {"importlib.metadata", "importlib.resources"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "builtins.eval", "builtins.exec"),
    *("os.system", "os.popen", "os.startfile", "torch.load", "torch.jit.load", "torch.hub.load"),
    *("Image.open", "PIL.Image.open"),
}
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")
# Keywords and the only constant that each may have.
KEYWORDS = {"allow_pickle": False, "shell": False, "trust_remote_code": False, "weights_only": True}

REFERENCE = "unclip_jax/interop/comparison/clip_reference.py"
ALLOWED = {
    ("unclip_jax/cli/main.py", "import importlib"): "the verbs' own modules, of a fixed table",
    ("unclip_jax/cli/supervisor.py", "import subprocess"): "the user's own command, once more",
    ("unclip_jax/cli/overrides.py", "import runpy"): "a recipe is the user's own Python",
    ("unclip_jax/cli/device_probe.py", "import subprocess"): "our own lines, their own process",
    ("unclip_jax/cli/verb_options.py", "import importlib"): "the same modules, for their options",
    ("unclip_jax/data/emoji_render.py", "import subprocess"): "our own renderer, its own process",
    ("unclip_jax/data/images.py", "Image.open"): "the one way in of every picture",
    (REFERENCE, "import importlib"): "names of packages that are written there",
    (REFERENCE, "torch.load"): "`unclip compare` runs the reference; with weights_only=True",
    (REFERENCE, "torch.jit.load"): "`unclip compare` runs OpenAI's own archive, as its code does",
    ("unclip_jax/training/planning/chips.py", "import importlib"): "asks whether libtpu is there",
}


def found_in(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of every import and call that could execute what is read."""
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            for name in names:
                if name in CALLS:
                    yield node.lineno, f"import {name}"
        else:
            names = []
        for name in names:
            is_fine = any(f"{name}.".startswith(f"{fine}.") for fine in FINE)
            if name.split(".")[0] in MODULES and not is_fine:
                yield node.lineno, f"import {name.split('.')[0]}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS or called.startswith(PREFIXES):
                yield node.lineno, called
            for keyword in node.keywords:
                if keyword.arg in KEYWORDS:
                    value = keyword.value
                    is_safe = isinstance(value, ast.Constant) and (
                        value.value is KEYWORDS[keyword.arg]
                    )
                    if not is_safe:
                        yield node.lineno, f"{keyword.arg}={ast.unparse(value)}"


def scanned(repository: Path) -> list[Path]:
    files = [repository / "train.py", repository / "sample.py"]
    for folder in ("unclip_jax", "scripts"):
        files += sorted((repository / folder).rglob("*.py"))
    return files


def test_nothing_that_is_read_is_executed(repository: Path) -> None:
    files = scanned(repository)
    assert len(files) > 100
    unknown, used = [], set()
    for file in files:
        path = file.relative_to(repository).as_posix()
        for line, what in found_in(path, file.read_text(encoding="utf-8")):
            if (path, what) in ALLOWED:
                used.add((path, what))
            else:
                unknown.append(f"{path}:{line}: {what}")
    assert unknown == []
    assert set(ALLOWED) - used == set()


BREACHES = {
    "import pickle": "import pickle",
    "inside a function": "def f():\n    from pickle import loads",
    "under another name": "import cloudpickle as json",
    "a part of it": "import importlib.util",
    "eval": "eval(text)",
    "exec": "exec(compile(text, 'a', 'exec'))",
    "a shell": "os.system(text)",
    "another program": "os.execvp(text, [])",
    "torch": "torch.load(path, weights_only=True)",
    "torch by name": "from torch import load",
    "pickled arrays": "np.load(path, allow_pickle=True)",
    "pickled arrays, perhaps": "np.load(path, allow_pickle=flag)",
    "a shell by keyword": "run(text, shell=True)",
    "code from a hub": "from_pretrained(name, trust_remote_code=True)",
    "half a guard": "load(path, weights_only=False)",
    "a picture elsewhere": "from PIL import Image\nImage.open(path)",
    "a picture by name": "from PIL.Image import open",
}
SOUND = """
import importlib.metadata
import json, re
from importlib import resources
re.compile("a")
model.eval()
np.load(path, allow_pickle=False)
text = "pickle.loads and eval(this)"
"""


@pytest.mark.parametrize("name", BREACHES)
def test_the_scan_finds_a_breach(name: str) -> None:
    assert list(found_in("a.py", BREACHES[name]))


def test_the_scan_lets_sound_code_through() -> None:
    assert list(found_in("a.py", SOUND)) == []


NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_every_promise_has_its_test(repository: Path) -> None:
    """The tests that SECURITY.md names exist, and each promise of its table names one."""
    text = (repository / "SECURITY.md").read_text(encoding="utf-8")
    named = NAMED.findall(text)
    assert len(named) > 20
    for file, function in named:
        source = (repository / file).read_text(encoding="utf-8")
        if function:
            assert f"def {function}(" in source, f"{file}::{function}"
    rows = text.partition("## Promises")[2].splitlines()
    promises = [row for row in rows if row.startswith("| ") and not row.startswith("| promise")]
    assert len(promises) > 15
    assert [row for row in promises if not NAMED.search(row)] == []
