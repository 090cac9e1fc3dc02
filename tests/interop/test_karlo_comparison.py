"""Small Karlos of every shape beside diffusers: each block, each step, and what a change shows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.interop.clip_models import live
from tests.interop.karlo_models import (
    PROMPTS,
    Tiny,
    edit_tensor,
    make_folder,
    tensor_names,
    weights_of,
)
from unclip_jax.interop.comparison.karlo import compare_karlo
from unclip_jax.interop.comparison.karlo_reference import record_karlo
from unclip_jax.interop.comparison.rows import Row, changed_tensors, table
from unclip_jax.interop.comparison.trace import Trace, digests, load_trace, save_trace
from unclip_jax.interop.karlo.diffusers_folder import open_diffusers_folder
from unclip_jax.interop.open_file import open_file

STEPS = (4, 4, 3)
PLAIN = Tiny(has_image_encoder=True)
OTHERS = {
    "wide": Tiny(
        seed=1,
        embedding=20,
        context=9,
        text_heads=5,
        prior=(3, 8, 3),
        prior_clip=1.5,
        channels=(8, 12),
        layers=(1, 2),
        head=4,
        groups=4,
        attends=(False, True),
        context_width=14,
        tokens=3,
        size=8,
        super_res=("first",),
        super_res_channels=(4, 12),
        super_res_layers=2,
        super_res_time_norm="scale_shift",
    ),
    "variations": Tiny(
        seed=2,
        embedding=8,
        context=7,
        prior=None,
        has_image_encoder=True,
        channels=(12, 24),
        head=6,
        groups=3,
        attends=(True, True),
        tokens=2,
        time_norm="default",
        super_res=(),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def highest_precision() -> Iterator[None]:
    """And programs that are quick to compile: the same sums, less fused."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.default_matmul_precision("highest"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trace]:
    """A folder and what diffusers made of it, read back from its file."""
    live("diffusers")
    folder = make_folder(PLAIN, tmp_path_factory.mktemp("plain"))
    path = folder.parent / "trace.npz"
    save_trace(record_karlo(folder, PLAIN.tokenizer, PROMPTS, STEPS, 0), path)
    return folder, load_trace(path, "karlo")


def rows_of(folder: Path, trace: Trace, stages: set[str] | None = None) -> Iterator[Row]:
    model = open_diffusers_folder(folder, "diffusers")
    model = model if stages is None else model.only(stages)
    yield from compare_karlo(model, trace, lambda name: model.stages[name].load(None, ""))


def assert_passes(rows: list[Row], tiny: Tiny) -> None:
    assert all(row.passes for row in rows), table(rows)
    names = [row.name for row in rows]
    wanted = {"text: embedding", "decoder: mid_block.resnets.1", "decoder: picture"}
    if tiny.has_image_encoder:
        wanted |= {"image: embedding"}
    if tiny.prior is not None:
        wanted |= {"prior: image embedding", "prior: transformer_blocks.0"}
    if tiny.super_res:
        wanted |= {"super_res: picture"}
        wanted |= {f"super_res_{part}: mid_block.resnets.1" for part in tiny.super_res}
    assert wanted <= set(names)
    assert len(set(names)) == len(names)


def test_a_whole_folder_agrees_with_diffusers(recorded: tuple[Path, Trace]) -> None:
    assert_passes(list(rows_of(*recorded)), PLAIN)


@pytest.mark.parametrize("name", OTHERS)
def test_other_shapes_agree_with_diffusers(name: str, tmp_path: Path) -> None:
    live("diffusers")
    tiny = OTHERS[name]
    folder = make_folder(tiny, tmp_path / "model")
    trace = record_karlo(folder, tiny.tokenizer, PROMPTS[:1], STEPS, tiny.seed)
    assert_passes(list(rows_of(folder, trace)), tiny)
    assert ("prior" in open_diffusers_folder(folder).stages) is (tiny.prior is not None)


