"""Wasserstein GAN with gradient penalty (Gulrajani et al., NeurIPS 2017)."""

import torch
from torch import Tensor, nn


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """mean over photos of (‖∇ critic(x)‖₂ − 1)², x a random point between real and fake for each photo.

    real and fake are (B, 3, H, W); critic returns one or more numbers for each photo. Computed in float32; random
    numbers come from torch's generator.
    """
    with torch.autocast(real.device.type, enabled=False):
        share = torch.rand(len(real), 1, 1, 1, device=real.device)
        x = fake.detach().float().lerp(real.float(), share).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
