"""The checks of `unclip doctor`. None of them changes anything."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Literal

from unclip_jax.cli.device_probe import TIMED_OUT, probe_devices
from unclip_jax.cli.runtime import compile_cache

GB = 1e9
LEAST_MEMORY, LEAST_DISK, LEAST_FILES = 2 * GB, GB, 1024
_OPTIONAL = ("libtpu", "torch", "diffusers", "transformers", "gradio", "tensorboardX", "wandb")
_MOST_FILES = 100_000
_SECRET = re.compile(r"ADDRESS|HOST|TOKEN|KEY|SECRET|PASSWORD|USER")
_ENVIRONMENT = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "UNCLIP_", "CUDA_VISIBLE")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    value: str
    """What was found."""
    state: Literal["ok", "note", "problem"] = "ok"
    remedy: str = ""
    """What to do, of a problem; of a note what it means."""


def all_checks(timeout: float) -> Iterator[Check]:
    """Every check, in the order in which they are shown.

    Args:
        timeout: seconds that JAX may take to find its devices.
    """
    yield _python()
    yield from _versions()
    yield from _devices(timeout)
    for check in (_processors, _memory, _cache, _disk, _open_files, _model, _encoding):
        yield check()
    yield from _settings()


def _python() -> Check:
    value = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", value)


def _versions() -> Iterator[Check]:
    """Every package that this one needs, against the versions that it asks for."""
    try:
        needed = [line for line in metadata.requires("unclip_jax") or [] if "extra" not in line]
        yield Check("unclip_jax", metadata.version("unclip_jax"))
    except metadata.PackageNotFoundError:
        needed = []
        yield Check("unclip_jax", "not installed, run from its folder", "note", "pip install -e .")
    wanted = {re.split(r"[<>=!~\s;\[]", line)[0]: line for line in needed}
    for name in sorted({*wanted, "jax", "jaxlib", "numpy"}, key=str.lower):
        requirement = wanted.get(name, name)
        remedy = f"pip install -U '{requirement}'"
        version = _version(name)
        if version is None:
            yield Check(name, "not installed", "problem", remedy)
        elif not is_met(version, requirement.removeprefix(name)):
            yield Check(name, f"{version}, needs {requirement}", "problem", remedy)
        else:
            yield Check(name, version)
    extras = [f"{name} {_version(name)}" for name in _OPTIONAL if _version(name)]
    yield Check("optional packages", ", ".join(extras) or "none")


def is_met(version: str, bounds: str) -> bool:
    """Whether a version is within bounds such as '<2,>=0.12.8'; only releases are compared."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:4])

    have = numbers(version)
    for sign, bound in re.findall(r"(>=|<=|==|<|>)\s*([\w.]+)", bounds):
        limit = numbers(bound)
        size = max(len(have), len(limit))
        left, right = (one + (0,) * (size - len(one)) for one in (have, limit))
        compare = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "<": left < right,
            ">": left > right,
        }
        if not compare[sign]:
            return False
    return True


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices(timeout: float) -> Iterator[Check]:
    found = probe_devices(timeout)
    if isinstance(found, str):
        yield Check("devices", found, "problem", _device_remedy(found))
        return
    kinds: dict[str, list[dict]] = {}
    for device in found:
        kinds.setdefault(f"{device['platform']} ({device['kind']})", []).append(device)
    value = ", ".join(f"{len(devices)} × {kind}" for kind, devices in kinds.items())
    remedy = _idle_accelerator(found[0]["platform"])
    yield Check("devices", value, "problem" if remedy else "ok", remedy)
    limits = [(device["bytes_limit"], device["bytes_in_use"]) for device in found]
    if all(limit for limit, _ in limits):
        free = min(limit - used for limit, used in limits)
        value = f"{free / GB:.1f} GB free of {min(limits)[0] / GB:.1f} GB that JAX takes of each"
        is_low = free < LEAST_MEMORY
        remedy = "end what else uses the device" if is_low else ""
        yield Check("device memory", value, "problem" if is_low else "ok", remedy)


def _device_remedy(said: str) -> str:
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "LIBTPU_INIT_ARGS"):
        if name in said or (name == "JAX_PLATFORMS" and name in os.environ):
            return f"unset {name}, or give it a value that this installation knows"
    if TIMED_OUT in said:
        return "end that process, or wait longer with --timeout 600"
    return "pip install -U jax jaxlib, with the extra for your device: unclip_jax[cuda] or [tpu]"


def _idle_accelerator(used: str) -> str:
    """What to do where a device is here that JAX does not use."""
    hidden = os.environ.get("JAX_PLATFORMS")
    there = {
        "cuda": ("an NVIDIA GPU", Path("/dev/nvidiactl").exists()),
        "tpu": ("a TPU", any(Path("/dev").glob("accel[0-9]*"))),
    }
    for extra, (name, is_there) in there.items():
        if used == "cpu" and is_there:
            if hidden:
                return f"{name} is here and JAX_PLATFORMS={hidden} hides it: unset JAX_PLATFORMS"
            return f"{name} is here and JAX does not use it: pip install -U 'unclip_jax[{extra}]'"
    return ""


