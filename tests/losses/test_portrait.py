"""Losses of portraits against the same written as loops over pixels, and against laws."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastenh import losses, ops

color = pytest.importorskip("skimage.color", reason="scikit-image has the reference: pip install fastenh[train]")


def random_mask(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.4).float()


def test_errors_on_people_count_25_times():
    output, target, mask = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5, 7), random_mask(2, 1, 5, 7)
    squares = (output - target).square()
    everyone = mask.expand_as(squares) == 1
    expected = (squares[~everyone].sum() + 25 * squares[everyone].sum()) / squares.numel()
    torch.testing.assert_close(losses.human_region_mse(output, target, mask), expected)
    torch.testing.assert_close(losses.human_region_mse(output, target, mask, 1.0), squares.mean())


@pytest.mark.parametrize("corners", [[(0, 0), (0, 0)], [(1, 4), (3, 0)], [(5, 2), (0, 3)], [(0, 0), (4, 9)]])
def test_glc_compares_the_same_pixels_of_the_photo(corners):
    height, width = 4, 6
    photo = torch.rand(1, 3, 20, 20)
    first, second = (photo[:, :, y : y + height, x : x + width] for y, x in corners)
    corner = torch.tensor([corners])
    assert losses.overlap_mse(first, second, corner) == 0
    other = torch.rand(1, 3, height, width)
    total = count = 0
    for y in range(height):
        for x in range(width):
            row, column = y + corners[0][0] - corners[1][0], x + corners[0][1] - corners[1][1]
            if 0 <= row < height and 0 <= column < width:
                total += (first[0, :, y, x] - other[0, :, row, column]).square().sum().item()
                count += 3
    assert losses.overlap_mse(first, other, corner).item() == pytest.approx(total / count if count else 0, rel=1e-5)
    both = losses.overlap_mse(first.repeat(2, 1, 1, 1), torch.cat([other, second]), corner.repeat(2, 1, 1))
    assert both.item() == pytest.approx(total / count / 2 if count else 0, rel=1e-5)


def supervision_by_loops(attention: np.ndarray, mask: np.ndarray, k: int, edge: bool, normalised: bool) -> float:
    """One photo: attention (k², H, W), mask (H, W)."""
    height, width = mask.shape
    total, count = 0.0, 0
    for y in range(height):
        for x in range(width):
            target, labels = [], set()
            for dy in range(-(k // 2), k // 2 + 1):
                for dx in range(-(k // 2), k // 2 + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        labels.add(mask[y + dy, x + dx])
                        target.append(float(mask[y + dy, x + dx] == mask[y, x]))
                    else:
                        target.append(0.0)
            if edge and len(labels) < 2:
                continue
            share = sum(target) if normalised else 1.0
            for t, a in zip(target, attention[:, y, x], strict=True):
                total -= (t / share * math.log(a) + (1 - t / share) * math.log(1 - a)) / k**2
            count += 1
    return total / count if count else 0.0


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_supervision_is_cross_entropy_with_the_affinity_of_labels(k, edge, normalised):
    mask = torch.zeros(3, 1, 6, 9)
    mask[0, :, 2:5, 3:6] = 1
    mask[1] = random_mask(1, 6, 9)  # the third is all background: it has no edge
    scores = torch.randn(3, k * k, 6, 9)
    attention = scores.softmax(1) if normalised else scores.sigmoid()
    each = [
        supervision_by_loops(a, m[0], k, edge, normalised) for a, m in zip(attention.numpy(), mask.numpy(), strict=True)
    ]
    loss = losses.attention_supervision(attention, mask, edge, normalised)
    assert loss.item() == pytest.approx(np.mean(each), rel=1e-5)
    assert (each[2] == 0) == edge


def test_affinity_is_in_the_order_of_context_voxels():
    mask = torch.ones(1, 1, 5, 5)
    mask[0, 0, 1, 3] = 0  # above and to the right of the middle
    same, edge = losses.affinity(mask, 3)
    picked = ops.context_voxels(mask.expand(1, 3, 5, 5), torch.ones(1, 9, 5, 5), 3)[0, :9, 2, 2]
    assert torch.equal(same[0, :, 2, 2], picked)
    assert edge[0, 0].sum() == 9


def test_supervision_has_finite_gradients_where_softmax_saturates():
    scores = (100 * torch.randn(1, 9, 4, 5)).requires_grad_()
    losses.attention_supervision(scores.softmax(1), random_mask(1, 1, 4, 5)).backward()
    assert scores.grad.isfinite().all()
    assert scores.grad.abs().max() > 0
    nothing = torch.full((1, 9, 4, 5), torch.nan)
    assert losses.attention_supervision(nothing, random_mask(1, 1, 4, 5)).isnan()


def test_group_style_is_the_variance_of_mean_colours():
    output = torch.rand(2, 3, 6, 7).requires_grad_()
    groups = [torch.randn(4, 2) * 5, torch.randn(1, 2) * 5]
    count = torch.tensor([len(values) for values in groups])
    mean = torch.stack([values.mean(0) for values in groups])
    spread = torch.stack([(values - values.mean(0)).square().sum(0) for values in groups])
    loss = losses.group_style(output, count, mean, spread)
    expected = []
    for photo, values in zip(output.detach(), groups, strict=True):
        lab = color.rgb2lab(photo.permute(1, 2, 0).double().numpy())
        everyone = np.vstack([values.numpy(), lab[..., 1:].mean((0, 1))])
        expected.append(everyone.var(0, ddof=1).sum())
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-4)
    loss.backward()
    step = output.detach() - 0.01 * output.grad / output.grad.norm()
    assert losses.group_style(step, count, mean, spread) < loss


def test_gradient_penalty_of_a_linear_critic_is_known():
    weights = torch.randn(3 * 4 * 5)

    class Linear(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ weights

    real, fake = torch.rand(2, 2, 3, 4, 5)
    expected = (weights.norm() - 1).square()
    torch.testing.assert_close(losses.gradient_penalty(Linear(), real, fake), expected)


def test_gradient_penalty_looks_between_real_and_fake_and_trains_the_critic():
    class Square(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return self.factor * x.flatten(1).square().sum(1)

    critic = Square()
    real, fake = torch.full((8, 3, 2, 2), 1.0), torch.full((8, 3, 2, 2), 3.0)
    loss = losses.gradient_penalty(critic, real, fake)
    seen = critic.seen.detach().flatten(1)
    assert 1 <= seen.min() < 1.7 and 2.3 < seen.max() <= 3
    assert torch.equal(seen, seen[:, :1].expand_as(seen))  # one share for a photo
    norms = (2 * seen).norm(dim=1)
    torch.testing.assert_close(loss.detach(), (norms - 1).square().mean())
    loss.backward()
    torch.testing.assert_close(critic.factor.grad, (2 * (norms - 1) * norms).mean())
