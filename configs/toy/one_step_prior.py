"""A one-step prior of a few thousand parameters, for tests and for trying the commands.

python train.py configs/toy/one_step_prior.py --workdir runs/toy/one_step_prior --data.source FOLDER
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.one_step_prior import OneStepPriorConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.baseline_priors import OneStepPriorRecipe

config = OneStepPriorRecipe(
    steps=20,
    batch_size=8,
    ema_decay=0.99,
    clip="runs/toy/clip",
    model=OneStepPriorConfig(
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
