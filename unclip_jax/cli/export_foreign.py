"""unclip export --format ...: stages for transformers, OpenCLIP, diffusers or Karlo's own code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unclip_jax.errors import UserError

if TYPE_CHECKING:
    from unclip_jax.training.weights import Stage

Foreign = Literal["hf_clip", "open_clip", "openai_clip", "karlo", "karlo_original"]


def export_foreign(
    kind: Foreign,
    stages: dict[str, Stage],
    out: Path,
    dtype: Literal["bfloat16", "float32"] | None,
) -> None:
    """Write the stages that `kind` is made of.

    Raises:
        UserError: a stage is missing, or would compute something else there; nothing is written.
    """
    if dtype == "bfloat16" and kind != "karlo":
        raise UserError(f"--format {kind} is written in float32: leave --dtype out")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for --format {kind}")
    if kind in ("karlo", "karlo_original"):
        from unclip_jax.interop.karlo.export import export_karlo_folder, export_karlo_original

        write: Any = export_karlo_folder if kind == "karlo" else export_karlo_original
        options = (dtype or "float32",) if kind == "karlo" else ()
        components = write(stages, out, *options)
        print(f"{', '.join(components)} in {out}")
        if kind == "karlo_original":
            print(
                "Karlo's own files have no place for a CLIP: its code loads OpenAI's archive, and "
                "`unclip convert` takes one with --clip"
            )
        return
    if "clip" not in stages:
        raise UserError(f"--format {kind} needs a CLIP: name it with --clip or --model")
    _export_clip(kind, stages["clip"], out)
    print(f"clip in {out}")


def export_dalle2_file(model: str | None, out: Path) -> None:
    """The state dict that DALLE2-pytorch loads, from a folder that was converted from one."""
    from unclip_jax.interop.dalle2_pytorch.folder import export_dalle2

    if model is None:
        raise UserError("--format dalle2_pytorch needs --model, a folder of `unclip convert`")
    if out.is_dir():
        raise UserError(
            f"{out} is a folder: name the file that is to be written, such as prior.pth"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    export_dalle2(model, out)
    print(f"{out.stat().st_size / 1e6:.1f} MB in {out}")


def _export_clip(kind: Foreign, stage: Stage, out: Path) -> None:
    import numpy as np

    from unclip_jax.interop import clip_export
    from unclip_jax.interop.clip_stage import clip_config
    from unclip_jax.interop.safetensors_file import write_safetensors
    from unclip_jax.interop.tensors import read_all

    config = clip_config(stage)
    if kind == "hf_clip":
        clip_export.export_hf_clip(config, stage.params, stage.tokenizer, out)
    elif kind == "open_clip":
        clip_export.export_open_clip(config, stage.params, out)
    else:
        tensors = clip_export.export_openai_state(config, stage.params)
        out.mkdir(parents=True, exist_ok=True)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        path, dtype = out / "model.safetensors", np.dtype(np.float32)
        write_safetensors(path, shapes, read_all(tensors), dtype, metadata={"format": "pt"})
