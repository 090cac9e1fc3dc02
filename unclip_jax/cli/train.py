"""train.py RECIPE --workdir RUN [--field.name value ...]"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unclip_jax.cli.overrides import load_recipe, parse, take
from unclip_jax.cli.verbs import called
from unclip_jax.errors import UserError

USAGE = """usage: train.py RECIPE --workdir FOLDER [--field.name VALUE ...]

Train the stage that RECIPE describes. The same command again continues where the run stopped.
  RECIPE               a file in configs/, for example configs/emoji/decoder.py
  --workdir FOLDER     where checkpoints, metrics and samples go
  --restarts N         start again from the newest checkpoint when the process is killed or crashes
  --profile-steps A:B  write a trace of these steps into the folder, for XProf
  --print-config       print the resolved recipe as JSON and stop
  RECIPE --help        every field of the recipe with its type and value

SIGTERM or Ctrl-C saves a checkpoint and ends; the second one ends at once.
exit codes: 0 all steps done, 2 a mistake in the input, 3 given up after rollbacks (see --guard.*),
130 or 143 after a signal, 75 the other processes could not be reached
"""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 at the last step, 143 or 130 after a signal; all is saved."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    path, *rest = arguments
    if path.startswith("-"):
        raise UserError(f"the recipe comes first, found {path!r}: train.py RECIPE --workdir FOLDER")
    rest, workdir = take(rest, "--workdir")
    rest, profile = take(rest, "--profile-steps")
    rest, restarts = take(rest, "--restarts")
    is_print = "--print-config" in rest
    rest = [argument for argument in rest if argument != "--print-config"]
    default = load_recipe(path)
    recipe = parse(type(default), rest, default=default, program=f"{called('train')} {path}")
    if profile is not None:
        first, sign, last = profile.partition(":")
        if not (sign and first.isdecimal() and last.isdecimal()):
            raise UserError(f"--profile-steps is {profile!r}: give two steps such as 10:12")
        log = replace(recipe.log, profile_steps=(int(first), int(last)))
        recipe = replace(recipe, log=log)
    if restarts is None or is_print:
        return _run(recipe, workdir, is_print)
    if not restarts.isdecimal():
        raise UserError(f"--restarts is {restarts!r}: give how often, such as 10")
    from unclip_jax.cli.supervisor import supervise, without

    return supervise([sys.executable, *without(sys.orig_argv[1:], "--restarts")], int(restarts))


def _run(recipe: Any, workdir: str | None, is_print: bool) -> int:
    import json

    from unclip_jax.cli.hosts import join_hosts
    from unclip_jax.cli.runtime import prepare_jax
    from unclip_jax.training.recipe import STAGES, recipe_to_json

    if type(recipe) not in STAGES.values():
        names = ", ".join(cls.__name__ for cls in STAGES.values())
        raise UserError(f"the recipe is a {type(recipe).__name__}: expected one of {names}")
    if is_print:
        print(json.dumps(recipe_to_json(recipe), indent=1))
        return 0
    if workdir is None:
        raise UserError("--workdir is missing: name the folder of the run, such as runs/decoder")
    if Path(workdir).is_file():
        raise UserError(f"--workdir {workdir} is a file: name a folder")
    prepare_jax()
    join_hosts()
    from unclip_jax.cli.preview import make_preview
    from unclip_jax.training.loop import train
    from unclip_jax.training.preview_thread import exit_without_preview

    _, signal_number = train(recipe, Path(workdir), make_preview(recipe))
    code = 128 + signal_number if signal_number else 0
    exit_without_preview(code)
    return code
