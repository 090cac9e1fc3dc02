"""A trained stage as a folder that needs neither Orbax nor an optimiser.

    config.json        {"format": 1, "step": ..., "clip": id, "recipe": {...}}
    model.safetensors  the averaged weights, names as in the parameter tree, 'unet/conv_in/kernel'
    tokenizer.json     how the stage reads captions, if it does
    codes.safetensors  what an autoregressive prior's codes mean
    score_norms.safetensors  a diffusion prior's, if they were measured
    embedding_statistics.safetensors  of a prior in whitened space

A run folder (see `loop.py`) is read by the same function.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import SingleDeviceSharding

from unclip_jax.bounded import read_json
from unclip_jax.config import Dtype
from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.errors import UserError, nearest
from unclip_jax.files import NotWritten, find_like, make_folder, save_tensors, write_whole
from unclip_jax.models.embedding_codes import EmbeddingCodes
from unclip_jax.printable import printable
from unclip_jax.training.checkpoint import load_ema_params, with_shardings
from unclip_jax.training.codes import FILE as CODES
from unclip_jax.training.codes import load_codes, save_codes
from unclip_jax.training.embedding_statistics import FILE as STATISTICS
from unclip_jax.training.embedding_statistics import (
    EmbeddingStatistics,
    load_statistics,
    save_statistics,
)
from unclip_jax.training.recipe import Recipe, recipe_from_json, recipe_to_json
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe
from unclip_jax.training.recipes.classifier import ClassifierRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
from unclip_jax.training.score_norms import FILE as SCORE_NORMS
from unclip_jax.training.score_norms import load_score_norms, save_score_norms
from unclip_jax.training.sharding import path_name
from unclip_jax.training.stages import init_params

FORMAT = 1
SHIPPED = ("emoji",)
"""Models inside the package."""
_LARGEST_HEADER = 10_000_000
"""Bytes; the shipped decoder's has 40,000."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A trained network with all that belongs to it."""

    recipe: Recipe
    params: Any
    """Tree of float32 arrays; of a stage that is only sampled from, kernels may be bfloat16."""
    tokenizer: Tokenizer | None
    """None for an upsampler and a classifier."""
    step: int
    clip_id: str
    """`weights_id` of the CLIP it is, or was trained for; of a stage without one, its own."""
    codes: EmbeddingCodes | None = None
    """Of an autoregressive prior."""
    score_norms: np.ndarray | None = None
    """[T] float32, Gamma of every timestep of a diffusion prior (see `diffusion.analytic`); None
    where `unclip fit-variance` has not measured these weights."""
    statistics: EmbeddingStatistics | None = None
    """Of a diffusion prior in whitened space."""


def weights_id(params: Any) -> str:
    """16 hex digits that name a tree of weights, the same in float32 and in bfloat16."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(params).items()):
        digest.update(name.encode())
        digest.update(np.asarray(array).astype(ml_dtypes.bfloat16).tobytes())
    return digest.hexdigest()[:16]


def flatten(params: Any) -> dict[str, Any]:
    """A parameter tree as {'unet/conv_in/kernel': array}."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def save_stage(stage: Stage, folder: Path, dtype: Dtype = "bfloat16") -> None:
    """Write the folder described above.

    Raises:
        UserError: the folder has files of something else, or cannot be written; each file is then
            whole or not there.
    """
    check_stage_folder(folder)
    make_folder(folder)
    try:
        _write_stage(stage, folder, dtype)
    except NotWritten:
        with contextlib.suppress(OSError):  # not empty, if there was a stage before
            folder.rmdir()
        raise


