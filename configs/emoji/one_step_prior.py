"""The emoji one-step prior (ECLIPSE): caption and noise → image embedding in a single pass.

python train.py configs/emoji/one_step_prior.py --workdir runs/one_step_prior --clip runs/clip

Five minutes on two busy CPU cores (180 pictures a second). benchmarks/priors.py: as near to the
true embeddings as the linear prior, and its draws for one caption hardly differ.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.one_step_prior import OneStepPriorConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.baseline_priors import OneStepPriorRecipe

config = OneStepPriorRecipe(
    steps=700,
    batch_size=64,
    ema_decay=0.997,
    clip="emoji",
    model=OneStepPriorConfig(
        embedding_width=128,
        text_width=128,
        context_length=24,
        transformer=TransformerConfig(width=128, depth=4, heads=4),
    ),
    data=DataConfig(source="emoji", split="train", image_size=64),
    optim=OptimConfig(learning_rate=5e-4, schedule="cosine", warmup_steps=100, weight_decay=6e-2),
    checkpoint=CheckpointConfig(every=350, keep=2),
    log=LogConfig(every=25),
)
