"""The 64 x 64 decoder: CLIP image embedding and caption → picture (Ramesh et al. 2022, table 3).

    python train.py configs/dalle2/decoder.py --workdir runs/dalle2/decoder \\
        --clip runs/dalle2/clip --data.source 'DATA/*.tar'

3.6 billion weights, for an accelerator cluster: with their average and Adam's two moments 57 GB.
Time and picture quality were not measured here. The paper states no warm-up, clipping or precision;
CLIP sees the 64 x 64 picture here, enlarged. It samples in 250 steps with the learned variance, at
guidance 1.25 for its FID.

Planned for 256 v5e chips (`unclip plan`, an upper bound of memory and floors of time): 13.48 of
16.9 GB a chip, 340 ms a step or more, MFU 83% or less.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, MeshConfig, OptimConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.text import TextConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.run import DiffusionConfig

config = DecoderRecipe(
    steps=800_000,
    batch_size=2048,
    ema_decay=0.9999,
    clip="runs/dalle2/clip",
    model=DecoderConfig(
        unet=UNetConfig(
            image_size=64,
            channels=512,
            channel_mult=(1, 2, 3, 4),
            depth=(3,),
            attention_resolutions=(32, 16, 8),
            head_channels=64,
            context_width=2048,
            dropout=0.1,
            dtype="bfloat16",
            remat="block",
        ),
        text=TextConfig(
            vocab_size=49_408,
            context_length=256,
            transformer=TransformerConfig(
                width=2048, depth=24, heads=32, dtype="bfloat16", remat="block"
            ),
        ),
        embedding_width=1024,
    ),
    diffusion=DiffusionConfig(
        schedule="cosine", num_timesteps=1000, prediction="eps", variance="learned_range"
    ),
    embedding_drop=0.1,
    text_drop=0.5,
    data=DataConfig(image_size=64),
    optim=OptimConfig(learning_rate=1.2e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0),
    mesh=MeshConfig(fsdp=8, topology="v5e:16x16"),
    checkpoint=CheckpointConfig(every=5000, keep=3),
    log=LogConfig(every=100),
)
