"""Text to token ids: CLIP's vocabulary, or a small one of the same scheme learned from captions.

Ids: 256 bytes, 256 bytes that end a word, one id a merge, then the start (SOT) and the end (EOT) of
text. EOT is the largest id, so `tokens.argmax(-1)` is its position. Rows are padded with 0, which
is also the id of a byte ("!"): use `models.text.text_mask`, never `tokens != 0`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unclip_jax.bounded import read_json
from unclip_jax.data import bpe
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.models.limits import EXCEPTIONS

SMALLEST_VOCAB_SIZE = 2 * 256 + 2  # every byte, every byte that ends a word, SOT and EOT
CLIP_VOCAB_SIZE = SMALLEST_VOCAB_SIZE + bpe.CLIP_MERGES
LARGEST_CONTEXT = 1 << 16

_MAX_BYTES = 10_000_000  # of a file; CLIP's 49,408 ids would take 800,000
_CACHE_LIMIT = 1 << 17  # strings; a cache that is full starts again from empty


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer a model reads its captions with.

    Raises:
        UserError: a `clip` vocabulary of another size, a vocabulary without room for the bytes, or
            a context without room for SOT and EOT.
    """

    kind: Literal["clip", "trained"] = "clip"
    """'clip' is OpenAI's vocabulary; 'trained' is learned from the training captions."""
    vocab_size: int = CLIP_VOCAB_SIZE
    """Rows of the embedding table. A 'trained' tokenizer has at most that many ids: a small corpus
    has fewer merges to learn."""
    context_length: int = 77
    """Tokens of a caption, SOT and EOT included."""

    def __post_init__(self) -> None:
        if self.kind == "clip" and self.vocab_size != CLIP_VOCAB_SIZE:
            raise UserError(
                f"tokenizer.vocab_size is {self.vocab_size}, but CLIP's vocabulary has "
                f"{CLIP_VOCAB_SIZE} entries: set {CLIP_VOCAB_SIZE} or tokenizer.kind 'trained'"
            )
        _check_sizes(self.vocab_size, self.context_length)


