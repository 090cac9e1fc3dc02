"""unclip embed: what CLIP gives on the fly, stored; and what a user can get wrong."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.training import toys
from unclip_jax.cli import embed
from unclip_jax.cli import main as command_line
from unclip_jax.config import DataConfig
from unclip_jax.data.captions import all_captions
from unclip_jax.data.embedding_batches import make_embedding_batches
from unclip_jax.data.embedding_store import check_fits, open_store
from unclip_jax.data.pipeline import make_batches
from unclip_jax.data.sources import open_source
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.errors import UserError
from unclip_jax.models.clip import CLIP, normalize
from unclip_jax.training.loop import train
from unclip_jax.training.objectives.conditions import encode_image
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, load_clip, save_stage, weights_id

SIZE = 12  # another than the CLIP's 16, so that pictures are resized on the device


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures and two CLIPs without training."""
    folder = tmp_path_factory.mktemp("embed")
    pictures = toys.write_pictures(folder / "pictures")
    (pictures / "red_bar.txt").write_text("a red bar\na bar in red\n")
    source = open_source(DataConfig(source=str(pictures)))
    corpus = [text for i in range(len(source)) for text in all_captions(source[i].captions)]
    recipe = toys.clip_recipe()
    tokenizer = train_bpe(corpus, 600, recipe.model.context_length)
    init = jax.jit(lambda key: init_params(recipe, key))
    for seed, name in enumerate(("clip", "other")):
        params = init(jax.random.key(seed))
        stage = Stage(recipe, params, tokenizer, 0, weights_id(params))
        save_stage(stage, folder / name, "float32")
    return folder


def arguments(folder: Path, *more: str, clip: str = "clip", out: str = "store") -> list[str]:
    data = ["--data.source", str(folder / "pictures"), "--data.image-size", str(SIZE)]
    size = ["--shard-rows", "5", "--batch-size", "4", "--dtype", "float32"]
    return [str(folder / clip), "--out", str(folder / out), *data, *size, *more]


def run(*given: str) -> int:
    with pytest.raises(SystemExit) as end:
        command_line.run(embed.main, given)
    code = end.value.code
    assert isinstance(code, int)
    return code


