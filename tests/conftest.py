"""What tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
