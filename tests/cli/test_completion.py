"""unclip completion: what real bash makes of the script; what fish is told."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from unclip_jax.cli.completion import bash_script, fish_script
from unclip_jax.cli.verb_options import all_options
from unclip_jax.cli.verbs import SAMPLE, VERBS

bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "unclip.bash"
    path.write_text(bash_script(all_options(), "bash"))
    return path


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    program = (
        'source "$0" && COMP_WORDS=("$@") && COMP_CWORD=$(($# - 1)) && _unclip; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        ["bash", "-c", program, str(script), *words], capture_output=True, text=True, timeout=30
    )
    assert result.stderr == ""
    return result.stdout.split()


@bash
def test_bash_takes_the_script(script: Path) -> None:
    result = subprocess.run(
        ["bash", "-c", 'source "$0"; complete -p unclip sample.py train.py', str(script)],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("-F _unclip") == 3 and "-o default" in result.stdout


CASES = {
    "verbs": (["unclip", ""], list(VERBS)),
    "of sample.py": (["./sample.py", ""], list(SAMPLE)),
    "a verb's beginning": (["unclip", "int"], ["interpolate"]),
    "a flag": (["unclip", "vary", "photo.png", "--samp"], ["--sampler"]),
    "several flags": (
        ["unclip", "inspect", "--"],
        ["--help", "--verify", "--depth", "--run", "--json"],
    ),
    "choices": (
        ["unclip", "text", "a", "--thresholding", ""],
        ["none", "static", "dynamic", "None"],
    ),
    "a choice's beginning": (["unclip", "text", "--sampler", "dd"], ["ddpm", "ddim"]),
    "after a sign": (["unclip", "text", "--sampler", "=", "uni"], ["unipc"]),
    "the sign itself": (["unclip", "mix", "--upsample", "="], ["256", "1024", "None"]),
    "a switch": (["unclip", "doctor", "--json", ""], ["True", "False"]),
    "after a switch": (["unclip", "doctor", "--json", "--ti"], ["--timeout"]),
    "a positional choice": (["unclip", "compare", "ka"], ["karlo"]),
    "a command": (["unclip", "data", "s"], ["sheet", "stats"]),
    "a recipe's field": (["unclip", "train", "r.py", "--optim.warm"], ["--optim.warmup-steps"]),
    "of train.py": (["train.py", "r.py", "--optim.schedule", "co"], ["constant", "cosine"]),
    "of train.py itself": (["./train.py", "r.py", "--print"], ["--print-config"]),
    "a file": (["unclip", "vary", "pho"], []),
    "an unknown verb": (["unclip", "paint", "--"], []),
}


@bash
@pytest.mark.parametrize("name", CASES)
def test_bash_completes(name: str, script: Path) -> None:
    words, offered = CASES[name]
    assert complete(script, *words) == offered


def test_zsh_loads_bash_completion_first() -> None:
    first, rest = bash_script({}, "zsh").split("\n", 1)
    assert "bashcompinit" in first and rest == bash_script({}, "bash")


def test_fish_knows_every_flag_and_choice() -> None:
    options = all_options()
    lines = fish_script(options).splitlines()
    for verb in VERBS:
        flags = [option for option in options[verb] if not option.is_positional]
        mine = [line for line in lines if f"'__fish_seen_subcommand_from {verb}'" in line]
        assert sum(" -l " in line for line in mine) == len(flags)
    assert any(" -l sampler -x -a 'ddpm ddim dpm_solver unipc None'" in line for line in lines)
    assert all(line.replace("\\'", "").count("'") % 2 == 0 for line in lines)
