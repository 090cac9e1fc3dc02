"""The upsampler 64 → 256: convolutions alone, on crops of 64 × 64 (Ramesh et al. 2022, table 3).

    python train.py configs/dalle2/upsampler_256.py --workdir runs/dalle2/upsampler_256 \\
        --data.source 'DATA/*.tar'

700 million weights, for an accelerator cluster; time and quality were not measured here. It samples
in 27 DDIM steps.

Planned for 256 v5e chips (`unclip plan`, an upper bound of memory and floors of time): 2.85 of
16.9 GB a chip, 45 ms a step or more, MFU 72% or less.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, MeshConfig, OptimConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.training.degradations.low_resolution import DegradationConfig
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe

config = UpsamplerRecipe(
    steps=1_000_000,
    batch_size=1024,
    ema_decay=0.9999,
    model=UpsamplerConfig(
        unet=UNetConfig(
            image_size=256,
            in_channels=6,
            out_channels=6,
            channels=320,
            channel_mult=(1, 2, 3, 4),
            depth=(3,),
            attention_resolutions=(),
            has_middle_attention=False,
            dropout=0.1,
            dtype="bfloat16",
            remat="block",
        )
    ),
    diffusion=DiffusionConfig(
        schedule="cosine", num_timesteps=1000, prediction="eps", variance="learned_range"
    ),
    degradation=DegradationConfig(kind="blur"),
    crop_fraction=0.25,
    data=DataConfig(image_size=256),
    optim=OptimConfig(learning_rate=1.2e-4, b1=0.9, b2=0.999, eps=1e-8),
    mesh=MeshConfig(fsdp=8, topology="v5e:16x16"),
    checkpoint=CheckpointConfig(every=5000, keep=3),
    log=LogConfig(every=100),
)
