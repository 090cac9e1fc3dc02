"""The toy decoder with the four channels of inpainting, for tests and for trying the commands.

python train.py configs/toy/decoder_inpaint.py --workdir runs/toy/decoder_inpaint \\
    --init-from runs/toy/decoder --data.source FOLDER
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.text import TextConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.training.recipes.decoder import DecoderRecipe

config = DecoderRecipe(
    steps=20,
    batch_size=8,
    ema_decay=0.99,
    clip="runs/toy/clip",
    model=DecoderConfig(
        unet=UNetConfig(
            image_size=16,
            in_channels=7,
            channels=8,
            channel_mult=(1, 2),
            depth=(1,),
            attention_resolutions=(8,),
            heads=2,
            context_width=16,
            groups=4,
        ),
        text=TextConfig(
            vocab_size=600,
            context_length=12,
            transformer=TransformerConfig(width=16, depth=1, heads=2),
        ),
        embedding_width=16,
        is_inpainting=True,
    ),
    data=DataConfig(image_size=16),
    optim=OptimConfig(learning_rate=1e-3),
    checkpoint=CheckpointConfig(every=10),
    log=LogConfig(every=5, preview_every=20, preview_steps=4),
)
