"""What each stage minimises. An objective is a pure function (params, frozen, batch, key) → loss.

`batch` holds `image` [B, S, S, 3] uint8 and `tokens` [B, L] int32; `frozen` holds the weights of
the CLIP that conditions the prior and the decoder. The loss is a float32 mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.losses import diffusion_loss
from unclip_jax.diffusion.process import q_sample, split_variance, to_x0
from unclip_jax.diffusion.schedule import Schedule, make_schedule
from unclip_jax.models.clip import CLIP, CLIPConfig, normalize
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.models.text import text_mask
from unclip_jax.training.recipe import CLIPRecipe, DecoderRecipe, DiffusionConfig, PriorRecipe

Params = Any
Metrics = dict[str, Array]
Objective = Callable[[Params, Params, dict[str, Array], Array], tuple[Array, Metrics]]


def to_float(images: Array) -> Array:
    """uint8 [0, 255] → float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def softmax_loss(image: Array, text: Array, logit_scale: Array) -> tuple[Array, Array]:
    """CLIP's symmetric cross-entropy over all pairs of the batch (Radford et al. 2021, figure 3).

    Args:
        image, text: [B, E] float32, unit norm; row i of one belongs to row i of the other.
        logit_scale: scalar factor on the cosines.
    Returns:
        the loss, and the share of pictures whose own caption is nearest.
    """
    logits = logit_scale * image @ text.T
    own = jnp.arange(logits.shape[0])
    to_text = -jnp.mean(jax.nn.log_softmax(logits, axis=1)[own, own])
    to_image = -jnp.mean(jax.nn.log_softmax(logits, axis=0)[own, own])
    return (to_text + to_image) / 2, jnp.mean(jnp.argmax(logits, axis=1) == own)


def sigmoid_loss(
    image: Array, text: Array, logit_scale: Array, logit_bias: Array
) -> tuple[Array, Array]:
    """SigLIP: a binary decision for each pair (Zhai et al. 2023, equation 1), summed over texts.

    Arguments and returns as `softmax_loss`; `logit_bias` is a scalar.
    """
    logits = logit_scale * image @ text.T + logit_bias
    size = logits.shape[0]
    sign = 2 * jnp.eye(size) - 1
    loss = -jnp.sum(jax.nn.log_sigmoid(sign * logits)) / size
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == jnp.arange(size))


def make_clip_objective(recipe: CLIPRecipe) -> Objective:
    """Contrastive loss over the global batch; with `optim.accumulate`, over each micro-batch."""
    model = CLIP(recipe.model)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        out: Any = model.apply(
            {"params": params},
            to_float(batch["image"]),
            batch["tokens"],
            train=True,
            rngs={"dropout": key},
        )
        if recipe.loss == "softmax":
            loss, accuracy = softmax_loss(out["image"], out["text"], out["logit_scale"])
        else:
            loss, accuracy = sigmoid_loss(
                out["image"], out["text"], out["logit_scale"], out["logit_bias"]
            )
        return loss, {"accuracy": accuracy, "logit_scale": out["logit_scale"]}

    return objective


def make_prior_objective(
    recipe: PriorRecipe, clip_config: CLIPConfig, empty_tokens: np.ndarray
) -> Objective:
    """E ||f(z_t, t, y) - z||^2 on scaled CLIP image embeddings (Ramesh et al. 2022, section 2.2).

    Args:
        clip_config: of the frozen CLIP, whose weights come as `frozen`.
        empty_tokens: [L] int32, the empty caption, which stands for a dropped one.
    """
    model, clip = DiffusionPrior(recipe.model), CLIP(clip_config)
    schedule = make_schedule(recipe.diffusion.schedule, recipe.diffusion.num_timesteps)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        drop_key, noise_key, dropout_key = jax.random.split(key, 3)
        tokens = _drop(drop_key, recipe.text_drop, batch["tokens"], empty_tokens)
        embedding = encode_image(clip, frozen, batch["image"])
        text, states = clip.apply({"params": frozen}, tokens, method=CLIP.encode_text)

        def predict(xt: Array, t: Array) -> Array:
            output: Any = model.apply(
                {"params": params},
                xt,
                t,
                normalize(text),
                states,
                text_mask(tokens),
                train=True,
                rngs={"dropout": dropout_key},
            )
            return output

        x0 = embedding * recipe.model.scale
        loss, metrics, predicted = _denoise(recipe.diffusion, schedule, noise_key, x0, predict)
        cosine = jnp.sum(normalize(predicted) * embedding, axis=-1)
        return loss, {**metrics, "cosine": jnp.mean(cosine)}

    return objective


