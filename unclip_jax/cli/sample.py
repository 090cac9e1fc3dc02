"""sample.py VERB ...: pictures on disk from a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unclip_jax.cli import caption, classify, index, search
from unclip_jax.cli.edit import edit_pictures
from unclip_jax.cli.overrides import parse
from unclip_jax.cli.prompts import PromptLine, check_prompts, read_prompts
from unclip_jax.cli.reproduce import draw_picture_again
from unclip_jax.cli.text_options import TextOptions
from unclip_jax.cli.text_plan import TextPlan, make_plan
from unclip_jax.cli.verbs import SAMPLE, called, unknown_verb, usage
from unclip_jax.errors import UserError

TOOLS = {
    "classify": classify.main,
    "caption": caption.main,
    "index": index.main,
    "search": search.main,
    "from": draw_picture_again,
}
"""Verbs whose modules read their options."""


def main(arguments: Sequence[str]) -> int:
    """Runs a verb; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage("sample.py", SAMPLE))
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in SAMPLE:
        raise UserError(unknown_verb(verb, SAMPLE))
    if verb in TOOLS:
        return TOOLS[verb](rest)
    if verb != "text":
        return edit_pictures(verb, rest)
    program = called("text")
    options = parse(TextOptions, rest, default=None, program=program)
    prompts = check_prompts(options.prompt)
    lines = [PromptLine(prompt, f"prompt {place}") for place, prompt in enumerate(prompts, 1)]
    if options.prompts is not None:
        lines += read_prompts(options.prompts)
    if not lines:
        raise UserError(f'there is no prompt: {program} "a red apple, 3d style", or --prompts')
    return _draw(options, make_plan(lines, options))


def _draw(options: TextOptions, plan: TextPlan) -> int:
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    from unclip_jax.cli.hosts import join_hosts
    from unclip_jax.cli.runtime import prepare_jax
    from unclip_jax.training.stop_requests import StopRequests

    with StopRequests("stopped: the same command continues") as stop:
        prepare_jax()
        join_hosts()
        from unclip_jax.cli.draw_pictures import draw_pictures

        return draw_pictures(plan, options, out, stop)
