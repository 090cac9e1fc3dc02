"""Karlo from its files: frozen runs of the original, names, shapes, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.clip_models import live
from tests.interop.comparison import assert_same_trees, error, quick, random_params
from tests.interop.karlo_models import PROMPTS, Tiny, edit_tensor, make_folder, weights_of
from unclip_jax.config import DataConfig, from_dict
from unclip_jax.diffusion.samplers import make_step
from unclip_jax.errors import UserError
from unclip_jax.generation.captions import Caption, encode_caption
from unclip_jax.generation.decoder import Condition, make_decoder
from unclip_jax.generation.guided import make_chain
from unclip_jax.generation.prior import make_prior
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.interop.clip import abstract_params
from unclip_jax.interop.clip_keys import hf_key_map
from unclip_jax.interop.foreign_stage import ForeignModel
from unclip_jax.interop.infer_unet import HeadOptions
from unclip_jax.interop.karlo.configs import decoder_config, prior_config, unet_config
from unclip_jax.interop.karlo.diffusers_folder import open_diffusers_folder
from unclip_jax.interop.karlo.keys import STATISTICS, decoder_keys, prior_keys, upsampler_keys
from unclip_jax.interop.karlo.original_files import Hyperparameters, open_original_files
from unclip_jax.interop.karlo.sampling import ORIGINAL_PRIOR_LIMIT, karlo_sampling
from unclip_jax.interop.key_map import KeyMap
from unclip_jax.interop.tensors import Tensor, Tensors, from_arrays, with_prefix
from unclip_jax.interop.torch_archive import write_torch_archive
from unclip_jax.interop.transfer import check_tensors, export_tensors, import_params
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.decoder import Decoder, DecoderConfig, denoise_picture, encode_condition
from unclip_jax.models.prior import DiffusionPrior, PriorConfig, denoise_embedding, read_caption
from unclip_jax.models.text import text_mask
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.pipeline import UnCLIP
from unclip_jax.training.embedding_statistics import EmbeddingStatistics
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, flatten

GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLING = karlo_sampling(ORIGINAL_PRIOR_LIMIT)
FROZEN_PRIOR = PriorConfig(24, 24, 77, TransformerConfig(48, 3, 4), 1.0, is_whitened=True)
FROZEN_DECODER = DecoderConfig(
    UNetConfig(
        image_size=16,
        channels=8,
        attention_resolutions=(8, 4, 2),
        head_channels=8,
        context_width=20,
        groups=4,
    ),
    text=None,
    clip_text_width=24,
    embedding_width=24,
    embedding_scale=1.0,
    null_embedding="learned",
    masks_padding=True,
)
PRIOR_PROCESS = DiffusionConfig(prediction="x0", variance="fixed_small")
DECODER_PROCESS = DiffusionConfig(prediction="eps", variance="learned_range")
UPSAMPLER_PROCESS = DiffusionConfig(prediction="eps", variance="fixed_small")


@pytest.fixture(scope="module", autouse=True)
def highest_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def frozen() -> dict[str, np.ndarray]:
    """A run of Karlo's own code: 25 steps, guidance 4 and 8, noise included."""
    with np.load(GOLDEN / "karlo_trajectory.npz") as file:
        return dict(file)


def frozen_weights(name: str) -> Tensors:
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {k.removeprefix("w/"): file[k] for k in file.files if k.startswith("w/")}
    return from_arrays(arrays)


def abstract_of(recipe: Any) -> Any:
    return jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))


def captions(frozen: dict[str, np.ndarray]) -> tuple[Caption, Caption]:
    """The empty one and the two prompts."""
    arrays = [jnp.asarray(frozen[f"text/{name}"]) for name in ("tokens", "embedding", "states")]
    return Caption(*(x[:1] for x in arrays)), Caption(*(x[1:] for x in arrays))


def frozen_prior() -> tuple[PriorRecipe, Any, EmbeddingStatistics]:
    """The fixture's prior through the importer."""
    recipe = PriorRecipe(model=FROZEN_PRIOR, diffusion=PRIOR_PROCESS)
    tensors = frozen_weights("parity_karlo_prior")
    mean, deviation = (tensors.pop(name).read().reshape(-1) for name in STATISTICS)
    params = import_params(
        prior_keys(FROZEN_PRIOR, "diffusers"), tensors, abstract_of(recipe), what="the fixture"
    )
    return recipe, params, EmbeddingStatistics(mean, deviation)


