"""A picture drawn again from what its file says it was made from.

The text in a file is anybody's: it is read as data, every number in it has a bound, and it is drawn
only if what would be written again says exactly the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unclip_jax.bounded import parse_json
from unclip_jax.config import from_dict
from unclip_jax.data.provenance import FORMAT, versions
from unclip_jax.editing.drawing import draw_edit
from unclip_jax.editing.facts import picture_id
from unclip_jax.errors import UserError
from unclip_jax.generation.bundle import UPSAMPLED, Bundle
from unclip_jax.generation.drawing import Request, draw
from unclip_jax.generation.facts import make_facts
from unclip_jax.generation.programs import PRIORS
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.text_to_image import text_batches, text_programs
from unclip_jax.printable import count_of, printable

TEXT = "text"
"""The verb of pictures that start from none."""
LIMITS = {
    "num_steps": 4000,
    "batch_size": 1024,
    "upsample_batch_size": 64,
    "num_candidates": 256,
    "iterations": 100,
    "tile": 16384,
    "tile_overlap": 16384,
}
"""Largest values of what decides memory or time, wherever they stand."""
_STEPS = re.compile(r"fast27|ddim[0-9]{1,4}|[0-9]{1,4}(,[0-9]{1,4}){0,100}")
_ID = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class Origin:
    """What a picture was made from, checked."""

    facts: dict[str, Any]
    """All of it, without format and versions."""
    sampling: SamplingConfig
    edit: Any
    """None of a picture from text."""
    versions: dict[str, str]
    """Of the packages that drew it."""

    @property
    def inputs(self) -> list[str]:
        """`picture_id` of the pictures that it started from."""
        return self.facts.get("inputs", [])

    def other_versions(self) -> list[str]:
        """'jax 0.10.1 (here 0.10.2)' of each package that is another one here."""
        here = versions()
        return [
            f"{name} {printable(then, 40)} (here {here.get(name, 'none')})"
            for name, then in self.versions.items()
            if here.get(name) != then
        ]


def read_origin(text: str, kinds: Mapping[str, type]) -> Origin:
    """What a file's text means.

    Args:
        text: as `data.provenance.facts_text` writes it.
        kinds: of the edits, by their verbs.
    Raises:
        UserError: it is not ours, of another format, or holds what no picture is made from.
    """
    try:
        row = parse_json(text)
    except ValueError as error:
        raise _odd(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise _odd("no object")
    if row.get("format") != FORMAT:
        raise UserError(
            f"its metadata are of format {printable(row.get('format'), 40)}, this version reads "
            f"{FORMAT}: use the version of unclip_jax that drew it"
        )
    facts = {name: value for name, value in row.items() if name not in ("format", "versions")}
    verb = facts.get("verb")
    if not isinstance(verb, str) or (verb != TEXT and verb not in kinds):
        raise _odd(f"verb is {_shown(verb)}")
    _check_facts(facts)
    _check_sizes(facts["sampling"])
    try:
        sampling = from_dict(SamplingConfig, facts["sampling"], "sampling.")
        edit = None if verb == TEXT else from_dict(kinds[verb], facts.get("edit"), "edit.")
    except UserError as error:
        raise _odd(str(error)) from None
    return Origin(facts, sampling, edit, _texts(row, "versions"))


def draw_again(bundle: Bundle, origin: Origin, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """The picture; its facts are the origin's.

    Args:
        pictures: what it may have started from; those that it did not are passed over.
    Returns:
        [H, W, 3] uint8.
    Raises:
        UserError: other weights than it was drawn with, a picture that is missing, or facts that
            this version would not write.
    """
    check_weights(bundle, origin)
    facts = origin.facts
    if origin.edit is None:
        request = Request(
            facts["prompt"],
            facts["seed"],
            facts["index"],
            facts.get("negative", ""),
            facts.get("guidance"),
        )
        _check_same(_text_facts(bundle, origin, request), facts)
        return _draw_text(bundle, origin, request)
    samples = draw_edit(
        bundle,
        origin.edit,
        find_inputs(origin, pictures),
        None,
        facts["seed"],
        origin.sampling,
        prior=facts["prior"],
        upsample=facts["upsample"],
        indices=[facts["index"]],
    )
    _check_same(samples.metadata[0], facts)
    return samples.images[0]


def check_weights(bundle: Bundle, origin: Origin) -> None:
    """UserError unless the stages that drew the picture are those of the model."""
    for name, then in _texts(origin.facts, "weights").items():
        if name not in bundle.stages:
            raise UserError(
                f"it was drawn with the stage {printable(name, 40)}, which this model lacks: name "
                "the model that drew it with --model"
            )
        if (here := bundle.stage_id(name)) != then:
            raise UserError(
                f"it was drawn with other weights of the {name} ({printable(then, 40)}, this "
                f"model's are {here}): name the model that drew it with --model"
            )


def find_inputs(origin: Origin, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The pictures that it started from, in their order, by their pixels.

    Raises:
        UserError: one is missing.
    """
    known = {picture_id(picture): picture for picture in pictures}
    missing = [one for one in origin.inputs if one not in known]
    if missing:
        raise UserError(
            f"it started from {count_of(len(origin.inputs), 'picture')}, and the one whose pixels "
            f"are {missing[0]} is not among those given: name its file with --input"
        )
    return [known[one] for one in origin.inputs]


