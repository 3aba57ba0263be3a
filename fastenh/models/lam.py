"""Portrait retouching with local context: every pixel blends a few learned LUTs according to its surroundings.

Wang, Lu, Yan, Zhao: "Learning Pixel-Adaptive Weights for Portrait Photo Retouching". A classifier weights the LUTs for
the photo as a whole, as in `lut3d.py`; the local-context aware module (LAM) weights them again for each pixel, so that
a face and a wall of the same colour can be treated differently. Our choices where the paper leaves one open:

- outside the frame colours are 0, and the softmax gives attention to those neighbours as to any other;
- the weights of ResNet-18, LAM and UNet start near 1, so that an untrained model returns roughly its input;
- the UNet that the paper compares LAM with runs on a 256×256 thumbnail, and its maps are enlarged to the photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh import ops
from fastenh.models import lut3d
from fastenh.models.published import as_float32, check_tensors, read_pth
from fastenh.models.system import Picture, Prepared, System
from fastenh.ops.op import check_image, gradient_wanted, to_float
from fastenh.tiles import Place, enlarge


class Retouch(NamedTuple):
    """The result of a model, with what losses need besides."""

    image: Tensor  # (B, 3, H, W), dtype of the photo
    weights: Tensor  # (B, N), image-adaptive
    attention: Tensor | None  # (B, k², H, W) of LAM's pixels to their neighbours, as in `context_voxels`


class LocalContextLUT(System):
    """out(p) = Σₙ wᴵₙ · wᵖₙ(p) · LUTₙ(x(p)): (B, 3, H, W) RGB in [0, 1] → the same shape and dtype, floats unclamped.

    `luts` is (N, 3, D, D, D), axes (C, B, G, R); it starts as one identity table and N−1 tables of zeros. All weights
    are raw (no softmax, any sign). Images are floats of any size, or uint8 and uint16 at full scale.

    Args:
        n_luts, size: N and D.
        classifier: what predicts wᴵ (B, N): "resnet18", or one of `ImageAdaptiveLUT`, such as "paired".
        context: what predicts wᵖ (B, N, H, W): "lam"; "unet", the paper's baseline; or "none", where wᵖ is 1 and the
            model is the plain image-adaptive LUT (Zeng et al.; with "resnet18" and 5 LUTs, Liang et al.).
        kernel_size: k of LAM, 3, 5 or 7.
        widths: channels of LAM's two hidden layers, context features and voxel features.
        attention: "softmax", as in the paper, or "sigmoid-sum", as in its authors' code: see `LocalContext`.

    Raises:
        ValueError, TypeError: on a wrong argument or image, in one line.
    """

    def __init__(
        self,
        n_luts: int = 5,
        size: int = 33,
        classifier: str = "resnet18",
        context: str = "lam",
        kernel_size: int = 3,
        widths: Sequence[int] = (64, 128),
        attention: str = "softmax",
    ) -> None:
        super().__init__()
        if n_luts < 1 or not 2 <= size <= 256:
            raise ValueError(f"need at least one LUT of 2 to 256 vertices per axis, got n_luts={n_luts}, size={size}")
        if kernel_size not in (3, 5, 7):
            raise ValueError(f"kernel_size must be 3, 5 or 7, got {kernel_size!r}")
        if len(widths) != 2 or min(widths) < 1:
            raise ValueError(f"widths must be two positive numbers, got {widths!r}")
        choices = {"classifier": CLASSIFIERS, "context": CONTEXTS, "attention": ATTENTIONS}
        for argument, value in {"classifier": classifier, "context": context, "attention": attention}.items():
            if value not in choices[argument]:
                raise ValueError(f"{argument} must be one of {', '.join(choices[argument])}, got {value!r}")
        self.arguments: dict[str, Any] = {
            "n_luts": n_luts,
            "size": size,
            "classifier": classifier,
            "context": context,
            "kernel_size": kernel_size,
            "widths": list(widths),
            "attention": attention,
        }
        self.about = {"colour": "RGB, sRGB-encoded, in [0, 1]"}
        self.luts = nn.Parameter(lut3d.first_luts(n_luts, size))
        self.classifier: nn.Module = CLASSIFIERS[classifier](n_luts)
        self.lam = LocalContext(n_luts, kernel_size, widths, attention) if context == "lam" else None
        self.unet = UNet(n_luts) if context == "unet" else None
        if self.lam is None:
            self.reach, self.colour_map = 0, self.unet is None
        else:  # a pixel's attention is a convolution of its neighbours; sums of attention look at theirs as well
            self.reach = kernel_size // 2 * (2 if self.lam.sums else 1)

    def forward(self, image: Tensor, fused: bool | None = None) -> Tensor:
        """`fused`: in one pass over the frame, or layer after layer, which takes some 250 floats of memory per pixel.
        The default is one pass where no gradient is needed and the model supports it: LAM with softmax."""
        check_image("LocalContextLUT", image)
        possible = self.lam is not None and not self.lam.sums
        if fused and not possible:
            raise ValueError("fused=True: expected a model with context 'lam' and attention 'softmax', got another")
        if fused is None:
            fused = possible and not gradient_wanted([image, *self.parameters()])
        return super().forward(image) if fused else self.compose(image).image

    def predict(self, picture: Picture) -> tuple[Tensor, ...]:
        """The image-adaptive weights of each photo."""
        return (self.predict_weights(picture.overview),)

    def prepare(self, picture: Picture, params: tuple[Tensor, ...]) -> Prepared:
        """The UNet's maps of the whole photo, at 256×256."""
        return Prepared(None if self.unet is None else self.unet.maps(picture.overview))

    def render(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None = None
    ) -> Tensor:
        """In one pass where the model supports it."""
        if self.lam is not None and not self.lam.sums:
            return ops.local_context_retouch(image, self.luts, params[0], self.lam.params(), out=out)
        size = image.shape[2], image.shape[3]
        maps = None if local is None else enlarge(local, place, size, align_corners=False)
        result = self.compose(image, params[0], maps).image
        return result if out is None else out.copy_(result)

    def compose(self, image: Tensor, weights: Tensor | None = None, pixel_weights: Tensor | None = None) -> Retouch:
        """Layer after layer, as training needs it. Weights for the image or its pixels are predicted unless given."""
        weights = self.predict_weights(image) if weights is None else weights
        x = to_float(image).to(self.luts.dtype)
        attention = None
        if self.lam is not None:
            pixel_weights, attention = self.lam(x)
        elif self.unet is not None and pixel_weights is None:
            pixel_weights = self.unet(x)
        return Retouch(ops.lut_transform(image, self.luts, weights, pixel_weights), weights, attention)

    def predict_weights(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → wᴵ (B, N): the weight of each basis LUT for each photo."""
        check_image("LocalContextLUT", image)
        return self.classifier(image)


class LocalContext(nn.Module):
    """LAM: (B, 3, H, W) → weights (B, N, H, W) and attention (B, k², H, W).

        features = ReLU(conv k×k(x))            attention a = softmax over k² of conv 1×1(features)
        voxel v = the k×k neighbours of each pixel, each times its attention, 3·k² channels
        weights = conv 1×1(ReLU(conv 1×1(v)))

    With "sigmoid-sum" a is a sigmoid instead, and v holds the unweighted neighbours in the filtered image
    s(p) = Σⱼ aⱼ(p) · x(p + offsetⱼ).
    """

    def __init__(self, n_luts: int, kernel_size: int, widths: Sequence[int], attention: str) -> None:
        super().__init__()
        context_width, voxel_width = widths
        self.kernel_size, self.sums = kernel_size, attention == "sigmoid-sum"
        self.features = nn.Conv2d(3, context_width, kernel_size, padding=kernel_size // 2)
        self.attention = nn.Conv2d(context_width, kernel_size**2, 1)
        self.hidden = nn.Conv2d(3 * kernel_size**2, voxel_width, 1)
        self.head = nn.Conv2d(voxel_width, n_luts, 1)
        nn.init.ones_(self.head.bias)  # type: ignore[arg-type]

    def params(self) -> ops.LocalContextParams:
        layers = (self.features, self.attention, self.hidden, self.head)
        return ops.LocalContextParams(*(t for layer in layers for t in layer.parameters()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.attention(F.relu_(self.features(x)))
        attention = scores.sigmoid() if self.sums else scores.softmax(1)
        voxels = ops.context_voxels(x, attention, self.kernel_size)
        if self.sums:
            filtered = voxels.unflatten(1, (3, -1)).sum(2)
            voxels = ops.context_voxels(filtered, torch.ones_like(attention), self.kernel_size)
        return self.head(F.relu_(self.hidden(voxels))), attention


class UNet(nn.Module):
    """(B, 3, H, W) → weights (B, N, H, W) that depend on the whole image (Ronneberger et al. 2015).

    On a 256×256 thumbnail: four levels of two 3×3 convolutions, 16 to 128 channels wide, with skip connections.
    """

    CHANNELS = (16, 32, 64, 128)

    def __init__(self, n_luts: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(self.level(a, b) for a, b in pairwise((3, *self.CHANNELS)))
        self.up = nn.ModuleList(self.level(a + b, b) for a, b in pairwise(reversed(self.CHANNELS)))
        self.head = nn.Conv2d(self.CHANNELS[0], n_luts, 1)
        nn.init.ones_(self.head.bias)  # type: ignore[arg-type]

    @staticmethod
    def level(channels_in: int, channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, image: Tensor) -> Tensor:
        return F.interpolate(self.maps(image), image.shape[-2:], mode="bilinear", align_corners=False)

    def maps(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → the weights before they are enlarged, (B, N, 256, 256)."""
        x = to_float(image).to(self.head.weight.dtype)
        x = F.interpolate(x, (256, 256), mode="bilinear", align_corners=False)
        levels: list[Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for level, skipped in zip(self.up, reversed(levels[:-1]), strict=True):
            larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = level(torch.cat([larger, skipped], 1))
        return self.head(x)


class ResNet18(nn.Module):
    """(B, 3, H, W) → (B, N), ResNet-18 (He et al. 2016) on a 224×224 thumbnail, without colour normalisation.

    Our own implementation, so that model files load without torchvision. Its tensors have torchvision's names, under
    which ImageNet weights are published.
    """

    class Block(nn.Module):
        def __init__(self, channels_in: int, channels: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels)
            shortcut = [nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)]
            self.downsample = nn.Sequential(*shortcut) if stride > 1 else None

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(y + (x if self.downsample is None else self.downsample(x)))

    def __init__(self, n_luts: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(self.Block(64, 64, 1), self.Block(64, 64, 1))
        self.layer2 = nn.Sequential(self.Block(64, 128, 2), self.Block(128, 128, 1))
        self.layer3 = nn.Sequential(self.Block(128, 256, 2), self.Block(256, 256, 1))
        self.layer4 = nn.Sequential(self.Block(256, 512, 2), self.Block(512, 512, 1))
        self.fc = nn.Linear(512, n_luts)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.005)
        nn.init.ones_(self.fc.bias)

    def forward(self, image: Tensor) -> Tensor:
        x = Picture(image).thumbnail(224).to(self.fc.weight.dtype)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))

    def load_backbone(self, path: str | Path) -> None:
        """Load all layers but the last from a .pth file of torchvision's `resnet18`, such as its ImageNet weights.

        Nothing but tensors is unpickled. FileNotFoundError, or ValueError in one line if the file is of another
        network.
        """
        found = read_pth(path)
        kept = {key: tensor for key, tensor in self.state_dict().items() if not key.startswith("fc.")}
        for key in [key for key in kept if key.endswith("num_batches_tracked") and key not in found]:
            del kept[key]  # older files have no such counts
        check_tensors(path, found, kept, "a ResNet-18 as torchvision names it")
        if unknown := sorted(str(key) for key in found if key not in kept and not str(key).startswith("fc.")):
            raise ValueError(f"{path}: expected a ResNet-18, got also {', '.join(unknown[:4])}")
        floats = {key: as_float32(path, key, found[key]) for key in kept if kept[key].is_floating_point()}
        self.load_state_dict({key: found[key] for key in kept} | floats, strict=False)


CLASSIFIERS: dict[str, Any] = {"resnet18": ResNet18, **lut3d.CLASSIFIERS}
CONTEXTS = ("lam", "unet", "none")
ATTENTIONS = ("softmax", "sigmoid-sum")
