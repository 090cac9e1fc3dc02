"""An upsampler of a few thousand parameters, for tests and for trying the commands.

python train.py configs/toy/upsampler.py --workdir runs/toy/upsampler --data.source FOLDER
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe

config = UpsamplerRecipe(
    steps=20,
    batch_size=8,
    ema_decay=0.99,
    model=UpsamplerConfig(
        unet=UNetConfig(
            image_size=32,
            in_channels=6,
            out_channels=3,
            channels=8,
            channel_mult=(1,),
            depth=(1,),
            attention_resolutions=(),
            has_middle_attention=False,
            groups=4,
        )
    ),
    diffusion=DiffusionConfig(prediction="v", variance="fixed_small"),
    data=DataConfig(image_size=32),
    optim=OptimConfig(learning_rate=1e-3),
    checkpoint=CheckpointConfig(every=10),
    log=LogConfig(every=5),
)
