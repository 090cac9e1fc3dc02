"""A prior or decoder by the installed DALLE2-pytorch, recorded as a trace.

Its tensors go into the package as the file has them, strictly by name. A release that computes
something else with them than the one that wrote them is refused.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from unclip_jax.interop.comparison.dalle2_package import (
    fields_of,
    given_noise,
    import_package,
    needs_other_release,
    parameters,
    plain,
    times,
    tuples,
    watched,
)
from unclip_jax.interop.comparison.trace import Trace
from unclip_jax.interop.comparison.traced import (
    Progress,
    from_torch,
    normal,
    quiet,
    state_of,
    to_torch,
    watch_outputs,
)
from unclip_jax.interop.dalle2_pytorch.decoder import Decoder
from unclip_jax.interop.dalle2_pytorch.era import semantics_of
from unclip_jax.interop.dalle2_pytorch.prior import ImportedPrior
from unclip_jax.interop.dalle2_pytorch.prior_checkpoint import PriorFile
from unclip_jax.interop.dalle2_pytorch.unet_config import UnetConfig
from unclip_jax.interop.dalle2_pytorch.unet_era import UnetEra
from unclip_jax.interop.tensors import Tensors

BATCH = 2
GUIDANCE = 2.0
PRIOR_STEPS, DECODER_STEPS = 10, 5
"""Of DDIM, or fewer where there are fewer timesteps."""
_WORDS = 6
_PARTS = {"net", "clip", "vae"}
"""Arguments that are modules."""


def record_prior(prior: ImportedPrior, file: PriorFile, seed: int, progress: Progress) -> Trace:
    """Layers, outputs with and without guidance, and a DDIM run.

    Args:
        prior: ours, whose config the package's is made from.
        file: the tensors.
        progress: told what runs.
    Raises:
        UserError: no DALLE2-pytorch, or one of another era.
    """
    package, installed = import_package()
    config, net = prior.config, prior.config.net
    if semantics_of(installed) != net.semantics:
        raise needs_other_release("this prior", prior.version, installed)
    module = _make_prior(package, prior, file)
    trace = Trace("dalle2_prior", {"reference": f"DALLE2-pytorch {plain(installed)}"})
    random, arrays = np.random.default_rng(seed), trace.arrays
    text = normal(random, BATCH, net.dim)
    arrays["in/x"] = normal(random, BATCH, net.dim)
    arrays["in/text_embed"] = text / np.linalg.norm(text, axis=1, keepdims=True)
    if config.condition_on_text_encodings:
        arrays["in/text_encodings"] = _encodings(random, BATCH, net.max_text_len, net.dim)
    given = {name: to_torch(a) for name, a in trace.under("in/text_").items()}
    given = {f"text_{name}": tensor for name, tensor in given.items()}
    own = {}
    if net.self_cond:
        arrays["in/self_cond"] = normal(random, BATCH, net.dim)
        own["self_cond"] = to_torch(arrays["in/self_cond"])
    layers = module.net.causal_transformer
    progress("prior")
    with quiet():
        x, middle = to_torch(arrays["in/x"]), config.timesteps // 2
        for t in probes(config.timesteps):
            hooks = _residual_hooks(layers, arrays) if t == middle else []
            arrays[f"out/{t}"] = from_torch(module.net(x, times(x, t), **given, **own))
            for hook in hooks:
                hook.remove()
        scale = 1.0 if config.why_unguided() else GUIDANCE
        if scale != 1:
            out = module.net.forward_with_cond_scale(
                x, times(x, middle), cond_scale=scale, **given, **own
            )
            arrays[f"guided/{middle}"] = from_torch(out)
        steps = min(PRIOR_STEPS, max(config.timesteps - 1, 2))
        trace.facts |= {"steps": steps, "guidance": scale}
        progress(f"prior, {steps} steps")
        states, draws, steps_at = [], [], []
        with given_noise(random, draws), watched(module.net, states, steps_at):
            sample = module.p_sample_loop(
                (BATCH, net.dim), text_cond=given, cond_scale=scale, timesteps=steps
            )
    arrays["noise"], arrays["timesteps"] = np.stack(draws), np.array(steps_at)
    arrays |= {f"step/{i:02d}": state for i, state in enumerate(states[1:])}
    code = inspect.unwrap(module.p_sample_loop).__code__
    # Releases before this name was there divide by the scale later, in `sample`.
    divided = "normalized_image_embed" in code.co_varnames
    arrays["embedding"] = from_torch(sample) / (1 if divided else module.image_embed_scale)
    return trace


def record_decoder(
    decoder: Decoder, entry: Mapping[str, Any], tensors: Tensors, seed: int, progress: Progress
) -> Trace:
    """Blocks and outputs of every U-Net, and a DDIM run of the whole cascade.

    Args:
        decoder: ours.
        entry: its JSON config, as it stands.
        tensors: by the names of the package's decoder.
        progress: told what runs.
    """
    package, installed = import_package()
    now = UnetEra.of(installed)
    for stage in decoder.config.stages:
        # What only changes names is changed in the names.
        era = replace(stage.unet.era, wrapped_cross_attention=now.wrapped_cross_attention)
        if era != now:
            raise needs_other_release("this decoder", None, installed)
    module = _make_decoder(package, entry, tensors)
    trace = Trace("dalle2_decoder", {"reference": f"DALLE2-pytorch {plain(installed)}"})
    random, arrays, config = np.random.default_rng(seed), trace.arrays, decoder.config
    first = config.stages[0].unet
    # Where an embedding is as wide as a token, the package mixes the rows of a batch.
    mixes = first.cond_on_image_embeds and not first.projects_image_tokens
    batch = 1 if mixes else BATCH
    if first.cond_on_image_embeds:
        arrays["in/image_embed"] = normal(random, batch, first.image_embed_dim or 1)
    texts = [stage.unet for stage in config.stages if stage.unet.cond_on_text_encodings]
    if texts:
        longest, width = texts[0].max_text_len, texts[0].text_embed_dim or 1
        arrays["in/text_encodings"] = _encodings(random, batch, longest, width)
    conditions = {name: to_torch(a) for name, a in trace.under("in/").items()}
    dropped = config.image_cond_drop_prob > 0 or config.text_cond_drop_prob > 0
    scale = GUIDANCE if dropped and not config.unconditional else 1.0
    steps = min(DECODER_STEPS, config.timesteps - 1)
    trace.facts |= {"steps": steps, "guidance": scale}
    with quiet():
        for i, stage in enumerate(config.stages):
            progress(f"U-Net {i + 1}")
            shape = (batch, stage.image_size, stage.image_size, config.channels)
            given = (stage.unet, shape, config.timesteps, conditions, scale, random)
            _probe_unet(trace, i, module.unets[i], *given)
        progress(f"decoder, {steps} steps")
        module.sample_timesteps = (steps,) * len(config.stages)
        states, draws, steps_at = [], [], []
        with contextlib.ExitStack() as stack:
            stack.enter_context(given_noise(random, draws))
            for unet in module.unets:
                stack.enter_context(watched(unet, states, steps_at))
            options = {} if conditions else {"batch_size": batch}
            picture = module.sample(**conditions, cond_scale=scale, **options)
    arrays |= {f"noise/{i:03d}": draw for i, draw in enumerate(draws)}
    arrays |= {f"before/{i:03d}": state for i, state in enumerate(states)}
    arrays["timesteps"], arrays["picture"] = np.array(steps_at), from_torch(picture)
    return trace


def unet_places(config: UnetConfig) -> dict[str, str]:
    """The package's name of every block and attention by ours, as the data flows."""
    stem = "init_embed" if config.init_cross_embed else "init_conv"
    places = {stem: "init_conv"}
    if config.memory_efficient:
        places["init_block"] = "init_resnet_block"
    for i, stage in enumerate(config.stages):
        if config.memory_efficient:
            places[f"down_{i}_before"] = f"downs.{i}.0"
        places[f"down_{i}_init"] = f"downs.{i}.1"
        places |= {f"down_{i}_block_{j}": f"downs.{i}.2.{j}" for j in range(stage.blocks)}
        if stage.attention != "none":
            places[f"down_{i}_attention"] = f"downs.{i}.3"
        places[f"down_{i}_after"] = f"downs.{i}.4"
    places |= {
        "mid_block_1": "mid_block1",
        "mid_attention": "mid_attn",
        "mid_block_2": "mid_block2",
    }
    for i, stage in enumerate(reversed(config.stages)):
        places[f"up_{i}_init"] = f"ups.{i}.0"
        places |= {f"up_{i}_block_{j}": f"ups.{i}.1.{j}" for j in range(stage.blocks)}
        if stage.attention != "none":
            places[f"up_{i}_attention"] = f"ups.{i}.2"
        if stage.cross or config.memory_efficient:
            places[f"up_{i}_after"] = f"ups.{i}.3"
    return places | {"final_block": "final_resnet_block"}


