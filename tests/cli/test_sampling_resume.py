"""sample.py run again draws what is missing, and nothing else; and it ends when it is told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.generation.test_all_stages import stage
from unclip_jax.cli import sample
from unclip_jax.cli.sharing import take_turns
from unclip_jax.data.images import save_png
from unclip_jax.data.png_text import read_png_text
from unclip_jax.data.provenance import facts_text
from unclip_jax.errors import UserError
from unclip_jax.generation.drawing import Drawn
from unclip_jax.generation.rows import RowRunner
from unclip_jax.pipeline import UnCLIP
from unclip_jax.samples import (
    MISSING,
    OTHER,
    SAME,
    PictureWriter,
    find_pictures,
    picture_name,
)
from unclip_jax.training.stop_requests import StopRequests
from unclip_jax.training.weights import load_stage, save_stage

FLAGS = ("--num-images", "6", "--batch-size", "2", "--steps", "2", "--prior", "none")
COUNT = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    clip = stage("clip")
    save_stage(clip, folder / "clip", "float32")
    save_stage(stage("decoder", clip.clip_id), folder / "decoder", "float32")
    return folder


def draw(model: Path, out: Path, *more: str) -> int:
    prompts = ("text", "a red apple", "a blue car", "--model", str(model), "--out", str(out))
    return sample.main([*prompts, *FLAGS, *more])


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that nothing happened to."""
    out = tmp_path_factory.mktemp("whole")
    assert draw(model, out) == 0
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def copy(whole: Path, out: Path) -> list[Path]:
    out.mkdir()
    for name, data in files(whole).items():
        (out / name).write_bytes(data)
    return sorted(out.glob("0*.png"))


