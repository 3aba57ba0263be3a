"""The stages of a LUT file: tables, matrices, and transforms that OpenColorIO computes. Each maps float colours,
(B, 3, H, W), to the same shape and dtype."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastenh import ops

Domain = tuple[tuple[float, float, float], tuple[float, float, float]]  # the lowest R, G, B, and the highest
UNIT: Domain = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

SHAPER_SIZES = (2, 65536)
TABLE_SIZES = (2, 256)


class Stage(nn.Module):
    """One step of a LUT file."""

    domain: Domain | None = None  # input is clamped to it; None: unlimited
    mixes = True  # an output channel may depend on all input channels

    @property
    def contents(self) -> str:
        """A description, such as "1D LUT of 1024 entries"."""
        raise NotImplementedError

    def inverse(self) -> list[Stage]:
        """Returns the stages that undo this one, in order.

        Raises ValueError if there is no inverse, ModuleNotFoundError if OpenColorIO is needed and missing."""
        raise NotImplementedError

    def as_transforms(self) -> list[Any]:
        """Returns this stage as OpenColorIO transforms, in order."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return self.contents


class Table(Stage):
    """A table: `entries` are the output colours for input colours at equal distances in `domain`.

    The position of a value x in the table is (x − lowest) / (highest − lowest), clamped to [0, 1].
    """

    entries: Tensor
    domain: Domain

    def __init__(self, entries: Tensor, domain: Domain) -> None:
        super().__init__()
        self.register_buffer("entries", finite(entries, "shaper" if entries.ndim == 2 else "table"))
        check_domain(domain)
        self.domain = domain

    @property
    def contents(self) -> str:
        size = "×".join(map(str, self.entries.shape[1:])) + (" entries" if self.entries.ndim == 2 else "")
        over = "" if self.domain == UNIT else f" over {domain_in_words(self.domain)}"
        return f"{self.entries.ndim - 1}D LUT of {size}{over}"

    def _transform(self) -> Any:
        """Returns the table over 0 to 1 as an OpenColorIO transform."""
        raise NotImplementedError

    def as_transforms(self) -> list[Any]:
        to_unit = [] if self.domain == UNIT else Matrix.between(self.domain, UNIT).as_transforms()
        return [*to_unit, self._transform()]

    def _inverse(self) -> list[Stage]:
        """Returns the inverse of the table, which OpenColorIO searches for each colour, and the matrix from 0 to 1 to
        the domain."""
        import PyOpenColorIO as ocio

        table = self._transform()
        table.setDirection(ocio.TRANSFORM_DIR_INVERSE)
        to_domain = [] if self.domain == UNIT else [Matrix.between(UNIT, self.domain)]
        return [OpenColorIOSteps([table]), *to_domain]


