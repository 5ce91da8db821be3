"""Precision of a run: which matrix products are made in bfloat16 (``model.dtype``, ``model.head``, ``train.bf16``,
``train.fp16``).

Core stores the weights as ``model.dtype`` says. :mod:`~alignkit_precision.settle` decides before a run what its matrix
products are made in, and :mod:`~alignkit_precision.forward` has every forward pass of the model do so: training, reference
log-probabilities, evaluation and generation. :mod:`~alignkit_precision.compiled` compiles the trunk (``train.torch_compile``),
:mod:`~alignkit_precision.liger` exchanges kernels of its layers (``train.use_liger_kernel``), if
:mod:`~alignkit_precision.exchange` finds that the model computes the same with them.
"""

from __future__ import annotations

from alignkit_precision.forward import set_precision
from alignkit_precision.settle import settle_precision

__all__ = ["set_precision", "settle_precision"]
