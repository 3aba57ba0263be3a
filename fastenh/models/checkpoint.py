"""Models as files: one .safetensors file that states which system it is and how it was built.

The file's metadata has one entry, `fastenh`: JSON with `system` (a name in SYSTEMS), `arguments` (of its constructor),
`version` (of the fastenh that wrote it), `about` (colour space and range, licence, notes) and `blake2b`, a checksum of
these and the tensors. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastenh.atomic import replacing
from fastenh.memory import is_out_of_memory
from fastenh.models.adaint import AdaInt
from fastenh.models.csrnet import CSRNet
from fastenh.models.lam import LocalContextLUT
from fastenh.models.lut3d import ImageAdaptiveLUT
from fastenh.models.published import as_float32
from fastenh.models.seplut import SepLUT
from fastenh.models.system import System
from fastenh.models.zero_dce import ZeroDCE, ZeroDCEPlusPlus
from fastenh.version import __version__

# The one list of systems: the name in a checkpoint, and the class that reads it.
SYSTEMS: dict[str, type[System]] = {
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


MAX_HEADER = 2**20  # bytes of a .safetensors file's header, which names its tensors; ours have up to 20 KB


class Unfilled(TorchFunctionMode):
    """Skips the initialisation of parameters: on the device "meta" it makes PyTorch import its compiler, which takes
    seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init" or func is torch.Tensor.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load(path_or_name: str | Path) -> System:
    """A model in eval mode, float32 on the CPU, from a .safetensors file or by the name of an embedded model.

    FileNotFoundError if there is neither; ValueError, in one line, if the file is damaged, contains no fastenh model,
    or has other tensors than the system it names.
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


def _unfilled(path: Path, config: Any) -> System:
    """The model that a file's metadata describes, on the device "meta": the file may claim any size."""
    name = config.get("system") if isinstance(config, dict) else None
    if not isinstance(name, str) or name not in SYSTEMS:
        raise ValueError(f"{path}: expected a system fastenh knows ({', '.join(SYSTEMS)}), got {name!r:.80}")
    try:
        with torch.device("meta"), Unfilled():
            return SYSTEMS[name](**config["arguments"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: its arguments do not make a {name} model ({reason:.120})") from None


def save(model: System, path: str | Path) -> None:
    """Write a model as one .safetensors file, atomically."""
    names = [name for name, system in SYSTEMS.items() if type(model) is system]
    if not names:
        raise ValueError(f"expected a model of a known system ({', '.join(SYSTEMS)}), got {type(model).__name__}")
    config: dict[str, Any] = {
        "system": names[0],
        "arguments": model.arguments,
        "version": __version__,
        "about": model.about,
    }
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    config["blake2b"] = checksum({"config": json.loads(json.dumps(config)), "tensors": tensors})
    with replacing(path, overwrite=True) as part:
        part.write_bytes(to_safetensors(tensors, {"fastenh": json.dumps(config)}))


@contextlib.contextmanager
def open_safetensors(path: str | Path) -> Iterator[Any]:
    """The open file, its header checked, its tensors not read yet. FileNotFoundError, or ValueError in one line."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            room = file.seek(0, 2) - 8
        if MAX_HEADER < size <= room:
            raise ValueError(f"{path}: expected a header of at most {MAX_HEADER} bytes, got {size}")
        with safe_open(path, "pt") as tensors:
            yield tensors
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except SafetensorError as error:
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: out of memory") from None
        raise ValueError(f"{path}: not a whole .safetensors file ({' '.join(str(error).split()):.120})") from None


def checksum(content: Any) -> str:
    """BLAKE2b of tensors and plain values in dicts and lists; the order of a dict's keys does not matter."""
    state = hashlib.blake2b(digest_size=16)

    def add(item: Any) -> None:
        if isinstance(item, Tensor):
            state.update(f"{item.dtype} {tuple(item.shape)}\n".encode())
            state.update(item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(item, Mapping):
            state.update(f"{{{len(item)}\n".encode())
            for key in sorted(item, key=repr):
                state.update(f"{key!r}\n".encode())
                add(item[key])
        elif isinstance(item, (list, tuple)):
            state.update(f"[{len(item)}\n".encode())
            for value in item:
                add(value)
        else:
            state.update(f"{item!r}\n".encode())

    add(content)
    return state.hexdigest()
