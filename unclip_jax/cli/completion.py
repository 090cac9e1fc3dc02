"""unclip completion SHELL: a script that completes verbs, flags and choices.

The script holds all that it completes, so that pressing Tab starts no Python. Make it anew after an
update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from unclip_jax.cli.options import Option
from unclip_jax.cli.overrides import parse
from unclip_jax.cli.verb_options import all_options
from unclip_jax.cli.verbs import SAMPLE, VERBS


@dataclass(frozen=True)
class CompletionOptions:
    """Prints a script for a shell.

    bash: put `source <(unclip completion bash)` into ~/.bashrc. zsh: the same with zsh into
    ~/.zshrc. fish: `unclip completion fish > ~/.config/fish/completions/unclip.fish`.
    """

    shell: Literal["bash", "zsh", "fish"]
    """The shell."""


def main(arguments: Sequence[str]) -> int:
    """Prints the script."""
    options = parse(CompletionOptions, arguments, default=None, program="unclip completion")
    found = all_options()
    print(fish_script(found) if options.shell == "fish" else bash_script(found, options.shell))
    return 0


def bash_script(found: dict[str, list[Option]], shell: str) -> str:
    """For bash; zsh reads the same with its own bashcompinit."""
    flags = "\n".join(
        f"    {verb}) flags='{' '.join(_flags(options))}' ;;" for verb, options in found.items()
    )
    values = "\n".join(
        f"    {'|'.join(sorted(places))}) values='{' '.join(choices)}' ;;"
        for choices, places in _choices(found).items()
    )
    text = (resources.files("unclip_jax") / "assets" / "completion.bash").read_text("utf-8")
    for name, content in {
        "@FLAGS@": flags,
        "@VALUES@": values,
        "@VERBS@": " ".join(VERBS),
        "@SAMPLE@": " ".join(SAMPLE),
    }.items():
        text = text.replace(name, content)
    start = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"
    return (start if shell == "zsh" else "") + text


def fish_script(found: dict[str, list[Option]]) -> str:
    """One `complete` line for each verb and flag."""
    lines = ["complete -c unclip -e"]
    lines += [
        f"complete -c unclip -n __fish_use_subcommand -f -a {verb.name} -d {_quoted(verb.text)}"
        for verb in VERBS.values()
    ]
    for verb, options in found.items():
        where = f"complete -c unclip -n '__fish_seen_subcommand_from {verb}'"
        for option in options:
            if option.is_positional:
                lines += [f"{where} -a '{' '.join(option.choices)}'"] if option.choices else []
                continue
            words = f" -x -a '{' '.join(option.choices)}'" if option.choices else " -r"
            words += f" -d {_quoted(option.help)}" if option.help else ""
            lines.append(f"{where} -l {option.name.removeprefix('--')}{words}")
    return "\n".join(lines)


def _flags(options: Sequence[Option]) -> Iterator[str]:
    """What may follow a verb: its flags, and the words of a positional argument that has few."""
    yield from ("--help",)
    for option in options:
        yield from option.choices if option.is_positional else (option.name,)


def _choices(found: dict[str, list[Option]]) -> dict[tuple[str, ...], list[str]]:
    """Choices, and for which 'VERB --flag' they are: many flags share theirs."""
    places: dict[tuple[str, ...], list[str]] = {}
    for verb, options in found.items():
        for option in options:
            if option.choices and not option.is_positional:
                places.setdefault(option.choices, []).append(f"{verb}\\ {option.name}")
    return places


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
