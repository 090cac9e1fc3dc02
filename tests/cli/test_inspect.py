"""unclip inspect: every kind of file and folder, damaged ones, hostile ones."""

from __future__ import annotations

import json
import shutil
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.training import toys
from unclip_jax.cli import main as command_line
from unclip_jax.config import to_dict
from unclip_jax.data.embedding_manifest import (
    Description,
    Manifest,
    ShardEntry,
    StoredData,
    shard_path,
)
from unclip_jax.data.images import save_png
from unclip_jax.data.png_chunks import MAX_TEXT, MAX_TEXTS, read_png_chunks
from unclip_jax.data.tokenizer import train_bpe
from unclip_jax.inspection import pictures
from unclip_jax.inspection.findings import Leaf, branches
from unclip_jax.inspection.tensors import sha256
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, flatten, save_stage, weights_id

FACTS = {"model": "emoji", "prompt": "an apple\x1b[2J", "seed": 3, "weights": {"clip": "0" * 16}}


def inspect(capsys: pytest.CaptureFixture[str], path: object, *options: str) -> dict[str, Any]:
    """The JSON; the exit code agrees with it, and the text can be printed too."""
    with pytest.raises(SystemExit) as end:
        command_line.main(["inspect", str(path), *options, "--json"])
    captured = capsys.readouterr()
    assert captured.err == "", captured.err
    found = json.loads(captured.out)
    inner = [part["problems"] for part in found.get("parts", {}).values()]
    assert end.value.code == (1 if found["problems"] or any(inner) else 0)
    with pytest.raises(SystemExit) as end_of_text:
        command_line.main(["inspect", str(path), *options])
    text = capsys.readouterr().out
    assert end_of_text.value.code == end.value.code
    assert found["kind"] in text.splitlines()[0] and "\x1b" not in text
    assert ("  ! " in text) == (end.value.code == 1)
    return found


def refusal(capsys: pytest.CaptureFixture[str], path: object, *options: str) -> str:
    with pytest.raises(SystemExit) as end:
        command_line.main(["inspect", str(path), *options])
    captured = capsys.readouterr()
    assert end.value.code == 2 and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    made: dict[str, Stage] = {}
    for name in ("clip", "prior"):
        recipe = toys.recipe(name)
        shapes = jax.eval_shape(lambda recipe=recipe: init_params(recipe, jax.random.key(0)))
        params = jax.tree.map(jnp.asarray, toys.random_like(shapes))
        clip_id = made["clip"].clip_id if made else weights_id(params)
        made[name] = Stage(recipe, params, train_bpe(("a red apple",), 600, 12), 7, clip_id)
    return made


@pytest.fixture
def model(stages: dict[str, Stage], tmp_path: Path) -> Path:
    for name, stage in stages.items():
        save_stage(stage, tmp_path / "model" / name)
    return tmp_path / "model"


def test_stage(model: Path, stages: dict[str, Stage], capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, model / "clip", "--verify", "--depth", "1")
    count = sum(leaf.size for leaf in flatten(stages["clip"].params).values())
    assert (found["kind"], found["facts"]["step"]) == ("exported stage", 7)
    assert found["facts"]["clip"] == stages["clip"].clip_id
    assert found["facts"]["recipe"]["stage"] == "clip"
    assert found["facts"]["sha256"] == sha256(model / "clip" / "model.safetensors")
    assert found["total"]["parameters"] == count and found["total"]["bytes"] == 2 * count
    assert {row["name"] for row in found["tree"]} == set(stages["clip"].params)