def _text_facts(bundle: Bundle, origin: Origin, request: Request) -> dict[str, Any]:
    how, prior, upsample = origin.sampling, origin.facts["prior"], origin.facts["upsample"]
    stages = {name for one in text_programs(bundle, how, prior, upsample) for name in one.stages}
    weights = {name: bundle.stage_id(name) for name in sorted(stages)}
    return make_facts(how, prior, upsample, origin.facts["model"], weights)(request)


def _draw_text(bundle: Bundle, origin: Origin, request: Request) -> np.ndarray:
    how, prior, upsample = origin.sampling, origin.facts["prior"], origin.facts["upsample"]
    links, batches = text_batches(bundle, [request], how, prior, upsample)
    return next(draw(bundle.runner, links, batches, how.stages_at_once)).images[0]


def _check_same(own: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """UserError unless the picture's facts are those that would be written again."""
    # The model is a name; its weights are compared.
    names = [name for name in {**facts, **own} if name != "model"]
    odd = [name for name in names if own.get(name) != facts.get(name)]
    if odd:
        raise _odd(f"{printable(odd[0], 40)} is not what this version writes for such a picture")


def _check_facts(facts: Mapping[str, Any]) -> None:
    """Types and ranges of what every picture has."""
    for name in ("model", "prompt"):
        if not isinstance(facts.get(name), str):
            raise _odd(f"{name} is {_shown(facts.get(name))}")
    for name, end in (("seed", 2**32), ("index", 2**31)):
        value = facts.get(name)
        if type(value) is not int or not 0 <= value < end:
            raise _odd(f"{name} is {_shown(value)}")
    guidance = facts.get("guidance", 1.0)
    is_number = isinstance(guidance, (int, float)) and not isinstance(guidance, bool)
    if not is_number or not abs(guidance) <= 1e6:
        raise _odd(f"guidance is {_shown(guidance)}")
    if not isinstance(facts.get("negative", ""), str):
        raise _odd(f"negative is {_shown(facts['negative'])}")
    if facts.get("prior") not in (*PRIORS, "none"):
        raise _odd(f"prior is {_shown(facts.get('prior'))}")
    if facts.get("upsample") not in (None, *UPSAMPLED):
        raise _odd(f"upsample is {_shown(facts.get('upsample'))}")
    if not isinstance(facts.get("sampling"), dict):
        raise _odd(f"sampling is {_shown(facts.get('sampling'))}")
    inputs = facts.get("inputs", [])
    is_list = isinstance(inputs, list) and len(inputs) <= 100
    if not is_list or not all(isinstance(one, str) and _ID.fullmatch(one) for one in inputs):
        raise _odd(f"inputs is {_shown(inputs)}")


def _check_sizes(sampling: Any, where: str = "sampling") -> None:
    """UserError for numbers beyond `LIMITS`, before anything is made of them."""
    if not isinstance(sampling, dict):
        return
    for name, value in sampling.items():
        _check_sizes(value, f"{where}.{name}")
        if name not in LIMITS:
            continue
        too_large = isinstance(value, (int, float)) and value > LIMITS[name]
        too_long = isinstance(value, list) and len(value) > LIMITS[name]
        if too_large or too_long or (isinstance(value, str) and not _STEPS.fullmatch(value)):
            raise _odd(f"{where}.{name} is {_shown(value)}, the limit is {LIMITS[name]}")


def _texts(row: Mapping[str, Any], name: str) -> dict[str, str]:
    """A small object of texts."""
    found = row.get(name)
    if not isinstance(found, dict) or len(found) > 100:
        raise _odd(f"{name} is {_shown(found)}")
    if not all(isinstance(value, str) for value in found.values()):
        raise _odd(f"{name} is {_shown(found)}")
    return found


def _shown(value: Any) -> str:
    return printable(repr(value), 60)


def _odd(reason: str) -> UserError:
    return UserError(f"its metadata are not those of a picture of ours: {reason}")
