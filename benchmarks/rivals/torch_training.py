"""Training steps as a PyTorch user writes them: forward, backward, clipping, AdamW, average.

Fused AdamW and the foreach average, the fastest that torch has for both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

EMA_DECAY, CLIP_NORM, DROPS = 0.999, 1.0, 0.1


class TorchTrainer:
    """One module, trained by a loss of it.

    Args:
        network: what has the parameters.
        loss: of the network (compiled or not), a scalar.
        dtype: float32, or bfloat16 by autocast.
        is_compiled: through `torch.compile`.
    """

    def __init__(
        self,
        network: Any,
        loss: Callable[[Any], Any],
        dtype: str = "float32",
        *,
        is_compiled: bool = False,
    ) -> None:
        self.network, self.loss = network.train(), loss
        device = next(network.parameters()).device.type
        self.precision = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
        self.average = copy.deepcopy(network).eval()
        self.run = torch.compile(network) if is_compiled else network
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step(self) -> float:
        """The loss, once all is done."""
        with self.precision:
            loss = self.loss(self.run)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.network.parameters()), 1 - EMA_DECAY
            )
        return loss.item()


def noised(x0: Any) -> tuple[Any, Any, Any]:
    """(x_t, t, eps) of the cosine schedule, with t drawn for each row."""
    betas = np.minimum(1 - _alpha_bar(np.arange(1, 1001)) / _alpha_bar(np.arange(1000)), 0.999)
    bars = torch.from_numpy(np.cumprod(1 - betas)).float().to(x0.device)
    t = torch.randint(0, 1000, (len(x0),), device=x0.device)
    bar, eps = bars[t].reshape(-1, *[1] * (x0.ndim - 1)), torch.randn_like(x0)
    return bar.sqrt() * x0 + (1 - bar).sqrt() * eps, t, eps


def _alpha_bar(step: np.ndarray) -> np.ndarray:
    return np.cos((step / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2


def load(kind: Any, folder: Path, device: str) -> Any:
    """A component of diffusers or transformers."""
    return kind.from_pretrained(folder).to(device)


def encode_text(encoder: Any, tokens: Any) -> tuple[Any, Any, Any]:
    """Embedding, states and mask by the frozen text encoder; a tenth of the captions is dropped."""
    empty = torch.zeros_like(tokens)
    empty[:, 0], empty[:, 1] = tokens[:, 0], tokens.max()
    dropped = torch.rand(len(tokens), 1, device=tokens.device) < DROPS
    tokens = torch.where(dropped, empty, tokens)
    with torch.no_grad():
        out = encoder(tokens)
    mask = torch.arange(tokens.shape[1], device=tokens.device) <= tokens.argmax(1)[:, None]
    return out.text_embeds, out.last_hidden_state, mask


def diffusers_prior(folder: Path, batch: dict[str, Any], device: str) -> tuple[Any, Any]:
    """Karlo's prior, which predicts x_0: (module, loss)."""
    from diffusers.models.transformers.prior_transformer import PriorTransformer
    from transformers import CLIPTextModelWithProjection

    encoder = load(CLIPTextModelWithProjection, folder / "text_encoder", device).eval()

    def loss(network: Any) -> Any:
        text, states, mask = encode_text(encoder, batch["tokens"])
        noisy, t, _ = noised(batch["embedding"])
        out = network(
            noisy,
            timestep=t,
            proj_embedding=text,
            encoder_hidden_states=states,
            attention_mask=mask,
        )
        return torch.mean((out.predicted_image_embedding - batch["embedding"]) ** 2)

    return load(PriorTransformer, folder / "prior", device), loss


