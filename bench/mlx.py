"""``python -m bench.mlx``: a LoRA step of the engine ``mlx`` against mlx-lm's own training loop and against torch, on this machine.

All sides train the same adapter on the same rows (a prompt and a completion, loss on the completion, AdamW, one batch a step) and
take turns. mlx-lm's side is the step of ``mlx_lm.tuner.trainer``: its loss, ``nn.value_and_grad`` and ``mx.compile``, on rows padded as
its ``iterate_batches`` does. Equal work: the losses of the first step must agree.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import peft
import torch
from alignkit.contract import Example, LoadedModel
from alignkit.scoring.policy import ModelPolicy
from alignkit.system.environment import peak_memory_gb
from alignkit.testing.engine import configuration
from alignkit_mlx import MLXEngine
from alignkit_mlx.convert import convert
from mlx_lm.tuner.trainer import default_loss, iterate_batches
from transformers import LlamaConfig, LlamaForCausalLM

RATE = 1e-4


def torch_model(hidden: int, layers: int, vocabulary: int) -> Any:
    """Return a Llama with a LoRA adapter on all of its linear layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        tie_word_embeddings=True,
    )
    adapter = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(LlamaForCausalLM(config), adapter)


def rows_of(count: int, prompt: int, completion: int, vocabulary: int) -> list[Example]:
    """Return rows of pseudo-random tokens of one length, as mlx-lm's batches are of rows of similar length."""
    draw = partial(random.Random(0).choices, range(3, vocabulary))
    return [Example(str(i), draw(k=prompt), (draw(k=completion),)) for i in range(count)]


def loaded(model: Any) -> LoadedModel:
    return LoadedModel(copy.deepcopy(model), None, "bench", "", is_adapter=True)  # type: ignore[arg-type]


def own(model: Any, rows: list[Example]) -> Callable[[], float]:
    """Return a step of the engine, which returns its loss."""
    config = configuration("sft", learning_rate=RATE)
    policy = MLXEngine().policy(loaded(model), config, torch.device("cpu"))
    arguments: Any = argparse.Namespace(
        optim="adamw_torch", weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8
    )
    policy.engine.begin(arguments, ())  # type: ignore[attr-defined]

    def step() -> float:
        loss = -policy.score(rows).logps.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        policy.engine.step(RATE, 1.0)  # type: ignore[attr-defined]
        return float(loss.detach())

    return step


def theirs(model: Any, rows: list[Example]) -> Callable[[], float]:
    """Return a step of mlx-lm's loop on the same weights."""
    parts = convert(loaded(model))
    parts.model.train()
    optimizer = mlx.optimizers.AdamW(learning_rate=RATE, weight_decay=0.0, bias_correction=True)
    data = [([*row.prompt, *row.completions[0]], len(row.prompt)) for row in rows]
    batch = next(iterate_batches(data, len(data), 4096))
    graded = nn.value_and_grad(parts.model, default_loss)
    state = [parts.model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def compiled(batch: Any) -> Any:
        (loss, _), gradient = graded(parts.model, *batch)
        optimizer.update(parts.model, gradient)
        return loss

    def step() -> float:
        loss = compiled(batch)
        mx.eval(state, loss)
        return float(loss.item())

    return step


def by_torch(model: Any, rows: list[Example]) -> Callable[[], float]:
    """Return a step of torch."""
    policy = ModelPolicy(copy.deepcopy(model))
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def step() -> float:
        loss = -policy.score(rows).logps.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.mlx")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="*", default=["mlx", "mlx-lm", "torch"])
    given = parser.parse_args()
    model = torch_model(given.hidden, given.layers, given.vocabulary)
    rows = rows_of(given.rows, given.prompt, given.completion, given.vocabulary)
    made = {"mlx": own, "mlx-lm": theirs, "torch": by_torch}
    steps = {name: made[name](model, rows) for name in given.sides}
    losses = {name: step() for name, step in steps.items()}  # also compiles
    assert max(losses.values()) - min(losses.values()) < 1e-2, losses  # mlx-lm scores a token of padding as well
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.repeats):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    tokens = sum(row.tokens for row in rows)
    found = {name: {"seconds": min(own), "tokens_per_second": tokens / min(own)} for name, own in seconds.items()}
    print(json.dumps({"losses": losses, "memory_gb": peak_memory_gb(), "steps": found}, indent=1))


if __name__ == "__main__":
    main()
