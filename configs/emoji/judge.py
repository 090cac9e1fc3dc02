"""A CLIP for evaluation only: another width, seed and loss than the model's own.

    python train.py configs/emoji/judge.py --workdir runs/judge

It is never trained with, guided by or ranked by, so its verdict on pictures is not what they were
made for (`unclip evaluate --judge runs/judge`). It learns from all splits: whoever judges a drawing
of a held-out thing has to know what the thing looks like. So its scores of true pictures say how
sharp it is, and not how well it generalises.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.data.tokenizer import TokenizerConfig
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.clip import CLIPRecipe

config = CLIPRecipe(
    steps=700,
    batch_size=256,
    seed=1,
    ema_decay=0.99,
    loss="sigmoid",
    least_crop=0.8,
    model=CLIPConfig(
        embedding_width=96,
        image_size=64,
        patch_size=16,
        vision=TransformerConfig(width=160, depth=5, heads=5, activation="gelu"),
        text=TransformerConfig(width=96, depth=3, heads=4, activation="gelu"),
        vocab_size=2048,
        context_length=24,
        has_logit_bias=True,
        initial_logit_scale=2.303,
    ),
    tokenizer=TokenizerConfig(kind="trained", vocab_size=2048, context_length=24),
    data=DataConfig(source="emoji", split="train+test_cells+test", image_size=64, shuffle_block=4),
    optim=OptimConfig(
        optimizer="muon",
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=50,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
    ),
    checkpoint=CheckpointConfig(every=100, keep=2),
    log=LogConfig(every=10),
)
