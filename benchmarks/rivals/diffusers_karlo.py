"""Karlo as a PyTorch user can still run it: diffusers' components, assembled by hand.

`UnCLIPPipeline` is deprecated and its folders no longer load; its parts do. This does what it did,
guidance as one batch of twice the rows included, with noise that is given.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from transformers import CLIPTextModelWithProjection

PRIOR_GUIDANCE, DECODER_GUIDANCE = 4.0, 8.0
_DRAW = "diffusers.schedulers.scheduling_unclip.randn_tensor"
PARTS = {
    "text_encoder": CLIPTextModelWithProjection,
    "prior": PriorTransformer,
    "text_proj": UnCLIPTextProjModel,
    "decoder": UNet2DConditionModel,
    "super_res_first": UNet2DModel,
    "super_res_last": UNet2DModel,
}


class DiffusersKarlo:
    """Text → 256 in three calls.

    Args:
        stages: prior, decoder, upsampler; what is not named is not loaded.
        is_compiled: the denoising networks through `torch.compile`.
        channels_last: the layout that torch recommends for convolutions.
    """

    def __init__(
        self,
        folder: Path,
        stages: tuple[str, ...],
        *,
        is_compiled: bool,
        channels_last: bool = True,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        needed = {
            "prior": ("prior",),
            "decoder": ("text_proj", "decoder"),
            "upsampler": ("super_res_first", "super_res_last"),
        }
        names = ["text_encoder", *(name for stage in stages for name in needed[stage])]
        self.device, self.dtype, self.folder = device, dtype, folder
        self.parts: dict[str, Any] = {}
        for name in names:
            kind: Any = PARTS[name]
            part = kind.from_pretrained(folder / name, torch_dtype=dtype).eval().to(device)
            if channels_last and name.startswith(("decoder", "super_res")):
                part = part.to(memory_format=torch.channels_last)
            if is_compiled and name not in ("text_encoder", "text_proj"):
                part = torch.compile(part)
            self.parts[name] = part

    @torch.inference_mode()
    def text(self, tokens: np.ndarray) -> tuple[Any, Any, Any]:
        """[B, 77] int32 of the prompts → embedding, states and mask, the empty captions first."""
        empty = np.zeros_like(tokens)
        empty[:, 0], empty[:, 1] = tokens[:, 0], tokens.max()
        both = np.concatenate([empty, tokens])
        out = self.parts["text_encoder"](torch.from_numpy(both.astype(np.int64)).to(self.device))
        mask = np.arange(both.shape[1]) <= both.argmax(1)[:, None]
        return out.text_embeds, out.last_hidden_state, torch.from_numpy(mask).to(self.device)

    @torch.inference_mode()
    def prior(self, text: tuple[Any, Any, Any], noise: np.ndarray) -> Any:
        """noise [B, steps, E] → image embeddings [B, E]."""
        embedding, states, mask = text

        def denoise(x: Any, t: Any) -> Any:
            out = self.parts["prior"](
                torch.cat([x, x]),
                timestep=t,
                proj_embedding=embedding,
                encoder_hidden_states=states,
                attention_mask=mask,
            ).predicted_image_embedding
            nothing, prompted = out.chunk(2)
            return nothing + PRIOR_GUIDANCE * (prompted - nothing)

        x = self._chain("prior_scheduler", denoise, self._given(noise))
        return self.parts["prior"].post_process_latents(x)

    @torch.inference_mode()
    def decode(self, text: tuple[Any, Any, Any], embedding: Any, noise: np.ndarray) -> Any:
        """noise [B, steps, 64, 64, 3] → pictures [B, 3, 64, 64]."""
        context, condition = self.parts["text_proj"](
            image_embeddings=embedding,
            prompt_embeds=text[0],
            text_encoder_hidden_states=text[1],
            do_classifier_free_guidance=True,
        )
        mask = torch.nn.functional.pad(text[2], (context.shape[1] - text[2].shape[1], 0), value=1)

        def denoise(x: Any, t: Any) -> Any:
            out = self.parts["decoder"](
                sample=torch.cat([x, x]),
                timestep=t,
                encoder_hidden_states=context,
                class_labels=condition,
                attention_mask=mask,
            ).sample
            nothing, prompted = out.chunk(2)
            start = nothing[:, :3]
            guided = start + DECODER_GUIDANCE * (prompted[:, :3] - start)
            return torch.cat([guided, prompted[:, 3:]], 1)

        return self._chain("decoder_scheduler", denoise, self._given(noise))

    @torch.inference_mode()
    def upsample(self, small: Any, noise: np.ndarray) -> Any:
        """Pictures [B, 3, 64, 64] and noise [B, steps, 256, 256, 3] → [B, 3, 256, 256]."""
        large = torch.nn.functional.interpolate(
            small.clamp(-1, 1).float(),
            size=noise.shape[2:4],
            mode="bicubic",
            antialias=True,
            align_corners=False,
        ).to(self.dtype)
        left = noise.shape[1]

        def denoise(x: Any, t: Any) -> Any:
            nonlocal left
            left -= 1
            network = self.parts["super_res_first" if left else "super_res_last"]
            return network(sample=torch.cat([x, large], 1), timestep=t).sample

        return self._chain("super_res_scheduler", denoise, self._given(noise))

    def _given(self, noise: np.ndarray) -> list[Any]:
        """[B, steps, ...], channels last → a tensor for each step."""
        steps = np.moveaxis(noise, 1, 0)
        if steps.ndim == 5:
            steps = np.moveaxis(steps, -1, 2)
        return [torch.from_numpy(step.copy()).to(self.device, self.dtype) for step in steps]

    def _chain(self, scheduler_name: str, denoise: Any, draws: list[Any]) -> Any:
        scheduler: Any = UnCLIPScheduler.from_pretrained(self.folder / scheduler_name)
        scheduler.set_timesteps(len(draws), device=self.device)
        times, x = scheduler.timesteps, draws[0]
        for i, t in enumerate(times):
            is_last = i + 1 == len(draws)
            noise, before = (None, None) if is_last else (draws[i + 1], times[i + 1])
            with patch(_DRAW, partial(_given_noise, noise)):
                x = scheduler.step(denoise(x, t), t, x, prev_timestep=before).prev_sample
        return x


def _given_noise(noise: Any, *_: Any, **__: Any) -> Any:
    return noise
