"""DALLE2-pytorch on the same bench: the same pictures, captions, CLIP embeddings, number of
parameters, batch and minutes of the same machine, one after the other; samples by the same metrics.

    python -m benchmarks.findings.rival --judge runs/judge --clip runs/clip --minutes 30

The 64 × 64 decoders are compared, since that is where the time goes; both are given the image
embeddings of this project's prior when they draw. Each is trained as its own README says: here
train.py with configs/emoji/decoder.py, there its `DecoderTrainer` on `Unet` and `Decoder`. Learning
rates are constant, since minutes and not steps are given, and the decay of both averages of weights
is the recipe's. The clock starts with the process: imports, compilation and checkpoints count.

Wants the packages of tests/reference-packages.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.findings import dalle2_pytorch_decoder

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
OURS, THEIRS = "unclip_jax", "DALLE2-pytorch"
EVERY = 50
"""Steps between checkpoints of ours."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clip", required=True, help="run or folder of the CLIP of both")
    parser.add_argument("--model", default="emoji", help="whose prior draws the embeddings")
    parser.add_argument("--judge", required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--marks", type=float, nargs="*", default=[5, 10, 20, 30])
    parser.add_argument("--steps", type=int, default=20, help="of DDIM, for both")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=None, help="prompts of test_cells")
    parser.add_argument("--work", type=Path, default=Path("runs/rival"))
    parser.add_argument("--as-theirs", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.marks = [mark for mark in options.marks if mark <= options.minutes]
    if options.as_theirs:
        parameters, batch, decay = our_parameters()
        dalle2_pytorch_decoder.train(options.work, options.marks, parameters, batch, decay)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "pairs.npz").is_file():
        save_pairs(options)
    train_ours(options)
    started = [sys.executable, "-m", "benchmarks.findings.rival", *sys.argv[1:], "--as-theirs"]
    if not (options.work / "theirs.json").is_file():
        subprocess.run(started, cwd=ROOT, check=True)
    measure(options)


def save_pairs(options: argparse.Namespace) -> None:
    """What the other trains on: pictures, their CLIP embeddings, and the states of their captions,
    four drawn a picture."""
    from unclip_jax.data.captions import draw_caption
    from unclip_jax.evaluation.pictures import load_pictures
    from unclip_jax.pipeline import UnCLIP

    unclip = UnCLIP.load({"clip": options.clip})
    pictures = load_pictures("train", 64)
    rng = np.random.default_rng(0)
    texts = [draw_caption(fact, rng) for fact in pictures.facts for _ in range(4)]
    np.savez(
        options.work / "pairs.npz",
        images=pictures.images,
        embeddings=unclip.encode_image(pictures.images),
        states=text_states(unclip, texts).reshape(len(pictures.facts), 4, -1, text_width(unclip)),
    )


def text_width(unclip: Any) -> int:
    """Of the states of CLIP's text encoder."""
    return unclip.clip.recipe.model.text.width


def text_states(unclip: Any, texts: Sequence[str]) -> np.ndarray:
    """[N, L, W] float32: CLIP's states of the captions, 0 where there is no token."""
    import jax

    from unclip_jax.models.clip import CLIP
    from unclip_jax.models.text import text_mask

    model, params = CLIP(unclip.clip.recipe.model), unclip.clip.params

    @jax.jit
    def encode(tokens: Any) -> Any:
        _, states = model.apply({"params": params}, tokens, method=CLIP.encode_text)  # type: ignore
        return states * text_mask(tokens)[..., None]

    tokens = np.asarray(unclip.tokenizer(texts), np.int32)
    count, step = len(tokens), 256
    tokens = np.pad(tokens, ((0, -count % step), (0, 0)))
    parts = [np.asarray(encode(tokens[row : row + step])) for row in range(0, len(tokens), step)]
    return np.concatenate(parts)[:count]


