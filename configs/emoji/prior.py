"""The emoji diffusion prior: caption → CLIP image embedding.

    python train.py configs/emoji/prior.py --workdir runs/prior --clip runs/clip

Two CPU cores as two devices (scripts/train_emoji.sh): 300 pictures a second, 5 minutes. `cosine` in
metrics.jsonl, of the prediction to the true embedding over all timesteps, ends near 0.88.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.prior import PriorRecipe

config = PriorRecipe(
    steps=1500,
    batch_size=64,
    ema_decay=0.997,
    clip="emoji",
    model=PriorConfig(
        embedding_width=128,
        text_width=128,
        context_length=24,
        transformer=TransformerConfig(width=128, depth=4, heads=4),
    ),
    data=DataConfig(source="emoji", split="train", image_size=64),
    optim=OptimConfig(
        learning_rate=5e-4,
        schedule="cosine",
        warmup_steps=100,
        b2=0.96,
        eps=1e-6,
        weight_decay=6e-2,
    ),
    checkpoint=CheckpointConfig(every=500, keep=2),
    log=LogConfig(every=25),
)
