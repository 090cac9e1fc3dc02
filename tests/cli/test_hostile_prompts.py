"""Prompts from strangers: handled, or refused by line number; never a path, never printed raw."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from tests.cli.hostile_prompts import ARGUMENTS, READ, REFUSED
from unclip_jax.cli import main as command_line
from unclip_jax.cli import prompts, sample
from unclip_jax.cli.progress import say
from unclip_jax.data.tokenizer import clip_tokenizer
from unclip_jax.errors import UserError
from unclip_jax.printable import printable
from unclip_jax.samples import picture_name


@pytest.mark.parametrize("name", READ)
def test_read(name: str, tmp_path: Path) -> None:
    file, content, expected = READ[name]
    (tmp_path / file).write_bytes(content)
    found = [line.prompt for line in prompts.read_prompts(tmp_path / file)]
    assert found == expected
    assert prompts.check_prompts(found) == expected  # as on a command line


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_line(name: str, tmp_path: Path) -> None:
    file, content, words = REFUSED[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        prompts.read_prompts(tmp_path / file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    """A terabyte of zeros is refused at its first line."""
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"a\.txt:1 has more than 1000000 bytes"):
        prompts.read_prompts(tmp_path / "a.txt")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a regular file"):
        prompts.read_prompts(path)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    given, words = ARGUMENTS[name]
    arguments = [os.fsdecode(one) if isinstance(one, bytes) else one for one in given]
    verb = [] if "verb" in name else ["text"]
    with pytest.raises(SystemExit) as end:
        command_line.run(sample.main, [*verb, *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert re.search(words, error) and error.count("\n") == 1
    assert shows_only_text(error.rstrip("\n"))


def test_after_two_dashes_a_prompt_may_begin_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.run(sample.main, ["text", "--model", "/none", "--", "-x degrees", "--x"])
    assert "model /none is neither" in capsys.readouterr().err


def shows_only_text(text: str) -> bool:
    """No character that acts: control, format but for the joiners, surrogate, separator."""
    acting = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    return not acting - {"\u200c", "\u200d"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red fox", "a red fox"),
        ("ein Füchschen 狐 😀", "ein Füchschen 狐 😀"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("\x1b[31ma\x07\n\r\t\0", "\\x1b[31ma\\x07\\x0a\\x0d\\x09\\x00"),
        ("\x9b2J", "\\x9b2J"),
        ("a\u202egpj.\u2066b\ufeff", "a\\u202egpj.\\u2066b\\ufeff"),
        ("a\u2028b", "a\\u2028b"),
        ("a\udcff\ud800", "a\\udcff\\ud800"),
        ("\U000e0067", "\\U000e0067"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert shows_only_text(shown) and shown.encode("utf-8")


@pytest.mark.parametrize("text", ["a" * 10_000, "\x1b" * 10_000, "a" * 199 + "\x1b"])
def test_printable_is_short(text: str) -> None:
    assert len(printable(text)) <= 200 and "…" in printable(text)
    assert shows_only_text(printable(text))
    assert len(printable(text, None)) >= len(text)


def test_progress_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    say("drawing \x1b[31m\u202ea")
    assert capsys.readouterr().err == "drawing \\x1b[31m\\u202ea\n"


@pytest.mark.parametrize("name", READ)
def test_a_prompt_never_becomes_a_path(name: str) -> None:
    for prompt in READ[name][2]:
        file = picture_name(0, {"prompt": prompt, "index": 0})
        assert Path(file).name == file and not file.startswith((".", "-"))
        assert len(file.encode()) < 100 and file.isascii() and shows_only_text(file)


def test_a_word_of_100_kB_is_tokenized_in_time() -> None:
    """The pairs of a word used to be looked through once for each merge."""
    import time

    tokenize = clip_tokenizer()
    tokenize(["warm"])
    letters = "".join(chr(97 + n * n * 7 % 26 ^ n % 3) for n in range(100_000))
    began = time.monotonic()
    assert tokenize([letters]).shape == (1, 77)
    assert time.monotonic() - began < 10