class DecoderWithProjection(torch.nn.Module):
    """Karlo's decoder and what turns embeddings into its context, trained together."""

    def __init__(self, folder: Path, device: str) -> None:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

        super().__init__()
        self.project = load(UnCLIPTextProjModel, folder / "text_proj", device)
        unet: Any = load(UNet2DConditionModel, folder / "decoder", device)
        self.unet = unet.to(memory_format=torch.channels_last)

    def forward(self, x: Any, t: Any, embedding: Any, text: tuple[Any, Any, Any]) -> Any:
        """The U-Net's six channels."""
        context, condition = self.project(
            image_embeddings=embedding,
            prompt_embeds=text[0],
            text_encoder_hidden_states=text[1],
            do_classifier_free_guidance=False,
        )
        extra = context.shape[1] - text[2].shape[1]
        mask = torch.nn.functional.pad(text[2], (extra, 0), value=True)
        return self.unet(
            sample=x,
            timestep=t,
            encoder_hidden_states=context,
            class_labels=condition,
            attention_mask=mask,
        ).sample


def diffusers_decoder(folder: Path, batch: dict[str, Any], device: str) -> tuple[Any, Any]:
    """Karlo's decoder, which predicts eps; its variance is left untrained."""
    from transformers import CLIPTextModelWithProjection

    encoder = load(CLIPTextModelWithProjection, folder / "text_encoder", device).eval()

    def loss(network: Any) -> Any:
        text = encode_text(encoder, batch["tokens"])
        embedding = batch["embedding"]
        kept = torch.rand(len(embedding), 1, device=embedding.device) >= DROPS
        noisy, t, eps = noised(batch["image"])
        out = network(noisy, t, embedding * kept, text)
        return torch.mean((out[:, :3] - eps) ** 2)

    return DecoderWithProjection(folder, device), loss


def diffusers_upsampler(folder: Path, batch: dict[str, Any], device: str) -> tuple[Any, Any]:
    """Karlo's upsampler on crops of 64 pixels."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    network: Any = load(UNet2DModel, folder / "super_res_first", device)

    def loss(network: Any) -> Any:
        large = batch["image"]
        small = torch.nn.functional.avg_pool2d(large, 4)
        resized = torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic")
        noisy, t, eps = noised(large)
        out = network(sample=torch.cat([noisy, resized], 1), timestep=t).sample
        return torch.mean((out - eps) ** 2)

    return network.to(memory_format=torch.channels_last), loss


def transformers_clip(folder: Path, batch: dict[str, Any], device: str) -> tuple[Any, Any]:
    """CLIP with its contrastive loss."""
    from transformers import CLIPModel

    def loss(network: Any) -> Any:
        out = network(input_ids=batch["tokens"], pixel_values=batch["pixels"], return_loss=True)
        return out.loss

    return load(CLIPModel, folder, device), loss


def dalle2_prior(batch: dict[str, Any], device: str) -> tuple[Any, Any]:
    """DALLE2-pytorch's prior of 23,239,168 parameters (PRIOR-S)."""
    from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork

    network = DiffusionPriorNetwork(
        dim=512, depth=6, num_timesteps=1000, max_text_len=77, dim_head=64, heads=8
    )
    prior: Any = DiffusionPrior(
        net=network,
        image_embed_dim=512,
        timesteps=1000,
        cond_drop_prob=DROPS,
        condition_on_text_encodings=True,
    ).to(device)
    text = {"text_embed": batch["text"], "text_encodings": batch["states"]}
    return prior, lambda run: run(image_embed=batch["embedding"], **text)


def dalle2_decoder(batch: dict[str, Any], device: str) -> tuple[Any, Any]:
    """DALLE2-pytorch's decoder of 16,163,523 parameters (DECODER-S)."""
    from dalle2_pytorch import Decoder, Unet

    unet: Any = Unet(dim=32, image_embed_dim=512, cond_dim=128, dim_mults=(1, 2, 4, 8))
    decoder: Any = Decoder(unet, image_size=64, timesteps=1000, learned_variance=False).to(device)
    image = (batch["image"] + 1) / 2  # what it expects
    return decoder, lambda run: run(image, image_embed=batch["embedding"], unet_number=1)
