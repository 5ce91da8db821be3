"""``python -m bench.mlx``: a LoRA step of the engine ``mlx`` against mlx-lm's own training loop and against torch, on this machine.

All sides train the same adapter on the same rows (a prompt and a completion, loss on the completion, AdamW, one batch a step) and
take turns. mlx-lm's side is the step of ``mlx_lm.tuner.trainer``: its loss, ``nn.value_and_grad`` and ``mx.compile``, on rows padded as
its ``iterate_batches`` does. Equal work: the losses of the first step must agree. Memory is measured in a process of its own for each side:
the peak of resident memory over its steps, above what the process had with the libraries loaded and no model.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import random
import subprocess
import sys
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
from alignkit.system.environment import forget_peak_memory, peak_memory_gb
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


def rows_of(given: argparse.Namespace) -> list[Example]:
    """Return rows of pseudo-random tokens of one length, as mlx-lm's batches are of rows of similar length."""
    draw = partial(random.Random(0).choices, range(3, given.vocabulary))
    return [Example(str(i), draw(k=given.prompt), (draw(k=given.completion),)) for i in range(given.rows)]


def loaded(model: Any) -> LoadedModel:
    return LoadedModel(model, None, "bench", "", is_adapter=True)  # type: ignore[arg-type]


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
    policy = ModelPolicy(model)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def step() -> float:
        loss = -policy.score(rows).logps.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


SIDES = {"mlx": own, "mlx-lm": theirs, "torch": by_torch}


def memory_of(side: str, given: argparse.Namespace) -> dict[str, float]:
    """Return the memory of a side in this process, in GiB above that of the libraries: of the model, and the peak of its steps."""
    forget_peak_memory()
    libraries = peak_memory_gb()
    step = SIDES[side](torch_model(given.hidden, given.layers, given.vocabulary), rows_of(given))
    gc.collect()
    forget_peak_memory()
    model = peak_memory_gb()
    for _ in range(3):
        step()
    return {"libraries": libraries, "model": model - libraries, "steps": peak_memory_gb() - libraries}


def speed(given: argparse.Namespace) -> dict[str, Any]:
    """Return the losses of the first step, and the seconds of a step of every side; they take turns."""
    model, rows = torch_model(given.hidden, given.layers, given.vocabulary), rows_of(given)
    steps = {name: SIDES[name](copy.deepcopy(model), rows) for name in given.sides}
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
    return {"losses": losses, "steps": found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.mlx")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps; 0: measure memory only")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--memory-of", choices=list(SIDES), help="measure the memory of one side in this process")
    given = parser.parse_args()
    if given.memory_of:
        print(json.dumps(memory_of(given.memory_of, given)))
        return
    found = speed(given) if given.repeats else {}
    alone = [sys.executable, "-m", "bench.mlx", *sys.argv[1:], "--memory-of"]
    for side in given.sides:
        done = subprocess.run([*alone, side], stdout=subprocess.PIPE, check=True)
        found.setdefault("memory_gib", {})[side] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
