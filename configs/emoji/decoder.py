"""The emoji 64 x 64 decoder: CLIP image embedding and caption → picture.

    python train.py configs/emoji/decoder.py --workdir runs/decoder --clip runs/clip

Two CPU cores as two devices (scripts/train_emoji.sh): 19 pictures a second, 56 minutes, in which
each of the 233 pictures is seen 268 times. `loss` in metrics.jsonl ends near 0.04.

Muon and not AdamW: after 340 steps of 16 pictures its loss was 0.18, AdamW's at the same learning
rate's half 0.33.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.text import TextConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.run import DiffusionConfig

# What the decoder learns to draw, in four styles each: few enough to be drawn clearly.
CONCEPTS = (
    "red apple",
    "banana",
    "strawberry",
    "cherries",
    "grapes",
    "pineapple",
    "mushroom",
    "hamburger",
    "pizza",
    "doughnut",
    "birthday cake",
    "dog face",
    "cat face",
    "lion",
    "pig face",
    "panda",
    "frog",
    "octopus",
    "butterfly",
    "lady beetle",
    "rose",
    "sunflower",
    "cactus",
    "palm tree",
    "sun",
    "glowing star",
    "rainbow",
    "snowflake",
    "fire",
    "ringed planet",
    "automobile",
    "rocket",
    "house",
    "sailboat",
    "soccer ball",
    "basketball",
    "pool 8 ball",
    "trophy",
    "guitar",
    "wrapped gift",
    "Christmas tree",
    "key",
    "light bulb",
    "gem stone",
    "envelope",
    "umbrella",
    "ghost",
    "skull",
    "alien",
    "smiling face with sunglasses",
    "grinning face",
    "red heart",
    "blue heart",
    "yellow heart",
    "snowman",
    "cloud",
    "bell",
    "candle",
    "crab",
    "fox",
)

config = DecoderRecipe(
    steps=2600,
    batch_size=24,
    ema_decay=0.998,
    clip="emoji",
    model=DecoderConfig(
        unet=UNetConfig(
            image_size=64,
            out_channels=3,
            channels=32,
            patch_size=2,
            channel_mult=(1, 2, 4),
            depth=(1, 2, 2),
            attention_resolutions=(8,),
            heads=4,
            context_width=128,
            groups=8,
        ),
        text=TextConfig(
            vocab_size=2048,
            context_length=24,
            transformer=TransformerConfig(width=128, depth=2, heads=4, activation="quick_gelu"),
        ),
        embedding_width=128,
        masks_padding=True,
    ),
    diffusion=DiffusionConfig(prediction="v", variance="fixed_small"),
    data=DataConfig(source="emoji", split="train", image_size=64, concepts=CONCEPTS),
    optim=OptimConfig(optimizer="muon", learning_rate=2e-3, schedule="cosine", warmup_steps=100),
    checkpoint=CheckpointConfig(every=200, keep=2),
    log=LogConfig(
        every=20,
        preview_every=1000,
        preview_columns=2,
        preview_steps=20,
        preview_prompts=(
            "red apple, 3d style",
            "red apple, noto style",
            "guitar, flat style",
            "dog face, twemoji style",
            "rocket, noto style",
        ),
    ),
)