def frozen_decoder(frozen: dict[str, np.ndarray]) -> tuple[DecoderRecipe, Any]:
    """The fixture's decoder through the importer."""
    recipe = DecoderRecipe(model=FROZEN_DECODER, diffusion=DECODER_PROCESS, data=data_of(16))
    projections = {
        name.removeprefix("w/"): array for name, array in frozen.items() if name.startswith("w/")
    }
    tensors = with_prefix(frozen_weights("parity_karlo_decoder"), "decoder.")
    params = import_params(
        decoder_keys(FROZEN_DECODER, "diffusers"),
        tensors | from_arrays(projections),
        abstract_of(recipe),
        what="the fixture",
    )
    return recipe, params


def test_the_prior_follows_karlos_own_sampler(frozen: dict[str, np.ndarray]) -> None:
    recipe, params, statistics = frozen_prior()
    empty, caption = captions(frozen)
    noise = jnp.asarray(frozen["prior/noise"])
    draw = make_prior(recipe, empty, SAMPLING, None, None, statistics, noise)
    keys = jax.random.split(jax.random.key(0), 2)
    found = jax.jit(draw)(params, caption, keys)
    mean, deviation = statistics.mean, statistics.deviation
    assert error((found - mean) / deviation, frozen["prior/x"][:, -1]) < 1e-4
    assert error(found, frozen["prior/embedding"]) < 1e-4
    chain = make_chain(PRIOR_PROCESS, SAMPLING.prior)
    np.testing.assert_array_equal(chain.timesteps[::-1], frozen["prior/t"])


def test_a_caption_read_once_gives_the_whole_priors_numbers(frozen: dict[str, np.ndarray]) -> None:
    _, params, _ = frozen_prior()
    _, caption = captions(frozen)
    text = (caption.embedding, caption.states, text_mask(caption.tokens))
    cache = jax.jit(lambda p: read_caption(FROZEN_PRIOR, p, *text))(params)
    once = jax.jit(lambda x, t: denoise_embedding(FROZEN_PRIOR, params, cache, x, t))
    whole = jax.jit(
        lambda x, t: DiffusionPrior(FROZEN_PRIOR).apply({"params": params}, x, t, *text)
    )
    for x, t in zip(np.moveaxis(frozen["prior/x"], 1, 0), frozen["prior/t"], strict=True):
        times = jnp.full(2, t, jnp.int32)
        assert error(once(x, times), whole(x, times)) < 1e-5


def test_the_decoder_follows_karlos_own_sampler(frozen: dict[str, np.ndarray]) -> None:
    recipe, params = frozen_decoder(frozen)
    empty, caption = captions(frozen)
    condition = Condition(jnp.asarray(frozen["decoder/embedding"]), caption, empty)
    how, chain = SAMPLING.decoder, make_chain(DECODER_PROCESS, SAMPLING.decoder)
    step = jax.jit(make_step(chain, how, prediction="eps", variance="learned_range"))
    denoise = jax.jit(lambda p, x, t: make_decoder(recipe, p, condition, how)(x, t))
    draws, references = (np.moveaxis(frozen[f"decoder/{name}"], 2, -1) for name in ("noise", "x"))
    given = free = jnp.asarray(draws[:, 0])
    for i, t in enumerate(frozen["decoder/t"]):
        index = len(chain) - 1 - i
        assert chain.timesteps[index] == t
        noise = jnp.asarray(draws[:, i + 1]) if index else jnp.zeros_like(given)
        times, at = jnp.full(2, t, jnp.int32), jnp.full(2, index)
        given = step(given, denoise(params, given, times), at, noise)
        free = step(free, denoise(params, free, times), at, noise)
        assert error(given, references[:, i]) < 1e-5, f"step {i}"
        given = jnp.asarray(references[:, i])
    assert error(free, references[:, -1]) < 1e-3


