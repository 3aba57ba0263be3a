"""Settings of training runs: those that every system has, and how presets, files and `--set` change them."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

import torch

PRECISIONS = ("32", "bf16", "16")
CONFIG = "config.json"  # in a run's folder


@dataclass(frozen=True)
class Settings:
    """Settings that every system has; a system inherits from them to add its own.

    Args:
        epochs, steps: the length of training; a step updates each optimiser once, and 0 steps follow from the epochs.
        batch: samples in a step, over all ranks.
        learning_rate: of Adam.
        seed: of everything random.
        precision: "32", or mixed precision with "bf16" or "16" (float16 with a scaled loss, only on GPUs).
        ema: decay per step of the exponential moving average of the weights, which pictures and the result then use;
            0 uses the weights themselves.
        device: "auto", "cpu" or "cuda".
        workers: threads that prepare batches, each one batch ahead.
        log_every, picture_every, checkpoint_every: in steps.

    Raises:
        ValueError: in one line, for a value that is not possible.
    """

    epochs: int = 200
    steps: int = 0
    batch: int = 16
    learning_rate: float = 1e-4
    seed: int = 0
    precision: str = "32"
    ema: float = 0.0
    device: str = "auto"
    workers: int = 2
    log_every: int = 20
    picture_every: int = 500
    checkpoint_every: int = 500

    # What may change when a run is resumed, since it does not affect the steps already done.
    FREE: ClassVar[tuple[str, ...]] = (
        "epochs",
        "steps",
        "device",
        "workers",
        "log_every",
        "picture_every",
        "checkpoint_every",
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "workers", "log_every", "picture_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.steps < 0:
            raise ValueError(f"steps: expected a number, or 0 for as many as the epochs take, got {self.steps}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a number above 0, got {self.learning_rate}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected a number from 0 to 2⁶³ − 1, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a decay from 0 to below 1, got {self.ema}")
        self.expect_one_of("precision", PRECISIONS)
        self.expect_one_of("device", ("auto", "cpu", "cuda"))
        gpu = torch.cuda.is_available()
        if self.device == "cuda" and not gpu:
            raise ValueError("device: expected a GPU that torch can use for cuda, got none")
        if self.precision == "16" and (self.device == "cpu" or not gpu):
            raise ValueError("precision: expected a GPU for 16, got a CPU; bf16 runs on both")
        ranks = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
        if self.batch % ranks:
            raise ValueError(f"batch: expected a multiple of the {ranks} processes that share it, got {self.batch}")

    def expect_one_of(self, name: str, choices: Iterable[str]) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")


Kind = TypeVar("Kind", bound=Settings)


def configure(kind: type[Kind], *layers: Mapping[str, Any]) -> Kind:
    """Settings of this kind; later layers override earlier ones and the defaults.

    Strings are parsed as the type of the setting. ValueError, in one line, for a key that this kind does not have or a
    value of another type.
    """
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in (item for layer in layers for item in layer.items()):
        if key not in known:
            raise ValueError(f"{key}: expected a key of this training ({', '.join(known)}), got one it does not know")
        values[key] = _converted(key, value, known[key])
    return kind(**values)


def _converted(key: str, value: Any, kind: Any) -> Any:
    wanted = {int: "a whole number", float: "a number", str: "a text"}.get(kind, "whole numbers such as 64,128")
    accepted: Any = {int: (int, str), float: (int, float, str), str: (str,)}.get(kind, (list, tuple, str))
    try:
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise ValueError
        if kind in (int, float, str):
            return kind(value)
        return tuple(int(item) for item in (value.split(",") if isinstance(value, str) else value))
    except (ValueError, TypeError):
        raise ValueError(f"{key}: expected {wanted}, got {value!r}") from None


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a .toml or .json file. OSError, or ValueError in one line if the file contains anything else."""
    file = path.read_bytes()
    try:
        content = file.decode()
        if path.suffix == ".toml":
            values = tomllib.loads(content)
        elif path.suffix == ".json":
            values = json.loads(content)
        else:
            raise ValueError(f"a file {path.suffix or 'without suffix'}")
    except ValueError as error:
        raise ValueError(f"{path}: expected a .toml or .json file of settings, got {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a table of keys and values, got {type(values).__name__}")
    return values


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """["key=value", …] as a dict. ValueError, in one line, for anything else."""
    result = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set: expected key=value, got {assignment!r}")
        result[key.strip()] = value.strip()
    return result
