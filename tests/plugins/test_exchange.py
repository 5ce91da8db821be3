"""``train.use_liger_kernel``: kernels are exchanged in one model alone, and only where the model computes the same with them.

Liger's own need a GPU or Triton's interpreter (``python -m tests.accept liger``); these stand in for them, exchanged in the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from alignkit import RunConfig
from alignkit.config import LoraConfig, TrainConfig
from alignkit.errors import ConfigError
from alignkit.models.adapters import add_adapter
from alignkit.scoring.backends import innermost
from alignkit.scoring.scorer import install
from alignkit_precision import set_precision
from torch.nn import functional
from transformers.models.llama import modeling_llama

from tests.helpers.engine import tiny_llama

PLAIN = {name: getattr(modeling_llama, name) for name in ("apply_rotary_pos_emb", "LlamaMLP")}


class Kernels:
    """Stand-ins: ``apply`` exchanges them as Liger does, names in the module of the kind included."""

    def __init__(self) -> None:
        self.used = {"rope": 0, "swiglu": 0}
        self.turn: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
        self.gate: Callable[[torch.Tensor], torch.Tensor] = functional.silu

    def apply(self, rope: bool = True, cross_entropy: bool = True, swiglu: bool = True, model: Any = None) -> None:
        def turned(*states: torch.Tensor) -> tuple[torch.Tensor, ...]:
            self.used["rope"] += 1
            query, key = PLAIN["apply_rotary_pos_emb"](*states)
            return self.turn(query), key

        def gated(mlp: Any, x: torch.Tensor) -> torch.Tensor:
            self.used["swiglu"] += 1
            return mlp.down_proj(self.gate(mlp.gate_proj(x)) * mlp.up_proj(x))  # type: ignore[no-any-return]

        assert not cross_entropy
        if rope:
            modeling_llama.apply_rotary_pos_emb = turned
        if swiglu:
            modeling_llama.LlamaMLP = ModuleType
            for layer in model.model.layers:
                layer.mlp.forward = MethodType(gated, layer.mlp)


class WrongBackward(torch.autograd.Function):
    """The identity, with a gradient that is not its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return slope * 0.9


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    stand_ins = Kernels()
    for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[name].__dict__["MODEL_TYPE_TO_APPLY_LIGER_FN"] = {"llama": stand_ins.apply}
    return stand_ins


def ready(lora: bool = False) -> Any:
    model: Any = tiny_llama()
    if lora:
        model = add_adapter(model, LoraConfig(r=2), 0, "CAUSAL_LM")
    install(model)
    return innermost(model)


def fused(**train: Any) -> RunConfig:
    return RunConfig(method="sft", train=TrainConfig.model_validate({"use_liger_kernel": True, **train}))


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.arange(3, 12)[None]).logits.detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("lora", "bf16"), [(False, False), (True, True)])
def test_kernels_are_exchanged_in_one_model_alone_and_can_be_put_back(kernels: Kernels, lora: bool, bf16: bool) -> None:
    other, model = ready(), ready(lora)
    before, names = logits(model), [*model.state_dict()]
    assert set_precision(model, fused(bf16=bf16))["layers"] == "liger"
    assert all(getattr(modeling_llama, name) is value for name, value in PLAIN.items())
    kernels.used = dict.fromkeys(kernels.used, 0)
    for untouched in (other, tiny_llama()):  # made before, and after
        logits(untouched)
    assert kernels.used == {"rope": 0, "swiglu": 0}
    assert torch.allclose(logits(model), before, atol=0.05 if bf16 else 1e-6)
    assert kernels.used == dict.fromkeys(kernels.used, len(model.model.layers))
    assert [*model.state_dict()] == names
    assert all(p.requires_grad != (lora and "lora" not in name) for name, p in model.named_parameters())
    assert "layers" not in set_precision(model, None)
    kernels.used = dict.fromkeys(kernels.used, 0)
    logits(model)
    assert kernels.used == {"rope": 0, "swiglu": 0}


def test_settings_switch_kernels_off(kernels: Kernels) -> None:
    model = ready()
    set_precision(model, fused(liger_kernel_config={"rope": False}))
    assert kernels.used["rope"] == 0 < kernels.used["swiglu"]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ({"turn": lambda x: x.roll(1, -1)}, r"rope changes log-probabilities by up to .*=\{rope: false\}"),
        ({"turn": WrongBackward.apply}, "rope changes gradients by"),
        (
            {"gate": lambda x: x * float("nan")},
            r"swiglu changes log-probabilities by up to nan nats.*=\{swiglu: false\}",
        ),
        ({"gate": lambda x: x.reshape(3)}, "swiglu fails .RuntimeError: shape"),
        (
            {"gate": functional.gelu, "turn": lambda x: -x},
            r"rope changes .*; swiglu changes .*=\{rope: false, swiglu: false\}",
        ),
    ],
)
def test_a_kernel_that_computes_something_else_is_refused_by_name(
    kernels: Kernels, planted: dict[str, Any], message: str, bf16: bool
) -> None:
    model = ready()
    with torch.no_grad():
        for name, p in model.named_parameters():  # so that attention and gates matter as in a trained model
            p.mul_(1 if "norm" in name else 10)
    before = logits(model)
    vars(kernels).update(planted)
    with pytest.raises(ConfigError, match=message):
        set_precision(model, fused(bf16=bf16))
    kernels.used = dict.fromkeys(kernels.used, 0)
    model.__dict__.pop("forward_context", None)
    assert torch.equal(logits(model), before)
    assert kernels.used == {"rope": 0, "swiglu": 0}
    assert all(getattr(modeling_llama, name) is value for name, value in PLAIN.items())


def test_kernels_that_do_not_exist_are_refused(kernels: Kernels) -> None:
    with pytest.raises(ConfigError, match=r"liger-kernel has no ropes for llama models, it has rope, swiglu"):
        set_precision(ready(), fused(liger_kernel_config={"ropes": False}))
    model = ready()
    model.config.model_type = "own"
    with pytest.raises(ConfigError, match="no kernels for own models"):
        set_precision(model, fused())


def test_layers_that_cannot_be_exchanged_are_refused_and_nothing_is_left_changed(kernels: Kernels) -> None:
    def broken(rope: bool = True, model: Any = None) -> None:
        modeling_llama.apply_rotary_pos_emb = model.forward = None
        raise AttributeError("no vision_model")

    sys.modules["liger_kernel.transformers.monkey_patch"].__dict__["MODEL_TYPE_TO_APPLY_LIGER_FN"]["llama"] = broken
    model = ready()
    before = logits(model)
    with pytest.raises(ConfigError, match=r"rope cannot be exchanged .AttributeError: no vision_model"):
        set_precision(model, fused())
    assert torch.equal(logits(model), before)
