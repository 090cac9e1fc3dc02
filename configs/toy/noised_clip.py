"""A CLIP that knows noise of a few thousand parameters, for tests and for trying the commands.

python train.py configs/toy/noised_clip.py --workdir runs/toy/noised_clip --data.source FOLDER
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.data.tokenizer import TokenizerConfig
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.noised_clip import NoisedCLIPConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe

config = NoisedCLIPRecipe(
    steps=20,
    batch_size=8,
    ema_decay=0.99,
    model=NoisedCLIPConfig(
        clip=CLIPConfig(
            embedding_width=16,
            image_size=16,
            patch_size=8,
            vision=TransformerConfig(width=16, depth=2, heads=2),
            text=TransformerConfig(width=16, depth=2, heads=2),
            vocab_size=600,
            context_length=12,
        )
    ),
    tokenizer=TokenizerConfig(kind="trained", vocab_size=600, context_length=12),
    data=DataConfig(image_size=16),
    optim=OptimConfig(learning_rate=1e-3),
    checkpoint=CheckpointConfig(every=10),
    log=LogConfig(every=5),
)