def _write_stage(stage: Stage, folder: Path, dtype: Dtype) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    arrays = {name: np.asarray(leaf, kind) for name, leaf in flatten(stage.params).items()}
    save_tensors(folder / "model.safetensors", arrays)
    if stage.tokenizer is not None:
        stage.tokenizer.save(folder / "tokenizer.json")
    if stage.codes is not None:
        save_codes(stage.codes, folder / CODES)
    if stage.statistics is not None:
        save_statistics(stage.statistics, folder / STATISTICS)
    if stage.score_norms is not None:
        save_score_norms(stage.score_norms, folder / SCORE_NORMS, stage.step)
    else:  # those of the stage that was here before
        (folder / SCORE_NORMS).unlink(missing_ok=True)
    config = {
        "format": FORMAT,
        "step": stage.step,
        "clip": stage.clip_id,
        "recipe": without_places(recipe_to_json(stage.recipe)),
    }
    write_whole(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def without_places(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's JSON for others to read: of an absolute path only its last name.

    The user's own paths stay in the run folder, which needs them to go on. Texts in lists are
    captions and names, and stay.
    """

    def last_name(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: last_name(item) for key, item in value.items()}
        if not isinstance(value, str):
            return value
        kind, colon, place = value.rpartition(":")  # 'tfds:/data/squares/1.2.0'
        is_path = place.startswith(("/", "~", "\\")) or (len(kind) == 1 and colon)
        if not is_path:
            return value
        name = place.replace("\\", "/").rstrip("/").rpartition("/")[2]
        return f"{kind}:{name}" if len(kind) > 1 else name

    return last_name(data)


def check_stage_folder(folder: Path) -> None:
    """UserError if `folder` has files of something else than a stage."""
    names = {"config.json", "model.safetensors", "tokenizer.json", CODES, SCORE_NORMS, STATISTICS}
    entries = folder.iterdir() if folder.is_dir() else ()
    foreign = sorted(entry.name for entry in entries if entry.name not in names)
    if foreign:
        raise UserError(f"{folder} holds other files ({foreign[0]}): export into a new folder")


def shipped_model(name: str | Path) -> Path | None:
    """The folder of a model that is in the package, or None."""
    if str(name) not in SHIPPED:
        return None
    return Path(str(resources.files("unclip_jax"))) / "assets" / "models" / str(name)


def load_clip(source: str | Path, *, as_stored: bool = False) -> Stage:
    """As `load_stage`, for a CLIP; the name of a shipped model stands for its CLIP."""
    model = shipped_model(source)
    if model is not None and not model.is_dir():
        raise UserError(missing_model(str(source)))
    return load_stage(source if model is None else model / "clip", as_stored=as_stored)


def read_clip_recipe(source: str | Path) -> Recipe | None:
    """What the CLIP that `load_clip` would load was trained by; None if it is not there."""
    model = shipped_model(source)
    folder = Path(source).expanduser() if model is None else model / "clip"
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return None
    return recipe_from_json(config.get("recipe", {})) if isinstance(config, dict) else None


def missing_model(name: str) -> str:
    """What to do about a model whose weights are not in this installation."""
    return f"the weights of model {name!r} are not here: make them with scripts/train_{name}.sh"


def load_stage(path: str | Path, *, as_stored: bool = False) -> Stage:
    """A stage from an exported folder or from the newest checkpoint of a run folder.

    Args:
        as_stored: on the host, kernels in the dtype of the file: what a frozen stage needs, with
            half the memory for a file in bfloat16. Otherwise float32, on the first device.
    Raises:
        UserError: nothing there, or weights that do not fit the config; names the path.
    """
    folder = Path(path).expanduser()
    config_path = folder / "config.json"
    try:
        config = read_json(config_path)
    except FileNotFoundError:
        near = None if folder.is_dir() else nearest(str(path), SHIPPED) or find_like(folder)
        meant = "" if near is None else f", did you mean {near}?"
        raise UserError(
            f"{folder} is neither a run nor an exported stage (no config.json){meant}: train it "
            "first, or name another folder"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{config_path} cannot be read ({error}): restore the file") from error
    if not isinstance(config, dict):
        raise UserError(f"{config_path} does not hold an object: restore the file")
    if config.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{config_path} has format {printable(config['format'])}, this version reads {FORMAT}: "
            "update the package"
        )
    recipe = recipe_from_json(config.get("recipe", {}))
    tokenizer = codes = None
    if not isinstance(recipe, UpsamplerRecipe | ClassifierRecipe):
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if isinstance(recipe, ARPriorRecipe):
        codes = load_codes(folder / CODES, recipe.model)
    statistics = None
    if isinstance(recipe, PriorRecipe) and recipe.model.is_whitened:
        statistics = load_statistics(folder / STATISTICS, recipe.model.embedding_width)
    if "format" in config:
        file = folder / "model.safetensors"
        params = _read_safetensors(file, _abstract(recipe), as_stored=as_stored)
        step, clip_id = config.get("step"), config.get("clip")
        if not isinstance(step, int) or not isinstance(clip_id, str):
            raise UserError(f"{config_path} lacks its step or CLIP id: export the stage again")
        norms = _score_norms(folder, recipe, step)
        return Stage(recipe, params, tokenizer, step, clip_id, codes, norms, statistics)
    abstract = _abstract(recipe)
    here = SingleDeviceSharding(jax.local_devices()[0])
    placed = with_shardings(abstract, jax.tree.map(lambda _: here, abstract))
    step, params = load_ema_params(folder, placed)
    if as_stored:
        params = jax.tree.map(np.asarray, params)
    clip_id = config.get("clip") or weights_id(params)
    norms = _score_norms(folder, recipe, step)
    return Stage(recipe, params, tokenizer, step, clip_id, codes, norms, statistics)


def exported_shapes(abstract: Any) -> Any:
    """Parameters as a frozen stage holds them that was exported in bfloat16."""

    def shape(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, "bfloat16" if _is_kernel(path) else leaf.dtype)

    return jax.tree_util.tree_map_with_path(shape, abstract)


def _is_kernel(path: Any) -> bool:
    """Layers cast their kernels to the compute dtype, and nothing else."""
    return path_name(path).endswith("/kernel")


def _score_norms(folder: Path, recipe: Recipe, step: int) -> np.ndarray | None:
    if not isinstance(recipe, PriorRecipe):
        return None
    return load_score_norms(folder / SCORE_NORMS, recipe.diffusion.num_timesteps, step)


def _abstract(recipe: Recipe) -> Any:
    return jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))


def _read_safetensors(path: Path, abstract: Any, *, as_stored: bool) -> Any:
    """The tree `abstract` filled from a file, see `load_stage`.

    Raises:
        UserError: the file is missing or damaged, or a name, shape or type differs; names the
            first.
    """
    from safetensors import SafetensorError, safe_open

    try:
        _check_header(path)
        with safe_open(path, "numpy") as file:
            _check_tensors(file, path, flatten(abstract))

            def read(place: Any, _: Any) -> Any:
                array = file.get_tensor(path_name(place))
                if as_stored and _is_kernel(place) and array.dtype == ml_dtypes.bfloat16:
                    return array
                array = array.astype(np.float32)
                return array if as_stored else jax.numpy.asarray(array)

            # One by one: the file and all of its float32 copies need not be in memory together.
            return jax.tree_util.tree_map_with_path(read, abstract)
    except (OSError, SafetensorError, _BadHeader) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file") from error


class _BadHeader(Exception):
    """A safetensors file that the library is not given."""


def _check_header(path: Path) -> None:
    """The library itself takes headers of 100 MB, which need 20 times that in memory."""
    if path.exists() and not path.is_file():
        raise _BadHeader("not a regular file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_HEADER:
        raise _BadHeader(f"a header of {length} bytes, the limit is {_LARGEST_HEADER}")


def _check_tensors(file: Any, path: Path, expected: dict[str, Any]) -> None:
    """UserError unless the open file has these names with these shapes, in a type for weights."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    odd = sorted(set(slices) ^ set(expected))
    if odd:
        where = "does not belong to" if odd[0] in slices else "lacks a weight of"
        raise UserError(
            f"{path} {where} the model in config.json: {printable(odd[0])} ({len(odd)} in all)"
        )
    for name, leaf in expected.items():
        shape, dtype = tuple(slices[name].get_shape()), slices[name].get_dtype()
        if shape != leaf.shape:
            raise UserError(f"{path}: {name} has shape {shape}, config.json needs {leaf.shape}")
        if dtype not in ("F32", "BF16", "F16"):
            raise UserError(f"{path}: {name} is {dtype}, weights are F32, BF16 or F16")
