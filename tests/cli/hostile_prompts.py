"""Prompts and files of prompts from strangers: what is read, or the words of the refusal."""

from __future__ import annotations

import json

# Name and bytes of a file → the prompts in it.
READ: dict[str, tuple[str, bytes, list[str]]] = {
    "10 kB": ("a.txt", b"a" * 10_000, ["a" * 10_000]),
    "a path": ("a.txt", b"../../x", ["../../x"]),
    "leading dashes": ("a.txt", b"--model x\n-5 degrees", ["--model x", "-5 degrees"]),
    "a shell": ("a.txt", b"$(touch x) `id`; rm -rf /", ["$(touch x) `id`; rm -rf /"]),
    "beyond the basic plane": ("a.txt", "𝔘 😀 🏴󠁧󠁢󠁥󠁮󠁧󠁿".encode(), ["𝔘 😀 🏴󠁧󠁢󠁥󠁮󠁧󠁿"]),
    "from right to left": ("a.txt", "a \u202egpj.b".encode(), ["a \u202egpj.b"]),
    "a byte-order mark": ("a.txt", b"\xef\xbb\xbf# note\r\na fox\r\n", ["a fox"]),
    "U+2028 within": ("a.txt", "a\u2028b\u2029c\nd".encode(), ["a\u2028b\u2029c", "d"]),
    "U+2028 within JSON": (
        "a.jsonl",
        json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False).encode(),
        ["a\u2028b"],
    ),
    "a pair of surrogates": ("a.jsonl", b'{"prompt": "\\ud83d\\ude00"}', ["😀"]),
    "lines within JSON": ("a.jsonl", b'{"prompt": "a\\nb\\tc"}', ["a\nb\tc"]),
    "a byte-order mark of JSON": ("a.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\r\n', ["a"]),
}
# Name and bytes of a file → the words of its refusal.
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "no bytes": ("a.txt", b"", "holds no prompt"),
    "blank lines": ("a.txt", b"\n \r\n\t\n", "holds no prompt"),
    "NUL": ("a.txt", b"a\nb\0c\n", r"a\.txt:2 holds the control character \\x00"),
    "an escape": ("a.txt", b"a\n\nb\x1b[2J", r"a\.txt:3 holds the control character \\x1b"),
    "a bell": ("a.txt", b"\x07a", r"a\.txt:1 holds the control character \\x07"),
    "a control of 8 bits": ("a.txt", b"a\xc2\x9b31m", r"a\.txt:1 holds .* \\x9b"),
    "bare carriage returns": ("a.txt", b"a\rb\rc", r"a\.txt:1 holds .* \\x0d"),
    "not UTF-8": ("a.txt", b"a\n\xff\xfe", r"a\.txt:2 is not UTF-8"),
    "Latin-1": ("a.txt", "a fiancé".encode("latin-1"), r"a\.txt:1 is not UTF-8"),
    "UTF-16": ("a.txt", "a fox".encode("utf-16"), r"a\.txt:1 is not UTF-8"),
    "a surrogate in UTF-8": ("a.txt", b"a\xed\xa0\x80", r"a\.txt:1 is not UTF-8"),
    "an overlong NUL": ("a.txt", b"a\xc0\x80", r"a\.txt:1 is not UTF-8"),
    "200 kB": ("a.txt", b"a\n" + b"b" * 200_000, r"a\.txt:2 has 200000 characters"),
    "a line of 2 MB": ("a.txt", b"a\n" + b"b" * 2_000_000, r"a\.txt:2 has more than"),
    "a lone surrogate": ("a.jsonl", b'{"prompt": "a\\ud800"}', r"a\.jsonl:1 is not text"),
    "NUL in JSON": ("a.jsonl", b'{"prompt": "a\\u0000"}', r"a\.jsonl:1 holds .* \\x00"),
    "an escape in JSON": ("a.jsonl", b'{"prompt": "\\u001b[31m"}', r"a\.jsonl:1 holds .* \\x1b"),
    "blank in JSON": ("a.jsonl", b'{"prompt": " "}', r"a\.jsonl:1 has no text"),
    "deep JSON": ("a.jsonl", b"\n" + b"[" * 100_000, r"a\.jsonl:2 is not JSON \(nested too"),
    "deep beside the prompt": (
        "a.jsonl",
        b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        r"a\.jsonl:1 is not JSON \(nested too",
    ),
    "a number of 5,000 digits": (
        "a.jsonl",
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        r"a\.jsonl:1 is not JSON",
    ),
    "a name twice": ("a.jsonl", b'{"prompt": "a", "prompt": "b"}', r"a\.jsonl:1 .*a name twice"),
    "an array": ("a.jsonl", b'["a"]', r"a\.jsonl:1 has no text"),
}
# Arguments of `sample.py text` → the words of the refusal.
ARGUMENTS: dict[str, tuple[list[str | bytes], str]] = {
    "empty": ([""], "prompt 1 is empty"),
    "blank": (["a", " \n"], "prompt 2 is empty"),
    "an escape": (["a\x1b[31mb"], r"prompt 1 holds the control character \\x1b"),
    "not UTF-8": ([b"a\xff"], "prompt 1 is not text"),
    "200 kB": (["ab" * 60_000], "prompt 1 has 120000 characters"),
    "a leading dash": (["-x degrees"], "-x degrees"),
    "an option that is none": (["--\x1b[31m"], r"\\x1b"),
    "a model with an escape": (["a", "--model", "\x1b[31m/none"], r"\\x1b\[31m/none"),
    "a model that is not UTF-8": (["a", "--model", b"/none\xff"], r"/none\\udcff"),
    "a verb with an escape": (["\x1b[2J"], r"\\x1b"),
}