def train_ours(options: argparse.Namespace) -> None:
    """train.py for the minutes; then a run folder for each mark, with the newest checkpoint that
    was there."""
    run, done = options.work / "ours", options.work / "ours.json"
    if done.is_file():
        return
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "train.py", "configs/emoji/decoder.py", "--workdir", str(run)]
    command += ["--clip", str(options.clip), "--optim.schedule", "constant", "--steps", "1000000"]
    command += ["--checkpoint.every", str(EVERY), "--checkpoint.keep", "100000"]
    command += ["--log.preview_every", "0"]
    flags = os.environ.get("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    began = time.time()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags})
    time.sleep(60 * options.minutes)
    process.send_signal(signal.SIGTERM)
    process.wait()
    marks = []
    for mark in options.marks:
        steps = [
            int(folder.name)
            for folder in (run / "checkpoints").iterdir()
            if folder.name.isdigit() and folder.stat().st_mtime <= began + 60 * mark
        ]
        if not steps:
            raise SystemExit(f"no checkpoint after {mark:g} minutes: give later marks")
        into = options.work / f"ours-{mark:g}"
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(run, into, ignore=shutil.ignore_patterns("checkpoints"))
        shutil.copytree(
            run / "checkpoints" / str(max(steps)), into / "checkpoints" / str(max(steps))
        )
        for manifest in (run / "checkpoints").glob(f"{max(steps)}.*"):
            shutil.copy(manifest, into / "checkpoints")
        marks.append({"minutes": mark, "steps": max(steps)})
    done.write_text(json.dumps(marks))


def our_parameters() -> tuple[int, int, float]:
    """Parameters, batch and EMA decay of configs/emoji/decoder.py."""
    import jax

    from unclip_jax.cli.overrides import load_recipe
    from unclip_jax.training.stages import init_params

    recipe = load_recipe(str(ROOT / "configs" / "emoji" / "decoder.py"))
    shapes = jax.eval_shape(lambda key: init_params(recipe, key), jax.random.key(0))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    return parameters, recipe.batch_size, recipe.ema_decay


def measure(options: argparse.Namespace) -> None:
    """The samples of every mark through the metrics of all findings."""
    from dataclasses import replace

    from benchmarks.findings import page
    from benchmarks.findings.bench import Bench
    from unclip_jax.evaluation.extractors import inception_extractor
    from unclip_jax.evaluation.inception_weights import load_inception
    from unclip_jax.evaluation.pictures import load_pictures
    from unclip_jax.pipeline import UnCLIP
    from unclip_jax.training.weights import load_stage

    unclip = UnCLIP.load(options.model)
    bench = Bench(
        unclip=unclip,
        judge=UnCLIP.load({"clip": options.judge}),
        inception=inception_extractor(load_inception()),
        pictures=load_pictures("test_cells", 64, limit=options.rows),
        split="test_cells",
        folder=options.work / "drawings",
        say=lambda text: print(text, file=sys.stderr, flush=True),
        steps=options.steps,
        guidance=options.guidance,
    )
    embeddings = bench.draw_prior("diffusion")
    states = text_states(unclip, bench.captions)
    ours = json.loads((options.work / "ours.json").read_text())
    theirs = json.loads((options.work / "theirs.json").read_text())
    decoder = replace(bench.how.decoder, method="ddim", spacing="respaced", eta=0.0)
    how, rows = replace(bench.how, decoder=decoder), []
    for mark in ours:
        stage = load_stage(options.work / f"ours-{mark['minutes']:g}")
        own = replace(bench, unclip=UnCLIP({**unclip.stages, "decoder": stage}, how))
        drawn = own.draw("ours", embeddings, how)
        rows.append(_row(bench, OURS, mark, drawn))
    for mark in theirs:
        drawn = bench.keep(
            "theirs",
            [mark, options.steps, options.guidance, embeddings],
            lambda mark=mark: dalle2_pytorch_decoder.sample(
                options.work / f"theirs-{mark['minutes']:g}.pt",
                embeddings,
                states,
                our_parameters()[0],
                options.steps,
                options.guidance,
            ),
        )
        rows.append(_row(bench, THEIRS, mark, drawn))
    result = {
        "split": "test_cells",
        "prompts": len(bench.captions),
        "steps": options.steps,
        "guidance": options.guidance,
        "stages": {stage: unclip.stages[stage].step for stage in ("clip", "prior")},
        "parameters": {OURS: our_parameters()[0], THEIRS: theirs[0]["parameters"]},
        "batch": our_parameters()[1],
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / "rival.json").write_text(text, encoding="utf-8")
    page.write(RESULTS)


def _row(bench: Any, way: str, mark: dict[str, Any], drawn: np.ndarray) -> dict[str, Any]:
    name = f"{way}, {mark['minutes']:g} min, {mark['steps']} steps"
    return {**bench.score(name, [drawn]), "way": way, "minutes": mark["minutes"]}


if __name__ == "__main__":
    main()
