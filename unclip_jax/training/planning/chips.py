"""TPU chips with their published figures, and the devices of a named topology that is not there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from unclip_jax.errors import UserError


@dataclass(frozen=True)
class Chip:
    """What one device of a topology can do at best."""

    name: str
    flops: float
    """Multiply-adds in bfloat16, two operations each, a second."""
    memory: float
    """Bytes of HBM that the compiler gives a program; it keeps 0.3 to 0.8 GB for itself."""
    memory_bandwidth: float
    """Bytes a second from and to HBM."""
    link_bandwidth: float
    """Bytes a second in one direction over all links to the chips of the slice."""
    slice_bandwidth: float
    """Bytes a second to other slices, over the data centre's network."""
    dollars_per_hour: float
    """Assumed, since prices change and differ by region: put yours in."""


# https://cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; memory is the compiler's own limit. Links are
# published for both directions together. A pod's network is 6.4 Tbit/s for 256 v5e chips, which
# stands for the others too.
CHIPS = {
    # Without megacore, which this compiler's topologies do not have, a v4 chip is two devices.
    "v4": Chip("v4 (half a chip)", 137.5e12, 15.25 * 2**30, 614e9, 75e9, 1.6e9, 1.61),
    "v5e": Chip("v5e", 197e12, 15.75 * 2**30, 819e9, 200e9, 3.1e9, 1.20),
    "v5p": Chip("v5p", 459e12, 95.73 * 2**30, 2765e9, 600e9, 3.1e9, 4.20),
    "v6e": Chip("v6e", 918e12, 31.24 * 2**30, 1638e9, 400e9, 3.1e9, 2.70),
}
_NAME = re.compile(r"(v\w+):(\d+)x(\d+)(?:x(\d+))?")
# Without them the compiler looks for a TPU that is not there, or for other processes that have it.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}


# In bfloat16 without sparsity, by the name that a device has in JAX; makers' data sheets.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Operations a second of a device at best; None for one that is not known, such as a CPU."""
    names = [name for name in _PEAKS if device_kind.startswith(name)]
    return _PEAKS[max(names, key=len)] if names else None


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as 'v5e:16x16' or 'v5p:4x4x8'.

    Raises:
        UserError: another spelling, or a chip that is not known.
    """
    match = _NAME.fullmatch(topology)
    if match is None or match[1] not in CHIPS:
        raise UserError(
            f"topology {topology!r} is unknown: give a chip and its grid such as v5e:16x16; chips "
            f"are {', '.join(CHIPS)}"
        )
    return CHIPS[match[1]]


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
    """Devices that programs can be compiled for, and not be run on.

    Raises:
        UserError: the compiler is not installed, or does not know the topology.
    """
    chip_of(topology)
    if find_spec("libtpu") is None:
        raise UserError("there is no TPU compiler here: pip install 'unclip_jax[plan]'")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    # The compiler would end the process over a flag that is meant for another kind of device.
    os.environ.pop("XLA_FLAGS", None)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # whatever the plugin raises
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"topology {topology!r} is refused by the compiler ({reason}): give one that exists"
        ) from error
    return list(found.devices)
