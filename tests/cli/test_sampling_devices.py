"""sample.py writes the same bytes whatever the devices: 1 process of 1, 1 of 8, 2 of 2."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.generation.test_all_stages import stage
from unclip_jax.training.weights import save_stage

PROMPTS = ("a red apple", "a blue car", "a green tree")
FLAGS = ("--num-images", "3", "--batch-size", "2", "--upsample", "256", "--seed", "4294967295")
STEPS = ("--prior-steps", "3", "--steps", "2", "--upsample-steps", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny random stages, one of them as bfloat16."""
    folder = tmp_path_factory.mktemp("model")
    clip = stage("clip")
    save_stage(clip, folder / "clip", "float32")
    for name in ("prior", "decoder"):
        save_stage(stage(name, clip.clip_id), folder / name, "float32")
    save_stage(stage("upsampler"), folder / "upsampler_256", "bfloat16")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return folder


Process = subprocess.Popen[str]


def begin(model: Path, out: Path, repository: Path, *more: str, **env: str) -> Process:
    prompts = ("--prompts", str(model / "prompts.txt"), "--model", str(model), "--out", str(out))
    command = [sys.executable, "sample.py", "text", *prompts, *FLAGS, *STEPS, *more]
    return subprocess.Popen(
        command,
        cwd=repository,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: Process) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def one_device(
    model: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("one")
    said = end(begin(model, out, repository))
    assert "9 pictures" in said and "compiling" in said and "pictures a second" in said
    return files(out)


def test_eight_devices_and_one_stage_at_a_time(
    model: Path, repository: Path, tmp_path: Path, one_device: dict[str, bytes]
) -> None:
    """More devices than rows, and the weights of one stage at a time."""
    more = ("--stages-at-once", "one")
    end(begin(model, tmp_path / "out", repository, *more, JAX_NUM_CPU_DEVICES="8"))
    assert files(tmp_path / "out") == one_device
    assert len(one_device) == 11 and len(set(one_device.values())) == 11


def begin_two(models: tuple[Path, Path], out: Path, repository: Path) -> list[Process]:
    """Two processes of two devices that share the work, each with its own idea of the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [
        begin(
            model,
            out,
            repository,
            **shared,
            JAX_PROCESS_ID=str(number),
            JAX_NUM_CPU_DEVICES="2",
        )
        for number, model in enumerate(models)
    ]


def test_two_processes_of_two_devices(
    model: Path, repository: Path, tmp_path: Path, one_device: dict[str, bytes]
) -> None:
    said = [end(process) for process in begin_two((model, model), tmp_path / "out", repository)]
    assert files(tmp_path / "out") == one_device
    assert "9 pictures" in said[0] and "pictures" not in said[1]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_host_without_the_model_ends_both(
    model: Path, repository: Path, tmp_path: Path, failing: int
) -> None:
    """One disk that is not mounted must not leave the other hosts waiting, and rented."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "prompts.txt").write_bytes((model / "prompts.txt").read_bytes())
    models = (bare, model) if failing == 0 else (model, bare)
    processes = begin_two(models, tmp_path / "out", repository)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert str(bare) in errors[failing].splitlines()[-1]
    assert f"process {failing} of 2 cannot go on" in errors[1 - failing].splitlines()[-1]


def test_another_order_draws_the_same_pictures(
    model: Path, repository: Path, tmp_path: Path, one_device: dict[str, bytes]
) -> None:
    """The bytes of a picture, by prompt and index, without its number."""
    path = tmp_path / "backwards.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in reversed(PROMPTS)))
    end(begin(model, tmp_path / "out", repository, "--prompts", str(path)))
    backwards = files(tmp_path / "out")
    by_name = {name[6:]: data for name, data in one_device.items() if name.startswith("0")}
    assert {n[6:]: d for n, d in backwards.items() if n.startswith("0")} == by_name
