"""Image-adaptive 3D LUT: a small network sees a thumbnail and blends a few learned LUTs into one for that photo.

Zeng, Cai, Li, Cao, Zhang: "Learning Image-adaptive 3D Lookup Tables for High Performance Photo Enhancement in
Real-time", TPAMI 2020. Inference costs one thumbnail and one table lookup per pixel, whatever the photo's size.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh import ops
from fastenh.models.published import as_float32, read_pth
from fastenh.models.system import Picture, System
from fastenh.ops.op import check_image, to_float
from fastenh.tiles import Place


class ImageAdaptiveLUT(System):
    """out = Σₙ wₙ(image) · LUTₙ(image): (B, 3, H, W) RGB in [0, 1] → the same shape and dtype, floats unclamped.

    `luts` is (N, 3, D, D, D), axes (C, B, G, R); it starts as one identity table and N−1 tables of zeros. The weights
    are raw (no softmax, any sign). `classifier` is what predicts them from the photo:

    - "paired" and "unpaired": the two convolutional networks of the paper;
    - "statistics": our own, a perceptron on the distribution of the photo's colours. It is far smaller, and it sees the
      absolute levels, which instance normalisation removes, so it learns from few photos;
    - "histograms": the same with histograms of chroma, which reveal tints, and statistics that recognise graphics.
    """

    reach = 0
    colour_map = True

    def __init__(self, n_luts: int = 3, size: int = 33, classifier: str = "paired") -> None:
        super().__init__()
        if n_luts < 1 or not 2 <= size <= 256:
            raise ValueError(f"need at least one LUT of 2 to 256 vertices per axis, got n_luts={n_luts}, size={size}")
        if classifier not in CLASSIFIERS:
            raise ValueError(f"classifier must be one of {', '.join(CLASSIFIERS)}, got {classifier!r}")
        self.arguments: dict[str, Any] = {"n_luts": n_luts, "size": size, "classifier": classifier}
        self.about = {"colour": "RGB, sRGB-encoded, in [0, 1]"}
        self.luts = nn.Parameter(first_luts(n_luts, size))
        self.classifier = CLASSIFIERS[classifier](n_luts)

    def forward(self, image: Tensor) -> Tensor:
        return ops.lut_transform(image, self.luts, self.predict_weights(image))

    def predict_weights(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, N): how much of each basis LUT each photo takes. uint8 and uint16 are full scale."""
        check_image("ImageAdaptiveLUT", image)
        return self.classifier(image)

    def fused_lut(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 3, D, D, D): the blend of the basis LUTs for each photo."""
        return self.blended(self.predict_weights(image))

    def blended(self, weights: Tensor) -> Tensor:
        """Σₙ wₙ · LUTₙ for weights (B, N)."""
        with torch.autocast(weights.device.type, enabled=False):  # LUTs stay in float32
            return torch.einsum("bn,n...->b...", weights.to(self.luts.dtype), self.luts)

    def predict(self, picture: Picture) -> tuple[Tensor, ...]:
        """The fused LUT of each photo."""
        return (self.blended(self.classifier(picture.overview)),)

    def render(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None = None
    ) -> Tensor:
        return ops.lut_transform(image, params[0][:, None], out=out)

    def blend(self, params: tuple[Tensor, ...], strength: float) -> tuple[Tensor, ...]:
        """Blending tables blends their results."""
        (lut,) = params
        return (identity_lut(lut.shape[-1], lut.device).lerp(lut, strength),)


class ConvClassifier(nn.Module):
    """The paper's network on a 256×256 thumbnail: five strided convolutions 3→16→32→64→128→128, then 8×8 → N.

    Each block is conv 3×3 stride 2 → LeakyReLU 0.2 → InstanceNorm (affine). Paired training normalises the first four
    blocks and drops half of the features before the head; unpaired training normalises the first block only.
    """

    CHANNELS = (3, 16, 32, 64, 128, 128)

    def __init__(self, n_luts: int, paired: bool) -> None:
        super().__init__()
        normalised = self.CHANNELS[1:5] if paired else self.CHANNELS[1:2]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(self.CHANNELS))
        self.norms = nn.ModuleList(nn.InstanceNorm2d(channels, affine=True) for channels in normalised)
        self.dropout = nn.Dropout(0.5 if paired else 0.0)
        self.head = nn.Conv2d(self.CHANNELS[-1], n_luts, 8)

    def forward(self, image: Tensor) -> Tensor:
        x = to_float(image).to(self.head.weight.dtype)
        x = F.interpolate(x, (256, 256), mode="bilinear", align_corners=False)
        for index, conv in enumerate(self.convs):
            x = F.leaky_relu(conv(x), 0.2)
            if index < len(self.norms):
                x = self.norms[index](x)
        return self.head(self.dropout(x)).flatten(1)


class StatisticsClassifier(nn.Module):
    """weights = W₃ tanh(W₂ tanh(W₁ s + b₁) + b₂) + b₃, with s the whitened statistics of a grid of the photo's pixels.

    The statistics describe lightness, contrast, the ends of the histogram and saturation (quantiles of R, G, B and of
    each pixel's largest and smallest channel), and the tint of the light (quantiles of log R/G and log B/G, the mean
    colour of 8 bands of equal population from dark to light, and of the lightest hundredth). tanh bounds the weights
    for any photo.
    """

    GRID = 64
    BANDS = 8
    QUANTILES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
    STATISTICS = 7 * len(QUANTILES) + 3 * (BANDS + 1)
    NOISE = 0.12  # on the whitened statistics in training: regularises, since training photos are few

    def __init__(self, n_luts: int, hidden: int = 96) -> None:
        super().__init__()
        self.whiten = nn.Linear(self.STATISTICS, self.STATISTICS).requires_grad_(False)
        self.hidden = nn.Sequential(nn.Linear(self.STATISTICS, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, n_luts)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.hidden(self.whitened(self.statistics(self.pick(image)))))

    def whitened(self, statistics: Tensor) -> Tensor:
        result = self.whiten(statistics.to(self.head.weight.dtype))
        return result + self.NOISE * torch.randn_like(result) if self.training else result

    def pick(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 3, h, w) floats in [0, 1], h and w at most 64: pixels of the image, evenly spread.

        The pixels are sampled, not averaged: averaging hides highlights.
        """
        for axis in (2, 3):  # at the middles of equal shares, so that few pixels are read of a photo of any size
            count = min(image.shape[axis], self.GRID)
            middles = (torch.arange(count, device=image.device) + 0.5) * (image.shape[axis] / count)
            image = image.index_select(axis, middles.long())
        return to_float(image).nan_to_num(0.0).clamp(0, 1)  # a broken pixel must not break the photo

    def statistics(self, pixels: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] → (B, F) in [−1, 1]."""
        rgb = pixels.flatten(2)
        red, green, blue = rgb.unbind(1)
        lightest, darkest = red.maximum(green).maximum(blue), red.minimum(green).minimum(blue)
        chroma = ((rgb[:, ::2] + 0.05) / (rgb[:, 1:2] + 0.05)).log().clamp(-1, 1) / 2 + 0.5
        levels = torch.cat([rgb, lightest[:, None], darkest[:, None], chroma], 1).sort(-1).values
        count = levels.shape[-1]
        # One by one: indexing with a list would copy it to the GPU and wait.
        quantiles = torch.stack([levels[:, :, round(q * (count - 1))] for q in self.QUANTILES], -1)
        by_lightness = rgb.gather(2, rgb.sum(1, keepdim=True).argsort(-1).expand_as(rgb))
        bands = F.adaptive_avg_pool1d(by_lightness, self.BANDS)
        top = by_lightness[:, :, -max(1, count // 100) :].mean(-1)
        return 2 * torch.cat([quantiles.flatten(1), bands.flatten(1), top], 1) - 1

    @torch.no_grad()
    def calibrate(self, statistics: Tensor) -> None:
        """Set `whiten` so that statistics (N, F) like these have zero mean and, down to a noise floor, unit variance
        in every direction. Tint changes them far less than lightness and would otherwise be learned last."""
        centred = statistics - statistics.mean(0)
        variance, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        whiten = directions @ (variance.clamp_min(0) + 1e-2).rsqrt().diag() @ directions.T
        self.whiten.weight.copy_(whiten)
        self.whiten.bias.copy_(-whiten @ statistics.mean(0))


class HistogramClassifier(StatisticsClassifier):
    """`StatisticsClassifier` with 12 more statistics, which separate photographs from graphics, and two histograms of
    chroma, which reveal a tint.

    Graphics have flat areas and few colours. The statistics are the shares of neighbouring grid pixels that differ by
    less than each of five thresholds, along rows and along columns; the share of pixels whose exact colour, in 8 bits,
    occurs more than once; and the share of grey pixels.

    A gain per channel in linear light shifts the distribution of (log R/G, log B/G) without changing its shape (Barron:
    "Convolutional Color Constancy", ICCV 2015). Each histogram has 16×16 bins and spreads a sample linearly over the
    nearest bins. One counts the pixels, the other the absolute differences between neighbours, which large areas of one
    colour do not dominate. Clipped and very dark pixels are left out. The network takes the square roots of the shares.
    """

    STATISTICS = StatisticsClassifier.STATISTICS + 12
    NOISE = 0.05
    STEPS = (0.002, 0.006, 0.02, 0.06, 0.2)
    BINS, WIDTH = 16, 0.18  # of an axis, and of a bin in log units

    def __init__(self, n_luts: int, hidden: int = 112) -> None:
        super().__init__(n_luts, hidden)
        inputs = self.STATISTICS + 2 * self.BINS**2
        self.hidden = nn.Sequential(
            nn.Linear(inputs, hidden), nn.Tanh(), nn.Dropout(0.25), nn.Linear(hidden, hidden), nn.Tanh()
        )
        self.dropout = nn.Dropout(0.25)

    def forward(self, image: Tensor) -> Tensor:
        return self.weights(*self.features(image))

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) → statistics (B, F) and histograms (B, 512)."""
        pixels = self.pick(image).float()
        with torch.autocast(pixels.device.type, enabled=False):
            return self.statistics(pixels), self.histograms(pixels)

    def weights(self, statistics: Tensor, histograms: Tensor) -> Tensor:
        histograms = self.dropout(histograms.to(self.head.weight.dtype))
        return self.head(self.hidden(torch.cat([self.whitened(statistics), histograms], 1)))

    def statistics(self, pixels: Tensor) -> Tensor:
        shares = []
        for axis in (2, 3):
            difference = pixels.diff(dim=axis).abs().amax(1).flatten(1)
            count = max(difference.shape[1], 1)
            shares += [(difference < step).float().sum(1) / count for step in self.STEPS]
        red, green, blue = (pixels * 255).round().flatten(2).unbind(1)
        colours = (red * 65536 + green * 256 + blue).sort(1).values
        shares += [(colours.diff(dim=1) == 0).float().sum(1) / colours.shape[1]]
        shares += [(pixels.amax(1) - pixels.amin(1) < 0.012).float().flatten(1).mean(1)]
        return torch.cat([super().statistics(pixels), 2 * torch.stack(shares, 1) - 1], 1)

    def histograms(self, pixels: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] → (B, 512)."""
        light, lightest = pixels**2.2, pixels.amax(1)
        counts = ((lightest < 0.995) & (lightest > 0.03)).float()
        edges = light.diff(dim=3).abs()
        edge_counts = (edges.amax(1) > 0.01).float() * counts[:, :, 1:] * counts[:, :, :-1]
        parts = self._histogram(light, counts + 1e-4), self._histogram(edges, edge_counts + 1e-5)
        return 2 * torch.cat(parts, 1)

    def _histogram(self, light: Tensor, counts: Tensor) -> Tensor:
        """(B, 3, h, w) linear light and the weight of each pixel, (B, h, w) → (B, 256): √ of each bin's share."""
        red, green, blue = (light.flatten(2) + 0.004).log().unbind(1)
        centres = (torch.arange(self.BINS, device=light.device) - (self.BINS - 1) / 2) * self.WIDTH
        limit = (self.BINS - 1) / 2 * self.WIDTH

        def shares(chroma: Tensor) -> Tensor:  # (B, P, BINS): linear between the two nearest centres
            distance = (chroma.clamp(-limit, limit)[..., None] - centres).abs() / self.WIDTH
            return (1 - distance).clamp_min(0)

        counts = counts.flatten(1)
        sums = torch.einsum("bpu,bpv->buv", shares(red - green) * counts[..., None], shares(blue - green))
        return (sums.flatten(1) / counts.sum(1, keepdim=True).clamp_min(1e-6)).sqrt()


