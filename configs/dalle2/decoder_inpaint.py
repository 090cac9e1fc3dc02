"""The paper's 64 x 64 decoder fine-tuned to fill holes, as GLIDE's was (Nichol et al. 2021, 2.1).

    python train.py configs/dalle2/decoder_inpaint.py --workdir runs/dalle2/decoder_inpaint \\
        --clip runs/dalle2/clip --data.source 'DATA/*.tar'

Ramesh et al. 2022 name inpainting in DALL-E 2 and specify none of it. GLIDE's released small model
was fine-tuned with dropped captions and holes for 500,000 steps; its paper gives neither steps nor
learning rate nor the masks' distribution. Not trained here; what a training step needs is the
decoder's own.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, MeshConfig, OptimConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.text import TextConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.run import DiffusionConfig

config = DecoderRecipe(
    steps=500_000,
    init_from="runs/dalle2/decoder",
    batch_size=2048,
    ema_decay=0.9999,
    clip="runs/dalle2/clip",
    model=DecoderConfig(
        unet=UNetConfig(
            image_size=64,
            in_channels=7,
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
        is_inpainting=True,
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
