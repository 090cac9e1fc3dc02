"""The site: it builds, loads nothing from elsewhere, and every command and program in it runs.

The pages' commands run as they are written, in one process, in a folder with the files that the
pages speak of. Two things are smaller than a reader's: the model `emoji` is a tiny random one, and
configs/emoji holds the toy recipes, two steps each.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.data.test_sources import make_tfds
from tests.generation.test_all_stages import stage
from tests.interop.tiny_karlo import write_tiny_karlo
from tests.training import toys
from unclip_jax.cli import main as unclip
from unclip_jax.cli import sample, train
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, save_stage

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
LANGUAGES = ("sh", "bash", "python", "json", "text")

NOT_HERE = {
    "make setup": "installs: the suite runs in what it made",
    "source .venv": "the suite runs in it",
    "pip install": "installs",
    "gcloud": "rents machines",
    "python -m unclip_jax evaluate --generated drawn --real emoji": "Inception: tests/evaluation",
    "python -m unclip_jax plan": "needs the TPU's compiler: tests/test_readme.py, tests/training",
    "python -m unclip_jax compare karlo": "needs PyTorch: tests/test_readme.py",
    'python sample.py text "a red frog': "a Karlo is compiled for it in tests/test_readme.py",
    "python -m unclip_jax convert clip-folder": "a CLIP that nobody has: tests/interop",
    "python train.py configs/dalle2": "days on a pod",
    "python train.py configs/emoji/decoder_inpaint.py": "from the shipped decoder: tests/training",
    "python -m unclip_jax export --decoder-inpaint": "of that run",
    "python -m benchmarks.findings": "hours",
    "srun": "needs SLURM",
    "JAX_COORDINATOR_ADDRESS=": "two processes that wait for each other: tests/training",
    "XLA_FLAGS=": "devices are made before JAX starts: tests/training/test_sharding.py",
}
"""Commands that cannot run here, by how they begin, and why. Their options are parsed all the same.
"""
STEPS = "--steps 2 --log.preview-every 0"


class Parsed(Exception):
    """The options of a command were right: nothing beyond them is run."""


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    language: str
    title: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, opened = [], None
    for number, line in enumerate((DOCS / page).read_text(encoding="utf-8").splitlines(), 1):
        if opened is None and (fence := re.fullmatch(r'```(\w*)(?: title="(.*)")?', line)):
            opened = (fence[1], fence[2] or "", number, [])
        elif line == "```" and opened is not None:
            language, title, first, lines = opened
            found.append(Block(language, title, "\n".join(lines) + "\n", first))
            opened = None
        elif opened is not None:
            opened[3].append(line)
    assert opened is None, f"{page}: a block is not closed"
    return found


def commands(block: Block) -> list[str]:
    """The commands of a block of shell, without comments."""
    text = block.text.replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands in for the package's own files: a tiny model called emoji."""
    root = tmp_path_factory.mktemp("package")
    folder = root / "assets" / "models" / "emoji"
    clip = stage("clip")
    made = {"clip": clip, "decoder": _small_decoder(clip)}
    made |= {name: stage(name, clip.clip_id) for name in ("prior", "ar_prior")}
    made["upsampler_256"] = stage("upsampler")
    for name, one in made.items():
        save_stage(one, folder / name, "float32")
    few = {"method": "ddim", "num_steps": 2}
    sampling = {
        "prior": {"num_steps": 2, "thresholding": "none"},
        "decoder": {**few, "guidance_scale": 2.0},
        "upsampler_256": few,
        "batch_size": 4,
    }
    (folder / "sampling.json").write_text(json.dumps(sampling))
    return root


def _small_decoder(clip: Stage) -> Stage:
    recipe = toys.recipe("decoder", model=toys.SMALL_DECODER)
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
    params = jax.tree.map(jnp.asarray, toys.random_like(shapes))
    return Stage(recipe, params, clip.tokenizer, 3, clip.clip_id)