def test_damaged_stage(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "clip" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "cannot be read" in inspect(capsys, model / "clip")["problems"][0]
    path.write_bytes(whole[:-2] + b"\x80\x7f")  # bfloat16's infinity
    assert inspect(capsys, model / "clip")["problems"] == []
    assert "not finite" in inspect(capsys, model / "clip", "--verify")["problems"][0]
    path.write_bytes(whole)
    config = json.loads((model / "clip" / "config.json").read_text())
    config["recipe"]["model"]["pach_size"] = 4
    (model / "clip" / "config.json").write_text(json.dumps(config))
    assert "did you mean patch_size?" in inspect(capsys, model / "clip")["problems"][0]


def test_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, model, "--verify")
    assert (found["kind"], list(found["parts"])) == ("model", ["clip", "prior"])
    assert found["parts"]["prior"]["total"]["parameters"] > 0
    config = json.loads((model / "prior" / "config.json").read_text())
    (model / "prior" / "config.json").write_text(json.dumps(config | {"clip": "f" * 16}))
    assert "trained for several CLIPs" in inspect(capsys, model)["problems"][0]
    (model / "sampling.json").write_text('{"decodr": {}}')
    assert "did you mean decoder?" in inspect(capsys, model)["problems"][1]


def test_shipped_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"clip", "prior", "decoder"} <= set(inspect(capsys, "emoji")["parts"])
    assert "model emoji?" in refusal(capsys, "emojy")


def test_run(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(golden / "run_format_1", tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 2, "loss": 3.5}\n{"step": 3, "loss": 2.5}\n{"st')
    found = inspect(capsys, run, "--verify")
    assert (found["kind"], found["facts"]["stage"]) == ("run", "clip")
    assert found["facts"]["last metrics"] == {"step": 3, "loss": 2.5}
    assert found["total"]["parameters"] == 7761  # of the average alone
    assert "SHA-256" in found["parts"]["checkpoint 3"]["facts"]["state"]

    checkpoint = run / "checkpoints" / "3"
    assert inspect(capsys, checkpoint)["facts"]["loss"] == pytest.approx(2.615035)
    data = next(path for path in (checkpoint / "state" / "d").iterdir())
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert inspect(capsys, run)["problems"] == []
    found = inspect(capsys, run, "--verify")
    assert "has changed since" in found["parts"]["checkpoint 3"]["problems"][0]
    data.write_bytes(whole[:-1])
    assert "bytes instead of" in inspect(capsys, checkpoint)["problems"][0]
    (checkpoint / "manifest.json").unlink()
    found = inspect(capsys, run)
    assert "manifest.json is missing" in found["parts"]["checkpoint 3"]["problems"][0]


def test_weights(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, golden / "torch_archive.pt", "--verify")
    assert (found["kind"], found["facts"]["format"]) == ("weights", "torch")
    assert found["facts"]["holds beside tensors"]["version"] == "1.2.3rc1+abc"
    assert found["total"]["arrays"] == 26
    assert inspect(capsys, golden / "torch_script.pt")["facts"]["format"] == "torchscript"
    from safetensors.numpy import save_file

    arrays = {"input_blocks.0.0.weight": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float16)}
    arrays["b"][1] = np.nan
    save_file(arrays, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = inspect(capsys, path)
        assert found["total"]["parameters"] == 8 and found["facts"]["format"] == "safetensors"
        assert found["facts"]["content"].startswith("ADM")
    problems = inspect(capsys, tmp_path, "--verify")["problems"]
    assert problems == ["b has 1 of 2 numbers that are not finite"]


def test_pickle_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        program = f"cos\nsystem\n(Vtouch {tmp_path / 'ran'}\ntR.".encode()
        archive.writestr("archive/data.pkl", program)
    assert "was not loaded" in refusal(capsys, tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = shard_path(tmp_path, 0)
    shard.write_bytes(b"shard")
    data = StoredData("emoji", "train", 64, (), False, "image", "caption")
    made_of = Description("c" * 16, "t" * 16, data, 5, 8, 12, 600, "float16", False, 16)
    entry = ShardEntry(5, 9, 1, 5, sha256(shard))
    manifest = json.dumps(to_dict(Manifest(1, True, made_of, (entry,))))
    (tmp_path / "manifest.json").write_text(manifest)
    found = inspect(capsys, tmp_path, "--verify")
    assert found["kind"] == "store of embeddings" and found["facts"]["captions"] == 9
    shard.write_bytes(b"shart")
    assert inspect(capsys, tmp_path)["problems"] == []
    assert "has changed" in inspect(capsys, tmp_path, "--verify")["problems"][0]
    shard.unlink()
    assert "is missing" in inspect(capsys, tmp_path)["problems"][0]


def test_picture_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    save_png(path, np.zeros((4, 6, 3), np.uint8), {"unclip": json.dumps(FACTS)})
    facts = inspect(capsys, path)["facts"]
    assert facts["origin"] == "says that unclip_jax drew it"
    assert (facts["size"], facts["seed"], facts["prompt"]) == ("6 × 4", 3, FACTS["prompt"])
    assert "verified" not in facts

    from unclip_jax.generation import facts as facts_module
    from unclip_jax.generation import model_folder

    named = []

    def read(name: str, as_stored: bool) -> tuple[dict[str, Any], None]:
        named.append(name)
        return {"clip": object()}, None

    monkeypatch.setattr(model_folder, "read_model", read)
    monkeypatch.setattr(facts_module, "stage_id", lambda stage: "0" * 16)
    found = inspect(capsys, path, "--verify")
    assert found["facts"]["verified"] == "the weights are those of model emoji"
    monkeypatch.setattr(facts_module, "stage_id", lambda stage: "1" * 16)
    assert "other weights" in inspect(capsys, path, "--verify")["problems"][0]
    # What a picture names is never a path.
    save_png(path, np.zeros((4, 6, 3), np.uint8), {"unclip": json.dumps(FACTS | {"model": "/x/y"})})
    inspect(capsys, path, "--verify")
    assert set(named) == {"emoji", "y"}


@pytest.mark.parametrize(
    ("key", "text", "origin"),
    [
        ("parameters", "a cat\nSteps: 20, Sampler: Euler", "another program"),
        ("XML:com.adobe.xmp", "<x>trainedAlgorithmicMedia</x>", "a model generated it"),
        ("unclip", "{", "does not say"),
        ("unclip", '{"prompt": "a"}', "does not say"),
        ("Comment", "hello", "does not say"),
    ],
)
def test_picture_of_others(
    key: str, text: str, origin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8), {key: text})
    facts = inspect(capsys, tmp_path / "a.png")["facts"]
    assert origin in facts["origin"]
    assert facts.get("texts in the file", {}).get(key) == (None if key == "unclip" else text)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "WEBP"])
