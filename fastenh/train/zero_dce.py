"""Trains the curve networks for low light, `ZeroDCE` and `ZeroDCEPlusPlus`, without targets.

Zero-DCE (Guo et al., CVPR 2020), on photos alone:

    loss = spatial + 10 · exposure + 5 · colour + 200 · smoothness

SCL-LLE (Liang et al., AAAI 2022), on street scenes and unpaired photos of good and bad exposure:

    loss = 5 · gram + 10 · brightness + consistency + cross_entropy + retention + 8 · colour + 200 · variation

Each term is a function in `fastenh.losses`, which says where it follows the paper and where the code. Both use Adam at
1e-4 with weight decay 1e-4 and gradients clipped to norm 0.1, as in Zero-DCE's code. Only the curve network is trained;
the VGG-16 and the segmentation network in SCL-LLE's losses are frozen and not in checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from fastenh import losses, ops
from fastenh.data import Contrasts, Crops, find_labelled_photos, find_references
from fastenh.models import SYSTEMS, load, save
from fastenh.models.segmentation import Segmentation
from fastenh.models.zero_dce import ITERATIONS, ZeroDCE
from fastenh.train.config import Settings
from fastenh.train.loop import Networks, Task, run

CURVES = ("zero-dce", "zero-dce++")
STYLE, CONTENT = ("relu1_2", "relu2_2"), "relu4_3"  # layers of VGG-16, as in SCL-LLE's code
FIT = {"steps": 500, "side": 256, "darken": 1.0}  # fine-tunes a trained network on the user's photos in low light

PRESETS: dict[str, dict[str, Any]] = {
    "zero-dce": {},
    "zero-dce++": {"system": "zero-dce++", "map_scale": 12},
    "fit": FIT | {"batch": 4},
}
# Rows of SCL-LLE's Table 3, and `fit`, which needs no labels.
SEMANTIC_PRESETS: dict[str, dict[str, Any]] = {
    "scl-lle": {},
    "no-contrast": {"gram": 0.0, "brightness": 0.0},
    "no-semantic": {"consistency": 0.0, "cross_entropy": 0.0},
    "no-retention": {"retention": 0.0},
    "no-negatives": {"negatives": "none"},
    "no-overexposed": {"negatives": "under"},
    "no-underexposed": {"negatives": "over"},
    "fit": FIT | {"consistency": 0.0, "cross_entropy": 0.0},
}


@dataclass(frozen=True)
class CurveSettings(Settings):
    """Settings of both trainings.

    Args:
        weights: the model to start from, a .safetensors file or the name of an embedded model; "" starts from scratch.
        system, map_scale: of a model that starts from scratch; one from `weights` has its own.
        weight_decay: of Adam.
        clip: the norm to which gradients are clipped; 0 does not clip.
        darken: photos become photo^γ, log γ uniform between 0 and log `darken`; 1 leaves them unchanged.
        colour, smoothness: weights of the terms that both have, colour constancy and the smoothness of curves.
        side: of the training crops, in pixels.
    """

    weights: str = ""
    system: str = "zero-dce"
    map_scale: int = 1
    weight_decay: float = 1e-4
    clip: float = 0.1
    darken: float = 1.0
    colour: float = 5.0
    smoothness: float = 200.0
    side: int = 512

    WEIGHTS: ClassVar[tuple[str, ...]] = ("colour", "smoothness")  # of losses

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_one_of("system", CURVES)
        for name in ("weight_decay", "clip", *self.WEIGHTS):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}")
        if not 1 <= self.darken <= 100:
            raise ValueError(f"darken: expected the largest γ, from 1 to 100, got {self.darken}")
        if self.side < 16:
            raise ValueError(f"side: expected at least 16 pixels, got {self.side}")


@dataclass(frozen=True)
class Config(CurveSettings):
    """Settings of Zero-DCE's training.

    Args:
        spatial, exposure: weights of the losses of these names.
        level: the brightness of a well-exposed patch.

    The smoothness of maps that all iterations share, as in "zero-dce++", counts once per iteration, so `smoothness` 200
    equals the 1600 in its code.
    """

    batch: int = 8
    spatial: float = 1.0
    exposure: float = 10.0
    level: float = 0.6

    WEIGHTS: ClassVar[tuple[str, ...]] = (*CurveSettings.WEIGHTS, "spatial", "exposure")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.level < 1:
            raise ValueError(f"level: expected a brightness between 0 and 1, got {self.level}")


@dataclass(frozen=True)
class SemanticConfig(CurveSettings):
    """Settings of SCL-LLE's training; the defaults are the paper's row "all".

    Args:
        gram, brightness: weights of the contrastive losses, L_c.
        consistency, cross_entropy: weights of L_sc, which needs label maps; cross_entropy also a segmentation network.
        retention: weight of L_fr.
        negatives: the exposure of the negatives: "both", "under", "over" or "none".
        vgg: weights of VGG-16, see `VGGFeatures`.
        segmentation, arch, encoder: file and kind of the segmentation network, see `Segmentation`.
    """

    epochs: int = 50
    batch: int = 2
    darken: float = 6.0
    colour: float = 8.0
    side: int = 384
    gram: float = 5.0
    brightness: float = 10.0
    consistency: float = 1.0
    cross_entropy: float = 1.0
    retention: float = 1.0
    negatives: str = "both"
    vgg: str = "imagenet"
    segmentation: str = ""
    arch: str = "deeplabv3plus"
    encoder: str = "resnet50"

    WEIGHTS: ClassVar[tuple[str, ...]] = (
        *CurveSettings.WEIGHTS,
        "gram",
        "brightness",
        "consistency",
        "cross_entropy",
        "retention",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_one_of("negatives", ("both", "under", "over", "none"))
        if self.cross_entropy and not self.segmentation:
            raise ValueError(
                "segmentation: expected a .pth or .safetensors file of a network trained on the data's classes, "
                f"{self.arch} with {self.encoder} from segmentation-models-pytorch, got none; that package has none to "
                "download; cross_entropy=0 needs none"
            )


class CurveTask(Task):
    """What both trainings share: the curve network, its optimiser, its pictures and its file."""

    def __init__(self, config: CurveSettings, samples: Crops | Contrasts) -> None:
        self.config, self.samples = config, samples
        self.epoch, self.clip = len(samples), config.clip
        torch.manual_seed(config.seed)
        system: Any = SYSTEMS[config.system]
        model = load(config.weights) if config.weights else system(map_scale=config.map_scale)
        if not isinstance(model, ZeroDCE):
            raise ValueError(f"weights: expected a model of {' or '.join(CURVES)}, got {type(model).__name__}")
        self.model = model
        self.networks = {"model": model}

    def optimisers(self) -> dict[str, Optimizer]:
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return {"model": Adam(self.model.parameters(), rate, weight_decay=decay)}

    def batch(self, positions: range) -> dict[str, Tensor]:
        return self.samples.batch(positions)

    def enhanced(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The enhanced photos and the curves applied to them."""
        curves = self.model.predict_curves(image)
        return ops.curve_iterate(image, curves, ITERATIONS), curves

    def pictures(self, networks: Networks) -> dict[str, Tensor]:
        """Before and after, side by side, of the first three samples."""
        before = self.samples.batch(range(3))["image"]
        after = networks["model"](before.to(next(self.model.parameters()).device)).cpu()
        return {f"before, after/{n}": pair for n, pair in enumerate(torch.cat([before, after], 3))}

    def finish(self, networks: Networks, folder: Path) -> None:
        model = networks["model"]
        assert isinstance(model, ZeroDCE)
        model.about |= {"training": f"{len(self.samples)} photos; settings in config.json of the run"}
        save(model, folder / "model.safetensors")


