"""The four terms of Zero-DCE, which train curves to brighten photos without targets.

Guo, Li, Guo, Loy, Hou, Kwong, Cong: "Zero-Reference Deep Curve Estimation for Low-Light Image Enhancement", CVPR 2020;
the authors train Zero-DCE on spatial + 10 · exposure + 5 · colour + 200 · smoothness, Zero-DCE++ with 1600 for 200.
Where paper and code differ, these terms follow the code, which produced the published weights.

Images are (B, 3, H, W) sRGB floats in [0, 1]; brightness is the mean of R, G and B. Every term is a mean over the
photos of a batch, in float32 or wider, so the mean over equal parts of a batch equals that of the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

REGION = 4  # side of the regions in `spatial_consistency`, in pixels
PATCH = 16  # side of the patches in `exposure_control`, in pixels


def brightness(image: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 1, H, W), the mean of the channels, in float32 or wider."""
    return image.to(torch.promote_types(image.dtype, torch.float32)).mean(1, keepdim=True)


def spatial_consistency(output: Tensor, image: Tensor) -> Tensor:
    """Keeps the contrast between neighbouring regions: mean over regions i of Σ_j ((Yᵢ − Yⱼ) − (Iᵢ − Iⱼ))².

    Y and I are the mean brightness of output and image in regions of 4×4 pixels; j runs over the four neighbours of i.
    Outside the frame brightness is 0. Incomplete regions at the right and lower edge are left out.

    output and image (B, 3, H, W) → a scalar. ValueError if a side has fewer than 4 pixels.
    """
    change = _patches(brightness(output) - brightness(image), REGION)
    around = F.pad(change, [1] * 4)
    left, right = around[..., 1:-1, :-2], around[..., 1:-1, 2:]
    above, below = around[..., :-2, 1:-1], around[..., 2:, 1:-1]
    return (change - torch.stack([left, right, above, below])).square().sum(0).mean()


def exposure_control(output: Tensor, level: float = 0.6) -> Tensor:
    """Brings every patch to the same exposure: mean over patches of 16×16 pixels of (Y − level)².

    Y is the mean brightness of a patch. Incomplete patches at the right and lower edge are left out. (The paper has
    |Y − level|.)

    output (B, 3, H, W) → a scalar. ValueError if a side has fewer than 16 pixels.
    """
    return (_patches(brightness(output), PATCH) - level).square().mean()


def colour_constancy(output: Tensor, order: int = 2) -> Tensor:
    """Makes photos grey on average: mean over photos of the norm ‖(J^R − J^G)², (J^R − J^B)², (J^G − J^B)²‖.

    J^c is the mean of channel c over the photo. The norm is Euclidean, as in Zero-DCE's code; with order=1 it is the
    sum, as in the papers of Zero-DCE and SCL-LLE (Eq. 9). The gradient of a grey photo is 0.

    output (B, 3, H, W) → a scalar.
    """
    red, green, blue = output.to(torch.promote_types(output.dtype, torch.float32)).mean((2, 3)).unbind(1)
    squares = torch.stack([red - green, red - blue, green - blue], 1).square()
    return torch.linalg.vector_norm(squares, order, dim=1).mean()


def illumination_smoothness(curves: Tensor) -> Tensor:
    """Keeps curve maps smooth: mean over photos of 2 Σ_c (mean((∇x A_c)²) + mean((∇y A_c)²)).

    A_c are the maps of `curve_iterate`, all channels of all iterations; ∇x and ∇y are differences of neighbours.
    (The paper divides by the number of iterations and squares |∇x A| + |∇y A|.)

    curves (B, C, H, W) → a scalar. ValueError if a side has fewer than 2 pixels.
    """
    across, down = gradients(curves)
    return 2 * (across.square().mean((0, 2, 3)).sum() + down.square().mean((0, 2, 3)).sum())


def gradients(curves: Tensor) -> tuple[Tensor, Tensor]:
    """∇x and ∇y, (B, C, H, W − 1) and (B, C, H − 1, W): the differences of neighbours, in float32 or wider."""
    if curves.ndim != 4 or min(curves.shape[-2:]) < 2:
        raise ValueError(f"curves: expected shape (B, C, H, W), H and W at least 2, got {tuple(curves.shape)}")
    curves = curves.to(torch.promote_types(curves.dtype, torch.float32))
    return curves.diff(dim=3), curves.diff(dim=2)


def _patches(image: Tensor, size: int) -> Tensor:
    if min(image.shape[-2:]) < size:
        height, width = image.shape[-2:]
        raise ValueError(f"image: expected at least {size} pixels on each side, got {width}×{height}")
    return F.avg_pool2d(image, size)
