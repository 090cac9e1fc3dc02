"""`unclip convert`: every format becomes a folder that is read back, or one line and nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop.clip_models import hf_from_openai, save_arrays
from tests.interop.comparison import Frozen, assert_same_trees
from tests.interop.dalle2_pytorch import unet_reference
from tests.interop.dalle2_pytorch.unet_runs import FrozenRuns
from tests.interop.test_clip_import import HF, OPEN_CLIP, openai_archive
from tests.interop.test_karlo_import import original_trees
from tests.interop.tiny_karlo import write_tiny_karlo
from tests.interop.torch_files import program, word, write_archive
from unclip_jax.cli.main import main
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.generation.model_folder import read_sampling
from unclip_jax.interop.clip import import_clip
from unclip_jax.interop.dalle2_pytorch.folder import load_dalle2
from unclip_jax.interop.karlo.diffusers_folder import open_diffusers_folder
from unclip_jax.interop.network_folder import load_network
from unclip_jax.interop.tensors import from_arrays
from unclip_jax.interop.tokenizer_files import write_tokenizer
from unclip_jax.interop.torch_archive import write_torch_archive
from unclip_jax.training.weights import load_stage

Capture = pytest.CaptureFixture[str]
STAGES = ("clip", "decoder", "prior", "upsampler_256", "upsampler_256_last")


def convert(*arguments: Any) -> int:
    """The exit code of `unclip convert ARGUMENTS`."""
    with pytest.raises(SystemExit) as end:
        main(["convert", *map(str, arguments)])
    return int(end.value.code or 0)


def refused(capsys: Capture, *arguments: Any) -> str:
    """The line with which it ends; it wrote nothing."""
    capsys.readouterr()
    folder = Path(arguments[1])
    before = sorted(folder.rglob("*")) if folder.exists() else None
    assert convert(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
    assert (sorted(folder.rglob("*")) if folder.exists() else None) == before
    assert not list(folder.parent.glob("*.partial"))
    return lines[-1]


# Karlo


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Diffusers' layout, without torch."""
    folder = tmp_path_factory.mktemp("karlo")
    write_tiny_karlo(folder)
    return folder


def test_karlo_in_both_layouts(karlo: Path, tmp_path: Path, capsys: Capture) -> None:
    ours, source = tmp_path / "ours", open_diffusers_folder(karlo).load()
    assert convert(karlo, ours) == 0
    assert f"{karlo} is karlo" in capsys.readouterr().out
    assert sorted(path.name for path in ours.iterdir() if path.is_dir()) == list(STAGES)
    read_sampling(ours)
    found = {name: load_stage(ours / name) for name in STAGES}
    for name, stage in source.items():
        assert_same_trees(found[name].params, stage.params)

    files = tmp_path / "files"
    files.mkdir()
    for name, tree in original_trees(source).items():
        write_torch_archive(files / name, tree)
    again, options = tmp_path / "again", ["--prior-heads", 2, "--head-channels", 8, "--groups", 4]
    options += ["--image-size", 16, "--clip", karlo / "text_encoder"]
    assert "no CLIP" in refused(capsys, files, again, *options[:-2])
    assert convert(files, again, *options) == 0
    for name in STAGES[1:]:
        assert_same_trees(load_stage(again / name).params, found[name].params)


def test_some_stages_of_karlo_in_bfloat16(karlo: Path, tmp_path: Path, capsys: Capture) -> None:
    ours = tmp_path / "ours"
    assert convert(karlo, ours, "--stages", "prior", "--dtype", "bfloat16") == 0
    assert sorted(path.name for path in ours.iterdir() if path.is_dir()) == ["clip", "prior"]
    kernel = load_stage(ours / "prior").params["transformer"]["blocks"]["qkv"]["kernel"]
    whole = open_diffusers_folder(karlo).load()["prior"].params
    expected = np.asarray(whole["transformer"]["blocks"]["qkv"]["kernel"])
    difference = np.abs(np.asarray(kernel, np.float32) - expected)
    assert 0 < difference.max() <= 2**-8 * np.abs(expected).max()
    for words, message in (
        (("--stages", "priors"), "has no priors"),
        (("--head-channels", 4), "leave these options out"),
        (("--format", "glide"), "has no weights file"),
    ):
        assert message in refused(capsys, karlo, tmp_path / "none", *words)


# CLIP