def _make_prior(package: Any, prior: ImportedPrior, file: PriorFile) -> Any:
    net, options = prior.config.net, fields_of(prior.config)
    known = parameters(package.DiffusionPriorNetwork) | parameters(package.CausalTransformer)
    network = package.DiffusionPriorNetwork(
        **{name: value for name, value in fields_of(net).items() if name in known}
    )
    for name in ("text_cond_drop_prob", "image_cond_drop_prob"):
        options[name] = 0.1 if options[name] is None else options[name]  # which allows guidance
    options |= {"cond_drop_prob": options["text_cond_drop_prob"], "image_embed_dim": net.dim}
    known = parameters(package.DiffusionPrior)
    options = {name: value for name, value in options.items() if name in known - _PARTS}
    module = package.DiffusionPrior(network, **options).eval()
    module.net.load_state_dict(state_of(file.network), strict=True)
    state = module.noise_scheduler.state_dict() | state_of(file.schedule)
    module.noise_scheduler.load_state_dict(state, strict=True)
    return module.float()


def _make_decoder(package: Any, entry: Mapping[str, Any], tensors: Tensors) -> Any:
    options = tuples(entry.get("decoder", entry))
    known = parameters(package.Decoder)
    unets = [package.Unet(**tuples(unet)) for unet in options.pop("unets")]
    options = {name: value for name, value in options.items() if name in known - _PARTS}
    module = package.Decoder(tuple(unets), **options).eval()
    wanted = module.state_dict()
    wrapped = any(".cross_attn.fn." in name for name in wanted)
    renamed = {
        name if wrapped else name.replace(".cross_attn.fn.", ".cross_attn."): tensor
        for name, tensor in tensors.items()
        if name.startswith(("unets.", "noise_schedulers.", "lowres_conds."))
    }
    # Files of some releases lack tables, which the package has computed by now.
    tables = {name: x for name, x in wanted.items() if not name.startswith("unets.")}
    module.load_state_dict(tables | state_of(renamed), strict=True)
    return module.float()


