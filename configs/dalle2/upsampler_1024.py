"""The upsampler 256 → 1024: convolutions alone, on crops of 256 × 256 (Ramesh et al. 2022).

    python train.py configs/dalle2/upsampler_1024.py --workdir runs/dalle2/upsampler_1024 \\
        --data.source 'DATA/*.tar'

300 million weights, for an accelerator cluster; time and quality were not measured here. It samples
in 15 DDIM steps.

Planned for 256 v5e chips (`unclip plan`, an upper bound of memory and floors of time): 4.95 of
16.9 GB a chip, 48 ms a step or more, MFU 78% or less.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, MeshConfig, OptimConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.training.degradations.low_resolution import DegradationConfig
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe

config = UpsamplerRecipe(
    steps=1_000_000,
    batch_size=512,
    ema_decay=0.9999,
    model=UpsamplerConfig(
        unet=UNetConfig(
            image_size=1024,
            in_channels=6,
            out_channels=6,
            channels=192,
            channel_mult=(1, 1, 2, 2, 4, 4),
            depth=(2,),
            attention_resolutions=(),
            has_middle_attention=False,
            dtype="bfloat16",
            remat="block",
        )
    ),
    diffusion=DiffusionConfig(
        schedule="linear", num_timesteps=1000, prediction="eps", variance="learned_range"
    ),
    degradation=DegradationConfig(kind="bsr"),
    crop_fraction=0.25,
    data=DataConfig(image_size=1024),
    optim=OptimConfig(learning_rate=1.0e-4, b1=0.9, b2=0.999, eps=1e-8),
    mesh=MeshConfig(fsdp=8, topology="v5e:16x16"),
    checkpoint=CheckpointConfig(every=5000, keep=3),
    log=LogConfig(every=100),
)