def clip_sources(golden: Path, folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """Hugging Face, OpenCLIP, OpenAI's archive and a bare state dict, each with its options."""
    with np.load(golden / "parity_clip.npz") as file:
        weights = {n.removeprefix("w/"): x for n, x in file.items() if n.startswith("w/")}
    tokenizer = train_bpe(["a red apple", "two green hearts"] * 3, 540, 20)
    for name in ("hf", "open_clip"):
        (folder / name).mkdir()
        write_tokenizer(tokenizer, folder / name)
    (folder / "hf" / "config.json").write_text(json.dumps(HF))
    save_arrays(hf_from_openai(weights), folder / "hf" / "model.safetensors")
    (folder / "open_clip" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": OPEN_CLIP})
    )
    save_arrays(weights, folder / "open_clip" / "open_clip_model.safetensors")
    archive = openai_archive()
    archive["token_embedding.weight"] = np.zeros((49408, 64), np.float16)
    archive |= {"positional_embedding": np.ones((77, 64), np.float16)}
    archive |= {"vocab_size": np.asarray(49408), "context_length": np.asarray(77)}
    write_torch_archive(folder / "ViT.pt", from_arrays(archive))
    bare = {n: x for n, x in archive.items() if x.shape or n == "logit_scale"}
    save_arrays(bare, folder / "bare.safetensors")
    given = ["--vision-heads", "4", "--text-heads", "2", "--activation", "gelu"]
    return {
        "hf": (folder / "hf", []),
        "open_clip": (folder / "open_clip", []),
        "archive": (folder / "ViT.pt", []),
        "bare": (folder / "bare.safetensors", given),
        "openai": (folder / "bare.safetensors", ["--clip-model", "openai"]),
    }


def test_clips(golden: Path, tmp_path: Path, capsys: Capture) -> None:
    sources = clip_sources(golden, tmp_path)
    for name, (source, options) in sources.items():
        folder = tmp_path / f"out_{name}"
        assert convert(source, folder, *options) == 0, capsys.readouterr().err
        assert f"{source} is clip" in capsys.readouterr().out
        stage: Any = load_stage(folder / "clip")
        assert stage.tokenizer is not None
        if name in ("hf", "open_clip", "archive"):
            imported = import_clip(source)
            assert_same_trees(stage.params, imported.params)
            assert stage.recipe.model == imported.config
    heads: dict[str, Any] = {
        name: load_stage(tmp_path / f"out_{name}" / "clip").recipe for name in ("bare", "openai")
    }
    assert heads["bare"].model.text.heads == 2 and heads["openai"].model.text.heads == 1

    bare = sources["bare"][0]
    assert "name the model" in refused(capsys, bare, tmp_path / "none")
    line = refused(capsys, sources["hf"][0], tmp_path / "none", "--clip-model", "openai")
    assert "give no options" in line
    (sources["hf"][0] / "vocab.json").unlink()
    assert "tokenizer" in refused(capsys, sources["hf"][0], tmp_path / "none")


def test_a_noised_clip(tmp_path: Path, capsys: Capture) -> None:
    frozen, source = Frozen("parity_noised_clip"), tmp_path / "noised"
    source.mkdir()
    for part in ("image", "text"):
        write_torch_archive(source / f"{part}.pt", frozen.tensors(f"{part}."))
    options = ["--vision-heads", 2, "--text-heads", 2]
    assert "vocab_size 97" in refused(capsys, source, tmp_path / "out", *options)
    table, arrays = "blocks.input.w_voc", frozen.arrays("text.")
    arrays[table] = np.ones((49500, arrays[table].shape[1]), np.float32)  # more ids than are used
    write_torch_archive(source / "text.pt", from_arrays(arrays))
    assert convert(source, tmp_path / "out", *options) == 0
    stage: Any = load_stage(tmp_path / "out" / "noised_clip")
    assert stage.recipe.model.clip.vocab_size == 49500
    size = sum(x.size for x in frozen.arrays("image.").values())
    size += sum(x.size for x in arrays.values())
    # Ours has biases of the keys, of 2 towers with 2 layers of width 16, and the temperature.
    assert sum(leaf.size for leaf in jax.tree.leaves(stage.params)) == size + 2 * 2 * 16 + 1
    (source / "text.pt").unlink()
    line = refused(capsys, source, tmp_path / "none", *options)
    assert "needs the image and the text file" in line


# GLIDE and ADM


@pytest.mark.parametrize("name", ["glide", "adm", "classifier"])
def test_unets(name: str, tmp_path: Path, capsys: Capture) -> None:
    source, folder = tmp_path / "net.pt", tmp_path / "out"
    write_torch_archive(source, Frozen(f"parity_{name}").tensors())
    given = ["--head-channels", "8", "--groups", "4", "--image-size", "16"]
    if name == "glide":
        assert "groups" in refused(capsys, source, folder)
        given += ["--text-heads", "2"]
    if name == "adm":
        assert "order" in refused(capsys, source, folder, *given)
    if name != "glide":
        given += ["--attention-order", "legacy"]
    assert convert(source, folder, *given) == 0, capsys.readouterr().err
    module, params = load_network(folder)
    text = json.loads((folder / "config.json").read_text())
    assert text["network"] in ("glide", "adm", "adm_classifier") and text["source"] == "net.pt"
    count = sum(x.size for x in Frozen(f"parity_{name}").arrays().values())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert type(module).__name__ in ("Glide", "ADM", "Classifier")
    assert "not empty" in refused(capsys, source, folder, *given)


# DALLE2-pytorch


def test_a_prior_of_dalle2_pytorch(tmp_path: Path, capsys: Capture) -> None:
    frozen, source = Frozen("dalle2_prior_x0"), tmp_path / "prior.pth"
    write_torch_archive(source, {"ema_model": frozen.tensors(), "model": frozen.tensors()})
    assert convert(source, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "is dalle2_prior" in out and "ema weights" in out
    prior: Any = load_dalle2(tmp_path / "out")
    query = frozen.arrays()["net.learned_query"]
    np.testing.assert_array_equal(prior.params["learned_query"], query)

    former = {n: x for n, x in frozen.arrays().items() if not n.startswith("net.null_")}
    former["net.null_text_embed"] = frozen.arrays()["net.null_text_encodings"]
    write_torch_archive(source, from_arrays(former))
    assert "name the era" in refused(capsys, source, tmp_path / "none")
    assert "1.8 or earlier" in refused(capsys, source, tmp_path / "none", "--era", "current")
    line = refused(capsys, source, tmp_path / "none", "--era", "legacy", "--weights", "ema")
    assert "only online weights" in line
    assert convert(source, tmp_path / "legacy", "--era", "legacy") == 0
    assert "dot attention" in capsys.readouterr().out
    prior = load_dalle2(tmp_path / "legacy")
    assert prior.config.net.semantics.attention == "dot"


def test_decoders_of_dalle2_pytorch(tmp_path: Path, capsys: Capture) -> None:
    entry, source = unet_reference.DECODERS["learned"], tmp_path / "latest.pth"
    state = unet_reference.weights(FrozenRuns().shapes("decoder/learned"))
    write_torch_archive(source, from_arrays(state))
    assert "holds no config" in refused(capsys, source, tmp_path / "none")
    config = tmp_path / "mine.json"
    config.write_text(json.dumps({"decoder": entry}))
    assert convert(source, tmp_path / "out", "--config", config) == 0
    assert "decoder of 8 pixels: online weights" in capsys.readouterr().out
    decoder: Any = load_dalle2(tmp_path / "out")
    kernel = np.asarray(decoder.params[0]["out"]["kernel"])
    theirs = state["unets.0.to_out.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, theirs)
    config.write_text(json.dumps({"decoder": {**entry, "image_sise": 8}}))
    assert "image_sise" in refused(capsys, source, tmp_path / "none", "--config", config)
    config.write_text("{")
    line = refused(capsys, source, tmp_path / "none", "--config", config)
    assert "cannot be read" in line


# Refusals


def test_nothing_is_written_for_what_is_refused(
    karlo: Path, tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / "out"
    assert "does not exist" in refused(capsys, tmp_path / "nothing", target)
    path = save_arrays({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    assert "no checkpoint that is known" in refused(capsys, path, target)
    assert "no checkpoint that is known" in refused(capsys, tmp_path, target)
    assert "holds no prior" in refused(capsys, path, target, "--format", "dalle2_prior")
    assert "name the folder above it" in refused(capsys, karlo / "decoder", target)
    assert "karlos" in refused(capsys, path, target, "--format", "karlos")
    assert "--tokeniser" in refused(capsys, path, target, "--tokeniser", "x")
    path.write_bytes(path.read_bytes()[:-4])
    assert "cannot be read" in refused(capsys, path, target)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    assert "git lfs pull" in refused(capsys, path, target)
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    assert "not empty" in refused(capsys, karlo, target)
    assert (target / "mine.txt").read_text() == "mine"


def test_a_file_that_does_not_fit_is_listed(tmp_path: Path, capsys: Capture) -> None:
    """Every name that is wrong, the nearest beside it, and nothing written."""
    arrays = Frozen("parity_glide").arrays()
    arrays["final_norm.bias"] = arrays.pop("final_ln.bias")
    source = save_arrays(arrays, tmp_path / "net.safetensors")
    options = ["--head-channels", 8, "--groups", 4, "--image-size", 16, "--text-heads", 2]
    assert convert(source, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert "missing: final_ln: bias (nearest: final_norm.bias)" in error
    assert "surplus: final_norm: bias" in error
    assert "1 missing, 1 surplus" in error.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """And what it calls is not called."""
    mark = tmp_path / "mark"
    call = b"cos\nsystem\n(" + word(f"touch {mark}") + b"tR"
    source = write_archive(tmp_path / "decoder.pth", program(call))
    for options in ([], ["--format", "karlo"], ["--format", "dalle2_decoder"]):
        line = refused(capsys, source, tmp_path / "out", *options)
        assert "os.system" in line or "is a file" in line
        assert not mark.exists()
    old = tmp_path / "old.pth"
    old.write_bytes(b"cos\nsystem\n(X\x04\x00\x00\x00truetR.")
    assert "no torch archive" in refused(capsys, old, tmp_path / "out")


def test_a_lost_projection_is_missed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without the tensor the text encoder could pass for one that has none."""
    folder = tmp_path / "karlo"
    write_tiny_karlo(folder)
    path = folder / "text_encoder" / "model.safetensors"
    arrays = load_file(path)
    del arrays["text_projection.weight"]
    save_file(arrays, path)
    assert "1 missing" in refused(capsys, folder, tmp_path / "none")


def test_a_neighbouring_folder_is_left_alone(tmp_path: Path) -> None:
    write_tiny_karlo(tmp_path / "karlo")
    precious = tmp_path / "ours.partial" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    assert convert(tmp_path / "karlo", tmp_path / "ours") == 0
    assert precious.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["karlo", "ours", "ours.partial"]
