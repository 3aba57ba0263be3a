"""What training minimises and several systems share; plain PyTorch, with gradients."""

from fastenh.losses.lab import rgb_to_lab

__all__ = ["rgb_to_lab"]