def test_a_context_encoded_once_gives_the_whole_decoders_numbers(
    frozen: dict[str, np.ndarray],
) -> None:
    _, params = frozen_decoder(frozen)
    _, caption = captions(frozen)
    embedding, has = jnp.asarray(frozen["decoder/embedding"]), jnp.ones(2, bool)
    told = (caption.tokens, text_mask(caption.tokens), caption.embedding, caption.states)
    condition = (embedding, has, *told)
    encoded = jax.jit(lambda p: encode_condition(FROZEN_DECODER, p, *condition))(params)
    once = jax.jit(lambda x, t: denoise_picture(FROZEN_DECODER, params, encoded, x, t))
    network = Decoder(FROZEN_DECODER)
    whole = jax.jit(lambda x, t: network.apply({"params": params}, x, t, *condition))
    pictures = np.moveaxis(frozen["decoder/x"], 2, -1)
    for i in (0, 12, 24):
        times = jnp.full(2, frozen["decoder/t"][i], jnp.int32)
        assert error(once(pictures[:, i], times), whole(pictures[:, i], times)) < 1e-5


def data_of(size: int) -> DataConfig:
    return DataConfig(image_size=size)


def full_size() -> dict[str, tuple[Any, KeyMap, str]]:
    """Karlo as published: recipe, key map, and the prefix of its names in the frozen list."""
    unet = UNetConfig(channels=320, head_channels=64, context_width=1536)
    decoder = DecoderConfig(
        unet, None, 768, 768, 4, embedding_scale=1.0, null_embedding="learned", masks_padding=True
    )
    prior = PriorConfig(768, 768, 77, TransformerConfig(2048, 20, 32), 1.0, is_whitened=True)
    large = UNetConfig(
        image_size=256,
        in_channels=6,
        out_channels=3,
        channels=320,
        attention_resolutions=(),
        has_middle_attention=False,
        time_norm="additive",
    )
    upsampler = UpsamplerConfig(large, resize="cubic")
    return {
        "prior": (
            PriorRecipe(model=prior, diffusion=PRIOR_PROCESS),
            prior_keys(prior, "diffusers"),
            "",
        ),
        "decoder": (
            DecoderRecipe(model=decoder, diffusion=DECODER_PROCESS),
            decoder_keys(decoder, "diffusers"),
            "decoder.",
        ),
        "super_res": (
            UpsamplerRecipe(model=upsampler, diffusion=UPSAMPLER_PROCESS),
            upsampler_keys(large, "diffusers"),
            "",
        ),
    }


