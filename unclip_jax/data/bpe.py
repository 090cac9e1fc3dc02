"""Byte-pair encoding as CLIP does it: cleaning, words, bytes as letters, merges (no ids).

A text is cleaned, split into words by one regular expression, and each word is spelled as its UTF-8
bytes, one printable character a byte, the last marked with `</w>`. Then neighbouring pieces are
merged in the order of a list (Sennrich et al. 2016).

The merging is plain Python on the `regex` package, as in OpenAI's CLIP: compiled tokenizers carry
other Unicode tables and disagree with it on some characters.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import heapq
import html
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from unclip_jax.errors import UserError

Merge = tuple[str, str]

END_OF_WORD = "</w>"
SOT, EOT = "<|startoftext|>", "<|endoftext|>"
CLEANING = "ftfy, html.unescape twice, collapse white space, lower case"
CLIP_MERGES = 48_894
CLIP_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

_WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def clean_text(text: str) -> str:
    """OpenAI's cleaning: mend the encoding, unescape HTML twice, collapse space, lower-case."""
    # On printable ASCII without an entity ftfy and html.unescape change nothing, and this is most
    # captions; ftfy alone would halve the speed.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _space_pattern().sub(" ", text).strip().lower()


def split_words(cleaned: str) -> list[str]:
    """The words of a cleaned text: letters, single digits, runs of other signs, 's and its kin."""
    return _word_pattern().findall(cleaned)


@functools.cache
def byte_letters() -> dict[int, str]:
    """GPT-2's bijection from bytes to printable characters, in the order of CLIP's ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def spell(word: str) -> list[str]:
    """The letters of a word, one a byte, the last with `</w>`; SOT and EOT stay whole."""
    if word in (SOT, EOT):
        return [word]
    letters = byte_letters()
    pieces = [letters[byte] for byte in word.encode("utf-8")]
    pieces[-1] += END_OF_WORD
    return pieces


def unspell(pieces: Iterable[str]) -> str:
    """The text of pieces; bytes that are not UTF-8 (a cut character) become U+FFFD."""
    byte_of = {letter: byte for byte, letter in byte_letters().items()}
    words = "".join(pieces).split(END_OF_WORD)
    raw = b" ".join(bytes(byte_of[letter] for letter in word) for word in words)
    return raw.decode("utf-8", errors="replace").strip()


def merge_pieces(pieces: list[str], ranks: Mapping[Merge, int]) -> list[str]:
    """Merge the pair of lowest rank everywhere, again and again, until no pair has a rank.

    In O(n log n): a caption from outside may be one word of a megabyte.
    """
    if len(pieces) < 2:
        return pieces
    pieces = list(pieces)
    after = [*range(1, len(pieces)), -1]
    before = list(range(-1, len(pieces) - 1))
    waiting: list[tuple[int, int, Merge]] = []

    def offer(left: int) -> None:
        pair = (pieces[left], pieces[after[left]])
        if (rank := ranks.get(pair)) is not None:
            heapq.heappush(waiting, (rank, left, pair))

    for left in range(len(pieces) - 1):
        offer(left)
    while waiting:
        best = waiting[0][0]
        merged: list[int] = []
        # All places of this pair from left to right, before a pair that they make is looked at.
        while waiting and waiting[0][0] == best:
            _, left, (first, second) = heapq.heappop(waiting)
            right = after[left]
            if right < 0 or pieces[left] != first or pieces[right] != second:
                continue  # out of date: one of the two has been merged
            pieces[left], pieces[right] = first + second, ""
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
            merged.append(left)
        for left in merged:
            if before[left] >= 0:
                offer(before[left])
            if after[left] >= 0:
                offer(left)
    return [piece for piece in pieces if piece]


def learn_merges(corpus: Iterable[str], max_merges: int) -> tuple[Merge, ...]:
    """Learn merges from texts: the most frequent pair of pieces first, never across words.

    Of equally frequent pairs the first in alphabetical order is taken, so the merges depend on the
    texts alone, not on their order. A pair that occurs once is not learned: a small corpus yields
    fewer than `max_merges`.
    """
    frequency = Counter(word for text in corpus for word in split_words(clean_text(text)))
    counts: Counter[Merge] = Counter()
    holders: dict[Merge, set[int]] = defaultdict(set)
    words = [(spell(word), times) for word, times in frequency.items()]
    for index, (pieces, times) in enumerate(words):
        for pair in itertools.pairwise(pieces):
            counts[pair] += times
            holders[pair].add(index)

    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[Merge] = []
    while heap and len(merges) < max_merges:
        count, best = heapq.heappop(heap)
        if -count != counts[best]:
            continue  # out of date: the pair was pushed again when its count changed
        if -count < 2:
            break
        merges.append(best)
        changed: set[Merge] = set()
        for index in holders.pop(best):
            pieces, times = words[index]
            merged = merge_pieces(pieces, {best: 0})
            for pair in itertools.pairwise(pieces):
                counts[pair] -= times
            for pair in itertools.pairwise(merged):
                counts[pair] += times
                holders[pair].add(index)
            changed.update(itertools.pairwise(pieces), itertools.pairwise(merged))
            words[index] = (merged, times)
        for pair in changed:
            heapq.heappush(heap, (-counts[pair], pair))
    return tuple(merges)


def parse_merge(line: str) -> Merge:
    """A merge from its line "LEFT RIGHT"; raises ValueError for anything else."""
    left, right = line.split(" ")
    return left, right


def check_merges(merges: Iterable[Merge]) -> None:
    """ValueError unless each merge joins letters and pieces that those before it made."""
    letters = byte_letters().values()
    known = {*letters, *(letter + END_OF_WORD for letter in letters)}
    for left, right in merges:
        if left not in known or right not in known:
            raise ValueError(
                f"a merge of {left[:40]!r} and {right[:40]!r}, of which one is unknown"
            )
        known.add(left + right)


@functools.cache
def clip_merges() -> tuple[Merge, ...]:
    """The merges of OpenAI's CLIP, from the file that it published (it ships with the package).

    Raises:
        UserError: the file is damaged.
    """
    path = resources.files("unclip_jax") / "assets" / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != CLIP_SHA256:
        raise UserError(f"{path.name} in the package is damaged: reinstall unclip_jax")
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    # The first line is a version; CLIP uses only the start of the list.
    return tuple(parse_merge(line) for line in lines[1 : 1 + CLIP_MERGES])


@functools.cache
def _word_pattern() -> Any:
    import regex

    return regex.compile(_WORD, regex.IGNORECASE)


@functools.cache
def _space_pattern() -> Any:
    import regex

    return regex.compile(r"\s+")
