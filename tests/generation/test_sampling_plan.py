"""Plans of sampling with the TPU's compiler, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import pytest

from tests.training import toys
from unclip_jax.cli.main import main
from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.errors import UserError
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.sampling_plan import make_sampling_plans, sampling_plan_text

STEPS = SamplerConfig(method="ddim", num_steps=5, guidance_scale=3.0)
HOW = SamplingConfig(decoder=STEPS, upsampler_256=replace(STEPS, guidance_scale=1.0), batch_size=4)


@pytest.fixture(autouse=True)
def stored_programs() -> Iterator[None]:
    """The command switches the store of compiled programs off; other tests want it."""
    pytest.importorskip("libtpu")
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def plan(recipe: Any, how: SamplingConfig = HOW) -> Any:
    (found,) = make_sampling_plans(recipe, toys.recipe("clip"), how, "v5e:2x4")
    return found


def test_work_is_that_of_the_steps_and_of_both_guidance_halves() -> None:
    recipe = toys.recipe("decoder", model=toys.SMALL_DECODER)
    guided = plan(recipe)
    alone = plan(recipe, replace(HOW, decoder=replace(STEPS, guidance_scale=1.0)))
    once = plan(recipe, replace(HOW, decoder=replace(STEPS, num_steps=1, guidance_scale=1.0)))
    guided_once = plan(recipe, replace(HOW, decoder=replace(STEPS, num_steps=1)))
    # Captions and conditions are encoded once; what the steps repeat is doubled by guidance.
    repeated = alone.flops - once.flops
    assert guided.flops - guided_once.flops == pytest.approx(2 * repeated, rel=1e-9)
    assert once.flops > repeated / 4
    # The network on all devices: each draws its own rows, and nothing is sent.
    assert guided.devices == 8 and guided.program.collectives == []
    assert 0 < guided.total < guided.chip.memory
    assert "it fits" in sampling_plan_text(guided)
    assert guided.rows_per_second == pytest.approx(
        32 / (guided.flops / guided.chip.flops), rel=1e-9
    )


def test_rows_of_an_upsampler_are_drawn_one_after_the_other() -> None:
    recipe = toys.recipe("upsampler")
    one, four = (plan(recipe, replace(HOW, batch_size=size)) for size in (1, 4))
    assert four.flops == 4 * one.flops and four.rows == 4
    assert four.temporaries < 2 * one.temporaries


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "configs/toy/clip.py", "--topology", "v5e:2x2", "--sample"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--sampling.batch-size", "2"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "text on v5e:2x2: 2 rows" in said and "image on v5e:2x2: 2 rows" in said


def test_what_is_not_sampled() -> None:
    with pytest.raises(UserError, match="nothing is sampled from a ClassifierRecipe"):
        plan(toys.recipe("classifier"))