def published(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name of a full-size component, as diffusers and transformers have them."""
    with gzip.open(GOLDEN / "karlo_keys.json.gz") as file:
        return {key: tuple(shape) for key, shape in json.load(file)[name].items()}


def hollow(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> Tensors:
    def read() -> np.ndarray:
        raise AssertionError("only names and shapes are looked at")

    return {prefix + k: Tensor(shape, np.dtype(np.float32), read) for k, shape in shapes.items()}


COUNTS = {
    "prior": 1_022_030_080 - 1536,  # CLIP's statistics are no parameters here
    "decoder": 885_439_686 + 7_878_400,
    "super_res": 691_579_523,
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_networks_have_exactly_these_tensors(name: str) -> None:
    recipe, key_map, prefix = full_size()[name]
    tensors = hollow(published(name), prefix)
    if name == "decoder":
        tensors |= hollow(published("text_proj"), "text_proj.")
    for statistic in STATISTICS if name == "prior" else ():
        assert tensors.pop(statistic).shape == (1, 768)
    expected = {key: leaf.shape for key, leaf in flatten(abstract_of(recipe)).items()}
    check_tensors(key_map, tensors, expected, what=name)
    assert sum(int(np.prod(shape)) for shape in expected.values()) == COUNTS[name]


def test_karlos_own_files_have_this_many_tensors() -> None:
    found = full_size()
    maps = {
        "prior": prior_keys(found["prior"][0].model, "karlo"),
        "decoder": decoder_keys(found["decoder"][0].model, "karlo"),
        "super_res": upsampler_keys(found["super_res"][0].model.unet, "karlo"),
    }
    names = {
        name: {s for entry in key_map for s in entry.sources} for name, key_map in maps.items()
    }
    counts = {name: len(sources) for name, sources in names.items()}
    assert counts == {"prior": 256, "decoder": 595, "super_res": 408}
    assert {"prd_emb", "transformer.resblocks.19.attn.c_qkv.weight"} <= names["prior"]
    assert {"cf_param", "clip_tok_proj.bias", "text_seq_proj.1.weight"} <= names["decoder"]


def test_the_published_clip_has_exactly_these_tensors() -> None:
    tower = TransformerConfig(width=768, depth=12, heads=12, activation="quick_gelu")
    vision = TransformerConfig(width=1024, depth=24, heads=16, activation="quick_gelu")
    clip = CLIPConfig(768, 224, 14, vision, tower)
    tensors = hollow(published("clip_text_l14")) | hollow(published("clip_vision_l14"))
    tensors |= hollow({"logit_scale": ()})
    expected = {key: leaf.shape for key, leaf in flatten(abstract_params(clip)).items()}
    check_tensors(hf_key_map(clip), tensors, expected, what="clip")
    assert sum(np.prod(s) for s in expected.values()) == 123_650_304 + 303_966_208 + 1


@pytest.mark.parametrize("fault", ["missing", "surplus", "misshapen"])
def test_names_and_shapes_that_do_not_fit_are_listed(fault: str) -> None:
    recipe, key_map, _ = full_size()["super_res"]
    tensors = hollow(published("super_res"))
    name = "mid_block.resnets.1.conv2.weight"
    if fault == "misshapen":
        tensors |= hollow({name: (1280, 1280, 1, 1)})
    else:
        tensor = tensors.pop(name) if fault == "missing" else tensors[name]
        tensors |= {} if fault == "missing" else {"mid_block.resnets.2.conv2.weight": tensor}
    expected = {key: leaf.shape for key, leaf in flatten(abstract_of(recipe)).items()}
    with pytest.raises(UserError, match=f"super_res does not fit: 1 {fault} of 408") as caught:
        check_tensors(key_map, tensors, expected, what="super_res")
    assert "mid_block.resnets" in caught.value.details[0]


# Heads as wide as diffusers writes them for networks without attention, so that configs are equal.
TINY = Tiny(seed=5, has_image_encoder=True, head=8)
GIVEN = Hyperparameters(2, HeadOptions(head_channels=8, groups=2), 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    live("diffusers")
    return make_folder(TINY, tmp_path_factory.mktemp("karlo"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> dict[str, Stage]:
    return open_diffusers_folder(folder).load()


def original_trees(loaded: dict[str, Stage]) -> dict[str, Any]:
    """What Karlo's own files hold, by the names of files."""

    def tensors(name: str, key_map: KeyMap, prefix: str) -> Tensors:
        return with_prefix(export_tensors(key_map, loaded[name].params), prefix)

    recipes: dict[str, Any] = {name: stage.recipe for name, stage in loaded.items()}
    models = {name: recipe.model for name, recipe in recipes.items()}
    statistics: Any = loaded["prior"].statistics
    pair = from_arrays({"mean": statistics.mean, "deviation": statistics.deviation})
    first, last = "upsampler_256", "upsampler_256_last"
    unet = models[first].unet
    upsamplers = tensors(first, upsampler_keys(unet, "karlo"), "model_first_steps.")
    upsamplers |= tensors(last, upsampler_keys(unet, "karlo"), "model_last_step.")
    return {
        "prior.ckpt": {
            "state_dict": tensors("prior", prior_keys(models["prior"], "karlo"), "model.")
        },
        "decoder.ckpt": {
            "state_dict": tensors("decoder", decoder_keys(models["decoder"], "karlo"), "model.")
        },
        "sr.ckpt": {"state_dict": upsamplers},
        "stats.th": (pair["mean"], pair["deviation"]),
    }


def with_torch(path: Path, tree: Any) -> None:
    """As `write_torch_archive`, by torch itself."""
    import torch

    def converted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: converted(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(converted(item) for item in value)
        return torch.from_numpy(np.array(value.read()))

    torch.save(converted(tree), path)


def open_originals(files: Path, folder: Path, given: Hyperparameters) -> ForeignModel:
    """With the CLIP of the folder."""
    clip, tokenizer = folder / "text_encoder", folder / "tokenizer"
    return open_original_files(files, clip, given=given, tokenizer=tokenizer)


@pytest.mark.parametrize("write", [write_torch_archive, with_torch], ids=["ours", "torch"])
def test_the_original_files_are_the_same_model(
    write: Any, folder: Path, loaded: dict[str, Stage], tmp_path: Path
) -> None:
    for name, tree in original_trees(loaded).items():
        write(tmp_path / name, tree)
    model = open_originals(tmp_path, folder, GIVEN)
    found = model.load()
    assert found.keys() == loaded.keys()
    for name in set(found) - {"clip"}:
        assert found[name].recipe == loaded[name].recipe
        assert_same_trees(found[name].params, loaded[name].params)
    ours, theirs = found["prior"].statistics, loaded["prior"].statistics
    assert ours is not None and theirs is not None
    np.testing.assert_array_equal(ours.mean, theirs.mean)
    np.testing.assert_array_equal(ours.deviation, theirs.deviation)
    assert from_dict(SamplingConfig, model.sampling) == SAMPLING


@pytest.mark.parametrize(
    ("absent", "message"),
    [("stats.th", "no statistics of CLIP"), ("clip", "has no CLIP")],
)
def test_an_original_file_that_is_missing_is_named(
    absent: str, message: str, folder: Path, loaded: dict[str, Stage], tmp_path: Path
) -> None:
    for name, tree in original_trees(loaded).items():
        if name != absent:
            write_torch_archive(tmp_path / name, tree)
    clip = None if absent == "clip" else folder / "text_encoder"
    with pytest.raises(UserError, match=message):
        open_original_files(tmp_path, clip, given=GIVEN, tokenizer=folder / "tokenizer")


def test_two_files_of_one_kind_are_refused(
    folder: Path, loaded: dict[str, Stage], tmp_path: Path
) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        write_torch_archive(tmp_path / name, original_trees(loaded)["sr.ckpt"])
    with pytest.raises(UserError, match="two files of a upsampler"):
        open_originals(tmp_path, folder, GIVEN)


def test_a_prior_whose_heads_are_not_64_wide_asks_for_them(
    folder: Path, loaded: dict[str, Stage], tmp_path: Path
) -> None:
    for name in ("prior.ckpt", "stats.th"):
        write_torch_archive(tmp_path / name, original_trees(loaded)[name])
    with pytest.raises(UserError, match="--prior-heads"):
        open_originals(tmp_path, folder, Hyperparameters())


@pytest.mark.parametrize(
    ("component", "field", "value", "message"),
    [
        ("prior", "added_emb_type", None, "added_emb_type is None"),
        ("prior", "norm_in_type", "layer", "norm_in_type is 'layer'"),
        ("prior", "num_layers", 0, "num_layers is 0, and not 1 or more"),
        ("decoder", "layers_per_block", [1, 0], "layers_per_block is"),
        ("decoder", "norm_num_groups", "4", "norm_num_groups is '4'"),
        ("decoder", "act_fn", "gelu", "act_fn is 'gelu'"),
        ("decoder", "norm_eps", 1e-6, "norm_eps is 1e-06"),
        ("decoder", "encoder_hid_dim_type", "image_proj", "encoder_hid_dim_type"),
        ("decoder", "resnet_time_scale_shift", "spatial", "'spatial' is not supported"),
        ("decoder", "attention_head_dim", [2, 4], "differs from level to level"),
        ("decoder", "down_block_types", ["DownBlock2D", "DownBlock2D"], "not those of an unCLIP"),
        ("text_proj", "time_embed_dim", 40, "time_embed_dim 40"),
        ("super_res_first", "freq_shift", 1, "freq_shift is 1"),
    ],
)
def test_configs_that_mean_something_else_are_refused(
    component: str, field: str, value: Any, message: str, folder: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(folder / component, tmp_path / component))
    data = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(data | {field: value}))
    readers = {
        "prior": lambda: prior_config(copied),
        "text_proj": lambda: decoder_config(folder / "decoder", copied, TINY.embedding),
        "decoder": lambda: unet_config(copied, TINY.context_width),
        "super_res_first": lambda: unet_config(copied, None),
    }
    with pytest.raises(UserError, match=message):
        readers[component]()


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("text_encoder", "no text_encoder/"),
        ("prior_scheduler", "prior_scheduler/scheduler_config.json is missing"),
        ("decoder/config.json", "decoder/config.json cannot be read"),
        ("prior/diffusion_pytorch_model.safetensors", "no weights file"),
    ],
)
def test_a_part_that_is_missing_is_named(
    remove: str, message: str, folder: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copied / remove
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        open_diffusers_folder(copied)


def test_a_tensor_of_the_folder_that_does_not_fit_stops_the_import(
    folder: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit_tensor(weights_of(copied / "prior"), "prd_embedding", lambda x: x[..., :-1])
    with pytest.raises(UserError, match="prior does not fit: 1 misshapen"):
        open_diffusers_folder(copied).load()


def test_every_tensor_of_the_prior_matters(loaded: dict[str, Stage]) -> None:
    recipe: Any = loaded["prior"].recipe
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 12), (2, 12))]
    states = rng.standard_normal((2, TINY.context, 12)).astype(np.float32)
    mask = np.arange(TINY.context) < np.array([[5], [TINY.context]])

    def run(params: Any) -> Any:
        given = (inputs[0], jnp.array([3, 700]), inputs[1], states, mask)
        return DiffusionPrior(recipe.model).apply({"params": params}, *given)

    unmoved = unmoved_by(run, loaded["prior"].params, prior_keys(recipe.model, "diffusers"), 27)
    # A bias of the keys adds the same to every score of a query, which softmax does not see.
    assert unmoved == {f"transformer_blocks.{i}.attn1.to_k.bias" for i in range(2)}


