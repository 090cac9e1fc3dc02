"""The shape of the house, read from the source: which file may import which, and where what lives.

A rule is a function from the modules to a list of violations; each is also run on a small package
that breaks it, so that no rule passes because it looks at nothing.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

PACKAGE = "unclip_jax"
FLOORS = {
    "config": 0,
    "errors": 0,
    "files": 0,
    "bounded": 0,
    "printable": 0,
    "diffusion": 1,
    "models": 2,
    "data": 3,
    "training": 4,
    "generation": 5,
    "samples": 5,
    "pipeline": 5,
    "editing": 5,
    "clip_tools": 5,
    "interop": 5,
    "evaluation": 5,
    "inspection": 5,
    "cli": 6,
}
# Rooms on one floor that may import each other, in this direction only.
SIDEWAYS = {
    ("config", "errors"),
    ("files", "errors"),
    ("config", "printable"),
    ("pipeline", "generation"),
    ("pipeline", "samples"),
    ("pipeline", "editing"),
    ("pipeline", "clip_tools"),
    ("editing", "generation"),
    ("editing", "samples"),
    ("clip_tools", "generation"),
    ("interop", "generation"),
    ("evaluation", "clip_tools"),
    ("evaluation", "generation"),
    ("evaluation", "interop"),
    ("evaluation", "pipeline"),
    ("inspection", "generation"),
    ("inspection", "interop"),
    ("inspection", "clip_tools"),
}
NEVER = {"tensorflow", "clu", "joblib", "dill", "pickle", "cloudpickle"}
ONLY_INSIDE_FUNCTIONS = {
    "gradio",
    "grain",
    "resvg_py",
    "tensorboardX",
    "tensorflow_datasets",
    "torch",
    "transformers",
    "tyro",
    "wandb",
}
FORBIDDEN_NAMES = re.compile(r"(utils?|common|helpers?|misc|base_.*)$")
MAX_LINES = 400


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    at_module_level: bool
    runs: bool  # False under `if TYPE_CHECKING:`


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    known: frozenset[str]  # every module of the package

    @property
    def room(self) -> str:
        return _room(self.name)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @cached_property
    def imports(self) -> list[Import]:
        return list(self._walk(self.tree, True, True))

    def _walk(self, node: ast.AST, at_module_level: bool, runs: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            for target in self._targets(child):
                yield Import(target, child.lineno, at_module_level, runs)  # pyright: ignore
            in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from self._walk(
                child, at_module_level and not in_function, runs and not typing_only
            )

    def _targets(self, node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                is_package = self.path.name == "__init__.py"
                parents = self.name.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            return [name if name in self.known else base for name in names]
        return []


def read_package(root: Path) -> list[Module]:
    files = sorted((root / PACKAGE).rglob("*.py"))
    names = {}
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        names[path] = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    known = frozenset(names.values())
    return [Module(names[path], path, known) for path in files]


def _room(name: str) -> str:
    return name.split(".")[1] if name.count(".") else ""


def _inside(module: Module) -> Iterator[Import]:
    return (i for i in module.imports if i.target.split(".")[0] == PACKAGE)


def unknown_rooms(modules: list[Module]) -> list[str]:
    entrances = {"", "__main__"}  # `import unclip_jax` and `python -m unclip_jax`
    return [m.name for m in modules if m.room not in FLOORS.keys() | entrances]


def upward_imports(modules: list[Module]) -> list[str]:
    """A room imports from the floors below, from itself, and from the listed neighbours."""
    found = []
    for module in modules:
        if module.room not in FLOORS:
            continue
        for used in _inside(module):
            room = _room(used.target)
            is_down = FLOORS.get(room, 99) < FLOORS[module.room]
            if not (is_down or room == module.room or (module.room, room) in SIDEWAYS):
                found.append(f"{module.name}:{used.line} imports {used.target}")
    return found


def import_cycles(modules: list[Module]) -> list[str]:
    """Modules that need each other while they are being imported."""
    edges = {
        m.name: {i.target for i in _inside(m) if i.at_module_level and i.runs} - {m.name}
        for m in modules
    }
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append(" -> ".join((*trail[trail.index(name) :], name)))
        elif name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())
    return found


def forbidden_libraries(modules: list[Module]) -> list[str]:
    found = []
    for module in modules:
        for used in module.imports:
            library = used.target.split(".")[0]
            at_home = {
                "torch": module.room == "interop",
                "orbax": module.name == f"{PACKAGE}.training.checkpoint",
            }.get(library, library not in NEVER)
            if not at_home or (library in ONLY_INSIDE_FUNCTIONS and used.at_module_level):
                found.append(f"{module.name}:{used.line} imports {used.target}")
    return found


def jax_on_the_way_to_help(modules: list[Module]) -> list[str]:
    """The data floor and the command line start without JAX (3 s), so they import it late."""
    return [
        f"{module.name}:{used.line} imports {used.target}"
        for module in modules
        if module.room in {"", "__main__", "config", "errors", "data", "cli"}
        for used in module.imports
        if used.at_module_level and used.runs
        if used.target.split(".")[0] in {"jax", "flax", "optax", "orbax"}
    ]


def pictures_opened_elsewhere(modules: list[Module]) -> list[str]:
    """Only data/images.py opens pictures: the limits on hostile files are checked there."""
    return [
        f"{module.name}:{node.lineno}"
        for module in modules
        if module.name != f"{PACKAGE}.data.images"
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "PIL.Image"
            and any(alias.name == "open" for alias in node.names)
        )
    ]


def executed_data(modules: list[Module]) -> list[str]:
    """Nothing that is read is executed: no eval, no exec, no unpickling."""
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            unsafe = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (
                ast.unparse(node.func) in {"eval", "exec", "yaml.load", "yaml.unsafe_load"}
                or unsafe.get("allow_pickle") == "True"
                or unsafe.get("weights_only") == "False"
                or (ast.unparse(node.func) == "torch.load" and "weights_only" not in unsafe)
            ):
                found.append(f"{module.name}:{node.lineno} {ast.unparse(node.func)}")
    return found


def bad_names(modules: list[Module]) -> list[str]:
    return [
        m.name for m in modules if any(FORBIDDEN_NAMES.match(part) for part in m.name.split("."))
    ]


def long_files(modules: list[Module]) -> list[str]:
    lengths = {m.name: len(m.path.read_text(encoding="utf-8").splitlines()) for m in modules}
    return [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > MAX_LINES]


def recipes_with_logic(root: Path) -> list[str]:
    """A recipe is a docstring, imports and assignments, one of them to `config`."""
    found = []
    for path in sorted((root / "configs").rglob("*.py")):
        name = str(path.relative_to(root))
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if path.name == "__init__.py":
            found += [name] if body else []
            continue
        if not body or ast.get_docstring(ast.Module(body, [])) is None:
            found.append(f"{name}: no docstring")
        allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign
        found += [f"{name}:{node.lineno}" for node in body[1:] if not isinstance(node, allowed)]
        named = {
            target.id
            for node in body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        found += [] if "config" in named else [f"{name}: no `config`"]
    return found


RULES: list[Callable[[list[Module]], list[str]]] = [
    unknown_rooms,
    upward_imports,
    import_cycles,
    forbidden_libraries,
    jax_on_the_way_to_help,
    pictures_opened_elsewhere,
    executed_data,
    bad_names,
    long_files,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_obeys(rule: Callable[[list[Module]], list[str]], repository: Path) -> None:
    modules = read_package(repository)
    assert len(modules) > 10
    assert rule(modules) == []


def test_recipes_are_data(repository: Path) -> None:
    assert recipes_with_logic(repository) == []


BREACHES = {
    unknown_rooms: [("attic.py", "")],
    upward_imports: [
        ("models/a.py", "from unclip_jax.data import tokenizer"),
        ("models/a.py", "def f():\n    import unclip_jax.cli.main"),
        ("models/a.py", "from .. import pipeline"),
        ("editing/a.py", "from unclip_jax.pipeline import UnCLIP"),
        ("interop/clip.py", "from unclip_jax import evaluation"),
        ("data/a.py", "from unclip_jax import UnCLIP"),
    ],
    import_cycles: [
        ("cli/main.py", "from unclip_jax.cli import other"),
        ("cli/main.py", "from . import other"),
        ("cli/main.py", "class A:\n    from unclip_jax.cli.other import x"),
    ],
    forbidden_libraries: [
        ("models/a.py", "def f():\n    import tensorflow as tf"),
        ("training/loop.py", "def f():\n    import orbax.checkpoint as ocp"),
        ("models/a.py", "def f():\n    import torch"),
        ("interop/clip.py", "import torch"),
        ("data/a.py", "import grain"),
        ("data/a.py", "import pickle"),
    ],
    jax_on_the_way_to_help: [
        ("data/a.py", "import jax.numpy as jnp"),
        ("cli/main.py", "try:\n    from jax import Array\nexcept ImportError:\n    pass"),
    ],
    pictures_opened_elsewhere: [
        ("evaluation/a.py", "from PIL import Image\nImage.open('x')"),
        ("evaluation/a.py", "import PIL.Image\nPIL.Image.open('x')"),
        ("evaluation/a.py", "from PIL.Image import open"),
    ],
    executed_data: [
        ("config.py", "eval('1')"),
        ("interop/clip.py", "torch.load('x')"),
        ("interop/clip.py", "torch.load('x', weights_only=False)"),
        ("data/a.py", "np.load('x', allow_pickle=True)"),
    ],
    bad_names: [("data/utils.py", ""), ("base_model.py", ""), ("models/common/a.py", "")],
    long_files: [("data/a.py", "x = 1\n" * (MAX_LINES + 1))],
}


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [(rule, file, source) for rule, breaches in BREACHES.items() for file, source in breaches],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_rule_finds_a_breach(
    rule: Callable[[list[Module]], list[str]], file: str, source: str, tmp_path: Path
) -> None:
    sound = {
        "__init__.py": "def __getattr__(name):\n    from unclip_jax.pipeline import UnCLIP",
        "pipeline.py": "from unclip_jax.models.a import x\nimport jax",
        "interop/a.py": "from unclip_jax.generation import bundle",
        "models/a.py": "import jax\nfrom unclip_jax.diffusion import schedule",
        "data/images.py": "from PIL import Image\nImage.open('x')\ndef f():\n    import grain",
        "interop/clip.py": "def f():\n    import torch\n    torch.load('x', weights_only=True)",
        "training/checkpoint.py": "import orbax.checkpoint as ocp",
        "cli/other.py": "from unclip_jax.cli import main\ndef f():\n    import tyro",
        "cli/main.py": "def main():\n    from unclip_jax.cli import other",
    }
    for name, text in sound.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert rule(read_package(tmp_path)) == []

    broken = tmp_path / PACKAGE / file
    broken.parent.mkdir(parents=True, exist_ok=True)
    broken.write_text(source)
    assert rule(read_package(tmp_path)) != []


@pytest.mark.parametrize(
    "source",
    [
        "config = 1",
        '"""Doc."""\nx = 1',
        '"""Doc."""\nconfig = 1\nif config:\n    pass',
        '"""Doc."""\ndef f(): ...\nconfig = f()',
    ],
)
def test_recipe_with_logic_is_found(source: str, tmp_path: Path) -> None:
    recipe = tmp_path / "configs" / "toy" / "clip.py"
    recipe.parent.mkdir(parents=True)
    recipe.write_text('"""Doc."""\n\nfrom a import A\n\nconfig: A = A(x=1)\n')
    assert recipes_with_logic(tmp_path) == []
    recipe.write_text(source)
    assert recipes_with_logic(tmp_path) != []


@pytest.mark.parametrize("room", ["", "config", "errors", "data", "cli.main"])
def test_import_is_light(room: str, repository: Path) -> None:
    """`--help` answers in under a second because nothing heavy is imported before it is needed."""
    start = f"{PACKAGE}.{room}".rstrip(".")
    names = [m.name for m in read_package(repository) if f"{m.name}.".startswith(f"{start}.")]
    names = names if room else [PACKAGE]
    assert names, f"{start} does not exist"
    program = f"import sys, {', '.join(names)}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    heavy = {"jax", "flax", "optax", "orbax", "torch", *ONLY_INSIDE_FUNCTIONS}
    assert heavy & set(result.stdout.split()) == set()