CLASSIFIERS: dict[str, Any] = {
    "paired": lambda n_luts: ConvClassifier(n_luts, paired=True),
    "unpaired": lambda n_luts: ConvClassifier(n_luts, paired=False),
    "statistics": StatisticsClassifier,
    "histograms": HistogramClassifier,
}


def identity_lut(size: int, device: torch.device | None = None) -> Tensor:
    """(3, D, D, D), axes (C, B, G, R), with LUT[c, b, g, r] = (r, g, b)[c] / (D − 1)."""
    axis = torch.as_tensor(np.linspace(0, 1, size, dtype=np.float32), device=device)
    lut = axis.new_empty(3, size, size, size)
    lut[0], lut[1], lut[2] = axis, axis[:, None], axis[:, None, None]
    return lut


def first_luts(count: int, size: int) -> Tensor:
    """(count, 3, D, D, D) to start training from: the identity, then zeros."""
    luts = torch.zeros(count, 3, size, size, size)
    luts[0] = identity_lut(size)
    return luts


# ---- checkpoints as published

# The published classifiers are one Sequential, `model.N`; the variants differ in which N is which of our layers.
PUBLISHED_LAYERS = {
    "paired": {
        1: "convs.0", 3: "norms.0", 4: "convs.1", 6: "norms.1", 7: "convs.2", 9: "norms.2",
        10: "convs.3", 12: "norms.3", 13: "convs.4", 16: "head",
    },
    "unpaired": {1: "convs.0", 3: "norms.0", 4: "convs.1", 6: "convs.2", 8: "convs.3", 10: "convs.4", 12: "head"},
}  # fmt: skip


