"""The CLIP tools on held-out emoji: zero-shot classes, best captions, search.

    python benchmarks/clip_tools.py [--model emoji] [--split test_cells]

Classes are the groups of emojibase ("food & drink"), and the labels of the split's pictures ("red
apple"), first with one template at a time, then with ensembles; a guess is the share of the most
frequent class. A caption is right if it is the picture's own, of
all distinct ones. Search asks an index on disk for each caption, and numpy for the same by one
matrix product over embeddings that were never rounded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unclip_jax.clip_tools.captions import rank_captions
from unclip_jax.clip_tools.encoding import encode_pictures, encode_texts
from unclip_jax.clip_tools.index import open_index
from unclip_jax.clip_tools.index_writer import write_index
from unclip_jax.clip_tools.search import nearest_rows
from unclip_jax.clip_tools.zero_shot import TEMPLATES, classify
from unclip_jax.data.emoji_catalogue import STYLES
from unclip_jax.data.images import save_png
from unclip_jax.evaluation.pictures import Pictures, load_pictures
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.weights import load_clip

STYLED = tuple(f"{{}}, {style} style" for style in STYLES)
FORMS = ("{}", "a {}", "an emoji of {}")
"""As the model's training captions begin; they go on with a style, or not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--split", default="test_cells")
    parser.add_argument("--rows", type=int, default=None)
    options = parser.parse_args()
    unclip = UnCLIP({"clip": load_clip(options.model)})
    pictures = load_pictures(options.split, 64, limit=options.rows)
    print(f"{len(pictures.facts)} pictures of {options.split}\n")
    print_classes(unclip, pictures)
    print_captions(unclip, pictures)
    print_search(unclip, pictures)


def print_classes(unclip: UnCLIP, pictures: Pictures) -> None:
    """Accuracy by template, and of the ensembles."""
    truths = {"groups": [fact.group for fact in pictures.facts], "labels": list(pictures.labels)}
    forms = tuple(form + end for form in FORMS for end in ("", *(one[2:] for one in STYLED)))
    ensembles = {
        **{repr(template): (template,) for template in (*TEMPLATES, *STYLED)},
        f"the {len(TEMPLATES)} default templates": TEMPLATES,
        f"the {len(STYLED)} styles": STYLED,
        f"the {len(forms)} forms of the training captions": forms,
    }
    names = [f"{len(set(truth))} {name}" for name, truth in truths.items()]
    guesses = [Counter(truth).most_common(1)[0][1] / len(truth) for truth in truths.values()]
    print(f"| classes | {' | '.join(names)} |\n| --- | --- | --- |")
    print(f"| a guess | {' | '.join(f'{guess:.1%}' for guess in guesses)} |")
    for name, templates in ensembles.items():
        shares = []
        for truth in truths.values():
            best = classify(unclip, pictures.images, sorted(set(truth)), templates).best(1)
            shares.append(
                np.mean([row[0].text == own for row, own in zip(best, truth, strict=True)])
            )
        print(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)


def print_captions(unclip: UnCLIP, pictures: Pictures) -> None:
    """How often a picture's own caption is the best, and among the best five."""
    found = rank_captions(unclip, pictures.images, pictures.captions)
    best = found.best(5)
    own = list(zip(best, pictures.captions, strict=True))
    first = np.mean([row[0].text == caption for row, caption in own])
    five = np.mean([caption in [one.text for one in row] for row, caption in own])
    print(f"\n| captions: {len(found.texts)} | R@1 | R@5 |\n| --- | --- | --- |")
    print(f"| own caption | {first:.1%} | {five:.1%} |", flush=True)


def print_search(unclip: UnCLIP, pictures: Pictures) -> None:
    """R@1 of captions by the index and by numpy, and how often both name the same picture."""
    captions = pictures.captions
    queries = encode_texts(unclip, captions)
    exact = queries @ encode_pictures(unclip, pictures.images).T
    best = exact.argmax(axis=1)

    def recall(rows: np.ndarray) -> float:
        return float(
            np.mean([captions[row] == own for row, own in zip(rows, captions, strict=True)])
        )

    print("\n| search | R@1 | same first | same ten | indexed/s | one query |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| numpy, float32 | {recall(best):.1%} | | | | |")
    ten = np.argsort(-exact, axis=1, kind="stable")[:, :10]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        for number, image in enumerate(pictures.images):
            save_png(folder / "pictures" / f"{number:06d}.png", image)
        for dtype in ("float32", "float16"):
            out = folder / dtype
            began = time.monotonic()
            write_index(unclip, folder / "pictures", out, dtype=dtype, shard_rows=100)
            speed = len(captions) / (time.monotonic() - began)
            index = open_index(out)
            rows = nearest_rows(index, queries, 10)[1]
            nearest_rows(index, queries[:1], 10)
            began = time.monotonic()
            nearest_rows(index, queries[:1], 10)
            spent = time.monotonic() - began
            same = (np.mean(rows[:, 0] == best), np.mean((rows == ten).all(axis=1)))
            print(
                f"| index, {dtype} | {recall(rows[:, 0]):.1%} | {same[0]:.1%} | {same[1]:.1%} "
                f"| {speed:,.0f} | {spent * 1e3:.1f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
