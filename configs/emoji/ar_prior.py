"""The emoji autoregressive prior: caption → codes of the CLIP image embedding.

    python train.py configs/emoji/ar_prior.py --workdir runs/ar_prior --clip runs/clip

The codes are fitted on the training pictures when the run begins. `accuracy` in metrics.jsonl is
the share of codes that are guessed exactly, of 256 values each.

80 of 128 components and 256 buckets each lose less than 1 % of the embeddings, also of pictures
that were held out (tests/training/test_emoji_codes.py). About 15 minutes on two busy CPU cores;
benchmarks/priors.py has what came of it.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.ar_prior import ARPriorConfig
from unclip_jax.models.embedding_codes import CodeConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe

config = ARPriorRecipe(
    steps=800,
    batch_size=64,
    ema_decay=0.997,
    clip="emoji",
    model=ARPriorConfig(
        embedding_width=128,
        text_width=128,
        context_length=24,
        components=80,
        buckets=256,
        dot_buckets=64,
        transformer=TransformerConfig(width=128, depth=4, heads=4),
    ),
    fit=CodeConfig(components=80, buckets=256, dot_buckets=64),
    data=DataConfig(source="emoji", split="train", image_size=64),
    optim=OptimConfig(
        optimizer="muon",
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=50,
        b2=0.91,
        eps=1e-10,
        weight_decay=4e-2,
    ),
    checkpoint=CheckpointConfig(every=400, keep=2),
    log=LogConfig(every=25),
)
