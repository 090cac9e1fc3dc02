"""A trace that is recorded now or read from a file, and what both have in common."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.interop.comparison.rows import Row, changed_tensors, weights_note, weights_rows
from unclip_jax.interop.comparison.trace import Trace, digests, load_trace, save_trace
from unclip_jax.interop.tensors import Tensors, read_all

Progress = Callable[[str], None]
"""Told what of the reference runs."""


def obtain_trace(
    kind: str,
    tensors: Tensors,
    run: Callable[[], Trace],
    *,
    record: Path | None,
    trace: Path | None,
) -> tuple[Trace, list[Row], list[str]]:
    """The trace, a row on the weights that one from a file was made with, and remarks.

    Args:
        tensors: of the checkpoint, whose digests a new trace gets.
        run: records a new one, where `trace` is None.
        record: where a new one is written.
        trace: the file to read instead.
    Raises:
        UserError: no trace of this kind or of this network, or the reference cannot run.
    """
    if trace is not None:
        found = load_trace(trace, kind)
        odd = _other_shapes(tensors, found)
        if odd:
            raise UserError(
                f"{trace} is a trace of another network ({odd[0]} and {len(odd) - 1} more tensors "
                "differ in name or shape): record one of this"
            )
        return found, *_weights(tensors, found)
    found = run()
    found.facts["digests"] = digests(tensors)
    found.facts["shapes"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if record is None:
        return found, [], []
    save_trace(found, record)
    return found, [], [f"recorded in {record} ({record.stat().st_size / 1e6:.1f} MB)"]


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normal float32."""
    return random.standard_normal(shape).astype(np.float32)


def to_torch(array: np.ndarray) -> Any:
    """As a tensor; pictures NHWC become NCHW, whole numbers become long."""
    import torch

    array = np.moveaxis(array, -1, 1) if array.ndim == 4 else array
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def from_torch(tensor: Any) -> np.ndarray:
    """As float32 numpy; pictures NCHW become NHWC."""
    array = tensor.detach().float().numpy()
    array = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
    return np.ascontiguousarray(array)


def state_of(tensors: Tensors) -> dict[str, Any]:
    """As torch tensors, float32."""
    import torch

    return {
        name: torch.from_numpy(np.array(array, np.float32)) for name, array in read_all(tensors)
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No gradients, and no progress bars."""
    import torch

    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        yield


def watch_outputs(
    model: Any, names: dict[str, str], found: dict[str, np.ndarray]
) -> Callable[[], None]:
    """Keeps what modules return, the first part of a tuple, until what this returns is called.

    Args:
        names: under which name in `found` the output of each module of `model` goes.
    """

    def keeper(name: str) -> Callable[..., None]:
        def keep(_module: Any, _inputs: Any, out: Any) -> None:
            found[name] = from_torch(out[0] if isinstance(out, tuple) else out)

        return keep

    hooks = [
        model.get_submodule(module).register_forward_hook(keeper(name))
        for module, name in names.items()
    ]

    def stop() -> None:
        for hook in hooks:
            hook.remove()

    return stop


def _other_shapes(tensors: Tensors, trace: Trace) -> list[str]:
    recorded = trace.facts.get("shapes")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if recorded is None or recorded == shapes:
        return []
    return [n for n in sorted(set(shapes) | set(recorded)) if shapes.get(n) != recorded.get(n)]


def _weights(tensors: Tensors, trace: Trace) -> tuple[list[Row], list[str]]:
    recorded = trace.facts.get("digests")
    if recorded is None:
        return [], ["weights: the trace does not say what it was recorded with"]
    changed = changed_tensors(digests(tensors), recorded)
    return weights_rows(changed, len(recorded)), [weights_note(changed, len(recorded))]
