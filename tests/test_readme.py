"""The README's commands, run as they are written, in an empty folder.

Only what would take minutes is shortened: training gets two steps, and a decoder two levels, since
compiling all of it takes a minute each time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.interop.tiny_karlo import write_tiny_karlo

TWO_LEVELS = (
    " --model.unet.depth 1 --model.unet.channel-mult 1 2 --model.unet.attention-resolutions 16"
)


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def _commands(readme: str) -> list[str]:
    lines = [
        line.split("  #")[0].strip() for block in _blocks(readme) for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("python ")]


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: the scripts and recipes, prompts, and pictures of their own."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("train.py", "sample.py", "configs"):
        (folder / name).symlink_to(repository / name)
    (folder / "prompts.txt").write_text("# two prompts\nred apple, 3d style\n\na rocket\n")
    (folder / "PICTURES").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        picture.save(folder / "PICTURES" / f"{number}.png")
        (folder / "PICTURES" / f"{number}.txt").write_text(f"picture number {number}\n")
    return folder


def _run(
    folder: Path, command: str, importable: Path | None = None
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):  # as a reader runs them
        environment.pop(name, None)
    if importable is not None:
        environment["PYTHONPATH"] = str(importable)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def _one(readme: str, start: str) -> str:
    found = [command for command in _commands(readme) if command.startswith(start)]
    assert found, f"the README has no command that starts with {start!r}"
    return found[0]


def test_sampling_writes_pictures_with_their_settings(readme: str, folder: Path) -> None:
    command = _one(readme, "python sample.py text ")
    done = _run(folder, command)
    assert "grid" in done.stdout
    pictures = sorted((folder / "out").glob("0*.png"))
    assert len(pictures) == 8
    with Image.open(pictures[-1]) as picture:
        assert picture.size == (64, 64)
        facts = json.loads(picture.text["unclip"])  # type: ignore[attr-defined]
    assert facts["prompt"] == "guitar, noto style" and facts["index"] == 3


def test_a_file_of_prompts(readme: str, folder: Path) -> None:
    _run(folder, _one(readme, "python sample.py text --prompts") + " --out listed --num-images 1")
    assert len(list((folder / "listed").glob("0*.png"))) == 2


def test_large_pictures_and_other_priors(readme: str, folder: Path) -> None:
    start = 'python sample.py text "a red apple, 3d style" '
    few = " --num-images 1 --steps 2 --prior-steps 2"
    _run(folder, _one(readme, start + "--num-images 1 --upsample 1024") + few)
    (picture,) = (folder / "large").glob("0*.png")
    with Image.open(picture) as opened:
        assert opened.size == (1024, 1024)
    _run(folder, _one(readme, start + "--prior ar") + few)
    _run(folder, _one(readme, start + "--prior ar").replace("--prior ar", "--prior none") + few)
    _run(folder, _one(readme, start + "--sampler dpm_solver") + " --num-images 1")
    assert all((folder / name / "grid.png").exists() for name in ("ar", "fast"))


def test_the_python_blocks(readme: str, folder: Path) -> None:
    """One after another, as a reader goes on."""
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(blocks) == 2
    (folder / "block.py").write_text("\n".join(blocks))
    _run(folder, "python block.py")


def test_training_continues_where_it_stopped(readme: str, folder: Path) -> None:
    command = _one(readme, "python train.py configs/emoji/decoder.py --workdir runs/d --steps")
    shorter = command.replace("--steps 20", "--steps 2") + f" --batch-size 16{TWO_LEVELS}"
    assert "--steps 20" in command
    _run(folder, shorter)
    assert (folder / "runs/d/samples/step_0000002.png").exists()
    done = _run(folder, shorter.replace("--steps 2", "--steps 3 --log.preview-every 0"))
    assert "continuing" in done.stderr
    rows = [json.loads(line) for line in (folder / "runs/d/metrics.jsonl").open()]
    assert [row["step"] for row in rows][-1] == 3


def test_ones_own_pictures(readme: str, folder: Path) -> None:
    lines = [command for command in _commands(readme) if "--data.source PICTURES" in command]
    assert len(lines) == 3
    for line in lines:
        levels = TWO_LEVELS if "decoder" in line else ""
        _run(folder, f"{line} --steps 2 --batch-size 4{levels}")
    (sample,) = re.findall(r"`(python sample\.py text [^`]*--model [^`]*)`", readme)
    _run(folder, sample + " --num-images 1 --steps 2 --prior-steps 2 --out own")
    assert (folder / "own" / "grid.png").exists()


def test_ones_own_weights(readme: str, folder: Path, repository: Path) -> None:
    """With a small Karlo in the place of the published one."""
    write_tiny_karlo(folder / "karlo-v1-alpha")
    assert (
        "stages: clip, prior" in _run(folder, _one(readme, "python -m unclip_jax convert")).stdout
    )
    few = " --num-images 1 --steps 2 --prior-steps 2 --upsample-steps 2"
    sample = 'python sample.py text "a red frog on a leaf"'
    _run(folder, _one(readme, sample) + few)
    (picture,) = (folder / "frog").glob("0*.png")
    with Image.open(picture) as opened:
        assert opened.size == (64, 64)
    compare = _one(readme, "python -m unclip_jax compare")
    if importlib.util.find_spec("torch") is None:
        pytest.skip("compare runs the reference, which is not installed")
    # A CPU build of torch beside torchvision's own wheel needs two operators declared first.
    program = (
        "import sys; from tests.interop.clip_models import live; live('transformers'); "
        "from unclip_jax.cli.main import main; main(sys.argv[1:])"
    )
    words = [f"python -c {shlex.quote(program)}", *compare.split()[3:], "--steps 3 3 2"]
    done = _run(folder, " ".join(words), repository)
    assert "rows pass" in done.stdout
    with Image.open(folder / "compared" / "comparison.png") as opened:
        assert opened.size[0] > opened.size[1] / 2


def test_a_plan(readme: str, folder: Path) -> None:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU's compiler is not installed")
    said = _run(folder, _one(readme, "python -m unclip_jax plan")).stdout
    assert "it fits" in said and "pictures/s" in said
    said = _run(folder, _one(readme, "python -m unclip_jax plan") + " --sample").stdout
    assert said.count("it fits") == 2 and "rows a second" in said  # captions and pictures


def test_looking_at_the_data(readme: str, folder: Path) -> None:
    assert "test_cells" in _run(folder, _one(readme, "python -m unclip_jax data stats")).stdout
    _run(folder, _one(readme, "python -m unclip_jax data sheet"))
    with Image.open(folder / "sheet.png") as sheet:
        assert min(sheet.size) > 200
