"""`unclip VERB ...`, `python -m unclip_jax VERB ...`: one way in for every command."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

from unclip_jax.errors import UserError
from unclip_jax.printable import printable

VERBS = {
    "train": "train a stage from a recipe",
    "plan": "what training would take on TPUs that are not here, and whether it fits",
    "text": "sample pictures from text (sample.py text)",
    "data": "build, count and look at data sets",
    "embed": "CLIP embeddings of a data set, once, for training without the encoder",
    "fit-codes": "PCA and buckets for the autoregressive prior",
    "fit-linear": "the linear prior in closed form, from one pass over a data set",
    "fit-variance": "the diffusion prior's best sampling variances, from held-out pictures",
    "convert": "a PyTorch checkpoint (Karlo, CLIP, GLIDE, ADM, DALLE2-pytorch) as a folder of ours",
    "compare": "a PyTorch reference beside ours: every block, every step, the pictures",
    "export": "a run's averaged weights as safetensors with config",
    "evaluate": "retrieval, prior cosines and caption match of a model",
}
_MODULES = {"text": "sample"}
"""Where a verb is not its module's name."""
_LONGEST = 4000
"""Characters of a line about a mistake."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print("usage: unclip VERB ...\n")
        print("\n".join(f"  {verb:12} {text}" for verb, text in VERBS.items()))
        print("\n`unclip VERB --help` says more.")
        sys.exit(0 if given else 2)
    verb, *rest = given

    def command(rest: Sequence[str]) -> int | None:
        if verb not in VERBS:
            raise UserError(f"verb {verb!r} is unknown: choose one of {', '.join(VERBS)}")
        module = import_module(f"unclip_jax.cli.{_MODULES.get(verb, verb.replace('-', '_'))}")
        return module.main([verb, *rest] if module.__name__.endswith(".sample") else rest)

    run(command, rest)


def run(command: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> None:
    """`command(arguments)`; a user's mistake becomes one line on standard error and a code.

    What that line quotes from outside (a name, a prompt) is escaped, so that it cannot act on the
    terminal; and no file's name, in whatever encoding, can make printing it fail.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Pillow warns above 89 million pixels; `decode_image` refuses 64 million in words of its own.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    try:
        sys.exit(command(arguments) or 0)
    except UserError as error:
        lines = [*error.details, f"error: {' '.join(str(error).split())}"]
        print("\n".join(printable(line, _LONGEST) for line in lines), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
