"""The emoji linear prior: one matrix from text embedding to image embedding.

python train.py configs/emoji/linear_prior.py --workdir runs/linear_prior --clip runs/clip

A minute on two CPU cores. `unclip fit-linear` has the closed form of the same, in one pass.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.linear_prior import LinearPriorConfig
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe

config = LinearPriorRecipe(
    steps=500,
    batch_size=64,
    ema_decay=0.99,
    clip="emoji",
    model=LinearPriorConfig(embedding_width=128),
    data=DataConfig(source="emoji", split="train", image_size=64),
    optim=OptimConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20),
    checkpoint=CheckpointConfig(every=250, keep=2),
    log=LogConfig(every=25),
)
