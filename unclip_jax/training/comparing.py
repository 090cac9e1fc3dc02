"""The newest checkpoint's bytes, compared with its manifest while a run still begins."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax

from unclip_jax.training.manifest import find_damage, find_missing, read_manifest, saved_steps


class Comparing:
    """The bytes of a run's newest checkpoint compared with its manifest, in the background.

    Begun while a run still opens its data and its CLIP, it costs a restore nothing. Of several
    processes each compares its share.
    """

    def __init__(self, workdir: Path) -> None:
        self._path: Path | None = None
        step = max(saved_steps(workdir / "checkpoints"), default=None)
        if step is None:
            return
        path = workdir / "checkpoints" / str(step)
        manifest = read_manifest(path)
        if isinstance(manifest, str) or find_missing(path, manifest) is not None:
            return
        self._path = path
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compare")
        share = (jax.process_index(), jax.process_count())
        self._damage = self._pool.submit(find_damage, path, manifest, *share)

    def wait(self) -> str | None:
        """The damage in this process's share, when all of it has been compared."""
        return None if self._path is None else self._damage.result()

    def take(self, path: Path) -> Future[str | None] | None:
        """The damage in this process's share of that checkpoint, once; None if it is not this one's
        or was taken: files can be damaged later."""
        if path != self._path:
            return None
        self._path = None
        self._pool.shutdown(wait=False)
        return self._damage
