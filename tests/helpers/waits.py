"""Training on a device without numbers, where everything that would make the host wait for it is counted.

PyTorch's ``meta`` device computes shapes only: whatever needs a number of one of its tensors (``item``, ``tolist``, ``bool``,
``numpy``, ``cpu``, a boolean index, ``nonzero``) has to ask for it, here the counter, or fails. So nothing needs to be listed.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.training.trainer import AlignTrainer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

DEVICE = torch.device("meta")
ROOT = Path(__file__).parents[2]


class Waits(TorchDispatchMode):
    """Counts reads of the device, and copies to it that are not asynchronous, with the lines of alignkit they come from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.originals: Any = WeakIdKeyDictionary()  # type: ignore[no-untyped-call]
        """What tensors on the device were copied from: the numbers that reading them gives."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        match func.overloadpacket.__name__:
            case "_local_scalar_dense" if args[0].device == DEVICE:
                self.count("read")
                return True if args[0].dtype == torch.bool else 1
            case "_to_copy" if kwargs.get("device") is not None and args[0].device != kwargs["device"]:
                if args[0].device == DEVICE:
                    self.count("copied to the host")
                    original = self.originals.get(args[0])
                    numbers = torch.ones(args[0].shape, dtype=args[0].dtype) if original is None else original
                    return numbers.to(kwargs.get("dtype"))
                if not kwargs.get("non_blocking"):
                    self.count("copied to the device")
                made = func(*args, **kwargs)
                self.originals[made] = args[0]
                return made
            case "copy_" if args[0].device != args[1].device:
                self.count("copied over")
            case _ if len({x.device for x in tree_leaves((args, kwargs)) if _has_place(x)}) > 1:
                self.count("on two devices")
        return func(*args, **kwargs)

    def __enter__(self) -> Waits:
        self.literals = _Literals(self)
        self.literals.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.literals.__exit__(*exception)

    def count(self, what: str) -> None:
        self.seen.append(f"{what} in {own_frames()}")


def own_frames() -> str:
    """Return the functions of the project that are being called, outermost first, with their lines."""
    frames = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(ROOT)]
    lines = [f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in frames]
    return " > ".join(line for line in lines if Path(__file__).name not in line)


def _has_place(value: Any) -> bool:
    """Whether operations need a value on their device: a tensor, but for a single number of the host."""
    return isinstance(value, torch.Tensor) and (value.device == DEVICE or value.dim() > 0)


class _Literals(TorchFunctionMode):
    """Counts tensors that are made on the device from numbers of the host, which PyTorch copies synchronously."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if (
            func in (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
            and made.device == DEVICE
            and made.numel()
        ):
            self.waits.count("made on the device")
        return made


@contextmanager
def on_a_device(
    trainer: AlignTrainer, monkeypatch: pytest.MonkeyPatch, *, prepared: bool = True
) -> Iterator[list[str]]:
    """Move a trainer to the device for the block, its first batch ``prepared`` before, and yield what is waited for in it."""
    trainer.parts.policy.model = trainer.model
    if prepared:
        batch = trainer.steps.batch(0, 0.0)
        monkeypatch.setattr(trainer.steps, "batch", lambda step, progress: batch)
    monkeypatch.setattr(type(trainer.args), "device", DEVICE)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # meta has no autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    trainer.numbers.sums.device = DEVICE
    trainer.model.to(DEVICE)
    waits = Waits()
    with waits:
        yield waits.seen
