"""Liger's kernels on a CPU: Triton's interpreter, and stand-ins for what it cannot do.

Import this before liger-kernel, in a process of its own. What the interpreter runs is the source of a kernel, in NumPy, one program
after another; what a compiler makes of it, and programs that run at the same time, it does not show.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # read as a kernel is defined

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from triton.language.extra import libdevice
from triton.runtime import interpreter


@triton.jit
def _rsqrt(x):  # type: ignore[no-untyped-def]
    return tl.math.rsqrt(x)


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 1 - 2 / (tl.exp(2 * x) + 1)


def _widened(handle: Any) -> NDArray[np.float32]:
    """Return the values of a handle of bfloat16, which the interpreter keeps as the integers of their bits."""
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _narrowed(values: Any) -> Any:
    """Return a handle of values rounded to the nearest bfloat16, as a GPU does; the interpreter would cut them off."""
    rounded = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(torch.bfloat16)
    return interpreter.TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)


def stand_in() -> None:
    """Give the interpreter the functions of CUDA's library that the kernels call, and arithmetic of bfloat16."""
    libdevice.rsqrt, libdevice.tanh = _rsqrt, _tanh
    builder = interpreter.InterpreterBuilder
    binary, unary, cast, convert = builder.binary_op, builder.unary_op, builder.cast_impl, builder.create_fp_to_fp
    kinds = lambda *handles: {handle.dtype.scalar for handle in handles}

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if kinds(lhs, rhs) != {tl.bfloat16}:
            return binary(self, lhs, rhs, op)
        found = op(_widened(lhs), _widened(rhs))
        return interpreter.TensorHandle(found, tl.int1) if found.dtype == np.bool_ else _narrowed(found)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        return _narrowed(op(_widened(arg))) if kinds(arg) == {tl.bfloat16} else unary(self, arg, op)

    def cast_impl(self: Any, src: Any, dst_type: Any, plain: Any = cast, *rest: Any) -> Any:
        if kinds(src) == {tl.bfloat16} and dst_type.scalar != tl.bfloat16:
            wide = interpreter.TensorHandle(_widened(src), tl.float32)
            return wide if dst_type.scalar == tl.float32 else plain(self, wide, dst_type, *rest)
        if dst_type.scalar == tl.bfloat16 and kinds(src) != {tl.bfloat16}:
            return _narrowed(src.data)
        return plain(self, src, dst_type, *rest)

    for name, changed in {"binary_op": binary_op, "unary_op": unary_op, "cast_impl": cast_impl}.items():
        setattr(builder, name, changed)
    builder.create_fp_to_fp = lambda self, src, kind, mode: cast_impl(self, src, kind, convert, mode)


stand_in()
