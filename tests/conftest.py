"""What tests share."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def seed() -> None:
    """Random numbers do not depend on which tests ran before in the process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assert_same_model() -> Callable[[nn.Module, nn.Module, Tensor], None]:
    """Holds two models to the same weights, bit for bit, and to the same result up to rounding: how a convolution sums
    depends on where its weights lie in memory."""

    def check(one: nn.Module, other: nn.Module, image: Tensor) -> None:
        weights = one.state_dict(), other.state_dict()
        assert type(one) is type(other) and weights[0].keys() == weights[1].keys()
        for name, tensor in weights[0].items():
            assert torch.equal(tensor, weights[1][name]), name
        with torch.no_grad():
            torch.testing.assert_close(one(image), other(image), rtol=1e-5, atol=1e-5)

    return check


@pytest.fixture(scope="session")
def assets() -> Path:
    """Published weights, photos and golden outputs; FASTENH_ASSETS says where, default ../shared/assets."""
    folder = Path(os.environ.get("FASTENH_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"no published assets at {folder} (FASTENH_ASSETS says where they are)")
    return folder


@pytest.fixture(scope="session")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in PPR10K's layout, three groups of three photos. Tests only read it."""
    from fastenh.data.example import make_portraits

    root = tmp_path_factory.mktemp("portraits")
    make_portraits(root, groups=3, photos=3, augmentations=1, size=(40, 56))
    return root


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in Cityscapes' layout, three photos to train with and two to measure with. Tests only read it.

    Red says the row, green the column, blue the class: 0.1 · (1 + class) of classes 0 to 3; a stripe has no class, 255.
    """
    from fastenh.data.example import write

    root = tmp_path_factory.mktemp("streets")
    height, width = 40, 72
    y, x = np.mgrid[0:height, 0:width]
    for split, count in (("train", 3), ("val", 2)):
        for n in range(count):
            labels = (2 * (y >= height // 2 + n) + (x >= width // 2)).astype(float)
            image = np.dstack([y / height, x / width, 0.1 * (1 + labels)])
            labels[:, :6] = 255
            for kind, suffix, pixels in (
                ("leftImg8bit", "leftImg8bit", image),
                ("gtFine", "gtFine_labelTrainIds", labels[..., None] / 255),
            ):
                folder = root / kind / split / ("aachen" if n else "bonn")
                folder.mkdir(parents=True, exist_ok=True)
                write(folder / f"s_{n}_{suffix}.png", pixels, 255)
    return root


@pytest.fixture(scope="session")
def exposures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos as in SICE Part 1: three scenes, whose exposures 1, 2 and 10 are of brightness 0.1, 0.5 and 0.9."""
    from fastenh.data.example import write

    root = tmp_path_factory.mktemp("exposures")
    (root / "Label").mkdir()
    for scene in range(1, 4):
        (root / str(scene)).mkdir()
        for name, level in ((f"Label/{scene}", 0.6), (f"{scene}/1", 0.1), (f"{scene}/2", 0.5), (f"{scene}/10", 0.9)):
            ripple = 0.05 * np.random.default_rng(scene).uniform(-1, 1, (30, 44, 3))
            write(root / f"{name}.png", level + ripple, 255)
    return root
