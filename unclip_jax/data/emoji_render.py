"""SVG documents to PNG, in worker processes.

resvg holds Python's lock while it draws, so threads would not help. The workers are plain child
processes that run this very module and speak over pipes: nothing is forked from a process in which
JAX has threads, and the user's script is not imported again, as `multiprocessing` would.

A request is 4 bytes of size in pixels, 4 bytes of length and the SVG in UTF-8; the answer is 4
bytes of length and the PNG. Length 0 says that the picture could not be drawn.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from unclip_jax.data.images import decode_image, encode_png


def render_svg(svg: str, size: int, background: str = "#ffffff") -> bytes:
    """Draw a document whose outer width and height are written SIZE on a colour.

    Returns:
        An RGB PNG of size × size pixels; the same bytes each time.
    """
    import resvg_py

    svg = svg.replace('width="SIZE" height="SIZE"', f'width="{size}" height="{size}"', 1)
    # Fonts are skipped because what is installed must not change the picture; no icon has text.
    drawn = resvg_py.svg_to_bytes(svg_string=svg, background=background, skip_system_fonts=True)
    return encode_png(decode_image(drawn, name="drawing"))


def render_all(
    documents: Sequence[str], size: int, on_done: Callable[[], None], workers: int | None = None
) -> list[bytes]:
    """Draw all documents; the result is in their order, whatever the number of workers.

    Args:
        on_done: called after each picture, one call at a time.
        workers: processes; None takes one a core, at most 16.
    Raises:
        RuntimeError: a worker died, or a document could not be drawn; names its index.
    """
    workers = min(workers or os.cpu_count() or 1, 16, max(1, len(documents)))
    results: list[bytes] = [b""] * len(documents)
    failures: list[str] = []
    lock = threading.Lock()
    todo: Iterator[int] = iter(range(len(documents)))
    # The workers import the package from where this process has it, installed or not.
    search = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))}

    def feed() -> None:
        command = [sys.executable, "-P", "-m", "unclip_jax.data.emoji_render"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as worker:
            assert worker.stdin and worker.stdout
            while not failures:
                with lock:
                    index = next(todo, None)
                if index is None:
                    break
                try:
                    results[index] = _ask(worker.stdin, worker.stdout, documents[index], size)
                except (OSError, struct.error) as error:
                    failures.append(f"the process that drew picture {index} died: {error}")
                    break
                if not results[index]:
                    failures.append(f"picture {index} could not be drawn")
                with lock:
                    on_done()
            with contextlib.suppress(OSError):  # a worker that died has no other end
                worker.stdin.close()

    threads = [threading.Thread(target=feed, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        failures.append("interrupted")  # the threads end with the picture that they are at
        raise
    if failures:
        raise RuntimeError(failures[0])
    return results


def _ask(to: IO[bytes], back: IO[bytes], svg: str, size: int) -> bytes:
    body = svg.encode()
    to.write(struct.pack("<II", size, len(body)) + body)
    to.flush()
    (length,) = struct.unpack("<I", back.read(4))
    return back.read(length)


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    # Ctrl-C is for the parent; without it the pipe ends and so does this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while len(header := requests.read(8)) == 8:
        size, length = struct.unpack("<II", header)
        svg = requests.read(length).decode()
        try:
            png = render_svg(svg, size)
        except ValueError as error:
            print(f"resvg: {error}", file=sys.stderr)
            png = b""
        answers.write(struct.pack("<I", len(png)) + png)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