def test_other_formats(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (5, 3), "red").save(tmp_path / "picture", kind)
    facts = inspect(capsys, tmp_path / "picture")["facts"]
    assert (facts["format"].upper(), facts["size"]) == (kind, "5 × 3")


def test_damaged_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.png"
    save_png(path, np.zeros((4, 4, 3), np.uint8), {"unclip": json.dumps(FACTS)})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"seed": 3', b'"seed": 4'))
    found = inspect(capsys, path)
    assert any("checksum" in problem for problem in found["problems"])
    assert "seed" not in found["facts"]
    path.write_bytes(whole[:60])
    assert inspect(capsys, path)["problems"]


def test_texts_of_a_png_are_bounded() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("plain", "Zür", zip=False)
    info.add_text("packed", "a" * (3 * MAX_TEXT), zip=True)
    info.add_itxt("unicode", "苹果", zip=True)
    import io

    out = io.BytesIO()
    Image.new("L", (1, 1)).save(out, "PNG", pnginfo=info)
    found = read_png_chunks(out.getvalue())
    assert found.texts["plain"] == "Zür" and found.texts["unicode"] == "苹果"
    assert len(found.texts["packed"]) == MAX_TEXT
    assert found.damage == "" and found.counts["IEND"] == 1


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4)


@pytest.mark.parametrize(
    ("body", "damage"),
    [
        (b"", "end is missing"),
        (chunk(b"zTXt", b"a\0\0not packed"), "end is missing"),
        (chunk(b"iTXt", b"a"), "end is missing"),
        (chunk(b"tEXt", b"a\0b")[:-1] + b"\0", "checksum"),
        (b"\xff\xff\xff\xffIDAT" + bytes(20), "cut off"),
    ],
)
def test_hostile_chunks(body: bytes, damage: str) -> None:
    assert damage in read_png_chunks(pictures.SIGNATURE + body).damage


