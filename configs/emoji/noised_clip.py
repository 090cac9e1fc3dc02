"""A small CLIP of noisy emoji pictures, to steer the decoder by a caption.

    python train.py configs/emoji/noised_clip.py --workdir runs/noised_clip

12 minutes on two CPU cores beside other work. Expect it to find 22 % of a batch's 256 captions,
over all noise levels (chance 0.4 %); `--clip-guidance 2` then leaves pictures clean.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.data.tokenizer import TokenizerConfig
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.noised_clip import NoisedCLIPConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe

config = NoisedCLIPRecipe(
    steps=400,
    batch_size=256,
    ema_decay=0.99,
    model=NoisedCLIPConfig(
        clip=CLIPConfig(
            embedding_width=128,
            image_size=64,
            patch_size=16,
            vision=TransformerConfig(width=192, depth=4, heads=4, activation="quick_gelu"),
            text=TransformerConfig(width=128, depth=3, heads=4, activation="quick_gelu"),
            vocab_size=2048,
            context_length=24,
        )
    ),
    tokenizer=TokenizerConfig(kind="trained", vocab_size=2048, context_length=24),
    data=DataConfig(source="emoji", split="train", image_size=64),
    optim=OptimConfig(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=20,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
    ),
    checkpoint=CheckpointConfig(every=60, keep=2),
    log=LogConfig(every=10),
)
