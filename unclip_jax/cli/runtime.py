"""What every command does before it touches a device."""

from __future__ import annotations

import os
from pathlib import Path


def prepare_jax() -> None:
    """Import JAX with compiled programs kept on disk, so that a second run starts at once.

    They go to $JAX_COMPILATION_CACHE_DIR, else $UNCLIP_CACHE/xla, else ~/.cache/unclip_jax/xla.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # XLA's threads on a CPU, by default as many as cores or virtual devices, whichever is more.
    # Their number decides how sums are split, and so the last bit of a picture: a constant.
    os.environ.setdefault("PJRT_NPROC", str(max(8, os.cpu_count() or 1)))
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(compile_cache()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def compile_cache() -> Path:
    """Where compiled programs are kept."""
    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(given)
    root = os.environ.get("UNCLIP_CACHE") or Path.home() / ".cache" / "unclip_jax"
    return Path(root) / "xla"
