"""Trains `auto`, the default model of fastenh: it retouches a photo as an expert would.

    python -m fastenh.train.auto --out RUN --set photos=FOLDER --set adaint=FILE --set lut3d=FILE
    python -m fastenh.train.auto --evaluate --set ...  # with the same settings: measures the shipped model

`auto` is distilled from two published models of an expert's retouches (MIT-Adobe FiveK, expert C), whose weights are
Apache-2.0: AdaInt (AiLUT-FiveK-sRGB.pth of ImCharlesY/AdaInt) and the image-adaptive 3D LUT of Zeng et al. (sRGB,
paired, of HuiZeng/Image-Adaptive-3DLUT), both converted by `fastenh convert`. The target for a photo is the mean of
their results in CIELAB. The input is the photo itself or, in most cases, the photo after a random change of exposure,
white balance and tone, so that `auto` also corrects what those two do not.

FOLDER contains the pictures that fastenh/weights/auto.csv lists: unpacked Debian packages (`dpkg -x FILE.deb FOLDER`),
an unpacked wheel, and clones of the repositories drewnoakes/metadata-extractor-images and drewnoakes/digicam_corpus.
More photos come inside Python packages (`fastenh.data.bundled`). Graphics (`fastenh.data.graphics`, and drawings among
the wallpapers) are their own targets.

Making the samples takes about an hour of processor time, training ten minutes. RUN keeps the samples for the next time.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastenh import ops
from fastenh.data.bundled import PHOTOS, held_out_photos
from fastenh.data.degrade import degrade, quantise
from fastenh.data.graphics import graphic
from fastenh.data.retouched import DEGRADED, GRAPHIC, PHOTO, TINTS, Experts, make_samples, read_sources, sources
from fastenh.losses import monotonicity, rgb_to_lab, total_variation
from fastenh.models import ImageAdaptiveLUT
from fastenh.train.card import command, degradations_in_words, page, save_trained, table
from fastenh.train.config import Settings
from fastenh.train.loop import Networks, Task


@dataclass(frozen=True)
class Config(Settings):
    """Settings of `auto`.

    Args:
        photos: the folder of photos, see above.
        adaint, lut3d: the converted weights of the two models to learn from.
        samples: pictures to make; a photo gives three samples, of which two are degraded.
        degraded, graphics: shares of such samples in a batch.
    """

    photos: str = ""
    adaint: str = ""
    lut3d: str = ""
    samples: int = 32000
    degraded: float = 0.52
    graphics: float = 0.13
    steps: int = 12000
    batch: int = 32
    learning_rate: float = 4e-3  # the peak of the one-cycle schedule
    seed: int = 1
    log_every: int = 500

    # Not the steps, on which the schedule depends.
    FREE: ClassVar = ("device", "workers", "log_every", "picture_every", "checkpoint_every")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("photos", "adaint", "lut3d"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a {'folder' if name == 'photos' else 'file'}, got none")


# ---- training


class Distillation(Task):
    """Minimises the mean over samples of ΔE*ab (CIE76) to the target, and terms for what a mean does not see.

    - neutral: grey stays grey in photos that are not tinted; chroma that the target does not add is counted.
    - skin: the hue of skin colours in such photos, beyond some 3°.
    - range: no vertex but white is above 0.98 and none but black below 0.004, so that nothing else clips.
    - slope: differences between vertices beyond 2.15 times the identity's, which would band.
    - smoothness: total variation of the difference to the identity; monotonicity of the tables.
    """

    SIZE = 13

    def __init__(self, config: Config, samples: dict[str, Tensor]) -> None:
        self.config, self.samples = config, samples
        torch.manual_seed(config.seed)
        self.model = model = ImageAdaptiveLUT(n_luts=18, size=self.SIZE, classifier="histograms")
        self.identity = model.luts[:1].detach().clone()
        with torch.no_grad():
            model.luts[1:].normal_(0, 0.02)
            model.classifier.head.weight.mul_(0.1)
            model.classifier.head.bias.copy_(F.one_hot(torch.tensor(0), len(model.luts)))
        some = torch.from_numpy(np.random.default_rng(config.seed).permutation(len(samples["kind"]))[:20000])
        model.classifier.calibrate(samples["statistics"][some])
        self.networks = {"model": model}
        self.of_kind = [(samples["kind"] == kind).nonzero()[:, 0].numpy() for kind in (PHOTO, GRAPHIC, DEGRADED)]

    def optimisers(self) -> dict[str, Optimizer]:
        return {"model": torch.optim.AdamW(self.model.parameters(), weight_decay=0.05)}

    def schedules(self, optimisers: dict[str, Optimizer]) -> dict[str, LRScheduler]:
        peak, steps = self.config.learning_rate, self.config.steps
        return {"model": torch.optim.lr_scheduler.OneCycleLR(optimisers["model"], peak, total_steps=steps)}

    def batch(self, positions: range) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.config.seed, positions.start])
        graphics, degraded = self.config.graphics, self.config.degraded
        kinds = rng.choice(3, size=len(positions), p=[1 - graphics - degraded, graphics, degraded])
        chosen = torch.tensor([self.of_kind[kind][rng.integers(len(self.of_kind[kind]))] for kind in kinds])
        return {name: values[chosen] for name, values in self.samples.items()}

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        classifier = self.model.classifier
        luts = self.model.blended(classifier.weights(batch["statistics"], batch["histograms"].float()))
        before, target = batch["pixels"][:, :, None].float() / 255, batch["targets"].float()
        after = rgb_to_lab(ops.lut_transform(before, luts[:, None]))[:, :, 0]
        before = rgb_to_lab(before)[:, :, 0]
        untinted, photo = (batch["kind"] != DEGRADED)[:, None], (batch["kind"] == PHOTO)[:, None]
        chroma_before, chroma, chroma_wanted = (self._chroma(lab) for lab in (before, after, target))

        grey = untinted & (chroma_before < 3)
        added = (chroma - chroma_wanted.minimum(chroma_before + 0.3)).clamp_min(0)
        greys = torch.linspace(0, 1, 33, device=luts.device).expand(len(luts), 3, 1, 33)
        axis = self._chroma(rgb_to_lab(ops.lut_transform(greys, luts[:, None]))[:, :, 0])
        neutral = (added * grey).sum(1) / (grey.sum(1) + 20) + 0.3 * axis.mean(1) * untinted[:, 0]

        (lightness, a, b), hue = before.unbind(1), torch.atan2(before[:, 2], before[:, 1])
        skin = photo & (hue > 0.5) & (hue < 1.25) & (chroma_before > 10) & (chroma_before < 48)
        skin = skin & (lightness > 30) & (lightness < 92)
        cosine = (after[:, 1] * a + after[:, 2] * b) / (chroma * chroma_before)
        turned = ((1 - cosine - 0.0012).clamp_min(0) * skin).sum(1) / (skin.sum(1) + 30)

        white, black = luts[:, :, -1, -1, -1] - 1, -luts[:, :, 0, 0, 0]
        outside = [luts[:, :, :-1, :-1, :-1] - 0.98, 0.004 - luts[:, :, 1:, 1:, 1:], white, black]
        steepest = 2.15 / (self.SIZE - 1)
        steps = [luts.diff(dim=dim).abs() - steepest for dim in (2, 3, 4)]
        yield (
            "model",
            {
                "error": ((after - target).square().sum(1) + 0.25).sqrt().mean(),
                "neutral": neutral.mean(),
                "skin": 800 * turned.mean(),
                "range": 300 * torch.stack([excess.clamp_min(0).square().mean() for excess in outside]).sum(),
                "slope": 2000 * torch.stack([excess.clamp_min(0).square().mean() for excess in steps]).sum(),
                "smoothness": total_variation(luts[:8] - self.identity.to(luts.device)).mean(),
                "monotonicity": 200 * monotonicity(luts).mean(),
            },
        )

    @staticmethod
    def _chroma(lab: Tensor) -> Tensor:
        """(B, 3, P) → (B, P), with a gradient at 0."""
        return (lab[:, 1:].square().sum(1) + 1e-4).sqrt()

    def finish(self, networks: Networks, folder: Path) -> None:
        model = networks["model"]
        assert isinstance(model, ImageAdaptiveLUT)
        note = "auto: retouches a photo as an expert would; graphics stay nearly as they are"
        save_trained(model, note, self.config, len(self.samples["kind"]), folder)


# ---- evaluation

DEGRADATIONS: dict[str, dict[str, Any]] = {
    "one stop dark": {"stops": -1.0},
    **{name: {"gains": gains} for name, gains in TINTS.items()},
}
SKIN = {  # (top, bottom, left, right) of boxes with nothing but skin
    "astronaut": [(112, 135, 186, 204), (112, 135, 244, 262), (158, 175, 205, 240)],
    "grace_hopper": [(145, 172, 215, 320), (235, 285, 195, 235), (235, 285, 300, 340)],
}
FAILURES = Path("docs/auto_failures.jpg")  # of a checkout


def photos_to_measure(folder: str) -> dict[str, Tensor]:
    """The photos that no training sees, (1, 3, H, W), at most 512 pixels a side."""
    photos = {name: photo for name, photo in held_out_photos().items()}
    listed = [source for source in sources() if source.use == "validate"]
    for source, photo in zip(listed, read_sources(folder, "validate", 512), strict=True):
        photos[Path(source.path).stem] = photo[None].float() / 255
    return photos


def graphics_to_measure(folder: str) -> dict[str, list[Tensor]]:
    """Pictures that are no photos, (1, 3, H, W) each, by where they come from."""
    rng = np.random.default_rng([0, 2**32 - 1])  # no chunk's
    photo = Image.fromarray((held_out_photos()["china"][0] * 255).byte().permute(1, 2, 0).numpy())
    made = [torch.from_numpy(np.array(graphic(rng, photo))).permute(2, 0, 1) for _ in range(60)]
    manuals: list[Tensor] = []
    wallpapers: list[Tensor] = []
    listed = [source for source in sources() if source.use == "graphic"]
    for source, picture in zip(listed, read_sources(folder, "graphic", 512), strict=True):
        (wallpapers if "wallpapers" in source.path or "backgrounds" in source.path else manuals).append(picture)
    groups = {
        f"{len(made)} by `fastenh.data.graphics` that are not in training": made,
        f"{len(manuals)} pictures in the manuals of GIMP and Okular": manuals,
        f"{len(wallpapers)} painted and rendered wallpapers": wallpapers,
    }
    return {name: [picture[None].float() / 255 for picture in pictures] for name, pictures in groups.items()}


def distance(image: Tensor, lab: Tensor) -> float:
    """Mean ΔE*ab (CIE76) of an sRGB image to L*a*b* values."""
    return (rgb_to_lab(image) - lab).square().sum(1).sqrt().mean().item()


def added_chroma(before: Tensor, after: Tensor) -> float | None:
    """Mean chroma that the grey pixels of an image (chroma below 3) gain; None for an image with hardly any."""
    old, new = (rgb_to_lab(image)[:, 1:].square().sum(1).sqrt() for image in (before, after))
    grey = old < 3
    return (new - old)[grey].mean().item() if grey.float().mean() > 0.002 else None


def clipped(before: Tensor, after: Tensor) -> float:
    """Percentage of pixels that are 0 or 1 in all channels of `after` but not of `before`."""

    def ends(image: Tensor) -> Tensor:
        return (image == 0).all(1) | (image == 1).all(1)

    return 100 * (ends(after) & ~ends(before)).float().mean().item()


def skin_hue(image: Tensor, boxes: list[tuple[int, int, int, int]]) -> float:
    """Mean hue angle in degrees, in L*a*b*, over the boxes."""
    lab = torch.cat([rgb_to_lab(image[..., a:b, c:d]).flatten(2) for a, b, c, d in boxes], 2)[0]
    return torch.atan2(lab[2].mean(), lab[1].mean()).rad2deg().item()


def ramp_pictures() -> Tensor:
    """(13, 3, 16, 256): 8-bit ramps from black to each of twelve saturated hues, and to white."""
    ends = torch.tensor([*(colorsys.hsv_to_rgb(hue / 12, 1, 1) for hue in range(12)), (1.0, 1.0, 1.0)])
    return ends[:, :, None, None] * (torch.arange(256) / 255).expand(13, 3, 16, 256)


@torch.no_grad()
def largest_step(model: nn.Module) -> float:
    """The largest step between neighbouring pixels of the ramps, each retouched as a picture of its own, in 8-bit
    levels."""
    return 255 * quantise(model(ramp_pictures())).diff(dim=3).abs().max().item()


@torch.no_grad()
def measure_photos(model: nn.Module, experts: Experts, photos: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """For each photo, mean ΔE*ab to the experts' version: of the photo ("untouched"), of its result ("retouched") and
    of the result for each of `DEGRADATIONS`, by its name. Also ΔE*ab between the photo and its result ("change"), the
    percentage of newly clipped pixels ("clipped"), and, if the photo has grey pixels, the chroma that they gain
    ("chroma")."""
    results = {}
    for name, photo in photos.items():
        target, after = experts(photo), quantise(model(photo))
        row = {"untouched": distance(photo, target), "retouched": distance(after, target)}
        for change, amounts in DEGRADATIONS.items():
            row[change] = distance(quantise(model(degrade(photo, **amounts))), target)
        row |= {"change": distance(after, rgb_to_lab(photo)), "clipped": clipped(photo, after)}
        if (chroma := added_chroma(photo, after)) is not None:
            row["chroma"] = chroma
        results[name] = row
    return results


@torch.no_grad()
def measure_graphics(model: nn.Module, groups: dict[str, list[Tensor]]) -> dict[str, list[float]]:
    """For each group, mean ΔE*ab between each picture and its result."""
    return {
        name: [distance(quantise(model(image)), rgb_to_lab(image)) for image in images]
        for name, images in groups.items()
    }


def card(model: ImageAdaptiveLUT, size: int, settings: Config) -> str:
    photos = photos_to_measure(settings.photos)
    graphics = graphics_to_measure(settings.photos)
    experts = Experts(settings.adaint, settings.lut3d)
    results = measure_photos(model, experts, photos)
    changes = measure_graphics(model, graphics)
    columns = ["untouched", "retouched", *DEGRADATIONS, "change"]

    def mean_of(name: str) -> float:
        return float(np.mean([row[name] for row in results.values() if name in row]))

    rows = [[name, *(f"{row[column]:.1f}" for column in columns)] for name, row in results.items()]
    rows.append([f"**mean of {len(results)}**", *(f"**{mean_of(column):.1f}**" for column in columns)])
    charts = [picture[None].float() / 255 for picture in read_sources(settings.photos, "chart", 512)]
    with torch.no_grad():
        added = [added_chroma(chart, quantise(model(chart))) for chart in charts]
    on_charts = [chroma for chroma in added if chroma is not None]
    closer = sum(row["retouched"] < row["untouched"] for row in results.values())
    held = held_out_photos()
    with torch.no_grad():
        turned = {
            name: skin_hue(quantise(model(held[name])), boxes) - skin_hue(held[name], boxes)
            for name, boxes in SKIN.items()
        }
    boxes = "; ".join(f"{name}: {', '.join(map(str, boxes))}" for name, boxes in SKIN.items())
    other = [
        ["photos that come closer to the experts' version", f"{closer} of {len(results)}"],
        ["chroma that greys gain (pixels of chroma below 3), mean over photos", f"{mean_of('chroma'):+.2f}"],
        [
            "the largest such gain of a photo",
            f"{max(row.get('chroma', 0) for row in results.values()):+.2f}",
        ],
        [
            f"chroma that greys gain on {len(on_charts)} photos of colour charts in various light",
            f"{np.mean(on_charts):+.2f} on average, at most {max(on_charts):+.2f}",
        ],
        *([f"hue of skin, {name}", f"{angle:+.1f}°"] for name, angle in turned.items()),
        ["pixels newly clipped to black or white", f"{mean_of('clipped'):.2f} %"],
        ["largest step of 8-bit ramps to 12 saturated hues and white", f"{largest_step(model):.0f} levels"],
    ]
    for name, values in changes.items():
        other.append(
            [f"ΔE between graphics and their results: {name}", f"{np.mean(values):.1f}, at most {max(values):.1f}"]
        )
    write_failures(model, experts, photos, results, graphics, changes)
    listing = [
        [Path(source.path).name, source.source, source.author, source.licence, USES[source.use]] for source in sources()
    ]
    listing += [[p.name, p.package, "", p.licence, "measuring" if p.held_out else "training"] for p in PHOTOS]
    constructor = ", ".join(f"{name}={value!r}" for name, value in model.arguments.items())
    return page(
        "auto",
        about=f"""\
