"""The paper's findings, measured again on the emoji.

    python -m benchmarks.findings --judge runs/judge [--model emoji] [--only guidance ...]

Every finding writes benchmarks/findings/results/NAME.json; then docs/findings.md and its plots are
made from all that are there. Stopped and started again, it goes on. All of them take hours on two
CPU cores, minutes on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import ModuleType

from benchmarks.findings import (
    best_of_two,
    components,
    conditioning,
    eta,
    guidance,
    page,
    text_diffs,
    typography,
)
from benchmarks.findings.bench import Bench
from unclip_jax.evaluation.extractors import inception_extractor
from unclip_jax.evaluation.inception_weights import load_inception
from unclip_jax.evaluation.pictures import load_pictures
from unclip_jax.pipeline import UnCLIP

FINDINGS: dict[str, ModuleType] = {
    "conditioning": conditioning,
    "guidance": guidance,
    "best_of_two": best_of_two,
    "components": components,
    "eta": eta,
    "text_diffs": text_diffs,
    "typography": typography,
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="emoji", help="a shipped model or a folder")
    parser.add_argument("--judge", required=True, help="run or folder of configs/emoji/judge.py")
    parser.add_argument("--only", nargs="*", default=list(FINDINGS), choices=FINDINGS)
    parser.add_argument("--split", default="test_cells")
    parser.add_argument("--rows", type=int, default=None, help="prompts; all of the split if none")
    parser.add_argument("--steps", type=int, default=20, help="of the decoder")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--drawings", type=Path, default=Path("runs/findings"))
    options = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:.0f} s] {text}", file=sys.stderr, flush=True)

    unclip = UnCLIP.load(options.model)
    bench = Bench(
        unclip=unclip,
        judge=UnCLIP.load({"clip": options.judge}),
        inception=inception_extractor(load_inception()),
        pictures=load_pictures(options.split, unclip.side, limit=options.rows),
        split=options.split,
        folder=options.drawings,
        say=say,
        steps=options.steps,
        guidance=options.guidance,
    )
    RESULTS.mkdir(exist_ok=True)
    for name in options.only:
        say(FINDINGS[name].TITLE)
        result = {
            "split": options.split,
            "prompts": len(bench.captions),
            "steps": options.steps,
            "guidance": options.guidance,
            "stages": {stage: unclip.stages[stage].step for stage in sorted(unclip.stages)},
            "rows": FINDINGS[name].measure(bench),
        }
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    page.write(RESULTS)


if __name__ == "__main__":
    main()
