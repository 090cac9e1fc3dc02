"""unclip plan RECIPE --topology v5e:16x16: a training run on TPUs that are not there, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unclip_jax.cli.overrides import load_recipe, parse, take
from unclip_jax.errors import UserError

USAGE = """usage: unclip plan RECIPE [--topology v5e:16x16] [--slices N] [--field.name VALUE ...]

Compile the train step of RECIPE for TPUs that are not here, with their own compiler, and say what
a chip needs of its memory, whether that fits, and how fast a step can be at best.
  RECIPE               a file in configs/, for example configs/dalle2/decoder.py
  --topology NAME      chip and grid: v4, v5e, v5p or v6e, such as v5e:16x16 or v5p:4x4x8; the
                       recipe's mesh.topology if left out
  --slices N           so many slices of that grid, the data axis across them
  --clip-recipe FILE   recipe of the CLIP that a prior or a decoder works for, if there is none yet;
                       clip.py beside RECIPE if left out
  --exact              compile as training does, minutes instead of seconds; without it the memory
                       is an upper bound
  --set NAME=VALUE     the same as --NAME VALUE
  --sample             the programs that draw from the stage instead, a row a picture or embedding;
                       --sampling.NAME VALUE changes how, for example --sampling.batch-size 4
Exit code 1 if it does not fit; then changes are tried, and the first that help are named.
"""


def main(arguments: Sequence[str]) -> int:
    """Prints the plan; returns 0 if it fits, else 1."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    path, *rest = arguments
    if path.startswith("-"):
        raise UserError(f"the recipe comes first, found {path!r}: unclip plan RECIPE")
    rest, topology = take(rest, "--topology")
    rest, slices = take(rest, "--slices")
    rest, clip_recipe = take(rest, "--clip-recipe")
    is_exact, is_sample = "--exact" in rest, "--sample" in rest
    rest = _settings([argument for argument in rest if argument not in ("--exact", "--sample")])
    rest, sampling = _sampling_arguments(rest)
    if sampling and not is_sample:
        raise UserError(f"--sampling.{sampling[0][2:]} is about drawing: add --sample")
    default = load_recipe(path)
    recipe = parse(type(default), rest, default=default, program=f"unclip plan {path}")
    mesh: dict[str, Any] = {}
    if topology is not None:
        mesh["topology"] = topology
    if slices is not None:
        if not slices.isdecimal() or int(slices) < 1:
            raise UserError(f"--slices is {slices!r}: give 1 or more")
        mesh["slices"] = int(slices)
    if mesh:
        recipe = replace(recipe, mesh=replace(recipe.mesh, **mesh))
    if is_sample:
        return _plan_sampling(recipe, Path(path), clip_recipe, is_exact, sampling)
    return _plan(recipe, Path(path), clip_recipe, is_exact)


def _sampling_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--sampling.NAME VALUE`, and those as `--NAME VALUE`."""
    rest: list[str] = []
    sampling: list[str] = []
    chosen = rest
    for argument in arguments:
        if argument.startswith("--"):
            chosen = sampling if argument.startswith("--sampling.") else rest
        chosen.append(argument.replace("--sampling.", "--", 1))
    return rest, sampling


def _prepare() -> None:
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # no TPU could read a program back


def _plan_sampling(
    recipe: Any, path: Path, clip_recipe: str | None, is_exact: bool, changes: list[str]
) -> int:
    _prepare()
    from unclip_jax.generation.sampling import SamplingConfig
    from unclip_jax.generation.sampling_plan import (
        find_smaller,
        make_sampling_plans,
        sampling_plan_text,
    )
    from unclip_jax.training.planning.compiling import DoesNotFitError

    default = SamplingConfig()
    how = parse(SamplingConfig, changes, default=default, program="unclip plan --sample")
    clip, topology = _clip(recipe, path, clip_recipe), recipe.mesh.topology
    if topology is None:
        raise UserError("mesh.topology is not set: name the chips with --topology v5e:16x16")
    print(f"compiling the sampling of {path} for {topology} ...", flush=True)
    try:
        plans = make_sampling_plans(recipe, clip, how, topology, is_quick=not is_exact)
    except DoesNotFitError as error:
        print(f"does not fit: {error}; trying what needs less ...", flush=True)
        found = find_smaller(recipe, clip, how, topology, lambda text: print(f"  {text}"))
        if found is None:
            print("nothing that was tried fits: take chips with more memory")
            return 1
        print("\n\n".join(map(sampling_plan_text, found[1])))
        print(f"fits with: {found[0]}")
        return 1
    print("\n\n".join(map(sampling_plan_text, plans)))
    return 0


def _plan(recipe: Any, path: Path, clip_recipe: str | None, is_exact: bool) -> int:
    _prepare()
    from unclip_jax.training.planning.compiling import DoesNotFitError
    from unclip_jax.training.planning.plan import find_remedy, make_plan
    from unclip_jax.training.planning.plan_text import plan_text

    clip = _clip(recipe, path, clip_recipe)
    print(f"compiling {path} for {recipe.mesh.topology} ...", flush=True)
    try:
        plan = make_plan(recipe, clip, is_quick=not is_exact)
    except DoesNotFitError as error:
        print(f"does not fit: {error}; trying what needs less ...", flush=True)
        found = find_remedy(recipe, clip, lambda text: print(f"  {text}", flush=True))
        if found is None:
            print("nothing that was tried fits: take more chips, or chips with more memory")
            return 1
        changes, plan = found
        print(plan_text(plan))
        print(f"fits with: {' and '.join(changes)}")
        return 1
    print(plan_text(plan))
    return 0


def _clip(recipe: Any, path: Path, given: str | None) -> Any:
    """The recipe of the frozen CLIP: the one that is named, that is there, or that lies beside."""
    from unclip_jax.training.recipe import ON_CLIP
    from unclip_jax.training.recipes.clip import CLIPRecipe
    from unclip_jax.training.weights import read_clip_recipe

    if not isinstance(recipe, ON_CLIP):
        return None
    clip: Any = None
    if given is not None:
        clip = load_recipe(given)
    else:
        clip = read_clip_recipe(recipe.clip)
        if clip is None and (path.parent / "clip.py").is_file():
            clip = load_recipe(str(path.parent / "clip.py"))
    if clip is not None and not isinstance(clip, CLIPRecipe):
        raise UserError(f"{given or recipe.clip} is not the recipe of a CLIP: name another")
    return clip


def _settings(arguments: list[str]) -> list[str]:
    """`--set a.b=c` as `--a.b c`."""
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument != "--set" and not argument.startswith("--set="):
            rest.append(argument)
            continue
        pair = argument[len("--set=") :] if "=" in argument else next(waiting, "")
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UserError(f"--set {pair!r}: write --set batch_size=64")
        rest += [f"--{name.replace('_', '-')}", value]
    return rest