The default model of `fastenh enhance`. It retouches a photo as an expert would, corrects exposure and white balance,
and leaves graphics nearly as they are. {size / 1e6:.2f} MB. {model.about["colour"]}.
It is an image-adaptive 3D LUT: `ImageAdaptiveLUT({constructor})`.

It is distilled from two published models of an expert's retouches (MIT-Adobe FiveK, expert C), whose weights are
Apache-2.0: AdaInt ([ImCharlesY/AdaInt](https://github.com/ImCharlesY/AdaInt), AiLUT-FiveK-sRGB) and the
image-adaptive 3D LUT of Zeng et al. ([HuiZeng/Image-Adaptive-3DLUT](https://github.com/HuiZeng/Image-Adaptive-3DLUT),
sRGB, paired). The target for a photo is the mean of their results in CIELAB. For a model that leaves good photos
alone, see [correct](correct.md).""",
        measured=f"""\
Mean ΔE*ab (CIE76). The target is the experts' version of the photo. Columns: the untouched photo against the target;
its result against the target; the results for five degraded versions of the photo against the same target; and the
photo against its result ("change"). Outputs are rounded to 8 bits. Photos are at most 640 pixels wide or high.

{table(["", *columns], rows)}

{table(["", ""], other)}

Degradations act on linear light and clip: {degradations_in_words(DEGRADATIONS)}.
Skin is measured in boxes (top, bottom, left, right) of {boxes}.

![The two photos and the two graphics with the largest errors, before and after](../../docs/auto_failures.jpg)

*What it does worst: above, the photos farthest from the experts' version (before, after, AdaInt, Zeng et al.); below,
the graphics by code that it changes most (before, after).*""",
        photographs=f"""\
{table(["name", "source", "author", "licence", "use"], listing)}

The rest of the training set is procedural scenes and graphics, made by code (`fastenh.data`). [auto.csv](auto.csv) has
the paths of the files.""",
        training=model.about["training"],
        limits="""\
- It has the taste of one expert, as two networks reproduce it: more light, contrast and colour. `--strength` reduces
  the effect.
- It knows the distribution of colours, not their meaning: light that is warm on purpose may be taken for a tint, and
  the warm tint above is the one that it corrects least. A wall or snow, all of one colour, may become warmer. Paintings
  and renderings with soft shades count as photos.
- It saw few people: one portrait in training.
- It does not restore values that a wrong exposure has clipped.
- It compresses highlights: only pure white stays pure white.""",
        arguments=" --set photos=FOLDER --set adaint=FILE --set lut3d=FILE",
    )


USES = {
    "train": "training",
    "portrait": "training",
    "drawing": "training, unchanged",
    "validate": "measuring",
    "chart": "measuring",
    "graphic": "measuring",
}


@torch.no_grad()
def write_failures(
    model: nn.Module,
    experts: Experts,
    photos: dict[str, Tensor],
    results: dict[str, dict[str, float]],
    graphics: dict[str, list[Tensor]],
    changes: dict[str, list[float]],
) -> None:
    """`FAILURES`: a row each of the two photos farthest from the target (before, after, the two experts) and of the two
    graphics by code that change most (before, after)."""
    rows = []
    for name in sorted(results, key=lambda name: results[name]["retouched"])[-2:]:
        photo = photos[name]
        rows.append([photo, model(photo), *(expert(photo) for expert in experts.models)])
    made = next(iter(graphics))  # those by code, which are nobody's
    for n in np.argsort(changes[made])[-2:]:
        rows.append([graphics[made][n], model(graphics[made][n])])
    strips = []
    for row in rows:
        pixels = [(image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy() for image in row]
        pictures = [ImageOps.contain(Image.fromarray(picture), (260, 180)) for picture in pixels]
        strips.append(pictures)
    gap = 6
    width = max(sum(picture.width + gap for picture in pictures) for pictures in strips) - gap
    sheet = Image.new("RGB", (width, sum(pictures[0].height + gap for pictures in strips) - gap), "white")
    top = 0
    for pictures in strips:
        for n, picture in enumerate(pictures):
            sheet.paste(picture, (n * (picture.width + gap), top))
        top += pictures[0].height + gap
    sheet.save(FAILURES, quality=88)


def task(config: Config, folder: Path) -> Distillation:
    samples = make_samples(config.photos, config.adaint, config.lut3d, config.samples, config.seed, folder)
    return Distillation(config, samples)


if __name__ == "__main__":
    command("auto", str(__doc__), Config, task, card)
