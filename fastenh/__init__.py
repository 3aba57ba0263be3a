"""fastenh: the fast engine for photo enhancement in PyTorch.

`fastenh.Enhancer("auto")(photo)` retouches, `fastenh.load` gives a model as a module, `fastenh.ops` holds the compiled
op families (registered as `torch.ops.fastenh.*` too), and `fastenh.backend` chooses which code runs them.
"""

import warnings

from fastenh import backends, ops
from fastenh.backends import backend
from fastenh.enhance import Enhancer
from fastenh.models import load
from fastenh.version import __version__

if backends.core is None:  # said here, since whatever imports fastenh, directly or through a module of its own, is next
    warnings.warn(
        "fastenh runs on its slow PyTorch reference: "
        f"the compiled core is {backends.core_problem}. To fix it: {backends.REBUILD}",
        RuntimeWarning,
        stacklevel=2,
    )

__all__ = ["Enhancer", "__version__", "backend", "load", "ops"]