class Table1D(Table):
    """A 1D table for each of R, G and B: `entries` (3, S), float32 of any finite value, 2 <= S <= 65536.

    Interpolation is linear. NaN stays NaN."""

    mixes = False

    def __init__(self, entries: Tensor, domain: Domain = UNIT) -> None:
        if entries.ndim != 2 or entries.shape[0] != 3:
            raise ValueError(f"expected a 1D LUT of shape (3, S), got {tuple(entries.shape)}")
        check_size("S", entries.shape[1], SHAPER_SIZES)
        super().__init__(entries, domain)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Also takes uint8 and uint16 at full scale."""
        return ops.lut_1d_transform(x, self.entries[None], domain=_domain_tensor(self.domain, x), out=out)

    def inverse(self) -> list[Stage]:
        """Values outside the range of the entries map to the nearer end of the domain. Raises ValueError unless each
        channel only rises or only falls."""
        for name, steps in zip("RGB", self.entries.diff(dim=1), strict=True):
            if not ((steps >= 0).all() or (steps <= 0).all()) or not steps.any():
                raise ValueError(f"expected a 1D LUT that only rises or only falls, to invert it; its {name} does not")
        return self._inverse()

    def _transform(self) -> Any:
        import PyOpenColorIO as ocio

        table = ocio.Lut1DTransform(self.entries.shape[1], False)
        table.setData(np.ascontiguousarray(self.entries.T.cpu().numpy()).ravel())
        table.setFileOutputBitDepth(ocio.BIT_DEPTH_F32)
        return table


class Table3D(Table):
    """A 3D table: `entries` (3, D, D, D), axes (C, B, G, R), float32 of any finite value, 2 <= D <= 256.

    `interpolation` is "tetrahedral" or "trilinear". NaN in one channel makes all three channels of the pixel NaN.
    """

    def __init__(self, entries: Tensor, domain: Domain = UNIT, interpolation: str = "tetrahedral") -> None:
        if entries.ndim != 4 or entries.shape != (3, *[entries.shape[3]] * 3):
            raise ValueError(f"expected a 3D LUT of shape (3, D, D, D), got {tuple(entries.shape)}")
        check_size("D", entries.shape[3], TABLE_SIZES)
        super().__init__(entries, domain)
        self.interpolation = interpolation

    def forward(self, x: Tensor, out: Tensor | None = None, shaper: Table1D | None = None) -> Tensor:
        """Also takes uint8 and uint16 at full scale. A `shaper` is applied before this table, in the same pass."""
        if shaper is None and self.domain == UNIT:
            return ops.lut_transform(x, self.entries[None], interpolation=self.interpolation, out=out)
        if shaper is None:  # a 1D table of two entries scales the domain to 0 to 1
            tables, domain = x.new_tensor([[0.0, 1.0]] * 3, dtype=_table_dtype(x)), self.domain
        else:
            low, high = (shaper.entries.new_tensor(end, dtype=torch.float64)[:, None] for end in self.domain)
            tables, domain = ((shaper.entries - low) / (high - low)).to(_table_dtype(x)), shaper.domain
        return ops.lut_1d_transform(
            x,
            tables[None],
            self.entries[None],
            domain=_domain_tensor(domain, x),
            interpolation=self.interpolation,
            out=out,
        )

    def inverse(self) -> list[Stage]:
        """OpenColorIO searches the tetrahedra for the input of a colour. If a colour has no input, it takes that of a
        nearby colour."""
        return self._inverse()

    def _transform(self) -> Any:
        import PyOpenColorIO as ocio

        table = ocio.Lut3DTransform(self.entries.shape[1])
        table.setData(self.entries.permute(3, 2, 1, 0).contiguous().cpu().numpy().ravel())  # B fastest
        trilinear = self.interpolation == "trilinear"
        table.setInterpolation(ocio.INTERP_LINEAR if trilinear else ocio.INTERP_TETRAHEDRAL)
        table.setFileOutputBitDepth(ocio.BIT_DEPTH_F32)
        return table


class Matrix(Stage):
    """out = matrix · (R, G, B, 1), with a (3, 4) matrix whose last column is the offset."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        if matrix.shape != (3, 4):
            raise ValueError(f"expected a matrix of shape (3, 4), got {tuple(matrix.shape)}")
        self.register_buffer("matrix", finite(matrix, "matrix"))
        self.mixes = not torch.equal(self.matrix[:, :3], self.matrix[:, :3].diagonal().diag())
        self.unit_domain = None if self.mixes else _unit_domain(matrix)  # the domain it maps to 0 to 1

    @classmethod
    def between(cls, source: Domain, target: Domain) -> Matrix:
        """Returns the matrix that scales each channel's range in `source` to its range in `target`."""
        (low, high), (new_low, new_high) = torch.tensor([source, target], dtype=torch.float64)
        slope = (new_high - new_low) / (high - low)
        return cls(torch.cat([slope.diag(), (new_low - slope * low)[:, None]], 1))

    @property
    def contents(self) -> str:
        return "matrix" if self.mixes else "gain and offset"

    def forward(self, x: Tensor) -> Tensor:
        matrix, offset = self.matrix.to(x.dtype).split([3, 1], 1)
        if not self.mixes:  # 0 times infinity must not make the other channels NaN
            return x * matrix.diagonal()[:, None, None] + offset[:, None]
        # Add in OpenColorIO's order, to get the same bits.
        red, green, blue = (x[:, c : c + 1] * matrix[:, c, None, None] for c in range(3))
        return red.add_(green).add_(blue).add_(offset[:, None])

    def inverse(self) -> list[Stage]:
        full = torch.eye(4, dtype=torch.float64, device=self.matrix.device)
        full[:3] = self.matrix
        if torch.linalg.cond(full[:3, :3]) > 1e7:
            raise ValueError("expected a matrix that can be inverted, got a singular one")
        return [Matrix(full.inverse()[:3])]

    def as_transforms(self) -> list[Any]:
        import PyOpenColorIO as ocio

        full = torch.eye(4, dtype=torch.float64)
        full[:3, :3] = self.matrix[:, :3]
        transform = ocio.MatrixTransform()
        transform.setMatrix(full.flatten().tolist())
        transform.setOffset([*self.matrix[:, 3].tolist(), 0.0])
        return [transform]


