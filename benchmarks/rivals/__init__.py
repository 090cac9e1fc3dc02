"""The PyTorch sides of the benchmarks.

torchvision's own wheel beside a CPU build of torch names two operators that are not there. They are
declared here, before anything of diffusers, transformers or DALLE2-pytorch is imported.
"""

from __future__ import annotations

import importlib.util
import sys
import types

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
if not torch.cuda.is_available() and importlib.util.find_spec("torchvision"):
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
# What DALLE2-pytorch imports of a setuptools that is gone.
if importlib.util.find_spec("pkg_resources") is None:
    sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources"))
