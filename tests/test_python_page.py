"""What docs/python.md shows works as it stands there."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

av = pytest.importorskip("av", reason="needs PyAV (fastenh[dev])")

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "python.md").read_text()


def read(path: str) -> list[np.ndarray]:
    with av.open(path) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.coffee()).save("photo.jpg")
    with av.open("video.mp4", "w") as video:
        encoder = video.add_stream("h264", rate=Fraction(25))
        encoder.width, encoder.height, encoder.pix_fmt = 160, 96, "yuv420p"
        for k in range(12):
            crop = skimage.data.coffee()[40:136, 4 * k : 4 * k + 160]
            video.mux(encoder.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(crop), format="rgb24")))
        video.mux(encoder.encode(None))

    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 7
    for block in blocks:
        exec(block, names)

    assert Image.open("after.jpg").size == (600, 400)
    before, after = read("video.mp4"), read("better.mp4")
    assert len(before) == len(after) == 12
    expected = list(map(np.copy, names["enhancer"].stream(before)))  # type: ignore[attr-defined]
    difference = [np.abs(a.astype(int) - b).mean() for a, b in zip(after, expected, strict=True)]
    assert max(difference) < 6 < np.abs(before[0].astype(int) - expected[0]).mean()  # but for what coding loses
    with av.open("better.mp4") as video:
        assert video.streams.video[0].average_rate == 25
    assert not torch.is_inference_mode_enabled()
