"""Pictures with their captions as tar shards, as WebDataset reads them: KEY.png, KEY.txt, KEY.json.

The same samples give the same bytes: members in the order given, owners and times all zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tarfile import BLOCKSIZE, USTAR_FORMAT, TarInfo

from unclip_jax.data.tar_members import Span, TarMembers
from unclip_jax.files import write_whole


def shard_name(number: int) -> str:
    """Of a shard's file."""
    return f"pictures-{number:06d}.tar"


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """A shard, whole or not at all.

    Args:
        samples: key, at most 90 characters of ASCII without dots, and the bytes by extension.
    Raises:
        UserError: it cannot be written.
    """
    write_whole(path, _blocks(samples))


def read_members(path: Path) -> dict[str, Span]:
    """Where the members of a whole shard lie, in order; none of one that is cut off.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        members = TarMembers(file)
        found = dict(members)
        return {} if members.is_cut else found


def _blocks(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Iterator[bytes]:
    for key, parts in samples:
        for extension, data in parts.items():
            info = TarInfo(f"{key}.{extension}")
            info.size = len(data)
            yield info.tobuf(USTAR_FORMAT)
            yield data
            yield bytes(-len(data) % BLOCKSIZE)
    yield bytes(2 * BLOCKSIZE)
