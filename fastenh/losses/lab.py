"""CIE 1976 L*a*b*, for losses and metrics: equal distances in it look about equally different."""

import torch
from torch import Tensor

# Rows X, Y, Z, columns R, G, B: the primaries of sRGB (BT.709) to six digits; white is D65 for the 2° observer.
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)


def rgb_to_lab(image: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB in [0, 1] → L*a*b* of the same shape, float32 or wider: L* in [0, 100], a* and b* about ±100.

        linear = v / 12.92 where v ≤ 0.04045, else ((v + 0.055) / 1.055)^2.4        (IEC 61966-2-1)
        L* = 116·f(Y/Yw) − 16        a* = 500·(f(X/Xw) − f(Y/Yw))        b* = 200·(f(Y/Yw) − f(Z/Zw))
        f(t) = t^(1/3) where t > (6/29)³, else t·(29/6)²/3 + 4/29                    (CIE 15)

    Differentiable everywhere, including black; values outside [0, 1] follow the same formulas. Raises ValueError for
    another shape, TypeError for integers.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"image: expected shape (B, 3, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise TypeError(f"image: expected floats in [0, 1], got {image.dtype}")
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    # Each power is clamped to the range where it is used: `where` would pass on a NaN gradient of the other branch.
    linear = torch.where(image <= 0.04045, image / 12.92, ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(RGB_TO_XYZ, dtype=image.dtype, device=image.device)
    matrix = matrix / torch.tensor(WHITE, dtype=image.dtype, device=image.device)[:, None]
    t = (matrix[:, :, None, None] * linear[:, None]).sum(2)  # autocast would run a matrix product in half precision
    edge = (6 / 29) ** 3
    x, y, z = torch.where(t > edge, t.clamp_min(edge) ** (1 / 3), t * (29 / 6) ** 2 / 3 + 4 / 29).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
