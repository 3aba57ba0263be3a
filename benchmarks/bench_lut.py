"""lut_transform against grid_sample (which computes the same), OpenColorIO's CPU processor and Pillow.

Each gets its images in the layout that suits it best, prepared in advance.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PyOpenColorIO as ocio
import pytest
import torch
from inputs import luts as make_luts
from inputs import maps as make_maps
from inputs import photo as make_photo
from peers import blend_into, make_grid, sample, weighted_sum, with_gradients
from PIL import Image, ImageFilter
from torch import Tensor

from fastenh.ops import lut_transform


def halves(maps: Tensor) -> Tensor:
    """(1, C, H, W) -> (2, C, H/2, W): on a CPU grid_sample divides batches among threads, but not single images."""
    return maps.unflatten(2, (2, -1))[0].transpose(0, 1)


def whole(maps: Tensor) -> Tensor:
    return maps.transpose(0, 1).flatten(1, 2)[None]


@pytest.mark.parametrize("picture", ["photo", "noise"])
@pytest.mark.parametrize("interpolation", ["trilinear", "tetrahedral"])
def test_one_lut(contest: Any, request: pytest.FixtureRequest, picture: str, interpolation: str) -> None:
    image, luts = request.getfixturevalue(picture), make_luts(1)
    out = torch.empty_like(image)
    if interpolation == "trilinear":
        grids, total = make_grid(halves(image)).contiguous(), torch.empty_like(halves(image))
        both = luts.expand(2, -1, -1, -1, -1)
        contest.peer("F.grid_sample", lambda: sample(luts, make_grid(image)), goal=12)
        contest.peer(
            "F.grid_sample, precomputed grid, halves as a batch, in bands of rows",
            lambda: contest.by_rows(lambda grid, out: out.copy_(sample(both, grid)), grids, total),
            goal=12,
            view=lambda _: whole(total),
        )

    transform = ocio.Lut3DTransform(33)
    transform.setInterpolation(getattr(ocio, f"INTERP_{'LINEAR' if interpolation == 'trilinear' else 'TETRAHEDRAL'}"))
    transform.setData(luts[0].permute(3, 2, 1, 0).numpy().ravel())  # B fastest
    processor = ocio.Config.CreateRaw().getProcessor(transform).getDefaultCPUProcessor()
    threads = ThreadPoolExecutor(2)  # OpenColorIO releases the GIL: half an image for each thread
    packed = image[0].permute(1, 2, 0).numpy().copy()
    changed = np.empty_like(packed)

    def in_place(half: int) -> None:
        rows = slice(1080 * half, 1080 * (half + 1))
        changed[rows] = packed[rows]
        processor.applyRGB(changed[rows])

    def planar(pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels[..., :3]).permute(2, 0, 1)[None]

    contest.peer(
        "OpenColorIO, copy and applyRGB",
        lambda: list(threads.map(in_place, range(2))),
        goal=4,
        view=lambda _: planar(changed),
    )

    rgba = np.dstack([packed, np.ones_like(packed[..., :1])])
    result = np.empty_like(rgba)
    images = [[ocio.PackedImageDesc(half, 3840, 1080, 4) for half in np.split(pixels, 2)] for pixels in (rgba, result)]
    contest.peer(
        "OpenColorIO, RGBA pictures to other pictures",
        lambda: list(threads.map(processor.apply, *images)),
        goal=4,
        view=lambda _: planar(result),
    )

    contest(
        f"lut_transform, one LUT, {interpolation}, {picture}",
        lambda: lut_transform(image, luts, interpolation=interpolation, out=out),
        fresh=lambda: lut_transform(image, luts, interpolation=interpolation),
    )


def test_one_lut_uint8(contest: Any, photo: Tensor) -> None:
    image, luts = (photo * 255).round().byte(), make_luts(1)
    out = torch.empty_like(image)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy().copy())
    table = ImageFilter.Color3DLUT(33, luts[0].permute(1, 2, 3, 0).flatten().tolist())
    contest.peer(
        "Pillow Color3DLUT",
        lambda: picture.filter(table),
        goal=3,
        view=lambda result: torch.from_numpy(np.array(result)).permute(2, 0, 1)[None],
    )
    contest(
        "lut_transform, one LUT, uint8, photo",
        lambda: lut_transform(image, luts, out=out),
        fresh=lambda: lut_transform(image, luts),
        tolerance=1,  # Pillow works in 16-bit integers
        threads=1,
    )


def test_five_luts_with_pixel_weights(contest: Any, photo: Tensor, maps: Any) -> None:
    luts, pixel_weights = make_luts(5), maps(5).mul_(2).softmax(1)
    out = torch.empty_like(photo)

    contest.peer("five F.grid_sample, weighted and summed", lambda: weighted_sum(photo, luts, pixel_weights), goal=22)
    grids, weights = make_grid(halves(photo)).contiguous(), halves(pixel_weights).contiguous()
    total = torch.empty_like(halves(photo))
    contest.peer(
        "F.grid_sample of 15 channels, precomputed grid, halves as a batch, in bands of rows",
        lambda: contest.by_rows(lambda out, grid, weights: blend_into(out, grid, luts, weights), total, grids, weights),
        goal=22,
        view=lambda _: whole(total),
    )
    contest(
        "lut_transform, five LUTs with pixel weights, photo",
        lambda: lut_transform(photo, luts, None, pixel_weights, out=out),
        fresh=lambda: lut_transform(photo, luts, None, pixel_weights),
    )


def test_one_lut_backward(contest: Any, photo: Tensor, maps: Any) -> None:
    image, luts, grad = photo.clone().requires_grad_(), make_luts(1).requires_grad_(), maps(3)
    of = image, luts
    contest.peer("F.grid_sample", lambda: with_gradients(sample(luts, make_grid(image)), of, grad), goal=4)
    half_grads = halves(grad).contiguous()
    contest.peer(
        "F.grid_sample, halves as a batch",
        lambda: with_gradients(sample(luts.expand(2, -1, -1, -1, -1), make_grid(halves(image))), of, half_grads),
        goal=4,
        view=lambda results: (whole(results[0]), *results[1:]),
    )
    contest(
        "lut_transform, one LUT, forward and backward, photo",
        lambda: with_gradients(lut_transform(image, luts), of, grad),
        tolerance=1e-3,
        relative=1e-2,  # a vertex sums up to a million gradients, in float32
    )


def test_five_luts_with_pixel_weights_backward(contest: Any) -> None:
    size = (1080, 1920)
    grad = make_maps(3, 0.1, size)
    image, luts, pixel_weights = of = [
        t.requires_grad_() for t in (make_photo(size), make_luts(5), make_maps(5, 0.1, size).mul_(2).softmax(1))
    ]
    contest.peer(
        "five F.grid_sample, weighted and summed",
        lambda: with_gradients(weighted_sum(image, luts, pixel_weights), of, grad),
    )
    contest(
        "lut_transform, five LUTs with pixel weights, forward and backward, photo of 1920 x 1080",
        lambda: with_gradients(lut_transform(image, luts, None, pixel_weights), of, grad),
        tolerance=1e-3,
        relative=1e-2,
    )


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("vertices", [9, 17, 33, 64, 256])
@pytest.mark.parametrize("side", [1, 8, 32, 128])
def test_small(contest: Any, side: int, vertices: int, gradients: bool) -> None:
    """Fixed costs of a call dominate here: those of Python, and of a LUT that is larger than the image."""
    image = make_photo((side, side)) * 0.98 + 0.01  # off the vertices of D = 256, where a gradient has two values
    luts, grad = make_luts(1, vertices), torch.ones(1, 3, side, side)
    case = f"lut_transform, one LUT, D = {vertices}, photo of {side} x {side}"
    if gradients:
        of = image.requires_grad_(), luts.requires_grad_()
        contest.peer("F.grid_sample", lambda: with_gradients(sample(luts, make_grid(image)), of, grad))
        contest(
            f"{case}, forward and backward",
            lambda: with_gradients(lut_transform(image, luts), of, grad),
            tolerance=1e-3,
            relative=1e-2,
            in_readme=vertices == 33,
        )
    else:
        out = torch.empty_like(image)
        contest.peer("F.grid_sample", lambda: sample(luts, make_grid(image)))
        contest(
            case,
            lambda: lut_transform(image, luts, out=out),
            fresh=lambda: lut_transform(image, luts),
            in_readme=vertices == 33,
        )