NUDGED = [
    ("decoder", "decoder", "down_blocks.1.attentions.0.add_k_proj.weight"),
    ("decoder", "decoder", "mid_block.resnets.1.conv2.weight"),
    ("decoder", "decoder", "up_blocks.1.resnets.0.conv2.bias"),
    ("prior", "prior", "transformer_blocks.1.attn1.to_v.weight"),
    ("prior", "prior", "transformer_blocks.0.ff.net.2.bias"),
    ("super_res_first", "upsampler_256", "up_blocks.0.upsamplers.0.conv1.weight"),
    ("super_res_last", "upsampler_256_last", "down_blocks.0.resnets.0.time_emb_proj.bias"),
]


@pytest.mark.parametrize(("component", "stage", "tensor"), NUDGED)
def test_the_first_row_that_fails_is_the_block_that_changed(
    recorded: tuple[Path, Trace], component: str, stage: str, tensor: str, tmp_path: Path
) -> None:
    folder, trace = recorded
    changed = nudged(folder, tmp_path, component, tensor)
    failing = next(row for row in rows_of(changed, trace, {stage}) if not row.passes)
    block = failing.name.removeprefix(f"{component}: ")
    assert tensor.startswith(f"{block}."), failing


@pytest.mark.parametrize(
    ("tensor", "row"),
    [
        ("clip_extra_context_tokens_proj.weight", "decoder: context"),
        ("text_encoder_hidden_states_norm.bias", "decoder: context"),
        ("learned_classifier_free_guidance_embeddings", "decoder: time condition"),
        ("embedding_proj.bias", "decoder: time condition"),
    ],
)
def test_a_change_around_the_unet_is_told_from_one_in_it(
    recorded: tuple[Path, Trace], tensor: str, row: str, tmp_path: Path
) -> None:
    changed = nudged(recorded[0], tmp_path, "text_proj", tensor)
    failing = next(r for r in rows_of(changed, recorded[1], {"decoder"}) if not r.passes)
    assert failing.name == row


def test_digests_name_any_tensor_that_changed(recorded: tuple[Path, Trace], tmp_path: Path) -> None:
    folder, trace = recorded
    random = np.random.default_rng(0)
    for component in ("prior", "decoder", "text_proj", "super_res_first", "text_encoder"):
        recorded_digests = trace.facts["digests"][component]
        assert (
            changed_tensors(digests(open_file(folder / component).tensors), recorded_digests) == []
        )
        for tensor in random.choice(tensor_names(weights_of(folder / component)), 3, replace=False):
            shutil.rmtree(tmp_path / "changed", ignore_errors=True)
            changed = nudged(folder, tmp_path, component, tensor)
            found = digests(open_file(changed / component).tensors)
            assert changed_tensors(found, recorded_digests) == [tensor]


def test_a_step_that_differs_fails_alone(recorded: tuple[Path, Trace]) -> None:
    """A wrong x fails its update and the step from it; the chain, which has its own, forgets it."""
    folder, trace = recorded
    wrong = "prior/step/01"
    arrays = {**trace.arrays, wrong: trace.arrays[wrong] + 1e-2}
    rows = list(rows_of(folder, replace(trace, arrays=arrays), {"prior"}))
    assert [row.name for row in rows if not row.passes] == [
        "prior: t=666, update",
        "prior: t=333, guided output",
        "prior: t=333, update",
        "prior: trajectory to t=666",
    ]


def nudged(folder: Path, to: Path, component: str, tensor: str) -> Path:
    """A copy of the folder with 1e-3 added to one element of one tensor."""
    changed = Path(shutil.copytree(folder, to / "changed"))

    def nudge(array: np.ndarray) -> np.ndarray:
        flat: Any = array.copy().reshape(-1)
        flat[len(flat) // 2] += 1e-3
        return flat.reshape(array.shape)

    edit_tensor(weights_of(changed / component), tensor, nudge)
    return changed
