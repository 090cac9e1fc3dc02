from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.data import bpe
from unclip_jax.data.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    clip_tokenizer,
    make_tokenizer,
    train_bpe,
)
from unclip_jax.errors import UserError
from unclip_jax.models.text import text_mask

CASES = json.loads((Path(__file__).parent.parent / "golden" / "tokenizer_cases.json").read_text())
CORPUS = [
    f"a {colour} {thing}, {style} style"
    for colour in ("red", "green", "blue", "purple")
    for thing in ("apple", "book", "heart", "circle", "square", "café")
    for style in ("noto", "flat", "3d", "twemoji")
]


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return clip_tokenizer()


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_bpe(CORPUS, vocab_size=550, context_length=16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"][:20]))
def test_clip_ids_equal_openais(clip: Tokenizer, case: dict) -> None:
    tokens = clip([case["text"]])
    expected = np.zeros((1, case["context_length"]), np.int32)
    expected[0, : len(case["ids"])] = case["ids"]
    np.testing.assert_array_equal(tokens, expected)
    assert tokens.dtype == np.int32


def test_clip_has_openais_sizes(clip: Tokenizer) -> None:
    assert (clip.vocab_size, clip.context_length, clip.sot_id, clip.eot_id) == (
        49408,
        77,
        49406,
        49407,
    )
    assert len(bpe.clip_merges()) == bpe.CLIP_MERGES == 48894


def test_special_tokens_in_a_text_are_ids_as_in_openais_code(clip: Tokenizer) -> None:
    assert clip.encode("<|startoftext|>cat<|endoftext|>") == [49406, 2368, 49407]


def test_the_fast_path_of_the_cleaning_changes_nothing() -> None:
    import html

    import ftfy

    rng = random.Random(0)
    printable = [chr(code) for code in range(32, 127)]
    for _ in range(2000):
        text = "".join(rng.choices([*printable, " ", " "], k=rng.randrange(40)))
        mended = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert bpe.clean_text(text) == " ".join(mended.split()).lower()


def test_truncation_keeps_eot_and_rows_do_not_depend_on_the_others(clip: Tokenizer) -> None:
    short = clip_tokenizer(context_length=5)
    tokens = short(["one two three four five", "one two three", "one", ""])
    assert tokens[0].tolist() == [*clip(["one two three"])[0, :4].tolist(), clip.eot_id]
    assert tokens[1].tolist() == tokens[0].tolist()
    assert tokens[3].tolist() == [clip.sot_id, clip.eot_id, 0, 0, 0]
    np.testing.assert_array_equal(short(["one"])[0], tokens[2])
    assert short([]).shape == (0, 5)


def test_eot_is_the_argmax_and_ends_the_mask(clip: Tokenizer, trained: Tokenizer) -> None:
    for tokenizer in (clip, trained):
        tokens = tokenizer(["a cat!!!", "", "a " * 100])
        mask = np.asarray(text_mask(jnp.asarray(tokens)))
        assert mask.shape == tokens.shape and mask.dtype == bool
        for row, kept in zip(tokens, mask, strict=True):
            n = int(kept.sum())
            assert kept[:n].all() and not kept[n:].any()
            assert row[n - 1] == tokenizer.eot_id == row.max()
            assert not row[n:].any()


@pytest.mark.parametrize("text", ["a red apple , 3 d style", "naïve café 😀", "", "日本 語"])
def test_decode_inverts_encode_on_clean_spaced_text(
    clip: Tokenizer, trained: Tokenizer, text: str
) -> None:
    for tokenizer in (clip, trained):
        long = Tokenizer(tokenizer.kind, tokenizer.merges, 77)
        assert long.decode(long([text])[0]) == text


def test_decode_of_a_cut_character_and_of_a_foreign_id(clip: Tokenizer) -> None:
    frog = clip.encode("\N{FROG FACE}\N{OGHAM LETTER BEITH}")
    assert "\N{REPLACEMENT CHARACTER}" in clip.decode(frog[:-1])
    for foreign in (-1, clip.vocab_size):
        with pytest.raises(UserError, match="outside the vocabulary"):
            clip.decode([foreign])


def test_training_learns_frequent_words_within_the_size(trained: Tokenizer) -> None:
    assert trained.vocab_size == 550
    assert (trained.sot_id, trained.eot_id) == (548, 549)
    assert len(trained.encode("style")) == 1
    assert len(trained.encode("xylophone")) > 3


def test_training_follows_the_textbook_example() -> None:
    # Sennrich et al. 2016, section 3.2, with ties in alphabetical order: "est</w>" and "lo" first.
    corpus = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    merges = bpe.learn_merges(corpus, 4)
    assert merges == (("e", "s"), ("es", "t</w>"), ("l", "o"), ("e", "w"))


def test_training_does_not_depend_on_order_or_hash_seed(trained: Tokenizer) -> None:
    shuffled = list(CORPUS)
    random.Random(1).shuffle(shuffled)
    assert train_bpe(shuffled, 550, 16) == trained
    program = (
        "import sys, json; from unclip_jax.data.bpe import learn_merges;"
        "print(json.dumps(learn_merges(json.loads(sys.argv[1]), 36)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, json.dumps(CORPUS)],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert tuple(map(tuple, json.loads(output))) == trained.merges


def test_a_small_corpus_yields_a_smaller_vocabulary() -> None:
    tokenizer = train_bpe(["aa aa"], vocab_size=5000, context_length=4)
    assert tokenizer.merges == (("a", "a</w>"),)
    assert tokenizer.vocab_size == 515
    assert train_bpe([], 514, 4).vocab_size == 514


@pytest.mark.parametrize("kind", ["clip", "trained"])
def test_a_saved_tokenizer_comes_back_equal(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded == tokenizer
    texts = ["A RED café&amp;, 3d style", "<|endoftext|>"]
    np.testing.assert_array_equal(loaded(texts), tokenizer(texts))
    assert path.stat().st_size < 10_000
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer  # worker processes get a copy


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"cleaning": "none"},
        {"context_length": "16"},
        {"context_length": 1},
        {"vocab_size": 600},
        {"merges": ["a b c"]},
        {"merges": [["a", "b"]]},
        {"merges": 3},
        {"kind": "clip"},
        {"kind": "clip", "merges_sha256": "0" * 64},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused(trained: Tokenizer, change: dict) -> None:
    with pytest.raises(UserError) as caught:
        Tokenizer.from_json({**trained.to_json(), **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null", "[" * 100_000])
def test_an_unreadable_file_is_a_user_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(path)


def test_config_is_checked_and_makes_the_tokenizer(clip: Tokenizer, trained: Tokenizer) -> None:
    assert make_tokenizer(TokenizerConfig()) == clip
    small = TokenizerConfig(kind="trained", vocab_size=550, context_length=16)
    assert make_tokenizer(small, iter(CORPUS)) == trained
    with pytest.raises(UserError, match="captions to learn from"):
        make_tokenizer(small)
    for bad in (
        {"vocab_size": 1000},
        {"kind": "trained", "vocab_size": 513},
        {"context_length": 1},
    ):
        with pytest.raises(UserError, match=r"tokenizer\."):
            TokenizerConfig(**bad)


def test_one_string_is_not_taken_for_a_list_of_letters(clip: Tokenizer) -> None:
    with pytest.raises(TypeError, match="sequence of strings"):
        clip("a cat")