class OpenColorIOSteps(Stage):
    """Transforms that OpenColorIO's own processor computes, such as exponents, logarithms and ASC CDLs.

    They run in float32 on the CPU, whichever device the colours are on, and have no gradients.
    """

    def __init__(self, transforms: list[Any]) -> None:
        super().__init__()
        import PyOpenColorIO as ocio

        processor = ocio.Config.CreateRaw().getProcessor(ocio.GroupTransform(transforms))
        self.transforms = transforms
        self.mixes = processor.hasChannelCrosstalk()
        self.processor = processor.getOptimizedCPUProcessor(ocio.OPTIMIZATION_LOSSLESS)

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenColorIOSteps:
        return OpenColorIOSteps(self.transforms)  # a processor cannot be copied

    @property
    def contents(self) -> str:
        names = [type(step).__name__.removesuffix("Transform") for step in self.transforms]
        words = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name) for name in names]
        return f"{', '.join(words)} by OpenColorIO"

    def forward(self, x: Tensor) -> Tensor:
        pixels = torch.empty(len(x), *x.shape[2:], 3)
        pixels.copy_(x.movedim(1, 3))
        self.processor.applyRGB(pixels.numpy())
        return pixels.movedim(3, 1).to(x)

    def inverse(self) -> list[Stage]:
        import PyOpenColorIO as ocio

        forward, back = ocio.TRANSFORM_DIR_FORWARD, ocio.TRANSFORM_DIR_INVERSE
        transforms = [copy.deepcopy(step) for step in reversed(self.transforms)]
        for step in transforms:
            step.setDirection(back if step.getDirection() == forward else forward)
        try:
            return [OpenColorIOSteps(transforms)]
        except ocio.Exception as error:
            raise ValueError(f"expected steps that can be inverted ({' '.join(str(error).split()):.200})") from None

    def as_transforms(self) -> list[Any]:
        import PyOpenColorIO as ocio

        transforms = copy.deepcopy(self.transforms)
        for step in transforms:
            if isinstance(step, ocio.Lut1DTransform | ocio.Lut3DTransform):
                step.setFileOutputBitDepth(ocio.BIT_DEPTH_F32)
        return transforms


def check_size(name: str, size: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= size <= bounds[1]:
        raise ValueError(f"expected {name} from {bounds[0]} to {bounds[1]}, got {size}")


def check_domain(domain: Domain) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.array(domain, np.float32)
        if not (np.isfinite(low).all() and ((high - low) > 0).all() and np.isfinite(high - low).all()):
            raise ValueError(f"expected a domain from lower to higher numbers, got {domain_in_words(domain)}")


def finite(entries: Tensor, name: str) -> Tensor:
    entries = entries.detach().float().contiguous()
    if not entries.isfinite().all():
        raise ValueError(f"expected finite numbers in the {name}, got NaN or infinity")
    return entries


def domain_in_words(domain: Domain) -> str:
    """The range of the domain as text, or three ranges if the channels differ."""
    ranges = [f"{low:g} to {high:g}" for low, high in zip(*domain, strict=True)]
    return ranges[0] if len(set(ranges)) == 1 else ", ".join(ranges)


def _unit_domain(matrix: Tensor) -> Domain | None:
    """The domain that a diagonal matrix with offsets maps to 0 to 1; None if the matrix gives no valid domain."""
    gain, offset = matrix[:, :3].diagonal().double(), matrix[:, 3].double()
    # str() of a float32 has the fewest digits: 0.1, not 0.10000000149.
    low, high = ([float(str(end)) for end in ((value - offset) / gain).float().numpy()] for value in (0, 1))
    domain = (low[0], low[1], low[2]), (high[0], high[1], high[2])
    try:
        check_domain(domain)
    except ValueError:
        return None
    return domain


def _domain_tensor(domain: Domain, x: Tensor) -> Tensor | None:
    """The domain as the (1, 2, 3) tensor that `lut_1d_transform` takes with image `x`; None for 0 to 1."""
    return None if domain == UNIT else x.new_tensor([domain], dtype=_table_dtype(x))


def _table_dtype(x: Tensor) -> torch.dtype:
    """The dtype of tables and domains for image `x`."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32
