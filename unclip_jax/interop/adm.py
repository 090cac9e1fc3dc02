"""ADM's published files (guided-diffusion, July 2021) as networks of this package, and back.

A file is a flat state dict without a config. Its shapes tell the network but for three things: the
heads, the groups of the norms, and the order of the packed rows in attention. A file that has the
shape of a published one has its options; of others they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from unclip_jax.errors import UserError
from unclip_jax.interop.adm_networks import ADM, ADMConfig
from unclip_jax.interop.infer_unet import HeadOptions, infer_encoder, infer_unet
from unclip_jax.interop.key_map import Entry, KeyMap, dense, norm, under
from unclip_jax.interop.layouts import POINTWISE, Permuted
from unclip_jax.interop.open_file import open_file
from unclip_jax.interop.tensors import Tensors
from unclip_jax.interop.transfer import import_params
from unclip_jax.interop.unet_keys import AttentionOrder, adm_encoder_keys, adm_unet_keys
from unclip_jax.models.classifier import Classifier, ClassifierConfig
from unclip_jax.models.unet import UNetConfig


@dataclass(frozen=True)
class ADMFormat:
    """A network and how its file packs it."""

    network: ADMConfig | ClassifierConfig
    attention_order: AttentionOrder = "legacy"

    def module(self) -> nn.Module:
        """The Flax module."""
        if isinstance(self.network, ADMConfig):
            return ADM(self.network)
        return Classifier(self.network)

    def key_map(self) -> KeyMap:
        """Every parameter of the module from the file's names."""
        if isinstance(self.network, ADMConfig):
            return adm_key_map(self.network, self.attention_order)
        return classifier_key_map(self.network, self.attention_order)

    def abstract(self) -> Any:
        """Shapes of the parameters."""
        unet = _unet(self.network)
        side, ids = unet.image_size, jax.ShapeDtypeStruct((1,), jnp.int32)
        inputs: list[Any] = [_picture(side, unet.in_channels), ids]
        if isinstance(self.network, ADMConfig):
            is_upsampler = self.network.is_upsampler
            picture = _picture(side, unet.in_channels // (1 + is_upsampler))
            labels = None if self.network.num_classes is None else ids
            inputs = [picture, ids, labels, picture if is_upsampler else None]
        return jax.eval_shape(self.module().init, jax.random.key(0), *inputs)["params"]


_UNET_256 = UNetConfig(image_size=256, channels=256, channel_mult=(1, 1, 2, 2, 4, 4), depth=(2,))
_UPSAMPLER = replace(_UNET_256, channels=192, in_channels=6)
_CLASSIFIER = UNetConfig(channels=128, depth=(2,))

ADM_64 = ADMFormat(ADMConfig(UNetConfig(dropout=0.1)), "new")
ADM_128 = ADMFormat(
    ADMConfig(
        UNetConfig(image_size=128, channels=256, channel_mult=(1, 1, 2, 3, 4), depth=(2,), heads=4)
    )
)
ADM_256 = ADMFormat(ADMConfig(_UNET_256))
ADM_256_UNCONDITIONAL = ADMFormat(ADMConfig(_UNET_256, num_classes=None))
"""Also the three LSUN models."""
ADM_512 = ADMFormat(
    ADMConfig(
        UNetConfig(
            image_size=512,
            channels=128,
            channel_mult=(1, 2, 2, 4, 4, 8, 8),
            time_channels=256,
            depth=(2,),
        )
    )
)
ADM_64_TO_256 = ADMFormat(ADMConfig(replace(_UPSAMPLER, heads=4), is_upsampler=True))
ADM_128_TO_512 = ADMFormat(
    ADMConfig(
        replace(_UPSAMPLER, image_size=512, attention_resolutions=(32, 16)), is_upsampler=True
    )
)
CLASSIFIER_64 = ADMFormat(ClassifierConfig(encoder=replace(_CLASSIFIER, depth=(4,))))
CLASSIFIER_128 = ADMFormat(
    ClassifierConfig(encoder=replace(_CLASSIFIER, image_size=128, channel_mult=(1, 1, 2, 3, 4)))
)
CLASSIFIER_256 = ADMFormat(
    ClassifierConfig(encoder=replace(_CLASSIFIER, image_size=256, channel_mult=(1, 1, 2, 2, 4, 4)))
)
CLASSIFIER_512 = ADMFormat(
    ClassifierConfig(
        encoder=replace(
            _CLASSIFIER,
            image_size=512,
            channels=64,
            channel_mult=(1, 2, 2, 4, 4, 8, 8),
            time_channels=128,
        )
    )
)
PUBLISHED = (
    ADM_64,
    ADM_128,
    ADM_256,
    ADM_256_UNCONDITIONAL,
    ADM_512,
    ADM_64_TO_256,
    ADM_128_TO_512,
    CLASSIFIER_64,
    CLASSIFIER_128,
    CLASSIFIER_256,
    CLASSIFIER_512,
)


@dataclass(frozen=True)
class ADMOptions:
    """What a file that is none of the published ones does not tell."""

    heads: HeadOptions = HeadOptions()
    attention_order: AttentionOrder | None = None
    image_size: int | None = None
    """Of a U-Net; None is 4 * 2 ** levels, OpenAI's. A classifier's file tells it."""
    depth: int | None = None
    """Of a classifier, where more than one depth fits."""


def load_adm(
    path: Path, options: ADMOptions = ADMOptions(), known: ADMFormat | None = None
) -> tuple[ADMFormat, Any]:
    """As `import_adm`, from a file: torch's or safetensors."""
    return import_adm(open_file(path).tensors, options, what=str(path), known=known)


def import_adm(
    tensors: Tensors,
    options: ADMOptions = ADMOptions(),
    *,
    what: str,
    known: ADMFormat | None = None,
) -> tuple[ADMFormat, Any]:
    """A diffusion model, an upsampler or a classifier of ADM.

    Args:
        what: how a message calls the file.
        known: what the file is; None finds it out.
    Returns:
        What it is, whose `module()` takes the parameters, and the parameters: float32 arrays.
    Raises:
        UserError: the file does not fit, or lacks an option that must be named.
    """
    found = known or infer_adm(tensors, options, what=what)
    return found, import_params(found.key_map(), tensors, found.abstract(), what=what)


def infer_adm(tensors: Tensors, options: ADMOptions = ADMOptions(), *, what: str) -> ADMFormat:
    """What a file is, from its names and shapes and the options; see `import_adm`."""
    network, heads = _infer_network(tensors, options, what), options.heads
    for published in PUBLISHED:
        if _shape_alone(published.network) == _shape_alone(network):
            has_own_heads = heads.head_channels is not None or heads.heads is not None
            order = options.attention_order or published.attention_order
            return ADMFormat(network if has_own_heads else published.network, order)
    # The published code has the choice of an order only for diffusion models at one size.
    has_choice = isinstance(network, ADMConfig) and not network.is_upsampler
    if options.attention_order is None and has_choice:
        raise UserError(
            f"{what} is none of the published networks, and no shape tells the order of its packed "
            "attention: give --attention-order legacy (head by head) or new (queries, keys, values)"
        )
    return ADMFormat(network, options.attention_order or "legacy")


def adm_key_map(config: ADMConfig, attention_order: AttentionOrder) -> KeyMap:
    """A diffusion model's or an upsampler's file → params of `ADM`."""
    label = Entry("label_embedding/embedding", ("label_emb.weight",))
    return [
        *under(adm_unet_keys(config.unet, attention_order), target="unet/"),
        *([label] if config.num_classes is not None else []),
    ]


def classifier_key_map(
    config: ClassifierConfig, attention_order: AttentionOrder = "legacy"
) -> KeyMap:
    """A classifier's file → params of `Classifier`; its pool packs [Q | K | V] in every file."""
    return [
        *adm_encoder_keys(config.encoder, attention_order),
        *norm("norm_out", "out.0"),
        Entry("pool/positional_embedding", ("out.2.positional_embedding",), Permuted((1, 0))),
        *dense("pool/qkv", "out.2.qkv_proj", kernel=POINTWISE),
        *dense("pool/projection", "out.2.c_proj", kernel=POINTWISE),
    ]


def _infer_network(
    tensors: Tensors, options: ADMOptions, what: str
) -> ADMConfig | ClassifierConfig:
    if "transformer_proj.weight" in tensors:
        raise UserError(f"{what} holds a text encoder: read it as GLIDE, not as ADM")
    if any(name.startswith("output_blocks.") for name in tensors):
        unet = infer_unet(tensors, options.heads, what=what, image_size=options.image_size)
        label = tensors.get("label_emb.weight")
        classes = None if label is None else label.shape[0]
        return ADMConfig(unet, classes, is_upsampler=unet.in_channels == 6)
    logits = tensors.get("out.2.c_proj.weight")
    if logits is None:
        raise UserError(
            f"{what} has neither output blocks nor a pool with attention: it is no U-Net of ADM's "
            "and none of its published classifiers"
        )
    encoder = infer_encoder(tensors, options.heads, what=what, depth=options.depth)
    return ClassifierConfig(logits.shape[0], encoder)


def _shape_alone(network: ADMConfig | ClassifierConfig) -> ADMConfig | ClassifierConfig:
    """The network with every field that its file does not tell at a fixed value."""
    c = _unet(network)
    sides = {c.image_size // 2**level for level in range(len(c.channel_mult)) if c.attends(level)}
    ratios = tuple(sorted(c.image_size // side for side in sides))
    # A U-Net's file does not tell its picture's side; a classifier's does.
    side = 4 << len(c.channel_mult) if isinstance(network, ADMConfig) else c.image_size
    plain = replace(
        c,
        image_size=side,
        attention_resolutions=tuple(side // ratio for ratio in ratios),
        head_channels=UNetConfig.head_channels,
        heads=None,
        dropout=0.0,
    )
    if isinstance(network, ADMConfig):
        return replace(network, unet=plain)
    return replace(network, encoder=replace(plain, out_channels=3))


def _picture(side: int, channels: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)


def _unet(network: ADMConfig | ClassifierConfig) -> UNetConfig:
    return network.unet if isinstance(network, ADMConfig) else network.encoder
