"""A linear prior of a few thousand parameters, for tests and for trying the commands.

python train.py configs/toy/linear_prior.py --workdir runs/toy/linear_prior --data.source FOLDER
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.linear_prior import LinearPriorConfig
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe

config = LinearPriorRecipe(
    steps=20,
    batch_size=8,
    ema_decay=0.99,
    clip="runs/toy/clip",
    model=LinearPriorConfig(embedding_width=16),
    data=DataConfig(image_size=16),
    optim=OptimConfig(learning_rate=1e-3),
    checkpoint=CheckpointConfig(every=10),
    log=LogConfig(every=5),
)
