"""What a prior is made of and how it is sampled, read from its config file or from its tensors.

The names of the fields are those of DALLE2-pytorch's own options, so that a config file can be
read as it is: a tracker's ({"prior": {"net": ...}}), a prior's or a network's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch.era import Semantics
from unclip_jax.interop.dalle2_pytorch.schedule import NoiseScheduleName

LossName = Literal["l1", "l2", "huber"]
ROTARY_WIDTH = 32
"""Channels of a head that are rotated, at most."""
BUCKETS = 32
"""Rows of the relative position bias."""

_NOT_OURS = {"clip", "image_size", "image_channels", "clip_adapter_overrides", "net"}
"""Options of a prior that say nothing about its network or its samples."""


@dataclass(frozen=True)
class PriorNetworkConfig:
    """The causal transformer that denoises an image embedding."""

    dim: int
    """Width, and width of the embeddings."""
    depth: int
    num_timesteps: int | None = None
    """Rows of the learned time embedding; None has sinusoids and an MLP instead."""
    num_time_embeds: int = 1
    """Tokens that the time becomes; the same for the image and the text embedding."""
    num_image_embeds: int = 1
    num_text_embeds: int = 1
    max_text_len: int = 256
    """Text encodings are cut or padded to this many tokens."""
    dim_head: int = 64
    heads: int = 8
    """Query heads; there is one head of keys and values."""
    ff_mult: float = 4
    norm_in: bool = False
    norm_out: bool = True
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    final_proj: bool = True
    normformer: bool = False
    """A norm inside the feed-forward layer, after its activation."""
    rotary_emb: bool = True
    self_cond: bool = False
    """The last prediction is a token of the next one."""
    semantics: Semantics = Semantics()

    def __post_init__(self) -> None:
        for name in (
            *("dim", "depth", "dim_head", "heads", "max_text_len"),
            *("num_time_embeds", "num_image_embeds", "num_text_embeds"),
        ):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name} of the prior is {getattr(self, name)}: it must be 1 or more"
                )
        if self.num_timesteps is None and (self.dim < 4 or self.dim % 2):
            raise UserError(
                f"dim of the prior is {self.dim}: sinusoids of the time need an even number from 4"
            )

    @property
    def ff_width(self) -> int:
        """Channels inside the feed-forward layer."""
        return int(self.ff_mult * self.dim)

    @property
    def num_tokens(self) -> int:
        """Length of the sequence, the same with and without text."""
        image = self.num_image_embeds
        last = (1 + image if self.semantics.self_cond_is_query else 2) if self.self_cond else 1
        return self.max_text_len + self.num_text_embeds + self.num_time_embeds + image + last


@dataclass(frozen=True)
class PriorConfig:
    """A network with the diffusion around it."""

    net: PriorNetworkConfig
    timesteps: int = 1000
    beta_schedule: NoiseScheduleName = "cosine"
    sample_timesteps: int | None = None
    """Steps of DDIM sampling; None samples all timesteps with DDPM."""
    text_cond_drop_prob: float | None = None
    """Share of captions that training dropped; None where no config says it."""
    image_cond_drop_prob: float | None = None
    """The same for the noised image embedding."""
    loss_type: LossName = "l2"
    predict_x_start: bool = True
    """The network predicts x_0; otherwise the noise, whose x_0 is clamped to [-1, 1]."""
    predict_v: bool = False
    """The network predicts v, whatever `predict_x_start` is."""
    condition_on_text_encodings: bool = True
    sampling_clamp_l2norm: bool = False
    """x_0 is scaled to the norm `embed_scale` at each step."""
    sampling_final_clamp_l2norm: bool = False
    training_clamp_l2norm: bool = False
    init_image_embed_l2norm: bool = False
    """The first noise is scaled to the norm `embed_scale`."""
    image_embed_scale: float | None = None

    def __post_init__(self) -> None:
        if self.loss_type not in get_args(LossName):
            raise UserError(f"loss_type {self.loss_type!r} is unknown: choose l1, l2 or huber")
        if self.sample_timesteps is not None and not 1 < self.sample_timesteps <= self.timesteps:
            raise UserError(
                f"sample_timesteps is {self.sample_timesteps}: choose 2 to {self.timesteps}"
            )

    @property
    def embed_scale(self) -> float:
        """What a unit embedding is multiplied by before diffusion; sqrt(dim) if not given."""
        given = self.image_embed_scale
        return self.net.dim**0.5 if given is None else given

    def why_unguided(self) -> str | None:
        """Why guidance has no meaning for this prior; None where it has one."""
        if not self.net.semantics.null_tokens:
            return "DALLE2-pytorch before 1.9.0 did not drop the text in its priors"
        if self.text_cond_drop_prob == 0 or self.image_cond_drop_prob == 0:
            return "it was trained without dropping both its text and its image embedding"
        return None


def infer_network(
    shapes: Mapping[str, tuple[int, ...]], semantics: Semantics, *, self_cond: bool = False
) -> PriorNetworkConfig:
    """The network's options from its tensors; only dropout and `self_cond` leave no trace there.

    Args:
        shapes: by name, without 'net.'.
    Raises:
        UserError: tensors that make no such network.
    """
    layer = "causal_transformer.layers"
    table, sinusoids = "to_time_embeds.0.weight", "to_time_embeds.0.1.net.2.weight"
    text = "null_text_encodings" if semantics.null_tokens else "null_text_embed"
    try:
        (dim,) = shapes["learned_query"]
        is_learned = table in shapes
        time_width = shapes[table][1] if is_learned else shapes[sinusoids][0]
        width = shapes[f"{layer}.0.1.5.weight"][1]
        return PriorNetworkConfig(
            dim=dim,
            depth=1 + max(_layer(name) for name in shapes),
            num_timesteps=shapes[table][0] if is_learned else None,
            num_time_embeds=time_width // dim,
            num_image_embeds=shapes.get("to_image_embeds.0.weight", (dim,))[0] // dim,
            num_text_embeds=shapes.get("to_text_embeds.0.weight", (dim,))[0] // dim,
            max_text_len=shapes[text][1],
            dim_head=shapes[f"{layer}.0.0.null_kv"][1],
            heads=shapes["causal_transformer.rel_pos_bias.relative_attention_bias.weight"][1],
            # Half a channel more where the quotient would be rounded down to one too few.
            ff_mult=(width if int(width / dim * dim) == width else width + 0.5) / dim,
            norm_in="causal_transformer.init_norm.g" in shapes,
            norm_out="causal_transformer.norm.g" in shapes,
            final_proj="causal_transformer.project_out.weight" in shapes,
            normformer=f"{layer}.0.1.3.g" in shapes,
            rotary_emb=f"{layer}.0.0.rotary_emb.freqs" in shapes,
            self_cond=self_cond,
            semantics=semantics,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"these tensors make no prior of DALLE2-pytorch ({error}): check which file this is"
        ) from error


def read_config(
    file: Mapping[str, Any] | None,
    found: PriorNetworkConfig,
    *,
    timesteps: int,
    beta_schedule: NoiseScheduleName,
) -> PriorConfig:
    """The prior's options from its config file, checked against what its tensors say.

    Args:
        file: as JSON gives it: a tracker's config, a prior's, a network's, or none at all.
        found: what `infer_network` found.
        timesteps, beta_schedule: of the tensors' noise schedule, or as they are assumed.
    Raises:
        UserError: unknown options, or such as contradict the tensors.
    """
    diffusion = PriorConfig(found, timesteps=timesteps, beta_schedule=beta_schedule)
    if file is None:
        return diffusion
    try:
        return _stated(file, diffusion)
    except (TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the config is not that of a prior ({error}): give the JSON that DALLE2-pytorch wrote"
        ) from error


def _stated(file: Mapping[str, Any], diffusion: PriorConfig) -> PriorConfig:
    found = diffusion.net
    prior = file.get("prior", file)
    options = dict(prior if "net" in prior else {"net": prior})
    net = _network(dict(options["net"]), found)
    drop = options.pop("cond_drop_prob", 0.0)
    if not _is_like(drop, 0.0):
        raise UserError(f"the config says cond_drop_prob is {drop!r}, not a float: correct it")
    for name in ("text_cond_drop_prob", "image_cond_drop_prob"):
        options[name] = drop if options.get(name) is None else options[name]
    width = options.pop("image_embed_dim", None)
    stated = {"image_embed_dim": width} | {
        k: options.get(k) for k in ("timesteps", "beta_schedule")
    }
    real = {
        "image_embed_dim": found.dim,
        "timesteps": diffusion.timesteps,
        "beta_schedule": diffusion.beta_schedule,
    }
    _agree(stated, real)
    ours = {k: v for k, v in options.items() if k not in _NOT_OURS}
    known = {field.name for field in dataclasses.fields(PriorConfig)}
    _know(ours, known, "prior")
    return dataclasses.replace(diffusion, **{**_given(ours, diffusion), "net": net})


_BY_DEFAULT = ("norm_in", "norm_out", "final_proj", "normformer", "rotary_emb")
"""Options that a lost tensor would be taken for."""


def _network(options: dict[str, Any], found: PriorNetworkConfig) -> PriorNetworkConfig:
    free = ("attn_dropout", "ff_dropout", "self_cond")
    _know(options, {field.name for field in dataclasses.fields(found)} - {"semantics"}, "network")
    ff_mult = options.pop("ff_mult", None)
    if ff_mult is not None and int(ff_mult * found.dim) != found.ff_width:
        _agree({"ff_mult": ff_mult}, {"ff_mult": found.ff_mult})
    # What a whole config (dim and depth have no default) leaves out has the package's default, and
    # the tensors must agree with that too.
    defaults = {field.name: field.default for field in dataclasses.fields(found)}
    is_whole = {"dim", "depth"} <= options.keys()
    unstated = {n: defaults[n] for n in _BY_DEFAULT if is_whole and n not in options}
    stated = {**unstated, **{k: v for k, v in options.items() if k not in free}}
    if stated.get("max_text_len", 0) is None:  # "the network's default"
        del stated["max_text_len"]
    for name, value in stated.items():
        # None is a statement only here: sinusoids instead of a table.
        if value is not None or name == "num_timesteps":
            _agree({name: value}, {name: getattr(found, name)}, none_counts=True)
    given = _given({k: options[k] for k in free if k in options}, found)
    return dataclasses.replace(found, **given)


def _given(options: Mapping[str, Any], like: Any) -> dict[str, Any]:
    """Options that are not null, each of the type that the field of `like` has."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        known = getattr(like, name)
        if not _is_like(value, known):
            raise UserError(
                f"the config says {name} is {value!r}, not a {type(known).__name__}: correct it"
            )
    return given


def _is_like(value: Any, known: Any) -> bool:
    if isinstance(known, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return known is None or type(value) is type(known)


def check_objects(file: Any, what: str) -> None:
    """UserError unless a config, its prior and its network are objects with fields."""
    prior = file.get("prior", file) if isinstance(file, Mapping) else None
    net = prior.get("net", prior) if isinstance(prior, Mapping) else None
    if not isinstance(net, Mapping):
        raise UserError(
            f"the config of {what} is not that of a prior: give the JSON that DALLE2-pytorch wrote"
        )


def _know(options: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(set(options) - known):
        raise UserError(
            f"the {what}'s config has the option {unknown[0]!r}, which DALLE2-pytorch lacks: "
            f"correct or remove it (known: {', '.join(sorted(known))})"
        )


def _agree(
    stated: Mapping[str, Any], found: Mapping[str, Any], *, none_counts: bool = False
) -> None:
    for name, value in stated.items():
        if (value is not None or none_counts) and value != found[name]:
            raise UserError(
                f"the config says {name} {value}, but the tensors say {found[name]}: "
                "give the config that belongs to this file"
            )


def _layer(name: str) -> int:
    match = re.match(r"causal_transformer\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1
