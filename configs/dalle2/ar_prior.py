"""The autoregressive prior: caption → 319 codes of the image embedding (Ramesh et al. 2022, table
3).

    python train.py configs/dalle2/ar_prior.py --workdir runs/dalle2/ar_prior \\
        --clip runs/dalle2/clip --data.source 'DATA/*.tar'

For an accelerator cluster; time and quality were not measured here. The paper's own text encoder is
24 blocks of width 2048, its decoder 24 of width 1664 with a context of 384; the sequence here is
256 caption positions, two more and 318 codes long.

Planned for 256 v5e chips (`unclip plan`, an upper bound of memory and floors of time): 7.47 of
16.9 GB a chip, 522 ms a step or more, MFU 83% or less.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, MeshConfig, OptimConfig
from unclip_jax.models.ar_prior import ARPriorConfig
from unclip_jax.models.embedding_codes import CodeConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe

config = ARPriorRecipe(
    steps=1_000_000,
    batch_size=4096,
    ema_decay=0.999,
    clip="runs/dalle2/clip",
    model=ARPriorConfig(
        embedding_width=1024,
        text_width=1024,
        context_length=256,
        components=319,
        buckets=1024,
        dot_buckets=1024,
        text=TransformerConfig(width=2048, depth=24, heads=32, dtype="bfloat16", remat="block"),
        transformer=TransformerConfig(
            width=1664, depth=24, heads=26, dtype="bfloat16", remat="block"
        ),
    ),
    fit=CodeConfig(components=319, buckets=1024, dot_buckets=1024),
    text_drop=0.1,
    data=DataConfig(image_size=64),
    optim=OptimConfig(learning_rate=1.6e-4, b1=0.9, b2=0.91, eps=1e-10, weight_decay=4e-2),
    mesh=MeshConfig(fsdp=8, topology="v5e:16x16"),
    checkpoint=CheckpointConfig(every=5000, keep=3),
    log=LogConfig(every=100),
)
