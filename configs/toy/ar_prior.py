"""An autoregressive prior of a few thousand parameters, for tests and for trying the commands.

python train.py configs/toy/ar_prior.py --workdir runs/toy/ar_prior --data.source FOLDER
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.ar_prior import ARPriorConfig
from unclip_jax.models.embedding_codes import CodeConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe

config = ARPriorRecipe(
    steps=20,
    batch_size=8,
    ema_decay=0.99,
    clip="runs/toy/clip",
    model=ARPriorConfig(
        embedding_width=16,
        text_width=16,
        context_length=12,
        components=4,
        buckets=8,
        dot_buckets=8,
        transformer=TransformerConfig(width=16, depth=2, heads=2),
    ),
    fit=CodeConfig(components=4, buckets=8, dot_buckets=8),
    data=DataConfig(image_size=16),
    optim=OptimConfig(learning_rate=1e-3),
    checkpoint=CheckpointConfig(every=10),
    log=LogConfig(every=5),
)
