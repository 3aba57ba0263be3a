"""Models, and their checkpoints: one .safetensors file that says itself which system it is and how it was built.

The file's metadata hold one entry, `fastenh`: JSON with `system` (a name in SYSTEMS), `arguments` (of its constructor),
`version` (of the fastenh that wrote it), `about` (colour space and range, licence, notes) and `blake2b`, a checksum of
these and the tensors. Nothing is unpickled.

Without gradients a system does its work in two parts, which `Enhancer` and its streams call:

    look(image) -> tuple of tensors (B, ...)    what it decides of a photo as a whole, in numbers that may be averaged
    render(image, look, out=None) -> Tensor     the photo with that look; model(image) is render(image, look(image))

A system that is `pointwise` maps colours alike all over a photo: with a look, each pixel is rendered by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.overrides import TorchFunctionMode

import fastenh
from fastenh.atomic import replacing
from fastenh.models.adaint import AdaInt
from fastenh.models.csrnet import CSRNet
from fastenh.models.lam import LocalContextLUT
from fastenh.models.lut3d import ImageAdaptiveLUT
from fastenh.models.seplut import SepLUT
from fastenh.models.tensors import as_float32, checksum, open_safetensors
from fastenh.models.zero_dce import ZeroDCE, ZeroDCEPlusPlus

__all__ = [
    "EMBEDDED",
    "SYSTEMS",
    "AdaInt",
    "CSRNet",
    "ImageAdaptiveLUT",
    "LocalContextLUT",
    "SepLUT",
    "ZeroDCE",
    "ZeroDCEPlusPlus",
    "load",
    "save",
]

# The one list of systems: the name in a checkpoint, and the class that reads it. A system keeps its constructor's
# arguments in `arguments` and what a user should know of it (colour space, licence, notes) in `about`.
SYSTEMS: dict[str, type[nn.Module]] = {
    "lut3d": ImageAdaptiveLUT,
    "lam": LocalContextLUT,
    "adaint": AdaInt,
    "seplut": SepLUT,
    "csrnet": CSRNet,
    "zero-dce": ZeroDCE,
    "zero-dce++": ZeroDCEPlusPlus,
}

WEIGHTS = Path(__file__).parents[1] / "weights"
EMBEDDED = tuple(sorted(file.stem for file in WEIGHTS.glob("*.safetensors")))


class Unfilled(TorchFunctionMode):
    """Parameters stay as they are made: to fill those of the device "meta", PyTorch imports its compiler, which takes
    seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init" or func is torch.Tensor.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load(path_or_name: str | Path) -> nn.Module:
    """A model in eval mode, float32 on the CPU, from a .safetensors file or from the name of an embedded model.

    FileNotFoundError if there is neither; ValueError, in one line, if the file is damaged, holds no fastenh model, or
    its tensors are not those of the system it names.
    """
    path = WEIGHTS / f"{path_or_name}.safetensors" if path_or_name in EMBEDDED else Path(path_or_name)
    if path.suffix.lower() in (".pth", ".pt", ".ckpt"):
        raise ValueError(
            f"{path} is a PyTorch checkpoint; convert it first (fastenh convert --help says which can be), such as by "
            "fastenh convert lut3d LUTs.pth classifier.pth -o OUT.safetensors"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"no model {str(path_or_name)!r}: expected a .safetensors file or an embedded model ({', '.join(EMBEDDED)})"
        )
    with open_safetensors(path) as file:
        try:
            config = json.loads((file.metadata() or {})["fastenh"])
        except (KeyError, json.JSONDecodeError, RecursionError):
            raise ValueError(f"{path}: not a fastenh checkpoint (its metadata name no system)") from None
        model = _unfilled(path, config)
        state = model.state_dict()
        expected = {key: tuple(tensor.shape) for key, tensor in state.items()}
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                wanted, got = expected.get(key, "absent"), found.get(key, "none")
                raise ValueError(f"{path}: expected {key} {wanted} in a {config['system']} model, got {got}")
        tensors = {key: file.get_tensor(key) for key in state}
    floats = {}
    for key, tensor in tensors.items():
        if state[key].is_floating_point():
            floats[key] = as_float32(path, key, tensor)
        elif tensor.is_floating_point() or tensor.is_complex():  # batch norm counts its batches, in an integer
            raise ValueError(f"{path}: expected integers in {key}, got {tensor.dtype}")
    if not isinstance(config.get("about", {}), dict):
        raise ValueError(f"{path}: expected a JSON object as about, got {type(config['about']).__name__}")
    expected_sum = config.pop("blake2b", None)  # which older files have not
    if expected_sum is not None and (got := checksum({"config": config, "tensors": tensors})) != expected_sum:
        raise ValueError(f"{path}: expected a model of BLAKE2b {expected_sum!s:.40}, got a damaged one of {got}")
    model.load_state_dict(tensors | floats, assign=True)
    model.about = config.get("about", {})
    return model.eval()


def _unfilled(path: Path, config: Any) -> nn.Module:
    """The model that a file's metadata describe, in shapes without memory: the file may claim any size."""
    name = config.get("system") if isinstance(config, dict) else None
    if not isinstance(name, str) or name not in SYSTEMS:
        raise ValueError(f"{path}: expected a system fastenh knows ({', '.join(SYSTEMS)}), got {name!r:.80}")
    try:
        with torch.device("meta"), Unfilled():
            return SYSTEMS[name](**config["arguments"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: its arguments do not make a {name} model ({reason:.120})") from None


def save(model: nn.Module, path: str | Path) -> None:
    """Writes a model as one .safetensors file; whoever reads `path` sees the old file or the whole new one."""
    names = [name for name, system in SYSTEMS.items() if type(model) is system]
    if not names:
        raise ValueError(f"expected a model of a known system ({', '.join(SYSTEMS)}), got {type(model).__name__}")
    config: dict[str, Any] = {
        "system": names[0],
        "arguments": model.arguments,
        "version": fastenh.__version__,
        "about": model.about,
    }
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    config["blake2b"] = checksum({"config": json.loads(json.dumps(config)), "tensors": tensors})
    with replacing(path, overwrite=True) as part:
        part.write_bytes(to_safetensors(tensors, {"fastenh": json.dumps(config)}))
