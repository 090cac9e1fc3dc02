"""Hugging Face's tokenizer files, in and out: vocab.json with merges.txt, or tokenizer.json.

Only byte-pair vocabularies of CLIP's scheme are read. The ids of a text can differ from those that
transformers computes for it, because OpenAI's cleaning (ftfy, HTML entities) is ours too and is not
theirs, and because a padding token such as "!" is a word here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unclip_jax.bounded import read_json
from unclip_jax.data import bpe
from unclip_jax.data.tokenizer import CLIP_VOCAB_SIZE, Tokenizer, clip_tokenizer
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.models.clip import CLIPConfig

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
"""What `write_tokenizer` writes."""
_SPECIAL_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def find_tokenizer(
    folder: Path | None, config: CLIPConfig, *, is_clips: bool = True
) -> Tokenizer | None:
    """The tokenizer of a model: what the folder holds, else CLIP's if the vocabulary has its size.

    Args:
        is_clips: no file means CLIP's.
    Returns:
        None where the folder has no vocabulary and the model's is not CLIP's.
    Raises:
        UserError: a vocabulary of another scheme, or one that is larger than the model's.
    """
    if folder is not None and has_vocabulary(folder):
        tokenizer = read_tokenizer(folder, config.context_length)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{folder} has a vocabulary of {tokenizer.vocab_size}, the model one of "
                f"{config.vocab_size}: name the tokenizer that belongs to it"
            )
        return tokenizer
    if is_clips and config.vocab_size == CLIP_VOCAB_SIZE:
        return clip_tokenizer(config.context_length)
    return None


def has_vocabulary(folder: Path) -> bool:
    """Whether the folder holds a vocabulary at all."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def read_tokenizer(folder: Path, context_length: int) -> Tokenizer:
    """The tokenizer of a folder; `kind` is 'clip' where its merges are CLIP's.

    Raises:
        UserError: a file is missing or damaged, or the vocabulary is not CLIP's scheme: 256 bytes,
            256 bytes that end a word, the merges, start and end of text.
    """
    path = folder / "tokenizer.json"
    try:
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            path = folder / "vocab.json"
            vocabulary, lines = _read_json(path), _read_lines(folder / "merges.txt")
            added = folder / "added_tokens.json"
            vocabulary |= _read_json(added) if added.is_file() else {}
        else:
            vocabulary, lines = _read_fast(_read_json(path))
        merges = tuple(bpe.parse_merge(line) for line in lines)
        if not all(type(number) is int for number in vocabulary.values()):
            raise ValueError("an id that is no number")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no tokenizer of CLIP's scheme ({type(error).__name__}: {error}): name the "
            "folder of another"
        ) from error
    expected = _vocabulary(merges)
    odd = sorted(key for key, _ in set(vocabulary.items()) ^ set(expected.items()))
    if odd:
        raise UserError(
            f"{path} has another vocabulary than CLIP's scheme makes from its merges: "
            f"{odd[0][:80]!r} ({len(odd)} in all): tokens that were added must be removed, other "
            "schemes are not supported"
        )
    if merges == bpe.clip_merges():
        return clip_tokenizer(context_length)
    return Tokenizer("trained", merges, context_length)


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `TOKENIZER_FILES`, from which transformers makes a `CLIPTokenizer` with the same ids.

    It pads with the end of text, as OpenAI's does there: no word of the vocabulary becomes special.
    """
    special = {
        "bos_token": bpe.SOT,
        "eos_token": bpe.EOT,
        "unk_token": bpe.EOT,
        "pad_token": bpe.EOT,
    }
    config = special | {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.context_length,
        "do_lower_case": True,
        "add_prefix_space": False,
    }
    merges = [f"{left} {right}" for left, right in tokenizer.merges]
    contents = {
        "vocab.json": json.dumps(_vocabulary(tokenizer.merges), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
    for name in TOKENIZER_FILES:
        # Bytes: newlines stay what they are on every system.
        write_whole(folder / name, (contents[name] + "\n").encode())


def _vocabulary(merges: tuple[bpe.Merge, ...]) -> dict[str, int]:
    """Id of every piece. Two merges can make the same piece: the later id is the one in use."""
    letters = list(bpe.byte_letters().values())
    pieces = letters + [letter + bpe.END_OF_WORD for letter in letters]
    pieces += [left + right for left, right in merges] + [bpe.SOT, bpe.EOT]
    return {piece: i for i, piece in enumerate(pieces)}


def _read_fast(data: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a tokenizer.json; ValueError where it splits or spells otherwise."""
    model = data["model"]
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") != bpe.END_OF_WORD:
        raise ValueError(f"not byte pairs with {bpe.END_OF_WORD}")
    if "Lowercase" not in json.dumps(data.get("normalizer")):
        raise ValueError("it keeps capital letters")
    if not _patterns(data.get("pre_tokenizer")) & {_WORDS, _SPECIAL_WORDS + _WORDS}:
        raise ValueError("it splits words in another way")
    added = {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    lines = [line if isinstance(line, str) else " ".join(line) for line in model["merges"]]
    return model["vocab"] | added, lines


def _patterns(value: Any) -> set[str]:
    """Every regular expression in a nested description."""
    if isinstance(value, dict):
        own = {value["Regex"]} if isinstance(value.get("Regex"), str) else set()
        return own.union(*(_patterns(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(_patterns(item) for item in value))
    return set()


def _read_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").replace("\r\n", "\n").split("\n")
    return [line for line in lines if line and not line.startswith("#version")]


def _read_json(path: Path) -> dict[str, Any]:
    value = read_json(path, 64_000_000)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
