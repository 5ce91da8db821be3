"""The scoring forward of a model: maps a plan to the log-probabilities of its tokens.

It is installed as ``forward`` on the innermost causal language model, so that data parallelism, sharding, adapters,
autocast and gradient checkpointing, which act on the modules around it, work as with any other forward.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from alignkit.scoring import attention
from alignkit.scoring.distributions import HeadDistributions, entropy
from alignkit.scoring.head import LogitTransform, head_logps, install_head
from alignkit.scoring.masks import row_masks
from alignkit.scoring.plan import Plan


class TokenLogps(NamedTuple):
    """Output of the scoring forward: differentiable float32 log-probabilities, and what else is wanted."""

    completions: torch.Tensor  # [N]
    prompts: torch.Tensor  # [M]
    values: torch.Tensor | None = None  # [N]
    entropy: torch.Tensor | None = None  # [N], with gradient only if wanted
    distributions: Any = None  # result of the function that is wanted


def innermost(model: nn.Module) -> Any:
    """Return the causal language model inside data-parallel, compiled and adapter wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()  # type: ignore[operator]
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module) or (
            isinstance(model, nn.parallel.DistributedDataParallel) and isinstance(inner := model.module, nn.Module)
        ):
            model = inner
        else:
            return model


def text_config(model: Any) -> Any:
    """Return the configuration of the language model (multi-modal models nest it)."""
    return model.config.get_text_config()


def install_forward(model: Any) -> None:
    """Give the innermost causal LM ``forward(..., plan=None)``; without a plan it runs the class's forward."""
    head = model.get_output_embeddings()
    if head is not None:
        install_head(head)
    if not getattr(model.forward, "_alignkit", False):
        model.forward = types.MethodType(_make_forward(type(model)), model)


def _make_forward(cls: type) -> Callable[..., Any]:
    """Return the override. It uses ``self`` only, because a deep copy must run its own weights, not the original's."""

    def forward(self: Any, *args: Any, plan: Plan | None = None, **kwargs: Any) -> Any:
        context = self.__dict__.get("forward_context", nullcontext)  # of autocast
        with context():
            if plan is not None:
                return score_plan(self, plan)
            out = type(self).forward(self, *args, **kwargs)
        if context is not nullcontext and getattr(out, "logits", None) is not None:
            out.logits = out.logits.float()
        return out

    # Generation and the trainer inspect the signature. functools.wraps would also set __wrapped__, which accelerate
    # follows when it unwraps a model, and the override would be lost.
    own = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    parameters = list(own.parameters.values())
    last = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    parameters.insert(last, inspect.Parameter("plan", inspect.Parameter.KEYWORD_ONLY, default=None))
    forward.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    forward._alignkit = True  # type: ignore[attr-defined]
    return forward


def score_plan(model: Any, plan: Plan) -> TokenLogps:
    """Score a plan with the innermost causal LM; runs inside the forward of the wrapped model."""
    source = torch.cat([plan.source, plan.prompt_source])
    targets = torch.cat([plan.targets, plan.prompt_targets])
    count, wanted = len(plan.targets), plan.wanted
    differentiable = wanted.entropy == "grad" and torch.is_grad_enabled()
    if plan.backend == "plain":
        # Logits [B, L, V], and hidden states if a critic needs them.
        out = type(model).forward(
            model,
            input_ids=plan.input_ids,
            attention_mask=plan.attention_mask,
            use_cache=False,
            return_dict=True,
            output_hidden_states=wanted.values,
        )
        logits = out.logits.flatten(0, 1).index_select(0, source)
        logits = logits if wanted.temperature == 1.0 else logits / wanted.temperature
        logps = -nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        distributions = HeadDistributions(logits[:count], lambda part: part)
        hidden = out.hidden_states[-1].flatten(0, 1).index_select(0, source) if wanted.values else None
    else:
        hidden = hidden_states(model, plan, _backbone(model)).flatten(0, 1).index_select(0, source)
        transform = LogitTransform.of(text_config(model))._replace(temperature=wanted.temperature)
        head = model.get_output_embeddings()
        logps = head_logps(head, hidden, targets, transform)
        distributions = HeadDistributions.of(head, hidden[:count], transform)
    with torch.set_grad_enabled(differentiable):
        spread = distributions.map(entropy) if wanted.entropy else None
    read = None if wanted.distributions is None else wanted.distributions(distributions)
    values = None if hidden is None or not wanted.values else model.critic(hidden[:count], model, plan)
    return TokenLogps(logps[:count], logps[count:], values, spread, read)


def _backbone(model: Any) -> Any:
    # Some classes declare a prefix that they do not have.
    backbone = getattr(model, "model", None) if model.base_model is model else model.base_model
    if backbone is None:
        raise NotImplementedError(f"{type(model).__name__} has no backbone separate from its head")
    return backbone


def hidden_states(model: Any, plan: Plan, backbone: Any) -> torch.Tensor:
    """Return the last hidden states ``[B, L, H]`` of ``backbone``: the model's own, or a critic's copy of it."""
    inputs: dict[str, Any] = {"input_ids": plan.input_ids, "use_cache": False}
    if plan.backend == "padded":
        inputs["attention_mask"] = plan.attention_mask
    else:
        inputs["position_ids"] = plan.position_ids
    if plan.backend == "rows":
        additive = model.config._attn_implementation == "eager"
        inputs["attention_mask"] = row_masks(plan, text_config(model), additive=additive, dtype=model.dtype)
    if plan.backend == "packed":
        # Models pass a 4-D mask on unchanged, so this one keeps them from building a mask over the whole packed row.
        inputs["attention_mask"] = plan.input_ids.new_ones((1, 1, 1, 1), dtype=torch.bool)
        inputs[attention.PLAN_ARGUMENT] = plan
    hidden: torch.Tensor = backbone(**inputs).last_hidden_state
    return hidden
