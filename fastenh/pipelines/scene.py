"""The parameters of a scene: predicted every few frames, smoothed over time, predicted anew after a cut.

Params predicted for each frame (a fused LUT, the weights of LUTs) would flicker. So they are predicted every `renew`
frames, and in each frame they move towards the last prediction by a fraction 1 − e^(−1/smoothing) of the difference. A
constant scene keeps its params, and a slow change is followed with a delay of at most `smoothing` + `renew` frames. A
cut is followed at once: if the colours of a frame differ from those of the frame before by more than CUT, params are
predicted for that frame and used without smoothing. Data tied to places in the frame (maps, faces) is prepared for each
frame.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastenh.engine import Decision, Engine, Options
from fastenh.models.system import Picture
from fastenh.ops.op import to_float

CUT = 0.06  # of full scale: a larger difference between the colours of a frame and the frame before begins a scene
GRID = 32  # rows and columns, at least, of the pixels that are compared


class Scene:
    """Retouches frame after frame, with params that follow the scene."""

    def __init__(self, engine: Engine, options: Options, renew: int, smoothing: float) -> None:
        self.engine, self.options, self.renew = engine, options, renew
        self.share = 1 - math.exp(-1 / smoothing) if smoothing else 1.0
        self.colours: Tensor | None = None  # of the frame before
        self.target: tuple[Tensor, ...] = ()  # the last prediction
        self.params: tuple[Tensor, ...] | None = None  # those that frames get
        self.age = 0  # frames since the scene began

    def begins_scene(self, image: Tensor) -> Tensor | bool:
        """Whether an image, (1, 3, H, W), is the first or follows a cut. It follows a cut if the mean distance between
        its colours and those before, with each channel sorted separately, is above CUT. This is the Wasserstein
        distance between their distributions, which motion within the frame hardly changes."""
        if self.params == ():
            return False  # the system predicts nothing about the image as a whole
        colours = to_float(image[..., :: max(1, image.shape[2] // GRID), :: max(1, image.shape[3] // GRID)])
        colours = colours.flatten(2).sort(-1).values
        before, self.colours = self.colours, colours
        if before is None:
            return True
        self.colours = torch.where(colours.isfinite().all(), colours, before)  # never compare with NaN
        return (colours - before).abs().mean() > CUT

    def enhance(self, image: Tensor, begins_scene: bool, out: Tensor | None = None) -> Tensor:
        if self.options.strength == 0:
            return self.engine.render(image, self.options, Decision(()), out=out)
        picture = Picture(image)
        if begins_scene or self.params is None:
            self.params = self.target = self.engine.predict(picture, self.options)
            self.age = 0
        else:
            if self.age % self.renew == 0:
                self.target = self.engine.predict(picture, self.options)
            self.params = tuple(map(self.approach, self.params, self.target))
        self.age += 1
        decision = self.engine.prepare(picture, self.params, self.options)
        return self.engine.render(image, self.options, decision, out=out)

    def approach(self, params: Tensor, target: Tensor) -> Tensor:
        moved = params.lerp(target, self.share)
        # NaN in a frame must not spread to the params of later frames.
        return torch.where(moved.isfinite(), moved, torch.where(target.isfinite(), target, params))
