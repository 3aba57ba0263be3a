"""What teaches curves to brighten photos without a target: the four terms of Zero-DCE.

Guo, Li, Guo, Loy, Hou, Kwong, Cong: "Zero-Reference Deep Curve Estimation for Low-Light Image Enhancement", CVPR 2020;
the authors train Zero-DCE on spatial + 10 · exposure + 5 · colour + 200 · smoothness, Zero-DCE++ with 1600 for 200.
Where their paper and their code differ, these are the code's, which their weights come from.

Images are (B, 3, H, W) sRGB floats in [0, 1]; their brightness is the mean of R, G and B. All are means over the photos
of a batch, in float32 at least, so that the mean over the parts of a batch is that of the whole.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

REGION = 4  # pixels on each side of the regions whose contrast is kept
PATCH = 16  # of the patches that are to be well exposed


def brightness(image: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 1, H, W), the mean of the channels, float32 at least."""
    return image.to(torch.promote_types(image.dtype, torch.float32)).mean(1, keepdim=True)


def spatial_consistency(output: Tensor, image: Tensor) -> Tensor:
    """Contrast of regions to their neighbours stays: mean over regions i of Σ_j ((Yᵢ − Yⱼ) − (Iᵢ − Iⱼ))².

    Y and I are mean brightnesses of output and image in regions of 4×4 pixels, j the four neighbours of i; what lies
    outside the frame has brightness 0. Rows and columns that fill no region are left out.

    output and image (B, 3, H, W) → a scalar. ValueError for less than 4 pixels on a side.
    """
    change = _patches(brightness(output) - brightness(image), REGION)
    around = F.pad(change, [1] * 4)
    left, right = around[..., 1:-1, :-2], around[..., 1:-1, 2:]
    above, below = around[..., :-2, 1:-1], around[..., 2:, 1:-1]
    return (change - torch.stack([left, right, above, below])).square().sum(0).mean()


def exposure_control(output: Tensor, level: float = 0.6) -> Tensor:
    """Every place is well exposed: mean over patches of 16×16 pixels of (Y − level)², Y their mean brightness.

    Rows and columns that fill no patch are left out. (The paper writes |Y − level|.)

    output (B, 3, H, W) → a scalar. ValueError for less than 16 pixels on a side.
    """
    return (_patches(brightness(output), PATCH) - level).square().mean()


def colour_constancy(output: Tensor, order: int = 2) -> Tensor:
    """Photos are grey on average: mean over photos of the norm ‖(J^R − J^G)², (J^R − J^B)², (J^G − J^B)²‖.

    J^c is the mean of channel c over the photo. The norm is Euclidean, as in Zero-DCE's code; with order=1 it is the
    sum, as Zero-DCE's paper and SCL-LLE's (Eq. 9) write it. A grey photo's gradient is 0.

    output (B, 3, H, W) → a scalar.
    """
    red, green, blue = output.to(torch.promote_types(output.dtype, torch.float32)).mean((2, 3)).unbind(1)
    squares = torch.stack([red - green, red - blue, green - blue], 1).square()
    return torch.linalg.vector_norm(squares, order, dim=1).mean()


def illumination_smoothness(curves: Tensor) -> Tensor:
    """Curves change little from pixel to pixel: mean over photos of 2 Σ_c (mean((∇x A_c)²) + mean((∇y A_c)²)).

    A_c are the maps of `curve_iterate`, all channels of all iterations, ∇x and ∇y the differences of neighbours.
    (The paper divides by the number of iterations and squares |∇x A| + |∇y A|.)

    curves (B, C, H, W) → a scalar. ValueError for less than 2 pixels on a side.
    """
    across, down = gradients(curves)
    return 2 * (across.square().mean((0, 2, 3)).sum() + down.square().mean((0, 2, 3)).sum())


def gradients(curves: Tensor) -> tuple[Tensor, Tensor]:
    """∇x and ∇y, (B, C, H, W − 1) and (B, C, H − 1, W): the differences of neighbours, float32 at least."""
    if curves.ndim != 4 or min(curves.shape[-2:]) < 2:
        raise ValueError(f"curves: expected shape (B, C, H, W), H and W at least 2, got {tuple(curves.shape)}")
    curves = curves.to(torch.promote_types(curves.dtype, torch.float32))
    return curves.diff(dim=3), curves.diff(dim=2)


def _patches(image: Tensor, size: int) -> Tensor:
    if min(image.shape[-2:]) < size:
        height, width = image.shape[-2:]
        raise ValueError(f"image: expected at least {size} pixels on each side, got {width}×{height}")
    return F.avg_pool2d(image, size)
