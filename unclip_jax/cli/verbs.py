"""Every verb of `unclip` and of sample.py, in the order in which both show them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from unclip_jax.errors import choose


@dataclass(frozen=True)
class Verb:
    """One command."""

    name: str
    text: str
    """What it does, in a line."""
    module: str
    """Of `unclip_jax.cli`; `main` of it runs the verb."""
    options: str = ""
    """'module:Class' of `unclip_jax.cli`, the dataclass that it parses, for shell completion."""


GROUPS: dict[str, tuple[Verb, ...]] = {
    "pictures": (
        Verb("text", "pictures from text", "sample", "text_options:TextOptions"),
        Verb("vary", "other pictures of the same", "sample", "edit:VaryOptions"),
        Verb(
            "reconstruct",
            "pictures inverted and decoded again",
            "sample",
            "edit:ReconstructOptions",
        ),
        Verb("interpolate", "between pictures, a strip", "sample", "edit:InterpolateOptions"),
        Verb("diff", "from one description to another, a strip", "sample", "edit:DiffOptions"),
        Verb("mix", "texts and pictures, weighted, as one", "sample", "edit:MixOptions"),
        Verb(
            "pca",
            "a picture from few and many components of its embedding",
            "sample",
            "edit:ComponentsOptions",
        ),
        Verb(
            "compare-conditioning",
            "the same prompt with and without a prior",
            "sample",
            "edit:CompareOptions",
        ),
        Verb("inpaint", "a part of a photo painted anew", "sample", "edit:InpaintOptions"),
        Verb("outpaint", "a photo beyond its borders", "sample", "edit:OutpaintOptions"),
        Verb("upscale", "any picture at 4 or 16 times its side", "sample", "edit:UpscaleOptions"),
        Verb("from", "a picture again, from its own metadata", "sample", "reproduce:FromOptions"),
    ),
    "CLIP": (
        Verb(
            "classify", "which of some labels a picture shows", "sample", "classify:ClassifyOptions"
        ),
        Verb("caption", "the captions of a file that fit best", "sample", "caption:CaptionOptions"),
        Verb("index", "a folder's pictures, ready to be searched", "sample", "index:IndexOptions"),
        Verb("search", "pictures nearest to texts and pictures", "sample", "search:SearchOptions"),
    ),
    "training": (
        Verb("train", "train a stage from a recipe", "train"),
        Verb("plan", "would it fit on TPUs that are not here, and how fast is it", "plan"),
        Verb("data", "build, count and look at data sets", "data"),
        Verb("embed", "CLIP embeddings of a data set, once", "embed", "embed:EmbedOptions"),
        Verb(
            "fit-codes",
            "PCA and buckets for the autoregressive prior",
            "fit_codes",
            "fit_codes:FitOptions",
        ),
        Verb(
            "fit-linear",
            "the linear prior in closed form, from one pass over a data set",
            "fit_linear",
            "fit_linear:LinearOptions",
        ),
        Verb(
            "fit-variance",
            "the diffusion prior's best sampling variances, from held-out pictures",
            "fit_variance",
            "fit_variance:VarianceOptions",
        ),
    ),
    "models": (
        Verb(
            "convert",
            "a PyTorch checkpoint (Karlo, CLIP, GLIDE, ADM, DALLE2-pytorch) as a folder of ours",
            "convert",
            "convert:ConvertOptions",
        ),
        Verb(
            "compare",
            "a PyTorch reference beside ours: every block, every step, the pictures",
            "compare",
            "compare:CompareOptions",
        ),
        Verb(
            "export",
            "a run's averaged weights as safetensors with config",
            "export",
            "export:ExportOptions",
        ),
        Verb(
            "evaluate",
            "retrieval, prior cosines and caption match of a model",
            "evaluate",
            "evaluate:EvaluateOptions",
        ),
    ),
    "this installation": (
        Verb(
            "doctor",
            "what is here, and what is wrong: devices, versions, memory, disk",
            "doctor",
            "doctor:DoctorOptions",
        ),
        Verb(
            "inspect",
            "what a file or folder holds: weights, run, model, index, data, picture",
            "inspect",
            "inspect:InspectOptions",
        ),
        Verb(
            "completion",
            "a script that completes verbs, flags and choices in a shell",
            "completion",
            "completion:CompletionOptions",
        ),
    ),
}
VERBS = {verb.name: verb for verbs in GROUPS.values() for verb in verbs}
SAMPLE = {name: verb for name, verb in VERBS.items() if verb.module == "sample"}
"""Those that sample.py has too."""


def called(verb: str) -> str:
    """'unclip VERB', 'sample.py VERB' or 'train.py': what the user typed to come here."""
    path = Path(sys.argv[0])
    if path.stem == "unclip" or path.parts[-2:] == ("unclip_jax", "__main__.py"):
        return f"unclip {verb}"
    return "train.py" if verb == "train" else f"sample.py {verb}"


def usage(program: str, verbs: dict[str, Verb]) -> str:
    """What `program --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"usage: {program} VERB ..."]
    for group, members in GROUPS.items():
        rows = [f"  {verb.name:{width}}  {verb.text}" for verb in members if verb.name in verbs]
        lines += ["", f"{group}:", *rows] if rows else []
    return "\n".join([*lines, "", f"`{program} VERB --help` shows every option with its default."])


def unknown_verb(given: str, verbs: dict[str, Verb]) -> str:
    """The line about a verb that is not in `verbs`."""
    return f"verb {given!r} is unknown: {choose(given, verbs)}"
