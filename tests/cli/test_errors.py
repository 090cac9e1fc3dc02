"""A user's mistake is one line on standard error and exit code 2, within a second or two."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import toys
from unclip_jax.cli import main as command_line
from unclip_jax.cli import train

CLIP = "configs/toy/clip.py"
PRIOR = "configs/toy/prior.py"
DECODER = "configs/toy/decoder.py"


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that `train.py arguments` ends with."""
    with pytest.raises(SystemExit) as end:
        command_line.run(train.main, arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.fixture(autouse=True)
def in_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


# What is wrong with the command, and what the line must name.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown option": ([CLIP, "--optim.lerning-rate", "1"], "--optim.lerning-rate"),
    "unknown section": ([CLIP, "--optimizer.lr", "1"], "--optimizer.lr"),
    "another stage's option": ([CLIP, "--model.unet.channels", "8"], "--model.unet.channels"),
    "stray word": ([CLIP, "stray"], "stray"),
    "word for a number": ([CLIP, "--optim.learning-rate", "fast"], "--optim.learning-rate.*fast"),
    "fraction for a whole number": ([CLIP, "--steps", "1.5"], "--steps.*1.5"),
    "unknown choice": ([CLIP, "--optim.schedule", "cosin"], "--optim.schedule"),
    "not a boolean": ([CLIP, "--log.tensorboard", "maybe"], "--log.tensorboard"),
    "no value": ([CLIP, "--steps"], "--steps"),
    "no workdir's value": ([CLIP, "--workdir"], "--workdir needs a value"),
    "no workdir": ([CLIP], "--workdir is missing"),
    "recipe not first": (["--steps", "3", CLIP], "the recipe comes first"),
    "no such recipe": (["configs/toy/clap.py"], "configs/toy/clap.py does not exist"),
    "a folder as recipe": (["configs/toy"], "configs/toy is a folder"),
    "negative rate": ([CLIP, "--optim.learning-rate", "-1"], "optim.learning_rate is -1"),
    "no steps": ([CLIP, "--steps", "0"], "steps is 0"),
    "no accumulation": ([CLIP, "--optim.accumulate", "0"], "optim.accumulate is 0"),
    "uneven accumulation": ([CLIP, "--optim.accumulate", "3"], "not divisible by optim.accumulate"),
    "average of 1": ([CLIP, "--ema-decay", "1"], "ema_decay is 1"),
    "share above 1": ([DECODER, "--text-drop", "1.5"], "text_drop is 1.5"),
    "heads": ([CLIP, "--model.vision.heads", "3"], "heads 3"),
    "patches": ([CLIP, "--model.patch-size", "5"], "patch_size 5"),
    "picture size": ([CLIP, "--data.image-size", "32"], "data.image_size 32"),
    "context": ([CLIP, "--tokenizer.context-length", "9"], "context_length"),
    "vocabulary": ([CLIP, "--model.vocab-size", "550"], "model.vocab_size 550"),
    "levels": ([DECODER, "--model.unet.channel-mult", "1", "2", "4", "8", "8", "8"], "image_size"),
    "depths": ([DECODER, "--model.unet.depth", "1", "2", "3"], "depth"),
    "channels out": ([DECODER, "--model.unet.out-channels", "3"], "out_channels is 3"),
    "channels in": ([DECODER, "--model.unet.in-channels", "4"], "in_channels is 4"),
    "learned variance": ([PRIOR, "--diffusion.variance", "learned_range"], "diffusion.variance"),
    "timesteps": ([PRIOR, "--diffusion.num-timesteps", "1"], "num_timesteps is 1"),
    "log every 0": ([PRIOR, "--log.every", "0"], "log.every is 0"),
    "keep 0": ([PRIOR, "--checkpoint.keep", "0"], "checkpoint.keep"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import re

    arguments, words = MISTAKES[name]
    if "workdir" not in name:
        arguments = [*arguments, "--workdir", str(tmp_path / "run")]
    assert re.search(words, fail(capsys, *arguments))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("config = 3", "does not define `config`"),
        ("x = 1", "does not define `config`"),
        ("config = (", "SyntaxError"),
        ("import nothing_like_it", "ModuleNotFoundError.*nothing_like_it"),
        ("raise ValueError('first\\nsecond')", "first"),
        ("from unclip_jax.config import OptimConfig\nconfig = OptimConfig()", "OptimConfig"),
        (
            "from unclip_jax.config import OptimConfig\nconfig = OptimConfig(accumulate=0)",
            "optim.accumulate is 0",
        ),
        ("from unclip_jax.config import OptimConfig\nconfig = OptimConfig(lr=1)", "TypeError.*lr"),
    ],
)
def test_recipe_that_is_none(
    text: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import re

    (tmp_path / "mine.py").write_text(text)
    line = fail(capsys, str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "run"))
    assert re.search(words, line)