def convert(luts_path: str | Path, classifier_path: str | Path) -> ImageAdaptiveLUT:
    """Read a published pair of files, paired or unpaired variant, into a model in eval mode.

    The files hold {"0": {"LUT": (3, D, D, D)}, "1": …} and {"model.N.weight": …, "model.N.bias": …}. Nothing but
    tensors is unpickled. A missing file raises FileNotFoundError; anything but these keys and shapes raises ValueError,
    in one line.
    """
    tables, layers = read_pth(luts_path), read_pth(classifier_path)
    numbered = [tables.get(str(n)) for n in range(len(tables))]
    found: list[Any] = [table.get("LUT") if isinstance(table, dict) else None for table in numbered]
    if not found or not all(_is_lut(lut, like=found[0]) for lut in found):
        raise ValueError(f"{luts_path}: expected LUTs {{'0': {{'LUT': (3, D, D, D)}}, …}}, got {_outline(tables)}")
    luts = torch.stack([as_float32(luts_path, f"LUT {n}", lut) for n, lut in enumerate(found)])

    variant = "paired" if "model.16.weight" in layers else "unpaired"
    model = ImageAdaptiveLUT(len(luts), luts.shape[-1], variant)
    expected = {
        f"model.{n}.{kind}": f"{ours}.{kind}"
        for n, ours in PUBLISHED_LAYERS[variant].items()
        for kind in ("weight", "bias")
    }
    state = model.classifier.state_dict()
    for theirs, ours in expected.items():
        got = layers.get(theirs)
        if not isinstance(got, Tensor) or got.shape != state[ours].shape:
            raise ValueError(
                f"{classifier_path}: expected {theirs} {tuple(state[ours].shape)} ({variant} classifier of {len(luts)} "
                f"LUTs), got {tuple(got.shape) if isinstance(got, Tensor) else 'no such tensor'}"
            )
    if unknown := sorted(set(layers) - set(expected)):
        raise ValueError(f"{classifier_path}: expected a {variant} classifier, got also {', '.join(unknown[:4])}")

    model.luts.data = luts
    model.classifier.load_state_dict(
        {ours: as_float32(classifier_path, theirs, layers[theirs]) for theirs, ours in expected.items()}
    )
    model.about["note"] = f"converted from the published {Path(luts_path).name} and {Path(classifier_path).name}"
    return model.eval()


def _is_lut(lut: Any, like: Any) -> bool:
    return isinstance(lut, Tensor) and lut.ndim == 4 and lut.shape == (3, *[lut.shape[-1]] * 3) == like.shape


def _outline(content: dict[str, Any]) -> str:
    return ", ".join(str(key) for key in list(content)[:4]) + (", …" if len(content) > 4 else "") or "nothing"
