"""Models whose parameters are sharded over the processes (FSDP2, ZeRO-3): shards, and whole tensors made of them.

A sharded parameter is a ``DTensor``, or of ZeRO-3 with its slice in ``ds_tensor``. While a module runs, its parameters are whole, and
the outermost module keeps its own whole until the next backward pass: :func:`reshard` returns all of them to shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from alignkit.system.distributed import each_rank

if TYPE_CHECKING:
    import torch

_SHARDS: ContextVar[int] = ContextVar("shards", default=1)


@contextmanager
def sharded_loading(shards: int) -> Iterator[None]:
    """Models that are loaded inside the ``with`` block are sharded over ``shards`` processes; 1: not sharded."""
    token = _SHARDS.set(shards)
    try:
        yield
    finally:
        _SHARDS.reset(token)


def shards() -> int:
    """Return the number of processes that a model loaded now is sharded over."""
    return _SHARDS.get()


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the model was sharded when it was loaded."""
    from torch.distributed.fsdp import FSDPModule

    return is_partitioned(model) or any(isinstance(module, FSDPModule) for module in model.modules())


def is_partitioned(model: torch.nn.Module) -> bool:
    """Whether DeepSpeed's ZeRO-3 shards the model."""
    return any(hasattr(p, "ds_id") for p in model.parameters())


def gather_in_forward(model: Any) -> None:
    """Shard what was added to a ZeRO-3 model, and gather weights for passes without gradient, as DeepSpeed does in training."""
    import torch

    if not (parts := [p for p in model.parameters() if hasattr(p, "ds_id")]):
        return
    parts[0].convert_to_zero_parameters([p for p in model.parameters() if not hasattr(p, "ds_id")])

    def gather(module: Any, _inputs: Any) -> None:
        if not torch.is_grad_enabled() and (held := [*module.parameters(recurse=False)]):
            held[0].all_gather(held)

    def free(module: Any, _inputs: Any, _output: Any) -> None:
        if not torch.is_grad_enabled():
            _partition([p for p in module.parameters(recurse=False) if not p.ds_active_sub_modules])

    for module in model.modules():
        module.register_forward_pre_hook(gather)
        module.register_forward_hook(free)


def trains_shards(model: torch.nn.Module) -> bool:
    """Whether weights that are trained are sharded (with an adapter, only frozen ones are)."""
    from torch.distributed.tensor import DTensor

    reshard(model)
    return any(isinstance(p.data, DTensor) for p in model.parameters() if p.requires_grad)


def reshard(model: torch.nn.Module) -> None:
    """Free the whole parameters that a forward pass left behind; nothing happens in a model that is not sharded."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    _partition(model.parameters())


def _partition(parameters: Iterable[Any]) -> None:
    if held := [p for p in parameters if getattr(getattr(p, "ds_status", None), "name", "") == "AVAILABLE"]:
        held[0].partition(held)


def unsharded_class(model: torch.nn.Module) -> type:
    """Return the class that the model had before it was sharded, which derives a new one from it."""
    from torch.distributed.fsdp import FSDPModule

    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def shard_alike(added: torch.nn.Module, model: torch.nn.Module) -> None:
    """Shard a module that was added to a model if the model's trained weights are sharded: optimizers do not take both."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    reshard(model)
    meshes = [p.data.device_mesh for p in model.parameters() if p.requires_grad and isinstance(p.data, DTensor)]
    if meshes:
        fully_shard(added, mesh=meshes[0])


def most_of_all(count: int, model: torch.nn.Module) -> int:
    """Return the highest count of all processes if the model is sharded, in which case each of them calls this."""
    return int(max(each_rank(count))[0]) if is_sharded(model) else count


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's slice of a tensor (all of it where it is not sharded), sharing its memory."""
    from torch.distributed.tensor import DTensor

    plain = getattr(tensor, "ds_tensor", tensor).detach()
    return plain.to_local() if isinstance(plain, DTensor) else plain


def whole(tensor: Any) -> torch.Tensor:
    """Return a tensor with the slices of all processes, each of which must call this for it."""
    from torch.distributed.tensor import DTensor

    if hasattr(tensor, "ds_id"):
        tensor.all_gather()
        copy: torch.Tensor = tensor.detach().clone()
        tensor.partition()
        return copy
    plain: torch.Tensor = tensor.detach()
    return plain.full_tensor() if isinstance(plain, DTensor) else plain


def whole_state(model: torch.nn.Module, *, first: bool, trained: bool = False) -> dict[str, torch.Tensor]:
    """Return the model's state with whole tensors in main memory on the ``first`` process, nothing on the others.

    Every process must call this. One tensor at a time is whole on the devices. ``trained``: of those that are trained.
    """
    reshard(model)
    made: dict[int, torch.Tensor] = {}  # tied weights stay one tensor
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if trained and not tensor.requires_grad:
            continue
        if id(tensor) not in made:
            gathered = whole(tensor)
            made[id(tensor)] = gathered.cpu() if first else gathered.new_empty(0)
        state[name] = made[id(tensor)]
    return state if first else {}


def plain_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of the model's state that are not sharded: an adapter's, beside a sharded base model."""
    from torch.distributed.tensor import DTensor

    reshard(model)
    state = model.state_dict(keep_vars=True).items()
    return {name: t.detach() for name, t in state if not isinstance(t.data, DTensor) and not hasattr(t, "ds_id")}


@contextmanager
def saving_what_is_given(model: torch.nn.Module) -> Iterator[None]:
    """Inside the ``with`` block, ``model.save_pretrained`` saves its ``state_dict`` argument: it would gather the weights itself."""
    config: Any = model.config
    kept = getattr(config, "distributed_config", None)
    if kept is not None:
        config.distributed_config = None
    try:
        yield
    finally:
        if kept is not None:
            config.distributed_config = kept


def localised(state: Any) -> Any:
    """Return nested dictionaries and lists of tensors with every sharded tensor replaced by this process's slice."""
    import torch

    if isinstance(state, torch.Tensor):
        return local(state)
    if isinstance(state, Mapping):
        return {key: localised(value) for key, value in state.items()}
    return [localised(value) for value in state] if isinstance(state, list) else state


def like(slice_: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return this process's slice as a tensor sharded like ``parameter``; unchanged where that is not sharded or has another shape."""
    from torch.distributed.tensor import DTensor

    plain = parameter.detach()
    if not isinstance(plain, DTensor) or slice_.shape != plain.to_local().shape:
        return slice_
    mesh, placements = plain.device_mesh, plain.placements
    return DTensor.from_local(slice_, mesh, placements, run_check=False, shape=plain.shape, stride=plain.stride())
