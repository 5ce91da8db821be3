"""A process whose PyTorch lacks an operator."""

from __future__ import annotations

import sys
from typing import Any


def score_without(operator: str) -> None:
    """Print the scorer of a model, and why the kernel ``blocks`` is refused."""
    import torch

    for name in [name for name in sys.modules if name.startswith("alignkit_attention")]:
        del sys.modules[name]  # its import is part of the test
    namespace = type(torch.ops.aten)
    find = namespace.__getattr__

    def without(self: Any, name: str) -> Any:
        if name == operator:
            raise AttributeError(name)
        return find(self, name)

    namespace.__getattr__ = without  # type: ignore[method-assign, assignment]
    vars(torch.ops.aten).pop(operator, None)  # torch caches operators

    from alignkit.errors import ModelError
    from alignkit.scoring.scorer import install

    from tests.helpers.scoring import build

    model = build("llama")
    print(install(model))
    try:
        install(model, "packed", attention="blocks")
    except ModelError as error:
        print(error)