def make_decoder_objective(
    recipe: DecoderRecipe, clip_config: CLIPConfig, empty_tokens: np.ndarray
) -> Objective:
    """The diffusion loss of the 64 x 64 decoder, with separate drops of embedding and caption.

    Arguments as `make_prior_objective`.
    """
    model, clip = Decoder(recipe.model), CLIP(clip_config)
    schedule = make_schedule(recipe.diffusion.schedule, recipe.diffusion.num_timesteps)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        text_key, embedding_key, noise_key, dropout_key = jax.random.split(key, 4)
        x0 = to_float(batch["image"])
        tokens = _drop(text_key, recipe.text_drop, batch["tokens"], empty_tokens)
        keep = 1 - recipe.embedding_drop
        has_embedding = jax.random.bernoulli(embedding_key, keep, x0.shape[:1])
        embedding = encode_image(clip, frozen, batch["image"])

        def predict(xt: Array, t: Array) -> Array:
            output: Any = model.apply(
                {"params": params},
                xt,
                t,
                embedding,
                has_embedding,
                tokens,
                text_mask(tokens),
                train=True,
                rngs={"dropout": dropout_key},
            )
            return output

        loss, metrics, _ = _denoise(recipe.diffusion, schedule, noise_key, x0, predict)
        return loss, metrics

    return objective


def _denoise(
    diffusion: DiffusionConfig,
    schedule: Schedule,
    key: Array,
    x0: Array,
    predict: Callable[[Array, Array], Array],
) -> tuple[Array, Metrics, Array]:
    """One random timestep a row: the mean loss, mean metrics and the predicted clean sample."""
    t_key, noise_key = jax.random.split(key)
    t = jax.random.randint(t_key, x0.shape[:1], 0, diffusion.num_timesteps)
    noise = jax.random.normal(noise_key, x0.shape)
    xt = q_sample(schedule, x0, t, noise)
    output = predict(xt, t)
    loss, metrics = diffusion_loss(
        schedule,
        output,
        x0,
        xt,
        t,
        noise,
        prediction=diffusion.prediction,
        variance=diffusion.variance,
    )
    if diffusion.variance == "learned_range":
        output, _ = split_variance(output)
    predicted = to_x0(schedule, diffusion.prediction, output, xt, t)
    return jnp.mean(loss), jax.tree.map(jnp.mean, metrics), predicted


def encode_image(clip: CLIP, params: Params, images: Array) -> Array:
    """uint8 pictures of any square size → unit-norm CLIP image embeddings [B, E], without gradient.

    A picture of another size than CLIP's is resized with an antialiased cubic filter.
    """
    size = clip.config.image_size
    x = to_float(images)
    if x.shape[1:3] != (size, size):
        x = jax.image.resize(x, (x.shape[0], size, size, 3), "cubic")
    embedding: Any = clip.apply({"params": params}, x, method=CLIP.encode_image)
    return jax.lax.stop_gradient(normalize(embedding))


def _drop(key: Array, share: float, tokens: Array, empty_tokens: np.ndarray) -> Array:
    """`tokens` with a random `share` of its rows replaced by the empty caption."""
    dropped = jax.random.bernoulli(key, share, (tokens.shape[0], 1))
    return jnp.where(dropped, jnp.asarray(empty_tokens), tokens)
