"""The emoji upsampler 256 → 1024, trained on crops of 256 × 256.

    python train.py configs/emoji/upsampler_1024.py --workdir runs/upsampler_1024

The first run draws all training pictures at 1024 pixels, 40 minutes of one CPU core. Two crops of
each of 4 pictures a step; 1.2 s a step on two CPU cores. Only four in ten small pictures are
degraded: a first run with all of them drew halos around the edges of clean ones. Expect 34.3 dB
PSNR on 12 held-out pictures, and bicubic's 33.8 (`benchmarks/upsamplers.py --rows 12`); the shipped
weights had their learning rate lowered once more, at step 1,300.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.training.degradations.low_resolution import DegradationConfig
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe

config = UpsamplerRecipe(
    steps=2400,
    batch_size=4,
    ema_decay=0.997,
    model=UpsamplerConfig(
        unet=UNetConfig(
            image_size=1024,
            in_channels=6,
            out_channels=3,
            patch_size=8,
            channels=64,
            channel_mult=(1, 1),
            depth=(2,),
            attention_resolutions=(),
            has_middle_attention=False,
            groups=8,
        )
    ),
    diffusion=DiffusionConfig(schedule="linear", prediction="x0", variance="fixed_small"),
    degradation=DegradationConfig(kind="bsr", bsr_share=0.4),
    crops=2,
    data=DataConfig(source="emoji", split="train", image_size=1024),
    optim=OptimConfig(optimizer="muon", learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    checkpoint=CheckpointConfig(every=250, keep=2),
    log=LogConfig(every=25),
)
