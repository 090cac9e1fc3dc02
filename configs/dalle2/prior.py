"""unCLIP's diffusion prior: caption → CLIP image embedding (Ramesh et al. 2022, table 3).

    python train.py configs/dalle2/prior.py --workdir runs/dalle2/prior --clip runs/dalle2/clip \\
        --data.source 'DATA/*.tar'

1.2 billion weights, for an accelerator cluster; time and `cosine` were not measured here. The paper
states no warm-up, clipping or precision. Its prior encodes the caption itself; here, as in Karlo,
the caption's states are those of the frozen CLIP.

Planned for 256 v5e chips (`unclip plan`, an upper bound of memory and floors of time): 4.34 of
16.9 GB a chip, 232 ms a step or more, MFU 85% or less.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, MeshConfig, OptimConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.run import DiffusionConfig

config = PriorRecipe(
    steps=600_000,
    batch_size=4096,
    ema_decay=0.9999,
    clip="runs/dalle2/clip",
    model=PriorConfig(
        embedding_width=1024,
        text_width=1024,
        context_length=256,
        transformer=TransformerConfig(
            width=2048, depth=24, heads=32, dtype="bfloat16", remat="block"
        ),
        embedding_scale=17.2,
    ),
    diffusion=DiffusionConfig(schedule="cosine", num_timesteps=1000, prediction="x0"),
    text_drop=0.1,
    data=DataConfig(image_size=256),
    optim=OptimConfig(learning_rate=1.1e-4, b1=0.9, b2=0.96, eps=1e-6, weight_decay=6e-2),
    mesh=MeshConfig(fsdp=8, topology="v5e:16x16"),
    checkpoint=CheckpointConfig(every=5000, keep=3),
    log=LogConfig(every=100),
)
