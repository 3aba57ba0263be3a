"""sRGB → CIELAB, differentiable."""

import torch
from torch import Tensor

# Linear sRGB → XYZ, IEC 61966-2-1, and the white point of D65, 2° observer, to which Lab is relative.
TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)


def rgb_to_lab(image: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB-encoded RGB in [0, 1] → (B, 3, H, W) L* in [0, 100], a*, b* (about ±100), under D65.

        linear = ((c + 0.055) / 1.055)^2.4, or c / 12.92 where c ≤ 0.04045;   t = XYZ / white
        f = t^(1/3), or 7.787 t + 16/116 where t ≤ 0.008856
        L* = 116 f_Y − 16,   a* = 500 (f_X − f_Y),   b* = 200 (f_Y − f_Z)

    Any float dtype; computed and returned in float32 at least. Beyond [0, 1] the formulas go on, with finite gradients.
    """
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    curved = ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4  # clamped first: else NaN comes back through `where`
    linear = torch.where(image <= 0.04045, image / 12.92, curved)
    matrix = image.new_tensor(TO_XYZ) / image.new_tensor(WHITE)[:, None]
    t = (matrix[:, :, None, None] * linear[:, None]).sum(2)  # not a matmul, which autocast would take to half precision
    x, y, z = torch.where(t <= 0.008856, 7.787 * t + 16 / 116, t.clamp_min(0.008856) ** (1 / 3)).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
