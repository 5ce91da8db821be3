"""The scorer under adapters, gradient checkpointing and autocast: same numbers, same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from alignkit.errors import ModelError
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.scorer import BACKENDS, install
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from tests.helpers.scoring import TOLERANCE, assert_same_gradients, build, gradients, plain_scores, rows, weigh

ADAPTERS = {
    "all-linear": {"target_modules": "all-linear"},
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "modules_to_save": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "dora": {"target_modules": "all-linear", "use_dora": True},
}


def adapted(name, model=None):
    torch.manual_seed(3)
    config = LoraConfig(r=4, init_lora_weights=False, lora_dropout=0.0, **ADAPTERS[name])
    wrapped = get_peft_model(build() if model is None else model, config)
    with torch.no_grad():  # saved modules start as copies of the original: make them differ
        for key, parameter in wrapped.named_parameters():
            if "modules_to_save" in key:
                parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter.device))
    return wrapped


SOFT_CAPPED = ("gemma2", "packed")
"""The only rejected combination: the packed blocks do not support soft-capped attention."""


@pytest.mark.parametrize("late", [False, True], ids=["scorer after adapter", "adapter after scorer"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(device, name, backend, late):
    base, tol = build(device=device), TOLERANCE[device]
    if late:
        install(base, backend)
    model = adapted(name, base)
    policy, examples = ModelPolicy(model, install(model, backend)), rows(4)
    expected, prompts = plain_scores(model, examples)
    weigh(torch.cat([expected, prompts])).backward()
    reference = gradients(model)
    scores = policy.score(examples, prompt=True)
    torch.testing.assert_close(scores.logps, expected, atol=tol, rtol=1e-5)
    weigh(torch.cat([scores.logps, scores.prompt_logps])).backward()
    assert_same_gradients(gradients(model), reference, tol=tol)
    with model.disable_adapter():
        off = policy.score(examples, grad=False).logps
        torch.testing.assert_close(off, plain_scores(model, examples)[0].detach(), atol=tol, rtol=1e-5)
    assert not torch.allclose(off, expected, atol=1e-2)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing(device, reentrant, lora):
    model = adapted("all-linear", build(device=device)) if lora else build("mistral-window", device=device)
    examples = rows(4)
    policy = ModelPolicy(model)
    weigh(policy.score(examples).logps).backward()
    reference = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    assert policy.scorer.backend == "packed"
    weigh(policy.score(examples).logps).backward()
    assert_same_gradients(gradients(model), reference, tol=TOLERANCE[device] / 2)


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, backend) for name in ("llama", "gemma2", "gpt2") for backend in BACKENDS if (name, backend) != SOFT_CAPPED],
)
def test_autocast_is_as_close_as_low_precision_allows(device, name, backend):
    """The error against float32 is at most twice that of plain forwards under autocast."""
    model, examples = build(name, device=device), rows(4)
    policy = ModelPolicy(model, install(model, backend))
    exact = plain_scores(model, examples)[0].detach()
    with torch.autocast(device, dtype=torch.bfloat16):
        plain = plain_scores(model, examples)[0].detach()
        got = policy.score(examples).logps
    assert got.dtype == torch.float32
    assert float((got - exact).detach().abs().mean()) < 2 * float((plain - exact).abs().mean()) + 1e-3
    weigh(got).backward()
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients(model).values())


def test_a_deep_copy_of_an_adapted_model_runs_its_own_weights():
    model, examples = adapted("modules_to_save"), rows(2)
    policy = ModelPolicy(model)
    before = policy.score(examples, grad=False).logps
    twin = ModelPolicy(copy.deepcopy(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(twin.score(examples, grad=False).logps, before)


def test_virtual_tokens_are_refused():
    model = get_peft_model(build(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ModelError, match="adapter 'default' is of type PROMPT_TUNING"):
        install(model)


def test_an_unwrapped_model_keeps_its_scoring_forward():
    """accelerate wraps forward for mixed precision and removes its wrapper again."""
    from accelerate.utils import extract_model_from_parallel

    model, examples = build(), rows(2)
    policy = ModelPolicy(model)
    want = policy.score(examples, grad=False).logps
    own = model.forward

    def recast(self, *args, **kwargs):
        return own.__func__(self, *args, **kwargs)

    recast.__wrapped__ = own.__func__
    model._original_forward = own
    model.forward = recast.__get__(model)
    policy.model = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    assert torch.equal(policy.score(examples, grad=False).logps, want)
