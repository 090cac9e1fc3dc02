"""unCLIP's own CLIP: ViT-H/16 at 256 x 256, 986 million weights (Ramesh et al. 2022, appendix C).

    python train.py configs/dalle2/clip.py --workdir runs/dalle2/clip --data.source 'DATA/*.tar'

For an accelerator cluster; time and retrieval scores were not measured here. What appendix C does
not change is CLIP's: batch, weight decay, warm-up, 32 epochs (of about 650 million pairs) and no
averaged weights. Each device finds SAM's perturbation on its own pairs: the paper's 64 a replica
take 512 devices. The paper gives no context length for this CLIP but 256 tokens for what it
conditions; one tokenizer serves all stages here, so it is 256.

Planned for 256 v5e chips (`unclip plan`, an upper bound of memory and floors of time): 16.07 of
16.9 GB a chip, 3,149 ms a step or more, MFU 61% or less.
"""

from unclip_jax.config import CheckpointConfig, DataConfig, LogConfig, MeshConfig, OptimConfig
from unclip_jax.data.tokenizer import TokenizerConfig
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.recipes.clip import CLIPRecipe

config = CLIPRecipe(
    steps=634_766,
    batch_size=32_768,
    ema_decay=0.0,
    model=CLIPConfig(
        embedding_width=1024,
        image_size=256,
        patch_size=16,
        vision=TransformerConfig(
            width=1280,
            depth=32,
            heads=16,
            activation="quick_gelu",
            dtype="bfloat16",
            remat="block",
        ),
        text=TransformerConfig(
            width=1024,
            depth=24,
            heads=16,
            activation="quick_gelu",
            dtype="bfloat16",
            remat="block",
        ),
        context_length=256,
    ),
    tokenizer=TokenizerConfig(kind="clip", context_length=256),
    data=DataConfig(image_size=256),
    optim=OptimConfig(
        learning_rate=3e-4,
        schedule="cosine",
        warmup_steps=2000,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        clip_norm=None,
        sam_rho=0.1,
    ),
    mesh=MeshConfig(fsdp=8, topology="v5e:16x16"),
    checkpoint=CheckpointConfig(every=5000, keep=3),
    log=LogConfig(every=100),
)