def test_all_texts_together_are_bounded() -> None:
    packed = zlib.compress(bytes(MAX_TEXT))
    bombs = b"".join(chunk(b"zTXt", b"%d\0\0" % number + packed) for number in range(40))
    found = read_png_chunks(pictures.SIGNATURE + bombs)
    assert MAX_TEXTS <= sum(map(len, found.texts.values())) <= MAX_TEXTS + MAX_TEXT
    assert found.counts == {"zTXt": 40}


def test_every_chunk_of_another_kind() -> None:
    """A hundred thousand are counted in time."""
    chunks = b"".join(chunk(number.to_bytes(4), b"") for number in range(100_000))
    began = time.monotonic()
    assert len(read_png_chunks(pictures.SIGNATURE + chunks).counts) == 100_000
    assert time.monotonic() - began < 5


def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "manifest.jsonl"
    lines.write_text('{"seed": 1, "prompt": "a"}\n\n{"seed": 5, "prompt": "b"}\n')
    found = inspect(capsys, lines)
    assert found["facts"]["lines"] == 2
    assert found["facts"]["keys"] == {"seed": "2 lines, 1 to 5", "prompt": "2 lines, such as 'a'"}
    lines.write_text('{"seed": 1}\n{"seed"\n')
    assert inspect(capsys, lines)["problems"] == ["1 lines are no JSON"]
    config = tmp_path / "config.json"
    config.write_text('{"recipe": {"stage": "clp"}}')
    assert "did you mean clip?" in inspect(capsys, config)["problems"][0]
    config.write_text("[1, 2]")
    assert inspect(capsys, config)["facts"] == {"entries": 2}
    config.write_text('{"a": ' * 100_000)
    assert "cannot be read as JSON" in refusal(capsys, config)


def test_recipe_runs_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], repository: Path
) -> None:
    text = (repository / "configs" / "toy" / "clip.py").read_text()
    path = tmp_path / "mine.py"
    path.write_text(f"{text}\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    found = inspect(capsys, path)
    assert "CLIPRecipe(" in found["facts"]["config"] and "total" not in found
    assert not (tmp_path / "ran").exists()
    found = inspect(capsys, path, "--run")
    assert (tmp_path / "ran").exists() and found["facts"]["stage"] == "clip"
    assert found["total"]["parameters"] > 1000
    path.write_text("x = 1")
    assert "does not assign `config`" in inspect(capsys, path)["problems"][0]
    path.write_text("x = (")
    assert "as Python" in refusal(capsys, path)


def test_shards_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures_of = toys.write_pictures(tmp_path / "pictures")
    found = inspect(capsys, pictures_of)
    assert found["facts"]["holds"] == {".png": 12, ".txt": 12}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in sorted(pictures_of.iterdir()):
            archive.add(path, path.name)
    found = inspect(capsys, tmp_path / "a.tar")
    assert found["facts"]["samples"] == 12 and found["facts"]["holds"][".png"] == 12
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    assert inspect(capsys, tmp_path / "b.tar")["problems"]


def test_what_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import os

    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, words in {
        "empty": "is empty: restore",
        "notes.txt": "nothing that is known here",
        "folder": "is empty: name",
        "pipe": "no regular file",
        "note.txt": "did you mean .*notes.txt",
    }.items():
        line = refusal(capsys, tmp_path / name)
        assert str(tmp_path / name) in line
        import re

        assert re.search(words, line), line


def test_tree_is_never_longer_than_a_screen() -> None:
    leaves = {f"a{i % 7}/b{i}": Leaf((2, 3), "float32", 24) for i in range(1000)}
    rows = branches(leaves, 2)
    assert [row.name for row in rows] == [f"a{i}" for i in range(7)]
    assert sum(row.parameters for row in rows) == 6000
    assert len(branches(dict(list(leaves.items())[:20]), 2)) == 20