def test_what_a_run_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Mistakes that only the files can show."""
    pictures = str(toys.write_pictures(tmp_path / "pictures"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    run = ["--workdir", str(tmp_path / "run"), "--data.source"]
    assert "neither a run nor" in fail(capsys, PRIOR, *run, pictures, "--clip", str(tmp_path))
    assert "neither a run nor" in fail(capsys, DECODER, *run, pictures, "--clip", "runs/no/such")
    assert "no such folder" in fail(capsys, CLIP, *run, str(tmp_path / "nowhere"))
    assert "no pictures" in fail(capsys, CLIP, *run, str(tmp_path / "empty"))
    at_file = ["--workdir", str(tmp_path / "file"), "--data.source", pictures]
    assert "--workdir" in fail(capsys, CLIP, *at_file)
    inside = ["--workdir", str(tmp_path / "file" / "run"), "--data.source", pictures]
    assert "--workdir" in fail(capsys, CLIP, *inside)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text("{")
    assert "config.json" in fail(capsys, CLIP, "--workdir", str(strange), "--data.source", pictures)
    (strange / "config.json").write_text('{"recipe": []}')
    assert "config.json" in fail(capsys, CLIP, "--workdir", str(strange), "--data.source", pictures)


def test_print_config_is_the_resolved_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [DECODER, "--print-config", "--optim.learning-rate", "3e-4", "--steps=7"]
    with pytest.raises(SystemExit) as end:
        command_line.run(train.main, arguments)
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stage"], found["steps"]) == ("decoder", 7)
    assert found["optim"]["learning_rate"] == 3e-4
    assert found["model"]["unet"]["channel_mult"] == [1, 2]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line.run(train.main, arguments)
    assert end.value.code == (0 if arguments else 2)
    assert "usage: train.py RECIPE --workdir FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [[], ["--help"], ["paint"]])
def test_verbs(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line.main(verb)
    assert end.value.code == (0 if verb == ["--help"] else 2)
    captured = capsys.readouterr()
    if verb == ["paint"]:
        assert "verb 'paint' is unknown" in captured.err and captured.err.count("\n") == 1
    else:
        assert "train" in captured.out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train.py", CLIP, "--optim.lerning-rate", "1"], 2),
        (["train.py", "configs/toy/clap.py"], 2),
        (["train.py", CLIP, "--help"], 0),
        (["-m", "unclip_jax", "train", CLIP, "--workdir"], 2),
    ],
)
def test_as_a_process(arguments: list[str], code: int, repository: Path) -> None:
    """As a user starts it: one line and no traceback. That nothing waits for JAX is a rule of
    `test_architecture`: a clock would measure the machine's load."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=repository,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert (result.stderr.count("\n") == 1) == (code == 2)
    if code == 0:
        assert "--optim.learning-rate" in result.stdout
    # A second on an idle machine; the bound leaves room for one that is busy.


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_an_interrupt_while_it_is_imported(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and the code of an interrupt."""

    class Interrupt:
        def find_spec(self, name: str, *_: object) -> None:
            if name == command_line.__name__:
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, command_line.__name__)
    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert end.value.code == 130 and capsys.readouterr().err == "stopped\n"


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it was met."""

    def write(arguments: object) -> int:
        Path("/dev/full").write_text("x")
        return 0

    with pytest.raises(SystemExit) as end:
        command_line.run(write, [])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and "No space left" in lines[0]