@dataclass(frozen=True)
class Tokenizer:
    """A byte-pair encoder; calling it turns texts into padded rows of ids.

    Args:
        kind: "clip" or "trained"; decides only how `to_json` stores the merges.
        merges: pairs of pieces, the earliest learned first.
        context_length: length of a row, SOT and EOT included.
    """

    kind: Literal["clip", "trained"]
    merges: tuple[bpe.Merge, ...] = field(repr=False)
    context_length: int
    _pieces: list[str] = field(init=False, repr=False, compare=False)
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)
    _ranks: dict[bpe.Merge, int] = field(init=False, repr=False, compare=False)
    _word_cache: dict[str, list[int]] = field(init=False, repr=False, compare=False)
    _row_cache: dict[str, list[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_sizes(self.vocab_size, self.context_length)
        letters = list(bpe.byte_letters().values())
        pieces = letters + [letter + bpe.END_OF_WORD for letter in letters]
        pieces += [left + right for left, right in self.merges] + [bpe.SOT, bpe.EOT]
        derived = {
            "_pieces": pieces,
            "_ids": {piece: i for i, piece in enumerate(pieces)},
            "_ranks": {pair: rank for rank, pair in enumerate(self.merges)},
            "_word_cache": {},
            "_row_cache": {},
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def vocab_size(self) -> int:
        """Number of ids: 512 + the number of merges + 2."""
        return SMALLEST_VOCAB_SIZE + len(self.merges)

    @property
    def sot_id(self) -> int:
        """Id of the start of text."""
        return self.vocab_size - 2

    @property
    def eot_id(self) -> int:
        """Id of the end of text, the largest id."""
        return self.vocab_size - 1

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Ids of N texts.

        Returns:
            [N, context_length] int32: SOT, the text, EOT, zeros. A text that is too long is cut,
            and its last token is EOT all the same.
        Raises:
            TypeError: one string instead of a sequence of strings.
        """
        if isinstance(texts, str):
            raise TypeError("a Tokenizer takes a sequence of strings: write tokenizer([text])")
        tokens = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = self._row_cache.get(text)
            if ids is None:
                ids = [self.sot_id, *self.encode(text)[: self.context_length - 2], self.eot_id]
                _remember(self._row_cache, text, ids)
            row[: len(ids)] = ids
        return tokens

    def encode(self, text: str) -> list[int]:
        """Ids of one text without SOT, EOT, padding or truncation."""
        ids: list[int] = []
        for word in bpe.split_words(bpe.clean_text(text)):
            known = self._word_cache.get(word)
            if known is None:
                pieces = bpe.merge_pieces(bpe.spell(word), self._ranks)
                known = [self._ids[piece] for piece in pieces]
                _remember(self._word_cache, word, known)
            ids += known
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The cleaned text of one row of ids, up to its first EOT, words apart by one space.

        Raises:
            UserError: an id outside the vocabulary.
        """
        pieces: list[str] = []
        for i in (int(i) for i in ids):
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"token id {i} is outside the vocabulary of {self.vocab_size}: "
                    "decode with the tokenizer that made the ids"
                )
            if i == self.eot_id:
                break
            if i != self.sot_id:
                pieces.append(self._pieces[i])
        return bpe.unspell(pieces)

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal tokenizer.

        CLIP's merges are named by the SHA-256 of their file, which ships with the package; learned
        merges are written out.
        """
        merges: dict[str, Any] = {"merges": [f"{left} {right}" for left, right in self.merges]}
        if self.kind == "clip":
            merges = {"merges_sha256": bpe.CLIP_SHA256}
        return {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "context_length": self.context_length,
            "cleaning": bpe.CLEANING,
            **merges,
        }

    @staticmethod
    def from_json(value: Any) -> Tokenizer:
        """The tokenizer that `to_json` described.

        Raises:
            UserError: a field is missing, malformed or from an unknown vocabulary or cleaning.
        """
        try:
            vocab_size, context_length = value["vocab_size"], value["context_length"]
            if type(vocab_size) is not int or type(context_length) is not int:
                raise ValueError("sizes that are not integers")
            if value["cleaning"] != bpe.CLEANING:
                raise ValueError("unknown cleaning")
            if value["kind"] == "clip" and value["merges_sha256"] == bpe.CLIP_SHA256:
                tokenizer = clip_tokenizer(context_length)
            elif value["kind"] == "trained":
                merges = tuple(bpe.parse_merge(line) for line in value["merges"])
                bpe.check_merges(merges)
                tokenizer = Tokenizer("trained", merges, context_length)
            else:
                raise ValueError("unknown vocabulary")
            if tokenizer.vocab_size != vocab_size:
                raise ValueError(f"{tokenizer.vocab_size} ids where {vocab_size} are announced")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the description of a tokenizer is not usable ({type(error).__name__}: {error}): "
                "copy the tokenizer.json that was saved with the model"
            ) from error
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write `to_json()` to a file, by convention `tokenizer.json` beside the weights."""
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1)
        write_whole(path, (text + "\n").encode())

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Read a file that `save` wrote, of 10 MB at most; it is data and never executed.

        Raises:
            UserError: no such file, not JSON, or not the description of a tokenizer.
        """
        try:
            value = read_json(path, _MAX_BYTES)
        except (OSError, ValueError) as error:
            raise UserError(
                f"tokenizer {path} cannot be read ({type(error).__name__}): "
                "give the tokenizer.json that was saved with the model"
            ) from error
        return Tokenizer.from_json(value)


def clip_tokenizer(context_length: int = 77) -> Tokenizer:
    """OpenAI's CLIP tokenizer (Radford et al. 2021): 49,408 ids, SOT 49406, EOT 49407.

    Equal ids to `clip.tokenize(texts, truncate=True)` for every text.
    """
    return Tokenizer("clip", bpe.clip_merges(), context_length)


def train_bpe(corpus: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
    """A tokenizer whose merges are learned from texts, with CLIP's cleaning and word splitting.

    Deterministic, whatever the order of the texts. It has at most `vocab_size` ids; fewer where
    the corpus has fewer pairs that occur twice.

    Raises:
        UserError: `vocab_size` < 514, or a context without room for SOT and EOT.
    """
    _check_sizes(vocab_size, context_length)
    merges = bpe.learn_merges(corpus, vocab_size - SMALLEST_VOCAB_SIZE)
    return Tokenizer("trained", merges, context_length)


def make_tokenizer(config: TokenizerConfig, corpus: Iterable[str] | None = None) -> Tokenizer:
    """The tokenizer of a recipe; `corpus` is read only where the kind is 'trained'.

    Raises:
        UserError: the kind is 'trained' and there is no corpus.
    """
    if config.kind == "clip":
        return clip_tokenizer(config.context_length)
    if corpus is None:
        raise UserError(
            "tokenizer.kind 'trained' needs captions to learn from: name a data set, "
            "or set tokenizer.kind 'clip'"
        )
    return train_bpe(corpus, config.vocab_size, config.context_length)


def _remember(cache: dict[str, list[int]], key: str, ids: list[int]) -> None:
    if len(cache) >= _CACHE_LIMIT:
        cache.clear()
    cache[key] = ids


def _check_sizes(vocab_size: int, context_length: int) -> None:
    for name, value in (("vocab_size", vocab_size), ("context_length", context_length)):
        if value > EXCEPTIONS[name]:
            raise UserError(f"tokenizer.{name} is {value}: give {EXCEPTIONS[name]} or fewer")
    if vocab_size < SMALLEST_VOCAB_SIZE:
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}, which has no room for the bytes: "
            f"set {SMALLEST_VOCAB_SIZE} or more"
        )
    if context_length < 2:
        raise UserError(
            f"tokenizer.context_length is {context_length}, which has no room for the start and "
            "end of text: set 2 or more"
        )
    if context_length > LARGEST_CONTEXT:
        raise UserError(
            f"tokenizer.context_length is {context_length}, and every caption is padded to it: set "
            f"{LARGEST_CONTEXT} or less"
        )
