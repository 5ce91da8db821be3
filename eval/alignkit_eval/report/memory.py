"""The memory of one process of a planned run: its engine's own operations, traced on a model without numbers.

The peak is sought over the stages of a run: loading, scoring without gradient (reference, evaluation), and the longest
micro-batch of an optimizer step, with the optimizer's states and the gradients of earlier micro-batches.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from alignkit import LoadedModel
from alignkit.contract import Batch, Example
from alignkit.contract.registry import provided
from alignkit.models.sharding import is_layer
from alignkit.onpolicy.rewards import open_rewards
from alignkit.scoring.backends import innermost
from alignkit.scoring.critic import add_critic, critic_of
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.reference import StartWeights, keeps_start
from alignkit.settings.strategies import processes_of, strategy_name

from alignkit_eval.report.longest import Largest, cache_bytes, largest
from alignkit_eval.report.tracing import (
    Trace,
    first_layers,
    policy_without_numbers,
    tag_modules,
    traced,
    without_numbers,
)
from alignkit_eval.rewarded import models_of

if TYPE_CHECKING:
    from alignkit_eval.report.planned import DryRun

log = logging.getLogger(__name__)

QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.55}
"""Bytes of a weight of a quantized layer, with its scales."""

STATES = {"adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "lion_8bit": 1, "ademamix_8bit": 3}
"""Bytes a trained weight of optimizers that cannot be traced, because their package is missing or their kernels need a GPU."""

ADAM_STATES = 8
"""Bytes of AdamW's two float32 moments: what an optimizer takes that can neither be traced nor is in :data:`STATES`."""

FILES = "files being read"
"""The part of the files of the weights, which are mapped while they are read."""

_ALL = ("weights", "gradients", "optimizer", "start weights")
SHARED = {"zero1": ("optimizer",), "zero2": ("gradients", "optimizer"), "zero3": _ALL, "fsdp": (*_ALL, FILES)}
"""Parts of the memory that the processes of a strategy divide among them; the others are whole in each."""

BUCKET = 500_000_000
"""Numbers that DeepSpeed reduces at once (reduce_bucket_size)."""

OTHERS = "other models"
"""The part of models that are not trained: a teacher, reward models, judges."""

BATCHES = 3
"""Batches of different lengths after which the kernels are counted: a longer run has filled what keeps them."""


@dataclass(frozen=True)
class Memory:
    """The peak of one process."""

    parts: dict[str, float]
    """What is in memory at the peak, by part, in bytes, largest first."""
    traced: bool
    """Whether the model's own operations were traced; else its activations are those of a common decoder."""

    @property
    def gib(self) -> float:
        """The peak in GiB."""
        return sum(self.parts.values()) / 2**30


def estimate_memory(dry: DryRun, libraries: int, batches: Largest | None = None) -> Memory:
    """Return the peak of one process of a run.

    ``libraries`` are the resident bytes of Python, the libraries, tokenizer and data; 0 where the memory of a GPU is meant.
    ``batches`` replace those of the run's data.
    """
    model, method = dry.loaded.model, dry.plan.session.method
    batches = batches or largest(dry)
    if "value_head" in method.needs and critic_of(model) is None:
        add_critic(model, getattr(method.settings, "critic", "shared"))
    others = _other_models(dry)
    with traced() as trace:
        without_numbers(model)
        if describe := provided("align.models", "precision"):  # autocast of the device the model is on now
            describe(innermost(model), dry.plan.config)
        weights = trace.alive["weights"]
        with trace.of(OTHERS):
            for other in others:
                without_numbers(other.model)
        works = _trace_stages(dry, batches, trace)
        parts: Counter[str] = Counter(trace.at_peak)
        if not works:
            parts = _by_formula(dry, batches, weights) + Counter({OTHERS: trace.alive[OTHERS]})
        if libraries:
            parts["allocator"] = max(trace.heap.peak - trace.peak, 0)
            parts["kernels"] = trace.kernels(BATCHES)
    _divide(dry, parts)
    if kind := dry.plan.config.model.quantization:
        frozen = sum(p.numel() * p.element_size() - p.numel() * QUANTIZED_BYTES[kind] for p in _quantized(model))
        parts["weights"] -= int(frozen)
    files = max(_file_bytes(one.path) for one in (dry.loaded, *others))
    reading = Counter({"weights": weights, OTHERS: trace.alive[OTHERS], FILES: files})
    _share(dry, reading)
    if libraries and reading.total() > parts.total():
        parts = reading
    parts["libraries"] = libraries
    return Memory({part: size for part, size in parts.most_common() if size > 0}, works)


def _other_models(dry: DryRun) -> list[LoadedModel]:
    """Return the models that the method, its rewards and the suites load and keep, without weights."""
    config, method = dry.plan.config, dry.plan.session.method
    rewards = open_rewards(getattr(method.settings, "rewards", []))
    suites = [model for suite in dry.plan.suites.values() for model in suite.models(config)]
    return [*method.models(config), *models_of(rewards, config, "method.rewards"), *suites]


def _trace_stages(dry: DryRun, batches: Largest, trace: Trace) -> bool:
    """Trace scoring without gradient, then an optimizer step; return False where the model's operations cannot be traced."""
    plan, model, cut = dry.plan, dry.loaded.model, batches.micro_batch
    if not cut or (policy := policy_without_numbers(dry, cut[:1])) is None:
        return not cut
    if scored := batches.scored or (cut if "reference" in plan.session.method.needs else []):
        with trace.of("activations"), first_layers(model):
            policy.score(scored, grad=False)
    _trace_optimizer(dry, trace, keep_gradients=len(batches.step) > len(cut))
    if keeps_start(plan.session.method.needs) and isinstance(policy, ModelPolicy):
        with trace.of("start weights"):
            policy.start = StartWeights(model)
    with trace.of("sampling"):
        torch.empty(cache_bytes(dry, batches.step), dtype=torch.uint8)
    if _checkpoints(plan.arguments):
        _checkpoint_layers(model, plan.arguments)
    model.train()
    with tag_modules(model, trace), trace.of("activations"):
        loss: Any = _loss(dry, policy, cut)
        loss.backward()
    return True


