"""A preview neither delays the end of a run nor costs it anything that was trained."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training import toys
from unclip_jax.files import NotWritten
from unclip_jax.training import preview_thread
from unclip_jax.training.checkpoint import newest_step
from unclip_jax.training.loop import train
from unclip_jax.training.preview_thread import draw_aside, exit_without_preview


class Drawing:
    """A preview that is not finished until the test ends."""

    def __init__(self, number: int | None = None) -> None:
        self.is_over, self.drawn, self._number = threading.Event(), 0, number

    def __call__(self, *_: Any) -> None:
        self.drawn += 1
        if self._number is not None:
            os.kill(os.getpid(), self._number)
        self.is_over.wait(60)


@pytest.fixture
def endless() -> Iterator[Drawing]:
    drawing = Drawing(signal.SIGTERM)
    yield drawing
    drawing.is_over.set()
    for thread in threading.enumerate():
        if thread.name == "preview":
            thread.join()


def full(*_: Any) -> None:
    raise NotWritten("cannot write it (No space left on device)", "free some space")


def recipe(folder: Path, policy: str = "stop", steps: int = 4) -> Any:
    """Four steps, a preview after the second, nothing saved before the last."""
    settings: dict[str, Any] = {"log": {"every": 1, "preview_every": 2}}
    settings["checkpoint"] = {"every": 100, "on_disk_full": policy}
    return toys.on_folder("clip", folder, steps, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    toys.write_pictures(folder / "pictures")
    return folder


def test_a_signal_leaves_a_preview_and_saves(folder: Path, endless: Drawing) -> None:
    began = time.monotonic()
    assert train(recipe(folder), folder / "left", endless) == (2, signal.SIGTERM)
    assert time.monotonic() - began < 50 and not endless.is_over.is_set()
    assert newest_step(folder / "left") == 2 and endless.drawn == 1


def test_none_is_begun_after_a_signal(
    folder: Path, endless: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in the step that a preview is due after."""
    from unclip_jax.training import loop

    class Stopped(loop.StopRequests):
        received = signal.SIGTERM

    monkeypatch.setattr(loop, "StopRequests", Stopped)
    monkeypatch.setattr(loop, "_is_preview_due", lambda step, recipe: True)
    assert train(recipe(folder), folder / "before", endless) == (1, signal.SIGTERM)
    assert endless.drawn == 0 and newest_step(folder / "before") == 1


def test_one_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stops the run, saved; or is told, and the run goes on: as the recipe says."""
    with pytest.raises(NotWritten, match="No space left"):
        train(recipe(folder), folder / "full", full)
    assert newest_step(folder / "full") == 2
    assert train(recipe(folder, "go_on"), folder / "full", full) == (4, None)
    assert "cannot write it (No space left on device); training goes on" in capsys.readouterr().err


def test_the_process_does_not_wait_for_one(
    endless: Drawing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(preview_thread.os, "_exit", codes.append)
    exit_without_preview(143)
    assert codes == []
    endless._number = None
    stop: Any = SimpleNamespace(received=signal.SIGTERM)
    said = draw_aside(endless, tmp_path / "samples" / "a.png", stop, must_write=True)
    assert said == "stopped before the samples were drawn"
    exit_without_preview(143)
    assert codes == [143]


def test_what_drawing_raises_is_raised(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("no memory")

    stop: Any = SimpleNamespace(received=None)
    with pytest.raises(RuntimeError, match="no memory"):
        draw_aside(fail, tmp_path / "a.png", stop, must_write=False)