def test_every_tensor_of_the_decoder_matters(loaded: dict[str, Stage]) -> None:
    recipe: Any = loaded["decoder"].recipe
    rng = np.random.default_rng(0)
    condition = condition_of(rng, 1)
    x = jnp.asarray(rng.standard_normal((1, 8, 8, 3)), jnp.float32)

    def run(params: Any) -> Any:
        denoise = make_decoder(recipe, params, condition, SAMPLING.decoder)
        return denoise(x, jnp.array([500]))

    key_map = decoder_keys(recipe.model, "diffusers")
    assert unmoved_by(run, loaded["decoder"].params, key_map, 120) == set()


def condition_of(rng: np.random.Generator, rows: int) -> Condition:
    tokens = jnp.asarray(TINY.tokenizer(["", *PROMPTS])[: rows + 1])
    embedding, states = (
        jnp.asarray(rng.standard_normal((rows + 1, *shape)), jnp.float32)
        for shape in ((TINY.embedding,), (TINY.context, TINY.embedding))
    )
    parts = [Caption(tokens[s], embedding[s], states[s]) for s in (slice(1), slice(1, None))]
    return Condition(embedding[1:] * 0.7, parts[1], parts[0])


def unmoved_by(run: Any, params: Any, key_map: KeyMap, fewest: int) -> set[str]:
    """Foreign tensors that can be changed without a change of the output."""
    tensors = export_tensors(key_map, params)
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    assert len(arrays) >= fewest
    compiled = quick(run, params)
    start, unmoved, rng = np.asarray(compiled(params)), set(), np.random.default_rng(1)
    for name, array in arrays.items():
        # Noise, because a norm does not see a change that is the same in all channels.
        noise = rng.standard_normal(array.shape).astype(np.float32)
        changed = from_arrays({**arrays, name: array + noise})
        moved = np.asarray(compiled(import_params(key_map, changed, params, what=name)))
        if np.abs(moved - start).max() < 1e-5:
            unmoved.add(name)
    return unmoved