def _probe_unet(
    trace: Trace,
    number: int,
    unet: Any,
    config: UnetConfig,
    shape: tuple[int, ...],
    timesteps: int,
    conditions: dict[str, Any],
    scale: float,
    random: np.random.Generator,
) -> None:
    """Outputs at three timesteps; at the middle one the blocks, and the guided output."""
    name, arrays, middle = f"unet{number}", trace.arrays, timesteps // 2
    own = {"x": normal(random, *shape)}
    if config.lowres_cond:
        own["lowres_image"] = np.clip(normal(random, *shape), -1, 1)
    if config.lowres_noise_cond:
        own["lowres_noise_level"] = np.full(shape[0], 200, np.int32)
    if config.self_cond:
        own["self_cond"] = normal(random, *shape)
    arrays |= {f"{name}/in/{key}": array for key, array in own.items()}
    given = {"lowres_cond_img" if k == "lowres_image" else k: to_torch(a) for k, a in own.items()}
    x, given = given.pop("x"), {"image_embed": None, **conditions, **given}
    for t in probes(timesteps):
        found: dict[str, np.ndarray] = {}
        places = unet_places(config) if t == middle else {}
        stop = watch_outputs(unet, {v: f"{name}/block/{k}" for k, v in places.items()}, found)
        arrays[f"{name}/out/{t}"] = from_torch(unet(x, times(x, t), **given))
        stop()
        arrays |= found
    if scale != 1:
        out = unet.forward_with_cond_scale(x, times(x, middle), cond_scale=scale, **given)
        arrays[f"{name}/guided/{middle}"] = from_torch(out)


def probes(timesteps: int) -> list[int]:
    """Timesteps at which the networks are compared: the first, the middle one, the last."""
    return sorted({0, timesteps // 2, timesteps - 1})


def _encodings(random: np.random.Generator, batch: int, longest: int, width: int) -> np.ndarray:
    """[B, L, width], of which the last text is one token long."""
    encodings = normal(random, batch, min(_WORDS, longest), width)
    encodings[-1, 1:] = 0
    return encodings


def _residual_hooks(transformer: Any, arrays: dict[str, np.ndarray]) -> list[Any]:
    """Keeps x after every layer: what the attention after it is given, or the last norm."""

    def keeper(number: int) -> Any:
        def keep(_module: Any, inputs: tuple[Any, ...]) -> None:
            arrays[f"layer/{number}"] = from_torch(inputs[0])

        return keep

    after = [attention for attention, _ in list(transformer.layers)[1:]] + [transformer.norm]
    return [module.register_forward_pre_hook(keeper(i)) for i, module in enumerate(after)]