def test_only_what_is_missing_is_drawn(
    model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = copy(whole, tmp_path / "out")
    paths[0].unlink()
    paths[3].write_bytes(paths[3].read_bytes()[:-20])
    paths[4].write_bytes(b"")
    paths[7].write_bytes(paths[6].read_bytes())  # of another request
    (tmp_path / "out" / "grid.png").unlink()
    (tmp_path / "out" / f".{paths[0].name}-0123abc_.tmp").write_bytes(b"half")
    (tmp_path / "out" / "notes.txt").write_bytes(b"mine")
    kept = {path: path.stat().st_ino for n, path in enumerate(paths) if n not in (0, 3, 4, 7)}
    assert draw(model, tmp_path / "out") == 0
    assert "12 pictures in" in (said := capsys.readouterr().out)
    assert "(8 kept, 1 drawn, 3 replaced), grid in" in said
    assert files(tmp_path / "out") == {**files(whole), "notes.txt": b"mine"}
    assert {path: path.stat().st_ino for path in kept} == kept


def test_nothing_is_loaded_or_compiled_for_nothing(
    model: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy(whole, tmp_path / "out")
    monkeypatch.setattr(RowRunner, "start", None)
    assert draw(model, tmp_path / "out", "--stages-at-once", "one") == 0
    assert "(12 kept, 0 drawn, 0 replaced)" in capsys.readouterr().out
    assert files(tmp_path / "out") == files(whole)


def test_pictures_that_went_away_meanwhile_are_missed(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(whole, tmp_path / "out")[5].unlink()
    all_there = np.full(COUNT, SAME, np.int8)
    monkeypatch.setattr("unclip_jax.cli.outputs.find_pictures", lambda *_: all_there)
    with pytest.raises(
        UserError, match=r"1 of 12 pictures are not in .*run the same command again"
    ):
        draw(model, tmp_path / "out")


def drawn_again(
    model: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> list[tuple[str, int]]:
    """The requests that a rerun into `whole` would draw."""
    asked: list[tuple[str, int]] = []

    def note(_: UnCLIP, requests: Any, *__: Any, **___: Any) -> Iterator[Drawn]:
        asked.extend((one.prompt, one.index) for one in requests)
        raise UserError("enough")

    monkeypatch.setattr(UnCLIP, "draw", note)
    with pytest.raises(UserError, match="enough"):
        draw(model, whole, *more)
    return asked


@pytest.mark.parametrize(
    "more",
    [
        ("--seed", "1"),
        ("--guidance", "2"),
        ("--steps", "3"),
        ("--eta", "1"),
        ("--thresholding", "none"),
        ("--batch-size", "3"),
    ],
    ids=lambda more: more[0],
)
def test_other_settings_draw_again(
    more: tuple[str, ...], model: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(drawn_again(model, whole, monkeypatch, *more)) == COUNT


def test_other_weights_draw_again(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of the decoder, by its last bit; a stage that does not draw is no matter."""
    other = tmp_path / "tiny"
    save_stage(load_stage(model / "clip"), other / "clip", "float32")
    save_stage(stage("noised_clip"), other / "noised_clip", "float32")
    decoder = load_stage(model / "decoder", as_stored=True)
    save_stage(decoder, other / "decoder", "float32")
    monkeypatch.setattr(RowRunner, "start", None)
    assert draw(other, whole) == 0
    weights = decoder.params["unet"]["conv_in"]["kernel"]
    weights.view(np.int32)[0, 0, 0, 0] ^= 1
    save_stage(decoder, other / "decoder", "float32")
    assert len(drawn_again(other, whole, monkeypatch)) == COUNT


def test_a_picture_names_no_folder(model: Path, whole: Path) -> None:
    text = read_png_text(next(whole.glob("0*.png")), "unclip")
    assert text is not None and json.loads(text)["model"] == "tiny"
    assert str(model.parent) not in text


FACTS: dict[str, Any] = {"prompt": "ä blue car", "index": 0}
NAME = picture_name(0, FACTS)


def _write(path: Path, info: PngImagePlugin.PngInfo) -> None:
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)


def _compressed(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("unclip", facts_text(FACTS), zip=True)
    _write(path, info)


def _after_the_pixels(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    _write(path, info)
    plain = path.read_bytes()
    _same(path)
    whole = path.read_bytes()
    start = whole.index(b"iTXt") - 4
    chunk = whole[start : start + 12 + int.from_bytes(whole[start : start + 4])]
    path.write_bytes(plain[:-12] + chunk + plain[-12:])


def _same(path: Path) -> None:
    save_png(path, np.zeros((4, 4, 3), np.uint8), {"other": "x", "unclip": facts_text(FACTS)})


def _changed(at: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        _same(path)
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return write


FILES: dict[str, tuple[Callable[[Path], Any], int]] = {
    "same": (_same, SAME),
    "missing": (lambda path: None, MISSING),
    "empty": (lambda path: path.write_bytes(b""), OTHER),
    "no picture": (lambda path: path.write_bytes(b"x" * 100), OTHER),
    "no text": (lambda path: save_png(path, np.zeros((4, 4, 3), np.uint8)), OTHER),
    "a folder": (lambda path: path.mkdir(), OTHER),
    "a pipe": (os.mkfifo, OTHER),
    "compressed": (_compressed, OTHER),
    "text at the end": (_after_the_pixels, OTHER),
    "flipped bit in the text": (_changed(60), OTHER),
    "flipped bit in the size": (_changed(17), OTHER),
    "flipped bit at the end": (_changed(-7), OTHER),
    "huge length": (_changed(8), OTHER),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_is(name: str, tmp_path: Path) -> None:
    make, expected = FILES[name]
    make(tmp_path / NAME)
    assert find_pictures(tmp_path, [NAME], lambda _: FACTS).tolist() == [expected]
    other = {**FACTS, "seed": 1}
    assert find_pictures(tmp_path, [NAME], lambda _: other).tolist() == [min(expected, OTHER)]


def test_every_cut_is_seen(tmp_path: Path) -> None:
    path = tmp_path / NAME
    _same(path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert find_pictures(tmp_path, [NAME], lambda _: FACTS).tolist() == [OTHER], length


def test_a_failed_write_ends_the_drawing() -> None:
    asked = []

    def parts() -> Iterator[Any]:
        for number in range(9):
            asked.append(number)
            yield number

    def write(part: Any) -> None:
        if part == 2:
            raise UserError("disk full")

    with pytest.raises(UserError, match="disk full"):
        take_turns(parts(), 9, write, StopRequests())
    assert asked == [0, 1, 2]


def test_a_failed_write_is_known_at_the_next_picture(tmp_path: Path) -> None:
    """Not when the last of ten thousand was drawn."""
    writer = PictureWriter(tmp_path / "out")
    (tmp_path / "out").rmdir()
    writer.add(NAME, np.zeros((4, 4, 3), np.uint8), FACTS)
    wait(writer._begun)
    with pytest.raises(UserError, match="and run the same command again: it continues"):
        writer.add("1.png", np.zeros((4, 4, 3), np.uint8), FACTS)


LISTENER = """
import hashlib
from unclip_jax.training.stop_requests import StopRequests
with StopRequests("stopped early") as stop:
    stop.listen({is_heard})
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as a compiler: long, and not in Python
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("is_heard", [False, True])
def test_a_signal_is_heard_outside_python(number: signal.Signals, is_heard: bool) -> None:
    """At once; where the first one is only noted, the second one."""
    command = [sys.executable, "-c", LISTENER.format(is_heard=is_heard)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    if is_heard:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert errors == ("stopped at once\n" if is_heard else "stopped early\n")


def begin_two(model: Path, out: Path, repository: Path, *own: tuple[str, ...]) -> list[Any]:
    """Two processes that share the job, each with options of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    shared["JAX_NUM_CPU_DEVICES"] = "1"
    prompts = ("text", "a red apple", "a blue car", "--model", str(model), "--out", str(out))
    return [
        subprocess.Popen(
            [sys.executable, "sample.py", *prompts, *FLAGS, *more],
            cwd=repository,
            env={**os.environ, **shared, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, more in enumerate(own)
    ]


def test_a_signal_to_one_host_ends_both(
    model: Path, whole: Path, repository: Path, tmp_path: Path
) -> None:
    """Soon, and with the same figures; what is left is drawn by any number of hosts."""
    out = tmp_path / "out"
    for path in copy(whole, out)[2:]:
        path.unlink()
    processes = begin_two(model, out, repository, (), ())
    while "compiling" not in processes[0].stderr.readline():
        assert processes[0].poll() is None
    processes[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], errors
    count = len(list(out.glob("0*.png")))
    assert f"stopped by SIGTERM: {count} of 12 pictures are in" in errors[0].splitlines()[-1]
    assert count < 12
    assert draw(model, out) == 0
    assert files(out) == files(whole)


def test_hosts_of_other_jobs_end(model: Path, repository: Path, tmp_path: Path) -> None:
    processes = begin_two(model, tmp_path, repository, (), ("--seed", "1"))
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert all("process 1 of 2 was given other prompts" in said for said in errors)
    assert files(tmp_path) == {}