@pytest.fixture(scope="module")
def start(repository: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of any page has before its first command."""
    folder = tmp_path_factory.mktemp("start")
    for name in ("sample.py", "train.py", "benchmarks"):
        (folder / name).symlink_to(repository / name)
    for name in ("toy", "dalle2"):
        shutil.copytree(repository / "configs" / name, folder / "configs" / name)
    shutil.copytree(repository / "configs" / "toy", folder / "configs" / "emoji")
    shutil.copy(
        repository / "configs" / "toy" / "clip.py", folder / "configs" / "emoji" / "judge.py"
    )
    decoder = folder / "configs" / "emoji" / "decoder.py"  # one level, as `_small_decoder`
    smaller = decoder.read_text().replace("channel_mult=(1, 2)", "channel_mult=(1,)")
    decoder.write_text(smaller.replace("attention_resolutions=(8,)", "attention_resolutions=(16,)"))
    for name in ("clip", "prior", "decoder"):
        (folder / "runs").mkdir(exist_ok=True)
        (folder / "runs" / name).symlink_to(model / "assets" / "models" / "emoji" / name)
    toys.write_pictures(folder / "PICTURES")
    (folder / "LISTED").mkdir()
    for name, kind in (("a", "red_circle"), ("b", "blue_bar"), ("photo", "green_cross")):
        with Image.open(folder / "PICTURES" / f"{kind}.png") as picture:
            picture.resize((48, 40)).save(folder / f"{name}.png")
    for name in ("red", "blue"):
        Image.new("RGB", (16, 16), name).save(folder / "LISTED" / f"{name}.png")
    mask = np.zeros((40, 48), np.uint8)
    mask[10:30, 10:40] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    write_tiny_karlo(folder / "karlo-v1-alpha")
    shutil.copytree(make_tfds(folder / "tfds"), folder / "DATASET")
    return folder


@pytest.fixture
def reader(start: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the reader of one page stands in."""
    folder = tmp_path / "reader"
    shutil.copytree(start, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    package = SimpleNamespace(files=lambda name: model)
    monkeypatch.setattr("unclip_jax.training.weights.resources", package)
    monkeypatch.setattr(UnCLIP, "load", staticmethod(_load_once))
    return folder


_models: dict[str, UnCLIP] = {}
_load = UnCLIP.load


def _load_once(source: Any, only: Any = None) -> UnCLIP:
    """The tiny model is compiled once for all pages, whole."""
    if source != "emoji":
        return _load(source, only)
    if source not in _models:
        _models[source] = _load(source)
    return _models[source]


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.title:
            (reader / block.title).parent.mkdir(parents=True, exist_ok=True)
            (reader / block.title).write_text(block.text, encoding="utf-8")
    for block in blocks(page):
        where = f"docs/{page}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: say what the block is: {LANGUAGES}"
        if block.language == "python":
            exec(compile(block.text, where, "exec"), names)
        if block.language in ("sh", "bash"):
            for command in commands(block):
                run(command, where, monkeypatch)


README_PARTS = ("### Many prompts", "## Edit", "## Find", "## Also")


def test_readme(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests/test_readme.py does not run; the pictures that it speaks of are a reader's own."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    (reader / "captions.txt").write_text("a red apple\na guitar\n")
    (reader / "prompts.jsonl").write_text('{"prompt": "a fox", "n": 2, "guidance": 2.5}\n')
    run('python sample.py text "red apple, 3d style" --num-images 1', "", monkeypatch)
    for part in README_PARTS:
        (section,) = re.findall(rf"^{part}\n(.*?)^##", text, flags=re.MULTILINE | re.DOTALL)
        shells = re.findall(r"^```\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        lines = [line for shell in shells for line in commands(Block("sh", "", shell, 0))]
        assert lines
        for line in lines:
            run(line, f"README.md, {part}", monkeypatch)
    assert len(list((reader / "between").glob("animation_0.webp"))) == 1


def run(command: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of a page, as far as it can be run here."""
    if any(command.startswith(start) for start in NOT_HERE):
        if not command.startswith(("python sample", "python train", "python -m unclip_jax")):
            # It may come later in the line.
            within = re.search(r"python (?:-m unclip_jax|\w+\.py) [^\"]*", command)
            command = within[0] if within else ""
        if command:
            only_parse(command, where, monkeypatch)
        return
    before, _, after = command.rpartition(" | ")
    if before:
        made = subprocess.run(before, shell=True, capture_output=True, check=True).stdout
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(made)))
        command = after
    if not command.startswith("python "):
        subprocess.run(command, shell=True, check=True)
        return
    if "train.py" in command:
        command += f" {STEPS}" if "--steps" not in command else " --log.preview-every 0"
    code = run_here(command)
    assert code == 0, f"{where}: {command}: exit code {code}"


def run_here(command: str) -> int:
    """A command of this package, in this process; returns its exit code."""
    words = shlex.split(command)[1:]
    scripts = {"sample.py": sample.main, "train.py": train.main}
    try:
        if words[:2] == ["-m", "unclip_jax"]:
            unclip.main(words[2:])
        else:
            unclip.run(scripts[words[0]], words[1:])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def only_parse(command: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command up to where it would start JAX."""

    def stop() -> None:
        raise Parsed

    command = re.sub(r" --restarts \d+", "", command)
    with monkeypatch.context() as patch:
        patch.setattr("unclip_jax.cli.runtime.prepare_jax", stop)
        with contextlib.suppress(Parsed):
            code = run_here(command)
            pytest.fail(f"{where}: {command}: exit code {code} before anything was run")


@functools.cache
def verbs(program: Callable[..., Any]) -> frozenset[str]:
    """Those that `--help` of sample.py or of unclip lists."""
    said = printed(program, ["--help"])
    in_a_line = re.search(r"^verbs: (.*)", said, re.MULTILINE)
    listed = in_a_line[1].split(", ") if in_a_line else ()
    return frozenset([*listed, *re.findall(r"^  ([a-z-]+)  +\S", said, re.MULTILINE)])


def printed(program: Callable[..., Any], words: list[str]) -> str:
    """What a program prints before it exits."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        program(words)
    return said.getvalue()


def test_nothing_is_left_out_without_need() -> None:
    """What is built is not skipped, and what cannot run here stands on some page."""
    said = [line for page in PAGES for block in blocks(page) for line in block.text.splitlines()]
    unused = [start for start in NOT_HERE if not any(line.startswith(start) for line in said)]
    assert unused == []


def test_every_verb_has_a_page() -> None:
    how_to = [page for page in PAGES if page.startswith("how-to/")]
    said = "\n".join(block.text for page in how_to for block in blocks(page))
    texts = "\n".join((DOCS / page).read_text(encoding="utf-8") for page in how_to)
    assert len(verbs(sample.main)) > 5 and len(verbs(unclip.main)) > 10
    assert [verb for verb in verbs(sample.main) if f"sample.py {verb} " not in said] == []
    pattern = r"(unclip_jax |unclip |`|\.py )"
    others = verbs(unclip.main) - verbs(sample.main) - {"train"}
    missing = [verb for verb in others if not re.search(rf"{pattern}{verb}\b", texts)]
    assert missing == []


def test_the_notebook_runs(reader: Path) -> None:
    """Its cells one after another, each last expression shown, as Jupyter does."""
    cells = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = 0
    for number, source in enumerate(sources):
        *statements, last = ast.parse(source).body
        if not isinstance(last, ast.Expr):
            statements.append(last)
        exec(compile(ast.Module(statements, []), f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
            shown += isinstance(value, Image.Image)
            assert len(repr(value)) > 5
    assert shown == 6
    saved = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in saved) == shown
    assert all(output["output_type"] != "error" for output in saved)


class Assets(HTMLParser):
    """What a page makes a browser load."""

    LOADS = ("img", "script", "iframe", "source", "video", "audio", "embed", "object", "link")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.LOADS:
            self.found += [value or "" for name, value in attrs if name in ("src", "href", "data")]


def test_the_site_builds_and_loads_nothing_from_elsewhere(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)],
        cwd=repository,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES) + 3  # and those that the build makes
    for page in pages:
        text, assets = page.read_text(encoding="utf-8"), Assets()
        assets.feed(text)
        assert len(assets.found) > 3
        far = [one for one in assets.found if re.match(r"(https?:)?//", one)]
        assert far == [], f"{page.name} loads {far}"
        assert "zzformula" not in text and "$$" not in text, f"{page.name}: a formula is left"
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style
    text = (tmp_path / "reference" / "command-line.html").read_text(encoding="utf-8")
    all_verbs = verbs(sample.main) | verbs(unclip.main)
    assert [verb for verb in all_verbs if f'id="{verb}"' not in text] == []
    assert "text_to_image" in (tmp_path / "reference" / "unclip.html").read_text(encoding="utf-8")
    assert "data:image/png" in (tmp_path / "tutorials/notebook.html").read_text(encoding="utf-8")


def test_pictures_are_small() -> None:
    sizes = [path.stat().st_size for path in DOCS.rglob("*") if path.suffix in (".png", ".webp")]
    assert len(sizes) > 8 and sum(sizes) < 1_500_000