class ZeroReference(CurveTask):
    """Training of Zero-DCE and Zero-DCE++, see `Config`."""

    config: Config

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        config, image = self.config, batch["image"]
        output, curves = self.enhanced(image)
        shared = ZeroDCE.MAPS / self.model.MAPS  # how many iterations share a map
        yield (
            "model",
            {
                "spatial": config.spatial * losses.spatial_consistency(output, image),
                "exposure": config.exposure * losses.exposure_control(output, config.level),
                "colour": config.colour * losses.colour_constancy(output),
                "smoothness": config.smoothness * shared * losses.illumination_smoothness(curves),
            },
        )


class SemanticContrast(CurveTask):
    """Training of SCL-LLE, see `SemanticConfig`. A network is needed if the weight of a loss that uses it is not 0."""

    config: SemanticConfig

    def __init__(
        self,
        config: SemanticConfig,
        samples: Crops | Contrasts,
        vgg: losses.VGGFeatures | None = None,
        segmentation: nn.Module | None = None,
    ) -> None:
        super().__init__(config, samples)
        self.vgg, self.segmentation = vgg, segmentation
        self.frozen = [losses.frozen(network) for network in (vgg, segmentation) if network is not None]

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        config, image, negative = self.config, batch["image"], batch.get("negative")
        output, curves = self.enhanced(image)
        terms = {}
        if config.gram or config.retention:
            assert self.vgg is not None
            *style, content = self.vgg(output, *STYLE, CONTENT)
            with torch.no_grad():
                (before,) = self.vgg(image, CONTENT)
            if config.retention:
                terms["retention"] = config.retention * losses.feature_retention(content, before)
            if config.gram:
                with torch.no_grad():
                    positive_style = self.vgg(batch["positive"], *STYLE)
                    negative_style = None if negative is None else self.vgg(negative, *STYLE)
                terms["gram"] = config.gram * losses.gram_contrast(style, positive_style, negative_style)
        if config.brightness:
            contrast = losses.brightness_contrast(output, batch["positive"], negative)
            terms["brightness"] = config.brightness * contrast
        if config.consistency:
            terms["consistency"] = config.consistency * losses.brightness_consistency(output, batch["labels"])
        if config.cross_entropy:
            assert self.segmentation is not None
            cross_entropy = losses.label_cross_entropy(self.segmentation(output), batch["labels"])
            terms["cross_entropy"] = config.cross_entropy * cross_entropy
        terms["colour"] = config.colour * losses.colour_constancy(output, order=1)
        terms["variation"] = config.smoothness * losses.curve_variation(curves)
        yield "model", terms


