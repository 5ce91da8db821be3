"""Every private name of a library that the code depends on, with its signature and the reason it is used.

A library may rename what is private in any release, and most of these would then be ignored in silence: an override
that is never called, an attribute that ``getattr`` does not find. This table is what an upgrade is checked against.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[1]
PACKAGES = [path.name for path in [*ROOT.glob("core/*"), *ROOT.glob("eval/*"), *ROOT.glob("plugins/*/*")]]
PACKAGES = [name for name in PACKAGES if name.startswith("alignkit")]


class Pin(NamedTuple):
    """A name the code depends on."""

    owner: str
    """``module:Class`` (or ``module:`` for the module itself), or a key of :data:`MADE`."""
    name: str
    parameters: str | None
    """Names of its parameters; None for an attribute."""
    reason: str


OVERRIDDEN = (
    Pin("transformers:Trainer", "_get_output_dir", "self, trial", "checkpoints are staged in another directory"),
    Pin(
        "transformers:Trainer",
        "_init_training_state",
        "self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial",
        "a moved run finds its best checkpoint",
    ),
    Pin(
        "transformers:Trainer",
        "_run_epoch",
        "self, model, epoch, train_dataloader, steps_in_epoch, "
        "num_update_steps_per_epoch, trial, ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, "
        "steps_trained_in_current_epoch",
        "a resumed run with no step left trains none",
    ),
    Pin("transformers:Trainer", "_clip_grad_norm", "self, model", "an engine outside torch has its own gradients"),
    Pin("transformers:Trainer", "_get_grad_norm", "self, model, grad_norm", "and their norm"),
    Pin("transformers:Trainer", "_save_checkpoint", "self, model, trial", "a checkpoint appears whole or not at all"),
    Pin("transformers:Trainer", "_save", "self, output_dir, state_dict", "a critic is saved beside the model"),
    Pin("transformers:Trainer", "_load_from_checkpoint", "self, resume_from_checkpoint, model", "and loaded with it"),
    Pin("transformers:Trainer", "_load_optimizer_and_scheduler", "self, checkpoint", "and changed settings kept"),
    Pin("transformers:Trainer", "_save_optimizer_and_scheduler", "self, output_dir", "shards of a sharded model"),
    Pin("transformers:Trainer", "_load_best_model", "self", "and loaded with the best model"),
    Pin("transformers:Trainer", "_issue_warnings_after_load", "self, load_result", "a critic is not a missing key"),
    Pin("evaluate:Metric", "_info", "self", "evaluate's way to define a metric"),
    Pin("evaluate:Metric", "_compute", "self, predictions, references, kwargs", "evaluate's way to define a metric"),
    Pin(
        "lm_eval.models.huggingface:HFLM",
        "_loglikelihood_tokens",
        "self, requests, disable_tqdm, override_bs",
        "requests that are cut are counted",
    ),
    # Public, but an override of a renamed method would be ignored just as silently.
    Pin(
        "lm_eval.models.huggingface:HFLM",
        "tok_batch_encode",
        "self, strings, padding_side, left_truncate_len, truncation",
        "contexts that are cut are counted",
    ),
    Pin("transformers:Trainer", "training_step", "self, model, inputs, num_items_in_batch", "one step is ours"),
    Pin("transformers:Trainer", "evaluate", "self, eval_dataset, ignore_keys, metric_key_prefix", "evaluation is ours"),
    Pin("transformers:Trainer", "log", "self, logs, start_time", "exact means and counts in place of Trainer's"),
    Pin("transformers:Trainer", "get_train_dataloader", "self", "rows follow from the step; TRL's rows in our order"),
    Pin("transformers:Trainer", "floating_point_ops", "self, inputs", "Trainer would count empty batches"),
)

READ = (
    Pin("transformers:PreTrainedConfig", "_attn_implementation", None, "which attention a model runs, to restore it"),
    Pin("transformers:PreTrainedModel", "_no_split_modules", None, "what the layers of a model are, to shard it by layer"),
    Pin("transformers:PreTrainedModel", "is_distributed_loading_by_transformers", None, "a sharded model; Trainer reads it"),
    Pin("transformers:PreTrainedModel", "_is_stateful", None, "state-space models cannot share a prompt"),
    Pin("transformers:PreTrainedModel", "_supports_attention_backend", None, "whether packed attention can be tried"),
    Pin("torch.compile", "_orig_mod", None, "the scorer is installed on the model inside torch.compile"),
    Pin("torch:Tensor", "_version", None, "a shared cast is made again after a change in place"),
    Pin("torch:UntypedStorage", "_cdata", None, "the dry run counts memory that tensors share once"),
    Pin("torch.Module", "_buffers", None, "the dry run traces a model whose tensors have no numbers"),
    Pin("torch.Module", "_call_impl", "args, kwargs", "passes without gradient are not compiled"),
    Pin("torch.disabled", "_torchdynamo_disable", None, "an attention function is left out of compiled layers once"),
    Pin("torch:cpu", "_is_avx512_bf16_supported", "", "whether a CPU multiplies bfloat16 faster"),
    Pin("torch:cpu", "_is_amx_tile_supported", "", "whether a CPU multiplies bfloat16 faster"),
    Pin("pluggy.HookimplMarker", "align_impl", None, "which methods of a plugin are hooks, before pluggy registers it"),
    # Not underscored, but internal to peft, and read with a default where other models lack them.
    Pin("peft.ModulesToSave", "original_module", None, "the output layer behind peft's trained copy"),
    Pin("peft.ModulesToSave", "modules_to_save", None, "the trained copies of the output layer"),
    Pin("peft.ModulesToSave", "active_adapters", None, "which copy answers"),
    Pin("peft.ModulesToSave", "disable_adapters", None, "whether a copy answers"),
    Pin("peft.Lora", "merged_adapters", None, "vLLM's weights are merged in a copy, and the layer reset"),
    Pin("peft.tuners.tuners_utils:BaseTunerLayer", "merge", "self, safe_merge, adapter_names", "vLLM's weights"),
    Pin("peft.tuners.tuners_utils:BaseTunerLayer", "get_base_layer", "self", "vLLM's weights"),
    # The probe narrows windows in the layers; a window it does not find is probed at full length, far too long to show.
    Pin("attention with a window", "sliding_window", None, "the probe narrows it"),
    Pin("accelerate.data_loader:DataLoaderShard", "set_sampler", "self, sampler", "TRL's rows in our order"),
    Pin("accelerate.data_loader:DataLoaderShard", "get_sampler", "self", "that they are is checked"),
    Pin("mlx_lm.utils:", "_get_classes", "config", "mlx-lm's class for a configuration"),
    Pin("mlx.Dropout", "_p_1", None, "whether an adapter has dropout, whose noise completions do not share"),
    Pin("transformers.trainer_utils:", "rotate_checkpoints", "output_dir, save_total_limit, best_model_checkpoint, "
        "use_mtime, checkpoint_prefix", "rotation outside the staging directory"),
)  # fmt: skip

_QUERY = "query, key, value"
_SEQUENCES = "cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal"
_WINDOW = "scale, window_size_left, window_size_right"
OPERATORS = (
    Pin("torch.ops.aten", "_scaled_dot_product_flash_attention_for_cpu",
        f"{_QUERY}, dropout_p, is_causal, attn_mask, scale", "packed attention, forward"),
    Pin("torch.ops.aten", "_scaled_dot_product_flash_attention_for_cpu_backward",
        f"grad_out, {_QUERY}, out, logsumexp, dropout_p, is_causal, attn_mask, scale", "packed attention, backward"),
    Pin("torch.ops.aten", "_flash_attention_forward", f"{_QUERY}, {_SEQUENCES}, return_debug_mask, {_WINDOW}, seqused_k, "
        "alibi_slopes, block_table, num_splits", "packed attention on CUDA, forward"),
    Pin("torch.ops.aten", "_flash_attention_backward", f"grad_out, {_QUERY}, out, logsumexp, {_SEQUENCES}, rng_state, "
        f"unused, {_WINDOW}", "packed attention on CUDA, backward"),
)  # fmt: skip

DOCUMENTED = {"_asdict", "_replace", "_fields", "_exit"}
"""Underscored names that are public: of named tuples, of ``os``."""


def _hook() -> Any:
    from alignkit import hookimpl

    return hookimpl(wrapper=True)(lambda: None)


def _modules_to_save() -> Any:
    from peft.utils import ModulesToSaveWrapper

    return ModulesToSaveWrapper(torch.nn.Linear(1, 1), "default")


def _lora() -> Any:
    from peft import LoraConfig, inject_adapter_in_model

    return inject_adapter_in_model(LoraConfig(target_modules=["0"]), torch.nn.Sequential(torch.nn.Linear(2, 2)))[0]


def _windowed_attention() -> Any:
    from tests.helpers.scoring import build

    return build("qwen2-window").model.layers[1].self_attn


def _dropout() -> Any:
    from mlx.nn import Dropout

    return Dropout(0.5)


MADE: dict[str, Callable[[], Any]] = {
    "mlx.Dropout": _dropout,
    "torch.Module": lambda: torch.nn.Linear(1, 1),
    "torch.disabled": lambda: torch.compiler.disable(lambda: None),
    "torch.compile": lambda: torch.compile(torch.nn.Linear(1, 1)),
    "pluggy.HookimplMarker": _hook,
    "peft.ModulesToSave": _modules_to_save,
    "peft.Lora": _lora,
    "attention with a window": _windowed_attention,
}


def broken(pin: Pin) -> str | None:
    """Return what has become of a name, None where it is as the table has it."""
    if pin.owner in MADE:
        owner = MADE[pin.owner]()
    else:
        module, _, name = pin.owner.partition(":")
        owner = importlib.import_module(module)
        owner = getattr(owner, name) if name else owner
    if not hasattr(owner, pin.name):
        return f"{pin.owner} has no {pin.name} any more, used because: {pin.reason}"
    if pin.parameters is None:
        return None
    found = ", ".join(inspect.signature(getattr(owner, pin.name)).parameters)
    return None if found == pin.parameters else f"{pin.owner}.{pin.name} takes ({found}), not ({pin.parameters})"


@pytest.mark.parametrize("pin", OVERRIDDEN + READ, ids=lambda pin: f"{pin.owner}.{pin.name}")
def test_the_libraries_have_what_the_code_depends_on(pin: Pin) -> None:
    assert broken(pin) is None


@pytest.mark.parametrize("pin", OPERATORS, ids=lambda pin: pin.name)
def test_pytorch_has_the_attention_operators(pin: Pin) -> None:
    schema = getattr(torch.ops.aten, pin.name).default._schema
    assert ", ".join(argument.name for argument in schema.arguments) == pin.parameters


def test_pluggy_marks_hooks_with_their_options() -> None:
    assert {"wrapper", "hookwrapper", "specname", "optionalhook"} <= _hook().align_impl.keys()


def test_a_renamed_method_and_a_changed_signature_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel, Trainer

    pins = {pin.name: pin for pin in OVERRIDDEN + READ}
    monkeypatch.delattr(Trainer, "_save_checkpoint")
    monkeypatch.delattr(PreTrainedModel, "_is_stateful")
    monkeypatch.setattr(Trainer, "_save", lambda self, output_dir: None)
    assert "has no _save_checkpoint any more" in str(broken(pins["_save_checkpoint"]))
    assert "has no _is_stateful any more" in str(broken(pins["_is_stateful"]))
    assert "takes (self, output_dir), not (self, output_dir, state_dict)" in str(broken(pins["_save"]))


# ------------------------------------------------------------------------------------------------ completeness


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("core", "eval", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def _private(name: Any) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith(("__", "_alignkit"))


def _own(tree: ast.Module) -> Iterator[str]:
    """Yield the private names a module defines: functions, classes and attributes of ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _used(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Yield line, private name, and whether it is asked of ``super()``, for every use on another object than ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _private(node.attr):
            base = ast.unparse(node.value)
            if base not in ("self", "cls"):
                yield node.lineno, node.attr, base == "super()"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and _private(name.value):
                yield node.lineno, str(name.value), True


def test_no_private_name_is_used_that_the_table_does_not_have() -> None:
    pinned = {pin.name for pin in OVERRIDDEN + READ + OPERATORS} | DOCUMENTED
    sources = list(_sources())
    own = {name for _, tree in sources for name in _own(tree)}
    unknown = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in sources
        for line, name, foreign in _used(tree)
        if name not in pinned and (foreign or name not in own)
    ]
    assert not unknown


def test_every_name_of_the_table_is_used() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path, _ in _sources())
    names = {
        pin.name: pin.name.removeprefix("align").removesuffix("_backward") for pin in OVERRIDDEN + READ + OPERATORS
    }
    assert [name for name, written in names.items() if written not in text] == []


ELSEWHERE = {"alignkit_vllm.receive"}
"""Modules that only processes of vLLM import."""


def _classes() -> Iterator[type]:
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__") and module.name not in ELSEWHERE:
                yield from vars(importlib.import_module(module.name)).values()


def test_no_private_method_of_a_library_is_overridden_that_the_table_does_not_have() -> None:
    """On purpose or by an accident of names."""
    pinned = {pin.name for pin in OVERRIDDEN}
    found = set()
    for cls in {value for value in _classes() if isinstance(value, type)}:
        ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in PACKAGES]
        theirs = [base for base in cls.__mro__ if base not in ours and base is not object]
        for base in ours:
            for name, value in vars(base).items():
                if _private(name) and inspect.isroutine(value) and any(name in vars(other) for other in theirs):
                    found.add(name)
    assert found <= pinned
    assert "_save_checkpoint" in found
