"""Logged numbers of training: sums and counts kept on the device, reduced over ranks at logging steps only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from alignkit.contract import LossOutput
from alignkit.system.distributed import each_rank
from alignkit.system.environment import peak_memory_gb
from alignkit.system.together import gathered


class MetricSums:
    """Named (sum, count) pairs on the device, reduced over ranks when they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.pairs: dict[str, torch.Tensor] = {}

    def add(self, name: str, total: torch.Tensor | float, count: float) -> None:
        """Add to one pair; a tensor is added on the device, without a synchronisation."""
        pair = self.pairs.setdefault(name, torch.zeros(2, dtype=self.dtype, device=self.device))
        pair[0] += total.detach() if isinstance(total, torch.Tensor) else total
        pair[1] += count

    def drain(self) -> dict[str, tuple[float, float]]:
        """Return sums and counts over all ranks and reset them. Every rank must call it."""
        own = dict(zip(self.pairs, torch.stack([*self.pairs.values()]).tolist() if self.pairs else [], strict=True))
        found = gathered("the sums of training", own)  # a rank without rows has no names
        self.pairs = {}
        totals = {name: [r.get(name, (0.0, 0.0)) for r in found] for name in sorted(set().union(*found))}
        return {name: (sum(t for t, _ in pairs), sum(c for _, c in pairs)) for name, pairs in totals.items()}


class TrainingLog:
    """Loss terms, metrics, tokens, speed and memory between two logging steps, exact over micro-batches and ranks."""

    def __init__(self, device: torch.device, *, first: bool) -> None:
        self.sums = MetricSums(device)
        self.first = first
        self.tokens = 0
        self.memory = peak_memory_gb
        self.pending: list[tuple[str, torch.Tensor, float]] = []  # of a step that has not ended
        self._window_tokens, self._window_start = 0, time.perf_counter()

    def add_micro_batch(self, output: LossOutput, own: Mapping[str, int], step: Mapping[str, float]) -> None:
        """Add a micro-batch's terms, divided by the counts of the whole step as in the loss, and metrics, by its own."""
        self.pending += [(f"loss/{term.name}", term.sum.detach() / step[term.per], 0) for term in output.terms]
        self.pending += [(name, metric.sum, own[metric.per]) for name, metric in output.metrics.items()]

    def add_step(self, loss: torch.Tensor, tokens: int) -> None:
        """Add an optimizer step: this rank's share of its loss, and the tokens this rank trained on."""
        for name, total, count in self.pending:
            self.sums.add(name, total, count)
        self.pending = []
        self.sums.add("loss", loss, 1 if self.first else 0)
        self.tokens += tokens
        self._window_tokens += tokens

    def drain(self) -> dict[str, float]:
        """Return the means since the last call, total tokens, tokens per second and peak memory. Every rank must call it."""
        pairs = self.sums.drain()
        steps = max(pairs["loss"][1], 1)
        values = {name: total / (count or steps) for name, (total, count) in pairs.items()}
        now = time.perf_counter()
        own = self._window_tokens, self.tokens, self.memory()
        spent, tokens, memory = zip(*each_rank(*own), strict=True)
        values |= {"tokens": int(sum(tokens)), "memory_gb": max(memory)}
        values["tokens_per_second"] = sum(spent) / max(now - self._window_start, 1e-9)
        self._window_tokens, self._window_start = 0, now
        return values

    def state(self) -> dict[str, Any]:
        sums = {name: pair.cpu() for name, pair in self.sums.pairs.items()}
        return {"sums": sums, "tokens_seen": self.tokens, "window_tokens": self._window_tokens}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.sums.pairs = {name: pair.to(self.sums.device) for name, pair in state["sums"].items()}
        self.tokens, self._window_tokens = state["tokens_seen"], state["window_tokens"]
