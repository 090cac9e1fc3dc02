"""Files of prompts, and the mistakes that can be in a sample.py command."""

from __future__ import annotations

from pathlib import Path

import pytest

from unclip_jax.cli import main as command_line
from unclip_jax.cli import prompts, sample
from unclip_jax.errors import UserError


def test_text_lines_without_comments_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# animals\n a red fox \n\n#\nnumber #1 hat\n", encoding="utf-8")
    assert [line.prompt for line in prompts.read_prompts(path)] == ["a red fox", "number #1 hat"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": " ü ", "seed": 3}\n', encoding="utf-8")
    first, second = prompts.read_prompts(path)
    assert (first.prompt, first.settings) == ("a", {})
    assert (second.prompt, second.settings) == ("ü", {"seed": 3})


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"# nothing\n", "holds no prompt"),
        ("broken.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "broken.jsonl:2 is not JSON"),
        ("number.jsonl", b'{"prompt": 3}\n', "number.jsonl:1 has no text"),
        ("list.jsonl", b"[1]\n", "list.jsonl:1 has no text"),
        ("other.csv", b"a,b\n", "give a .txt file or a .jsonl file"),
        ("latin.txt", b"\xff\xfe\x00", "latin.txt:1 is not UTF-8"),
        ("missing.txt", None, "missing.txt does not exist"),
    ],
)
def test_files_that_are_no_prompts(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        prompts.read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["draw", "a"], "verb 'draw' is unknown"),
        (["text"], "there is no prompt"),
        (["text", "a", "--num-images", "0"], "--num-images is 0"),
        (["text", "a", "--seed", "-1"], "--seed is -1"),
        (["text", "a", "--guidanse", "3"], "--guidanse"),
        (["text", "a", "--steps", "many"], "--steps is 'many'"),
        (["text", "a", "--upsample-steps", "fast30"], "--upsample-steps is 'fast30'"),
        (["text", "a", "--prior-steps", "10,,2"], "--prior-steps is '10,,2'"),
        (["text", "a", "--model", "no/such/folder"], "neither a folder nor shipped"),
        (["text", "a", "--out", "file"], "--out file is a file"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        command_line.run(sample.main, arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and reason in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
