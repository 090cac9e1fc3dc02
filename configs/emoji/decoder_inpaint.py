"""The emoji decoder fine-tuned to fill holes: GLIDE's inpainting (Nichol et al. 2021, section 2.1).

    python train.py configs/emoji/decoder_inpaint.py --workdir runs/decoder_inpaint

It starts from the shipped decoder and sees, besides, what a random mask keeps of the picture. Steps
and learning rate are those of the decoder's own training, and were not run. Measured were 376 steps
at half this learning rate: too few. The kernel's part for the known picture grew from zero to 0.018
(root mean square; that for the noisy picture is 0.149), and holes were filled no better than by
RePaint with the plain decoder (benchmarks/inpainting.py, 12 pictures, 40 % erased; 30 calls of the
network: 18.2 and 18.1 dB; RePaint with 130 calls: 18.5 dB).
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, OptimConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.text import TextConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.run import DiffusionConfig

# What configs/emoji/decoder.py has learned to draw.
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
    init_from="emoji",
    batch_size=24,
    ema_decay=0.998,
    clip="emoji",
    model=DecoderConfig(
        unet=UNetConfig(
            image_size=64,
            in_channels=7,
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
        is_inpainting=True,
    ),
    diffusion=DiffusionConfig(prediction="v", variance="fixed_small"),
    data=DataConfig(source="emoji", split="train", image_size=64, concepts=CONCEPTS),
    optim=OptimConfig(optimizer="muon", learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    checkpoint=CheckpointConfig(every=200, keep=2),
    log=LogConfig(every=20, preview_every=250, preview_columns=8, preview_steps=20),
)
