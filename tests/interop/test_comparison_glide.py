"""`unclip compare glide` with traces that an independent implementation in torch recorded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from tests.interop.clip_models import save_arrays
from unclip_jax.errors import UserError
from unclip_jax.interop.comparison import glide_reference
from unclip_jax.interop.comparison.glide import compare_glide, run_glide
from unclip_jax.interop.comparison.glide_reference import record_glide
from unclip_jax.interop.comparison.rows import Row, table
from unclip_jax.interop.comparison.trace import Trace, save_trace
from unclip_jax.interop.glide import GLIDE_BASE, GlideOptions, import_glide
from unclip_jax.interop.infer_unet import HeadOptions
from unclip_jax.interop.tensors import from_arrays

BATCH, SIDE, WORDS = 2, 8, 5
OPTIONS = {"head_channels": 8, "groups": 4, "text_heads": 2, "image_size": SIDE}


def betas(schedule: str) -> np.ndarray:
    """GLIDE's, of 1000 timesteps."""
    if schedule == "linear":
        return np.linspace(1e-4, 0.02, 1000)
    level = [np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 for i in range(1001)]
    return np.array([min(1 - level[i + 1] / level[i], 0.999) for i in range(1000)])


def respaced(schedule: str, timesteps: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """abar at the steps, and the betas that lead from one to the next."""
    bar = np.cumprod(1 - betas(schedule))[timesteps]
    return bar, 1 - bar / np.append(1.0, bar[:-1])


def advance(
    chain: tuple[np.ndarray, np.ndarray],
    n: int,
    x: np.ndarray,
    eps: np.ndarray,
    values: np.ndarray,
    noise: np.ndarray,
    *,
    is_ddim: bool,
) -> np.ndarray:
    """x before step n of a chain → after it: ADM's DDPM with learned variance, or DDIM."""
    bar, beta = chain
    previous = np.append(1.0, bar[:-1])
    x0 = np.clip((x - np.sqrt(1 - bar[n]) * eps) / np.sqrt(bar[n]), -1, 1)
    if is_ddim:
        eps = (x - np.sqrt(bar[n]) * x0) / np.sqrt(1 - bar[n])
        return np.sqrt(previous[n]) * x0 + np.sqrt(1 - previous[n]) * eps
    posterior = beta * (1 - previous) / (1 - bar)
    low, high = np.log(np.append(posterior[1], posterior[1:])[n]), np.log(beta[n])
    fraction = (values + 1) / 2
    deviation = np.exp(0.5 * (fraction * high + (1 - fraction) * low))
    mean = beta[n] * np.sqrt(previous[n]) / (1 - bar[n]) * x0
    mean += (1 - previous[n]) * np.sqrt(1 - beta[n]) / (1 - bar[n]) * x
    return mean + deviation * noise * (n > 0)


def record(folder: Path, *, channels: int, seed: int) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """File, trace and tensors of a network with so many input channels (3, 6, 7 or 10)."""
    torch = pytest.importorskip("torch")
    from tests.interop.adm_reference import Network, resized  # imports torch

    class Watched(Network):
        blocks: dict[str, np.ndarray] | None = None

        def _keep(self, name: str, out: Any) -> Any:
            if self.blocks is not None:
                self.blocks[name] = nhwc(out.numpy())
            return out

        def _block(self, name: str, *args: Any) -> Any:
            return self._keep(name, super()._block(name, *args))

        def _attend(self, name: str, *args: Any) -> Any:
            return self._keep(name, super()._attend(name, *args))

    network, rng = Watched(in_channels=channels, seed=seed), np.random.default_rng(seed)
    is_upsampler, is_inpainting = channels in (6, 10), channels in (7, 10)
    rows = 2 * BATCH
    tokens = rng.integers(0, 30, (rows, WORDS)).astype(np.int32)
    mask = np.arange(WORDS) < np.array([[3], [WORDS], [0], [0]])
    arrays = {"in/tokens": tokens, "in/mask": mask, "in/x": normal(rng, rows)}
    if is_upsampler:
        arrays["in/low_resolution"] = np.clip(normal(rng, rows)[:, ::2, ::2], -1, 1)
    if is_inpainting:
        arrays["in/known"] = np.clip(normal(rng, rows), -1, 1)
        arrays["in/known_mask"] = (normal(rng, rows)[..., :1] > 0).astype(np.float32)

    def run(x: np.ndarray, t: int, chosen: slice) -> np.ndarray:
        given = {k: v[chosen] for k, v in arrays.items()}
        text, states = network.caption(
            torch.tensor(given["in/tokens"]), torch.tensor(given["in/mask"]), 30, 16, 1, 2
        )
        parts = [x]
        if is_inpainting:
            parts += [given["in/known"] * given["in/known_mask"], given["in/known_mask"]]
        inputs = [torch.tensor(nchw(part)).double() for part in parts]
        if is_upsampler:
            small = torch.tensor(nchw(given["in/low_resolution"])).double()
            inputs.append(resized(small, inputs[0]))
        if network.blocks is not None:
            network.blocks |= {"time": text.numpy(), "states": states.mT.numpy()}
        emb = network.time(torch.full((len(x),), t)) + text
        return nhwc(network.unet(torch.cat(inputs, 1), emb, states).numpy())

    found = {}
    for t in (0, 500, 999):
        network.blocks = {} if t == 500 else None
        found[f"out/{t}"] = run(arrays["in/x"], t, slice(None))
        if network.blocks is not None:
            found |= {f"text/{k}": network.blocks.pop(k) for k in ("time", "states")}
            found |= {f"block/{k}": v for k, v in network.blocks.items()}
        network.blocks = None

    timesteps = [0, 333, 666, 999]
    chain = respaced("linear" if is_upsampler else "cosine", timesteps)
    draws = [normal(rng, BATCH) for _ in timesteps]
    x = draws[0].astype(np.float64)
    for i, n in enumerate(reversed(range(len(timesteps)))):
        output = run(x, timesteps[n], slice(0, BATCH))
        eps, values = output[..., :3], output[..., 3:]
        if not is_upsampler:
            without = run(x, timesteps[n], slice(BATCH, None))[..., :3]
            eps = without + 3.0 * (eps - without)
        noise = draws[i + 1] if n else np.zeros_like(x)
        x = advance(chain, n, x, eps, values, noise, is_ddim=is_upsampler)
        found[f"step/{i:02d}"] = x
    found |= {"noise": np.stack(draws, 1), "timesteps": np.array(timesteps[::-1])}
    facts = {
        "reference": "another implementation",
        "options": OPTIONS,
        "steps": len(timesteps),
        "guidance": 1.0 if is_upsampler else 3.0,
        "method": "ddim" if is_upsampler else "ddpm",
    }
    save_trace(Trace("glide", facts, arrays | found), folder / "trace.npz")
    tensors = network.state.arrays()
    return save_arrays(tensors, folder / "net.safetensors"), folder / "trace.npz", tensors


def normal(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.standard_normal((rows, SIDE, SIDE, 3)).astype(np.float32)


def nhwc(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def nchw(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1).copy()


@pytest.fixture(scope="module", autouse=True)
def highest_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


def compare(path: Path, trace: Path | None) -> tuple[list[Row], list[str], list[np.ndarray]]:
    return run_glide(path, ["a cat"], record=None, trace=trace, seed=0, progress=lambda _: None)


@pytest.mark.torch
@pytest.mark.parametrize("channels", [3, 10])
def test_the_base_model_and_the_inpainting_upsampler(channels: int, tmp_path: Path) -> None:
    path, trace, tensors = record(tmp_path, channels=channels, seed=channels)
    rows, notes, pictures = compare(path, trace)
    assert all(row.passes for row in rows), table(rows)
    names = [row.name for row in rows]
    for name in ("text: states", "input_blocks.1.0", "middle_block.1", "output_blocks.1.2"):
        assert name in names
    assert names[-4:] == [f"step at t={t}" for t in (999, 666, 333, 0)]
    assert max(row.relative for row in rows) < 1e-4
    assert notes[0] == "reference: another implementation"
    assert pictures[0].shape == (BATCH, SIDE, SIDE, 3)
    np.testing.assert_allclose(pictures[0], pictures[1], atol=2e-3)  # a step of 8 bits is 8e-3

    if channels == 3:  # one tensor changed: what comes before it agrees
        name = "middle_block.2.in_layers.2.weight"
        save_arrays(tensors | {name: tensors[name] * np.float32(1.1)}, path)
        rows, _, _ = compare(path, trace)
        assert next(row.name for row in rows if not row.passes) == "middle_block.2"


def test_without_reference_or_trace_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Path
) -> None:
    monkeypatch.setitem(sys.modules, "glide_text2im", None)
    with pytest.raises(UserError, match=r"glide_text2im cannot run here .*--trace") as caught:
        record_glide(GLIDE_BASE, {}, ["a cat"], 0, lambda _: None)
    assert "\n" not in str(caught.value)
    with np.load(golden / "parity_glide.npz") as file:
        weights = {n.removeprefix("w/"): a for n, a in file.items() if n.startswith("w/")}
    path = save_arrays(weights, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match="not divisible by groups 32"):
        compare(path, None)


def fake_package(monkeypatch: pytest.MonkeyPatch, network: Any, *, is_upsampler: bool) -> None:
    """A glide_text2im of the same interface, around the other implementation."""
    import torch

    from tests.interop.adm_reference import resized  # imports torch

    class Model(torch.nn.Module):
        def load_state_dict(self, state: Any, strict: bool = False) -> None:
            assert strict and state.keys() == network.state.tensors.keys()

        @property
        def tokenizer(self) -> Any:
            def pad(tokens: list[int], length: int) -> tuple[list[int], list[bool]]:
                seen = len(tokens)
                return tokens + [29] * (length - seen), [i < seen for i in range(length)]

            return SimpleNamespace(
                encode=lambda text: [len(word) for word in text.split()],
                padded_tokens_and_mask=pad,
            )

        def forward(self, x: Any, t: Any, tokens: Any, mask: Any, low_res: Any = None) -> Any:
            text, states = network.caption(tokens, mask, 30, 16, 1, 2)
            inputs = [x.double()]
            if low_res is not None:
                inputs.append(resized(low_res.double(), x))
            return network.unet(torch.cat(inputs, 1), network.time(t) + text, states)

    model = Model()

    def through(name: str, out: Any) -> Any:
        """Through a module of this name, which hooks can watch."""
        place: Any = model
        for part in name.split("."):
            if part not in dict(place.named_children()):
                place.add_module(part, torch.nn.Identity())
            place = place.get_submodule(part)
        return place(out)

    block, attend, state = network._block, network._attend, network.state
    layer_norm, linear = state.layer_norm, state.linear

    def normed(name: str, x: Any, *rest: Any) -> Any:
        x = through("transformer.resblocks.0", x) if name == "final_ln" else x
        out = layer_norm(name, x, *rest)
        return through(name, out) if name == "final_ln" else out

    def projected(name: str, x: Any, outputs: int) -> Any:
        out = linear(name, x, outputs)
        return through(name, out) if name == "transformer_proj" else out

    network._block = lambda name, *rest: through(name, block(name, *rest))
    network._attend = lambda name, *rest: through(name, attend(name, *rest))
    state.layer_norm, state.linear = normed, projected
    small = torch.zeros(1, 3, SIDE // 4, SIDE // 4) if is_upsampler else None
    model(  # makes the weights and the modules
        torch.zeros(1, 3, SIDE, SIDE),
        torch.zeros(1),
        torch.zeros(1, WORDS).long(),
        torch.zeros(1, WORDS).bool(),
        small,
    )
    timesteps = [111 * i for i in range(10)]
    chain = respaced("linear" if is_upsampler else "cosine", timesteps)

    def step(run: Any, x: Any, t: Any, *, is_ddim: bool) -> dict[str, Any]:
        n = int(t[0])
        out = run(x, torch.full_like(t, timesteps[n])).numpy()
        noise = torch.randn_like(x).numpy()
        parts = (x.numpy(), out[:, :3], out[:, 3:], noise)
        return {"sample": torch.from_numpy(advance(chain, n, *parts, is_ddim=is_ddim))}

    def ddpm(run: Any, x: Any, t: Any, clip_denoised: bool, model_kwargs: Any) -> Any:
        assert clip_denoised and model_kwargs == {}
        return step(run, x, t, is_ddim=False)

    def ddim(run: Any, x: Any, t: Any, clip_denoised: bool, model_kwargs: Any) -> Any:
        assert clip_denoised and model_kwargs == {}
        return step(run, x, t, is_ddim=True)

    def create(**options: Any) -> Any:
        assert options["timestep_respacing"] == "10" and options["kind"] == is_upsampler
        return model, SimpleNamespace(p_sample=ddpm, ddim_sample=ddim, timestep_map=timesteps)

    package: Any = ModuleType("glide_text2im")
    package.model_creation = SimpleNamespace(
        create_model_and_diffusion=create,
        model_and_diffusion_defaults=lambda: {"kind": False},
        model_and_diffusion_defaults_upsampler=lambda: {"kind": True},
    )
    monkeypatch.setitem(sys.modules, "glide_text2im", package)


@pytest.mark.torch
@pytest.mark.parametrize("is_upsampler", [False, True])
def test_recording_by_the_interface_of_the_released_code(
    is_upsampler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from tests.interop.adm_reference import Network  # imports torch

    network = Network(in_channels=6 if is_upsampler else 3, seed=4)
    fake_package(monkeypatch, network, is_upsampler=is_upsampler)
    tensors = from_arrays(network.state.arrays())
    options = GlideOptions(HeadOptions(8, groups=4), 2, SIDE)
    config, params = import_glide(tensors, options, what="file")
    with pytest.raises(UserError, match="none of GLIDE's four"):
        record_glide(config, tensors, ["a cat"], 0, lambda _: None)
    monkeypatch.setattr(glide_reference, "_PUBLISHED", (config,))
    trace = record_glide(config, tensors, ["a cat", "one more cat"], 0, lambda _: None)
    assert trace.arrays["in/mask"].sum(1).tolist() == [2, 3, 0, 0]
    pictures: list[np.ndarray] = []
    rows = list(compare_glide(config, params, trace, pictures))
    assert all(row.passes for row in rows), table(rows)
    names = [row.name for row in rows]
    assert {"text: block 0", "text: time condition", "step at t=999", "step at t=0"} <= set(names)
    assert pictures[0].shape == pictures[1].shape == (2, SIDE, SIDE, 3)