@pytest.mark.parametrize("context", [12, 60])
def test_a_context_as_long_as_a_level_has_pixels_is_read(context: int) -> None:
    """diffusers fails where both are equal: it takes the mask for one that is padded already."""
    unet = UNetConfig(
        image_size=8,
        channels=4,
        channel_mult=(1, 2),
        depth=(1,),
        attention_resolutions=(8, 4),
        head_channels=4,
        context_width=6,
        groups=2,
    )
    model = DecoderConfig(
        unet, None, 5, 5, 4, embedding_scale=1.0, null_embedding="learned", masks_padding=True
    )
    recipe = DecoderRecipe(model=model, diffusion=DECODER_PROCESS, data=data_of(8))
    rng = np.random.default_rng(context)
    tokens = np.zeros((2, context), np.int32)
    tokens[:, 0], tokens[:, 2] = 7, 9
    states = rng.standard_normal((2, context, 5)).astype(np.float32)
    other = np.where(np.asarray(text_mask(jnp.asarray(tokens)))[..., None], states, 3.0)
    params = jax.tree.map(lambda x: 0.3 * x, random_params(abstract_of(recipe)))
    embedding = rng.standard_normal((2, 5)).astype(np.float32)
    x = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)

    def run(states: Any) -> Any:
        captions = Caption(jnp.asarray(tokens), jnp.asarray(embedding), states)
        condition = Condition(jnp.asarray(embedding), captions, captions)
        how = karlo_sampling(5.0).decoder
        single = replace(how, guidance_scale=1.0)
        return make_decoder(recipe, params, condition, single)(x, jnp.array([4, 600]))

    compiled = quick(run, states)
    found = np.asarray(compiled(states))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, compiled(other))  # padding is not read
    moved = states + 0.1
    assert np.abs(found - compiled(moved)).max() > 1e-4


