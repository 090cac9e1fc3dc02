"""DALLE2-pytorch's decoder for `rival.py`: its `Unet`, `Decoder` and `DecoderTrainer` as its README
uses them. Nothing of this project is imported here."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RATE = 3e-4
"""Its trainer asks for 1e-4, at most 5e-4."""
CAPTION = 24
"""Tokens."""


def import_package() -> Any:
    """The package. A CPU build of torch lacks two operators that torchvision's own wheel names, and
    new setuptools a module that it imports."""
    import types

    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_package.library = library  # type: ignore[attr-defined]
    sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources"))
    import dalle2_pytorch

    return dalle2_pytorch


def make_decoder(embedding: int, text: int, parameters: int) -> tuple[Any, int, int]:
    """The decoder of the dim whose number of parameters is the nearest.

    Args:
        embedding: width of the image embeddings.
        text: width of the text states.
    Returns:
        the decoder, its dim and its number of parameters.
    """
    package = import_package()

    def unet(dim: int) -> Any:
        return package.Unet(
            dim=dim,
            image_embed_dim=embedding,
            text_embed_dim=text,
            cond_dim=embedding // 2,  # equal to image_embed_dim, a projection would be skipped
            channels=3,
            dim_mults=(1, 2, 4),
            cond_on_text_encodings=True,
            max_text_len=CAPTION,
        )

    def size(module: Any) -> int:
        return sum(one.numel() for one in module.parameters())

    dim = min(range(8, 72, 8), key=lambda dim: abs(math.log(size(unet(dim)) / parameters)))
    decoder = package.Decoder(
        unet(dim), image_size=64, timesteps=1000, image_cond_drop_prob=0.1, text_cond_drop_prob=0.5
    )
    return decoder, dim, size(decoder)


def train(work: Path, marks: Sequence[float], parameters: int, batch: int, decay: float) -> None:
    """Train until the last mark, in minutes since the process began; its averaged weights are saved
    at each.

    Args:
        work: has pairs.npz; gets theirs-MARK.pt and at the end theirs.json.
        decay: of the average.
    """
    began = time.time()
    import torch

    package = import_package()
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    pairs = np.load(work / "pairs.npz")
    images = torch.from_numpy(pairs["images"]).permute(0, 3, 1, 2)
    embeddings, states = torch.from_numpy(pairs["embeddings"]), torch.from_numpy(pairs["states"])
    decoder, dim, size = make_decoder(embeddings.shape[-1], states.shape[-1], parameters)
    trainer = package.DecoderTrainer(
        decoder, lr=RATE, wd=1e-2, ema_beta=decay, ema_update_after_step=100, ema_update_every=1
    )
    left, step, found = list(marks), 0, []
    rng = np.random.default_rng(0)
    while left:
        row = rng.integers(len(images), size=batch)
        trainer(
            images[row].float() / 255,
            image_embed=embeddings[row].clone(),  # it is scaled in place
            text_encodings=states[row, rng.integers(states.shape[1], size=batch)],
            unet_number=1,
        )
        trainer.update(unet_number=1)
        step += 1
        elapsed = (time.time() - began) / 60
        if step % 50 == 0:
            print(f"theirs: step {step}, {elapsed:.1f} min", file=sys.stderr, flush=True)
        if elapsed >= left[0]:
            mark = left.pop(0)
            torch.save(trainer.ema_unets[0].ema_model.state_dict(), work / f"theirs-{mark:g}.pt")
            found.append({"minutes": mark, "steps": step, "dim": dim, "parameters": size})
    (work / "theirs.json").write_text(json.dumps(found))


def sample(
    weights: Path,
    embeddings: np.ndarray,
    states: np.ndarray,
    parameters: int,
    steps: int,
    guidance: float,
    rows: int = 24,
) -> np.ndarray:
    """[N, 64, 64, 3] uint8 by its DDIM.

    Args:
        embeddings: [N, E] float32.
        states: [N, L, W] float32, 0 where there is no token.
        rows: of a batch.
    """
    import torch

    torch.manual_seed(0)
    decoder, _, _ = make_decoder(embeddings.shape[-1], states.shape[-1], parameters)
    decoder.unets[0].load_state_dict(torch.load(weights, weights_only=True))
    decoder.eval()
    decoder.sample_timesteps = (steps,)
    parts = []
    for row in range(0, len(embeddings), rows):
        given = slice(row, row + rows)
        with torch.no_grad():
            drawn = decoder.sample(
                image_embed=torch.from_numpy(embeddings[given]),
                text_encodings=torch.from_numpy(states[given]),
                cond_scale=guidance,
            )
        parts.append(drawn.clamp(0, 1).permute(0, 2, 3, 1).numpy())
    return np.round(np.concatenate(parts) * 255).astype(np.uint8)
