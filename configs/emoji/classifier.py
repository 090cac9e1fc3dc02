"""A classifier of noisy emoji pictures by their style, to steer the decoder.

    python train.py configs/emoji/classifier.py --workdir runs/classifier

Six in ten captions name the style; the other pictures of a batch are not learned from.

Three minutes on two busy CPU cores (160 pictures a second). `accuracy` in metrics.jsonl, over all
noise levels, ends near 0.7 of four styles.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.classifier import ClassifierConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.training.recipes.classifier import ClassifierRecipe

config = ClassifierRecipe(
    steps=300,
    batch_size=64,
    ema_decay=0.99,
    classes=("noto style", "twemoji style", "flat style", "3d style"),
    model=ClassifierConfig(
        num_classes=4,
        encoder=UNetConfig(
            image_size=64,
            patch_size=4,
            channels=32,
            channel_mult=(1, 2),
            depth=(1,),
            attention_resolutions=(8,),
            heads=4,
            groups=8,
        ),
    ),
    data=DataConfig(source="emoji", split="train", image_size=64),
    optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50, weight_decay=0.05),
    checkpoint=CheckpointConfig(every=100, keep=2),
    log=LogConfig(every=10),
)