def fail(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """The one line that the command ends with."""
    assert run(*given) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.fixture(scope="module")
def stored(folder: Path) -> Path:
    assert run(*arguments(folder, "--text", "True")) == 0
    return folder / "store"


def test_as_on_the_fly(folder: Path, stored: Path) -> None:
    """Embeddings, tokens and pictures as a run without the store has them, ten epochs."""
    clip = load_clip(folder / "clip")
    data = DataConfig(source=str(folder / "pictures"), image_size=SIZE)
    source, store = open_source(data), open_store(stored)
    check_fits(store, clip_id=clip.clip_id, tokenizer=clip.tokenizer, data=data, source=source)
    options: dict[str, Any] = {"batch_size": 6, "tokenize": clip.tokenizer, "seed": 1}
    model = CLIP(clip.recipe.model)
    encode = jax.jit(lambda images: encode_image(model, clip.params, images))
    streams = (
        make_batches(source, image_size=SIZE, **options),
        make_embedding_batches(store, **options),
        make_embedding_batches(store, source=source, image_size=SIZE, **options),
    )
    texts = set()
    for plain, stored_only, with_pictures in itertools.islice(zip(*streams, strict=True), 20):
        for found in (stored_only, with_pictures):
            assert np.array_equal(found["tokens"], plain["tokens"])
            expected = np.asarray(encode(plain["image"]))
            np.testing.assert_allclose(found["embedding"], expected, rtol=0, atol=1e-6)
        assert np.array_equal(with_pictures["image"], plain["image"])
        texts |= {clip.tokenizer.decode(row) for row in plain["tokens"]}
    assert len(texts) == 13  # both captions of the red bar were drawn


def test_text_embeddings(folder: Path, stored: Path) -> None:
    clip, store = load_clip(folder / "clip"), open_store(stored)
    index = next(i for i in range(len(store)) if len(all_captions(store[i].captions)) == 2)
    tokens = clip.tokenizer(all_captions(store[index].captions))
    text, _ = CLIP(clip.recipe.model).apply(
        {"params": clip.params}, tokens, method=CLIP.encode_text
    )
    np.testing.assert_allclose(store.text_embeddings(index), normalize(text), rtol=0, atol=1e-6)


def test_the_manifest_says_what_it_is(folder: Path, stored: Path) -> None:
    manifest = json.loads((stored / "manifest.json").read_text())
    assert manifest["finished"] is True
    made_of = manifest["made_of"]
    assert made_of["clip_id"] == load_clip(folder / "clip").clip_id
    assert (made_of["rows"], made_of["width"], made_of["shard_rows"]) == (12, 16, 5)
    assert made_of["data"]["source"] == str(folder / "pictures")
    assert [shard["rows"] for shard in manifest["shards"]] == [5, 5, 2]
    assert sum(shard["captions"] for shard in manifest["shards"]) == 13


def test_again_and_in_parts(folder: Path, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.name: path.read_bytes() for path in stored.iterdir()}
    assert run(*arguments(folder, "--text", "True")) == 0
    out = capsys.readouterr().out
    assert "12 pictures (0 unreadable) and 13 captions" in out and "rows," not in out
    for index, words in ((1, "others are still missing"), (0, "12 pictures")):
        parts = ["--process-index", str(index), "--process-count", "2"]
        assert run(*arguments(folder, "--text", "True", *parts, out="parts")) == 0
        assert words in capsys.readouterr().out
    assert files == {path.name: path.read_bytes() for path in (folder / "parts").iterdir()}


def test_on_two_devices_as_a_process(folder: Path, stored: Path, repository: Path) -> None:
    program = (
        "from unclip_jax.cli import embed, main; import sys; main.run(embed.main, sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments(folder, out="two")],
        cwd=repository,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    one, two = open_store(stored), open_store(folder / "two")
    rows = range(len(one))
    np.testing.assert_allclose(two.embeddings(rows), one.embeddings(rows), rtol=0, atol=1e-6)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--out", "--data.source", "--data.concepts", "--text"))


MISTAKES: dict[str, tuple[list[str], str]] = {
    "repeats": (["--data.repeats", "2"], "a store has every picture once"),
    "unknown option": (["--shard-row", "4"], "--shard-row"),
    "no rows": (["--shard-rows", "0"], "--shard-rows is 0"),
    "no batch": (["--batch-size", "-1"], "--batch-size is -1"),
    "type": (["--dtype", "int8"], "--dtype"),
    "index alone": (["--process-index", "1"], "belong together"),
    "index too large": (["--process-index", "2", "--process-count", "2"], "count from 0 to 1"),
    "training option": (["--data.embeddings", "store"], "--data.embeddings is for training"),
    "picture size": (["--data.image-size", "0"], "data.image_size is 0"),
    "no data": (["--data.source", "no/such/folder"], "no such folder"),
    "split": (["--data.split", "test"], "has only 'train'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, words = MISTAKES[name]
    assert words in fail(capsys, *arguments(folder, *more, out="never"))
    assert not (folder / "never").exists()


def test_what_does_not_fit(
    folder: Path, stored: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Mistakes that only the files can show."""
    assert fail(capsys).startswith("error: ")  # the CLIP is missing
    assert "neither a run nor" in fail(capsys, *arguments(folder, clip="pictures", out="never"))
    files = {path.name: path.read_bytes() for path in stored.iterdir()}
    text = ["--text", "True"]
    assert "clip_id" in fail(capsys, *arguments(folder, *text, clip="other"))
    assert "has_text True" in fail(capsys, *arguments(folder))
    size = fail(capsys, *arguments(folder, *text, "--data.image-size", "16"))
    assert "data.image_size 12, this run has 16" in size
    assert files == {path.name: path.read_bytes() for path in stored.iterdir()}
    (tmp_path / "file").write_text("x")
    assert "is a file" in fail(capsys, *arguments(folder, "--out", str(tmp_path / "file")))
    inside = fail(capsys, *arguments(folder, "--out", str(tmp_path / "file" / "store")))
    assert "--out" in inside or "cannot be made" in inside


def test_a_run_with_the_store_is_the_run_without(folder: Path, stored: Path) -> None:
    """Equal losses of a prior, whether CLIP runs at every step or ran once; and no other CLIP."""

    def recipe(embeddings: str | None, clip: str = "clip") -> Any:
        data = {"source": str(folder / "pictures"), "threads": 1, "image_size": SIZE}
        changes = {"data": {**data, "embeddings": embeddings}, "clip": str(folder / clip)}
        return toys.on_folder("prior", folder, 3, **changes)

    rows = {}
    for name, embeddings in (("without", None), ("with", str(stored))):
        train(recipe(embeddings), folder / name)
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows["with"]] == [1, 2, 3]
    for plain, found in zip(rows["without"], rows["with"], strict=True):
        assert found["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert found["cosine"] == pytest.approx(plain["cosine"], abs=1e-5)
    with pytest.raises(UserError, match="were made with CLIP"):
        train(recipe(str(stored), clip="other"), folder / "never")