def _processors() -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("processors", f"{count} of {os.cpu_count()} usable")


def _memory() -> Check:
    """Of the host, as a container's limit leaves it."""
    facts = dict(re.findall(r"(\w+): +(\d+) kB", _read("/proc/meminfo")))
    if "MemAvailable" not in facts:
        return Check("memory", "not known on this system", "note")
    total, free = (1024 * int(facts[name]) for name in ("MemTotal", "MemAvailable"))
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdecimal() and int(limit) < total:
        used = _read("/sys/fs/cgroup/memory.current").strip()
        total = int(limit)
        free = min(free, total - int(used) if used.isdecimal() else total)
    value = f"{free / GB:.1f} GB free of {total / GB:.1f} GB"
    if free < LEAST_MEMORY:
        remedy = f"end other programs: drawing needs {LEAST_MEMORY / GB:.0f} GB"
        return Check("memory", value, "problem", remedy)
    return Check("memory", value)


def _cache() -> Check:
    """Of compiled programs."""
    folder = compile_cache()
    count, size = 0, 0
    for place, _, names in os.walk(folder):
        for name in names:
            count += 1
            try:
                size += os.path.getsize(os.path.join(place, name))
            except OSError:  # removed meanwhile
                continue
        if count > _MOST_FILES:
            break
    value = f"{folder}, {count:,} files, {size / GB:.2f} GB"
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except OSError:
        remedy = "set UNCLIP_CACHE to a folder that you can write, or every start compiles again"
        return Check("compile cache", f"{value}, not writable", "problem", remedy)
    return Check("compile cache", value)


def _disk() -> Check:
    places = {"here": Path.cwd(), "cache": _existing(compile_cache())}
    free = {name: shutil.disk_usage(place).free for name, place in places.items()}
    value = ", ".join(f"{size / GB:.1f} GB free ({name})" for name, size in free.items())
    if min(free.values()) < LEAST_DISK:
        return Check("disk", value, "problem", "free some space: pictures and checkpoints need it")
    return Check("disk", value)


def _open_files() -> Check:
    try:
        import resource
    except ImportError:  # not on Windows
        return Check("open files", "no limit known", "note")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    largest = "" if size == resource.RLIM_INFINITY else f", files of at most {size:,} bytes"
    value = f"{soft} at once ({hard} if raised){largest}"
    if 0 <= soft < LEAST_FILES:
        return Check("open files", value, "problem", f"ulimit -n {LEAST_FILES}")
    if largest:
        return Check("open files", value, "problem", "ulimit -f unlimited")
    return Check("open files", value)


def _model() -> Check:
    """The shipped model: is every stage whole?"""
    remedy = "install the package again, or make them with scripts/train_emoji.sh"
    root = Path(str(resources.files("unclip_jax"))) / "assets" / "models" / "emoji"
    stages = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not stages:
        return Check("model emoji", "its weights are not here", "problem", remedy)
    for stage in stages:
        path = root / stage / "model.safetensors"
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, 10_000_000)))
            ends = [row["data_offsets"][1] for row in header.values() if "data_offsets" in row]
            is_whole = path.stat().st_size == 8 + length + max(ends)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            is_whole = False
        if not is_whole or not (root / stage / "config.json").is_file():
            return Check("model emoji", f"stage {stage} is damaged", "problem", remedy)
    return Check("model emoji", ", ".join(stages))


def _encoding() -> Check:
    encoding = sys.stdout.encoding or "unknown"
    if encoding.lower().replace("-", "") != "utf8":
        return Check("terminal", encoding, "note", "prompts beyond it are escaped: LC_ALL=C.UTF-8")
    return Check("terminal", encoding)


_HARMFUL: dict[str, tuple[Callable[[str], object], Literal["note", "problem"], str]] = {
    "JAX_DISABLE_JIT": (
        lambda value: value.lower() in ("1", "true"),
        "problem",
        "every operation runs alone, hundreds of times slower: unset JAX_DISABLE_JIT",
    ),
    "JAX_DEBUG_NANS": (
        lambda value: value.lower() in ("1", "true"),
        "note",
        "slower; for finding NaNs only",
    ),
    "JAX_ENABLE_X64": (
        lambda value: value.lower() in ("1", "true"),
        "note",
        "other numbers than without it, and pictures differ in their last bits",
    ),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": (
        lambda value: value.lower() in ("1", "true"),
        "note",
        "programs compile faster and run slower",
    ),
    "XLA_FLAGS": (
        lambda value: "optimization_level=0" in value or "host_platform_device_count" in value,
        "note",
        "made for tests: programs run slower, or one processor is several devices",
    ),
}


def _settings() -> Iterator[Check]:
    """What the environment tells JAX, XLA and this package."""
    names = sorted(name for name in os.environ if name.startswith(_ENVIRONMENT))
    if not names:
        yield Check("environment", "nothing set for JAX or XLA")
    for name in names:
        value = os.environ[name]
        is_harmful, state, remedy = _HARMFUL.get(name, (lambda _: False, "note", ""))
        shown = "(set)" if _SECRET.search(name) else value
        yield Check(name, shown, state, remedy) if is_harmful(value) else Check(name, shown)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return place


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