def _loss(dry: DryRun, policy: Any, cut: list[Example]) -> torch.Tensor:
    """Return the method's loss of a micro-batch, or the sum of its log-probabilities where the loss needs numbers."""
    session = dry.plan.session
    needs = session.method.needs
    if "reward" not in needs:
        batch = Batch(cut)
        if "reference" in needs:
            zeros = [[0.0] * sum(e.scored_tokens(k) for k in range(len(e.completions))) for e in cut]
            batch = batch.with_column("reference", zeros)
        try:
            output = session.compute_loss(policy, session.prepare_batch(policy, batch, 1.0), 1.0)
            total: torch.Tensor = torch.stack([term.sum * term.weight for term in output.terms if term.weight]).sum()
            return total
        except Exception as error:  # a loss may branch on its numbers
            log.debug("the loss of %s was not traced: %s", session.method.name, error)
    scores = policy.score(cut, values="value_head" in needs)
    found: torch.Tensor = scores.logps.sum()
    return found if scores.values is None else found + scores.values.sum()


def _trace_optimizer(dry: DryRun, trace: Trace, *, keep_gradients: bool) -> None:
    """Trace an optimizer's first step; ``keep_gradients`` leaves the gradients, as between the micro-batches of a step."""
    from transformers import Trainer

    arguments, model = dry.plan.arguments, dry.loaded.model
    trained = [p for p in model.parameters() if p.requires_grad]
    name = str(getattr(arguments.optim, "value", arguments.optim))
    with trace.of("gradients"):
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
    with trace.of("optimizer"):
        try:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
            optimizer = kind(trained, **options)
            optimizer.step()
            trace.held.append(optimizer)
        except Exception as error:
            log.debug("the optimizer %s was not traced: %s", name, error)
            count = sum(p.numel() for p in trained)
            trace.held.append(torch.empty(count * STATES.get(name, ADAM_STATES), dtype=torch.uint8))
    if not keep_gradients:
        for parameter in trained:
            parameter.grad = None


def _checkpoints(arguments: Any) -> bool:
    """Whether layers are checkpointed; the argument was renamed in transformers 5.23."""
    return bool(getattr(arguments, "activation_checkpointing", None) or arguments.gradient_checkpointing)


def _checkpoint_layers(model: Any, arguments: Any) -> None:
    """Switch gradient checkpointing on as ``transformers.Trainer`` does."""
    options = getattr(arguments, "activation_checkpointing_kwargs", None) or arguments.gradient_checkpointing_kwargs
    options = {key: value for key, value in (options or {}).items() if key not in ("every_n_layers", "offload")}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options or None)


def _divide(dry: DryRun, parts: Counter[str]) -> None:
    """Divide what the processes share, and add what they hold besides to exchange it."""
    model, ranks, strategy = dry.loaded.model, processes_of(dry.plan.config), strategy_name(dry.plan.config)
    if ranks == 1:
        return
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    in_float32 = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    _share(dry, parts)
    if strategy == "fsdp":  # the layer that runs and the next one are whole
        base = innermost(model)
        layers = [module for module in model.modules() if is_layer(base, module)]
        sizes = [sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers]
        rest = sum(p.numel() * p.element_size() for p in model.parameters()) - sum(sizes)
        parts["whole layers"] = rest + 2 * max(sizes, default=0)
    elif strategy.startswith("zero"):
        parts["buffers of reduction"] = min(4 * BUCKET, trained)
        if strategy != "zero3" or trained != in_float32:  # else the weights themselves serve
            parts["optimizer"] += in_float32 // ranks  # its own copy of the weights
    else:
        parts["buffers of reduction"] = trained  # DDP's buckets


def _share(dry: DryRun, parts: Counter[str]) -> None:
    """Divide the parts of one process's memory that the processes share under the strategy."""
    ranks = processes_of(dry.plan.config)
    for part in SHARED.get(strategy_name(dry.plan.config), ()):
        parts[part] = -(-parts[part] // ranks)


def _quantized(model: Any) -> list[torch.nn.Parameter]:
    """Return the weights that quantization stores in fewer bits: the frozen matrices of the layers."""
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    head |= {id(p) for p in model.get_input_embeddings().parameters()}
    return [p for p in model.parameters() if not p.requires_grad and p.ndim == 2 and id(p) not in head]


def _file_bytes(path: str) -> int:
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))


def _by_formula(dry: DryRun, batches: Largest, weights: int) -> Counter[str]:
    """Return the parts with the activations of a common decoder: ten vectors of the hidden size a layer and token, three of the feed-forward's."""
    config, trained = dry.loaded.model.config.get_text_config(), dry.loaded.trainable
    hidden, layers = int(getattr(config, "hidden_size", 0)), int(getattr(config, "num_hidden_layers", 0))
    feed_forward = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    tokens = sum(example.tokens for example in batches.micro_batch)
    kept = hidden if _checkpoints(dry.plan.arguments) else 10 * hidden + 3 * feed_forward
    width = 2 if hasattr(innermost(dry.loaded.model), "forward_context") else 4
    sizes = {"weights": weights, "gradients": 4 * trained, "optimizer": ADAM_STATES * trained}
    return Counter(sizes | {"activations": tokens * layers * kept * width})
