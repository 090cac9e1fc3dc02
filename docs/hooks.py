"""What mkdocs does while it builds this site, beside turning Markdown into pages.

Pages that are made: the options of every command from its own --help, the notebook, and
SECURITY.md. Formulas between $ or $$ become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "docs/notebook.ipynb"
RECIPES = ("emoji/clip", "emoji/prior", "emoji/decoder", "emoji/upsampler_256")
"""Whose fields are listed: one of each kind that people change."""
_KEPT = re.compile(r"(^```.*?^```[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$(?!\w)", re.DOTALL)
_MARK = "zzformula{}zz"
_formulas: list[str] = []


def on_files(files: Files, config: Any) -> Files:
    """The pages that are made."""
    made = {
        "reference/command-line.md": command_line_page(),
        "tutorials/notebook.md": notebook_page(ROOT / NOTEBOOK),
        "security.md": security_page(),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **given: Any) -> str:
    """Formulas out of Markdown's way, and links to files that are pages here."""
    markdown = markdown.replace("](../SECURITY.md)", "](security.md)")
    markdown = markdown.replace("<!-- concepts -->", ", ".join(drawn_concepts()))
    parts = _KEPT.split(markdown)
    parts[::2] = [_FORMULA.sub(_keep_formula, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, **given: Any) -> str:
    """The formulas back into the page."""
    return re.sub(r"zzformula(\d+)zz", lambda mark: _formulas[int(mark[1])], html)


def _keep_formula(found: re.Match[str]) -> str:
    block, inline = found.groups()
    _formulas.append(convert(block or inline, display="block" if block else "inline"))
    return _MARK.format(len(_formulas) - 1)


def command_line_page() -> str:
    """Every verb with what its --help prints."""
    from unclip_jax.cli import main, sample

    lines = ["# The command line", "", "What `--help` says, of this version.", ""]
    lines += ["`python sample.py VERB` draws, edits and asks CLIP; `python train.py RECIPE`"]
    lines += ["trains; `python -m unclip_jax VERB`, or `unclip VERB`, is one way in for all.", ""]
    seen: set[str] = set()
    for name, program in (("sample.py", sample.main), ("unclip", main.main)):
        for verb in verbs_of(program):
            if verb not in seen:
                said = help_of(program, [verb, "--help"])
                lines += [f"## {name} {verb} {{ #{verb} }}", "", *_as_block(said)]
            seen.add(verb)
    lines += ["## Fields of recipes", "", "Each is an option of `train.py RECIPE`.", ""]
    for recipe in RECIPES:
        path = f"configs/{recipe}.py"
        said = help_of(main.main, ["train", str(ROOT / path), "--help"]).replace(f"{ROOT}/", "")
        block = [f"    {line}" for line in _as_block(said)]
        lines += [f'??? note "`train.py {path}`"', "", *block, ""]
    return "\n".join(lines)


def security_page() -> str:
    """SECURITY.md, with its links as they are from here."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    return text.replace("](docs/", "](")


def drawn_concepts() -> tuple[str, ...]:
    """What the shipped decoder was trained to draw."""
    folder = ROOT / "unclip_jax/assets/models/emoji/decoder"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return tuple(config["recipe"]["data"]["concepts"])


def verbs_of(program: Callable[[list[str]], Any]) -> list[str]:
    """The verbs that a program's own --help lists."""
    said = help_of(program, ["--help"])
    in_a_line = re.search(r"^verbs: (.*)", said, re.MULTILINE)
    listed = in_a_line[1].split(", ") if in_a_line else []
    return [*listed, *re.findall(r"^  ([a-z-]+)  +\S", said, re.MULTILINE)]


def help_of(command: Callable[[list[str]], Any], arguments: list[str]) -> str:
    """What a command prints before it exits with 0."""
    said = io.StringIO()
    with _plain_terminal(), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        command(arguments)
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
    if len(text) < 40:
        raise ValueError(f"{arguments} printed no help: {text!r}")
    return "\n".join(line.rstrip() for line in text.splitlines())


@contextlib.contextmanager
def _plain_terminal() -> Iterator[None]:
    """100 columns, no colours, and this repository's package."""
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    sys.path.insert(0, str(ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT))
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its texts, its code, and what it showed when it was saved."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_shown(output) for output in cell.get("outputs", ())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    for kind in ("image/png", "image/webp"):
        if kind in data:
            encoded = "".join(data[kind]).replace("\n", "")
            return f'<img alt="what the cell drew" src="data:{kind};base64,{encoded}">'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def _as_block(text: str) -> list[str]:
    return ["```text", *text.strip().splitlines(), "```", ""]
