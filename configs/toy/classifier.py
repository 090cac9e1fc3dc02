"""A classifier that knows noise, of a few thousand parameters, for tests and trials.

python train.py configs/toy/classifier.py --workdir runs/toy/classifier --data.source FOLDER
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.classifier import ClassifierConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.training.recipes.classifier import ClassifierRecipe

config = ClassifierRecipe(
    steps=20,
    batch_size=8,
    ema_decay=0.99,
    classes=("red", "green"),
    model=ClassifierConfig(
        num_classes=2,
        encoder=UNetConfig(
            image_size=16,
            channels=8,
            channel_mult=(1,),
            depth=(1,),
            attention_resolutions=(),
            head_channels=8,
            groups=4,
        ),
    ),
    data=DataConfig(image_size=16),
    optim=OptimConfig(learning_rate=1e-3),
    checkpoint=CheckpointConfig(every=10),
    log=LogConfig(every=5),
)