def train(config: Config, data: Path, out: Path, resume: bool = False) -> None:
    """Trains on the photos in `data`, a folder or Cityscapes; writes model.safetensors and the run's files to `out`.

    The data is checked first: a fault raises ValueError, in one line, before anything is written.
    """
    samples = Crops(find_labelled_photos(data), config.side, config.seed, config.darken)
    run(ZeroReference(config, samples), config, out, resume)


def train_semantic(
    config: SemanticConfig, data: Path, references: Path | None, out: Path, resume: bool = False
) -> None:
    """Trains on `data`, Cityscapes or a folder of photos, against `references`, SICE Part 1 or folders of photos.

    Labels are needed only for consistency and cross-entropy, references only for the contrastive losses. Otherwise as
    `train`.
    """
    labels = config.consistency > 0 or config.cross_entropy > 0
    samples: Crops | Contrasts
    samples = Crops(find_labelled_photos(data), config.side, config.seed, config.darken, labels)
    if config.gram or config.brightness:
        if references is None:
            raise ValueError("--references: expected a folder of well and badly exposed photos, got none")
        samples = Contrasts(samples, find_references(references), config.negatives)
    torch.manual_seed(config.seed)  # so that random weights are equal in all processes
    vgg = losses.VGGFeatures(config.vgg) if config.gram or config.retention else None
    segmentation = None
    if config.cross_entropy:
        segmentation = Segmentation(config.segmentation, config.arch, config.encoder)
    run(SemanticContrast(config, samples, vgg, segmentation), config, out, resume)
