"""fastenh: the fast engine for photo enhancement in PyTorch.

`fastenh.Enhancer("auto")(photo)` retouches, `fastenh.load` gives a model as a module, `fastenh.ops` holds the compiled
op families (registered as `torch.ops.fastenh.*` too), and `fastenh.backend` chooses which code runs them.
"""

__version__ = "0.2.0"

from fastenh import ops
from fastenh.backends import backend
from fastenh.enhance import Enhancer
from fastenh.models import load

__all__ = ["Enhancer", "__version__", "backend", "load", "ops"]