def test_a_variation_guides_from_the_empty_caption_in_both_halves(
    folder: Path, loaded: dict[str, Stage]
) -> None:
    """Karlo's variations: the text is "" with and without the picture's embedding."""
    diffusers = live("diffusers")
    import torch
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    unclip = UnCLIP(loaded, SAMPLING)
    size = 14
    picture = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.uint8)
    embedding = unclip.encode_image(picture)
    clip: Any = loaded["clip"].recipe
    mean, std = np.array(clip.model.image_mean), np.array(clip.model.image_std)
    pixels = ((picture / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    tokens = torch.from_numpy(TINY.tokenizer([""]).astype(np.int64))
    x = np.random.default_rng(1).standard_normal((1, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():

        def part(kind: Any, name: str) -> Any:
            return kind.from_pretrained(folder / name).eval().float()

        vision = part(CLIPVisionModelWithProjection, "image_encoder")
        expected = vision(torch.from_numpy(pixels)).image_embeds
        assert error(embedding, expected.numpy()) < 1e-5
        text = part(CLIPTextModelWithProjection, "text_encoder")(tokens)
        context, time = part(UnCLIPTextProjModel, "text_proj")(
            image_embeddings=expected,
            prompt_embeds=text.text_embeds.repeat(2, 1),
            text_encoder_hidden_states=text.last_hidden_state.repeat(2, 1, 1),
            do_classifier_free_guidance=True,
        )
        mask = torch.arange(TINY.context)[None] <= tokens.argmax(1)[:, None]
        mask = torch.nn.functional.pad(mask.repeat(2, 1), (4, 0), value=True)
        out = part(diffusers.UNet2DConditionModel, "decoder")(
            torch.from_numpy(x.transpose(0, 3, 1, 2)).repeat(2, 1, 1, 1),
            torch.tensor(640),
            encoder_hidden_states=context,
            class_labels=time,
            attention_mask=mask,
        ).sample
        nothing, prompted = out.chunk(2)
        eps = nothing[:, :3] + 8.0 * (prompted[:, :3] - nothing[:, :3])
        wanted = torch.cat([eps, prompted[:, 3:]], 1).numpy().transpose(0, 2, 3, 1)

    empty = encode_caption(clip.model, loaded["clip"].params, jnp.asarray(TINY.tokenizer([""])))
    condition = Condition(jnp.asarray(embedding), empty, empty)
    recipe: Any = loaded["decoder"].recipe
    found = quick(
        lambda params: make_decoder(recipe, params, condition, SAMPLING.decoder)(
            jnp.asarray(x), jnp.array([640])
        ),
        loaded["decoder"].params,
    )(loaded["decoder"].params)
    assert error(found, wanted) < 1e-5
