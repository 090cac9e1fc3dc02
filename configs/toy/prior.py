"""A diffusion prior of a few thousand parameters, for tests and for trying the commands.

python train.py configs/toy/prior.py --workdir runs/toy/prior --data.source FOLDER
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.prior import PriorRecipe

config = PriorRecipe(
    steps=20,
    batch_size=8,
    ema_decay=0.99,
    clip="runs/toy/clip",
    model=PriorConfig(
        embedding_width=16,
        text_width=16,
        context_length=12,
        transformer=TransformerConfig(width=16, depth=2, heads=2),
    ),
    data=DataConfig(image_size=16),
    optim=OptimConfig(learning_rate=1e-3),
    checkpoint=CheckpointConfig(every=10),
    log=LogConfig(every=5),
)
