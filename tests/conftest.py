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
