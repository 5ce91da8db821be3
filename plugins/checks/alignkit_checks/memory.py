"""Micro-batches that fit into memory: ``auto`` measures two passes before the first step; a step that lacks memory is repeated."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from alignkit import Batch, Example
from alignkit.errors import RunFailedError, memory_fault
from alignkit.onpolicy.samplers import with_longest_answers
from alignkit.scoring.critic import critic_of
from alignkit.scoring.evaluating import undisturbed
from alignkit.system.distributed import each_rank, local_world_size
from alignkit.system.environment import forget_peak_memory, peak_memory_gb
from alignkit.system.together import from_first
from transformers import TrainerCallback

SMALL, LARGE = 1024, 4096
"""Tokens of the measured passes, or the longest row if it has more; a step of fewer tokens is measured whole and half."""
KEPT_FREE = 0.2
"""Share of the available memory that is left free: for fragmentation, and for batches of mixed lengths."""
OPTIMIZER_BYTES = 8
"""Bytes a trained weight of the most that common optimizers keep: two float32 moments."""
GIB = 2**30


class MemoryModel(NamedTuple):
    """Peak memory of a process in bytes, as a function of the tokens of a micro-batch: ``base + per_token * tokens``."""

    base: float
    per_token: float

    @classmethod
    def through(cls, small: tuple[int, float], large: tuple[int, float]) -> MemoryModel:
        """Return the line through two measured pairs of tokens and peak.

        >>> MemoryModel.through((1000, 5e6), (3000, 9e6))
        MemoryModel(base=3000000.0, per_token=2000.0)
        """
        slope = max((large[1] - small[1]) / (large[0] - small[0]), 1.0)
        return cls(small[1] - slope * small[0], slope)

    def tokens(self, limit: float) -> int:
        """Return the most tokens whose peak is at most ``limit`` bytes, at least 1.

        >>> MemoryModel(3e6, 2000.0).tokens(8e6)
        2500
        """
        return max(int((limit - self.base) / self.per_token), 1)


def available_memory(device: torch.device) -> float:
    """Return the bytes that this process can still allocate: of the GPU, or of the machine, its cgroup and their other processes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    rooms = [int(psutil.virtual_memory().available), *_cgroup_rooms(Path("/proc/self/cgroup"))]
    return min(rooms) / local_world_size()


def _cgroup_rooms(own: Path, mounted: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return what each limit of this process's control groups, version 2 or 1, leaves; pages of files can be given back."""
    try:
        paths = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    names = {True: ("memory.max", "memory.current"), False: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    rooms = []
    for number, controllers, path in paths:
        if (version_2 := number == "0") or "memory" in controllers.split(","):
            root = mounted if version_2 else mounted / "memory"
            for group in [root / path.lstrip("/"), *(root / path.lstrip("/")).parents]:
                most, used = (group / name for name in names[version_2])
                if (
                    group.is_relative_to(root)
                    and most.is_file()
                    and used.is_file()
                    and most.read_text().strip() != "max"
                ):
                    counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    files = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
                    rooms.append(int(most.read_text()) - int(used.read_text()) + files)
    return rooms


class FitMicroBatches(TrainerCallback):
    """Keeps micro-batches within memory: measures their token budget if it is ``auto``, and halves it where memory runs out.

    Budgets are recorded with the step they hold from, so that a resumed run ends in the same weights.

    Args:
        trainer: the engine's trainer.
        record: changes keys of run.json and returns it.
        console: where choices are said.
    """

    def __init__(self, trainer: Any, record: Callable[..., dict[str, Any]], console: Any) -> None:
        self.trainer, self.record, self.console = trainer, record, console
        self.parts = trainer.parts
        self.asked = self.parts.config.train.tokens_per_micro_batch
        self.budgets: dict[int, int] = {}
        """Tokens of a micro-batch by the optimizer step (from 0) that they hold from."""
        self._passes, trainer.passes = trainer.passes, self.passes

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        known = from_first(self.record().get("micro_batches", {}))
        if known.get("asked") == self.asked:
            budgets = {int(step): tokens for step, tokens in known["tokens"].items()}
            self.budgets = {step: tokens for step, tokens in budgets.items() if step <= state.global_step}
        if self.budgets:
            self.parts.tokens_per_micro_batch = self.budgets[max(self.budgets)]
        elif self.asked == "auto":
            self._choose()
        self._keep(state.global_step)

    def for_record(self, trainer: Any) -> dict[str, Any]:
        tokens = {str(step): tokens for step, tokens in self.budgets.items()}
        return {"micro_batches": {"asked": self.asked, "tokens": tokens}}

    def _keep(self, step: int) -> None:
        tokens = self.parts.tokens_per_micro_batch
        if not self.budgets or self.budgets[max(self.budgets)] != tokens:
            self.budgets[step] = tokens
        self.record(**self.for_record(self.trainer))

    def passes(self, model: torch.nn.Module, batch: Batch) -> Any:
        """Run the passes of a step; where memory runs out, again with the same rows in micro-batches of half as many tokens.

        Raises :class:`RunFailedError` where every micro-batch is one row, or where other processes wait for this one.
        """
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        cpu, before = torch.get_rng_state(), dict(self.budgets)
        while True:
            try:
                return self._passes(model, batch)
            except (RuntimeError, MemoryError) as error:
                if (fault := memory_fault(error)) is None:
                    raise
                cuts = self.parts.cut(batch)
                largest = max((sum(example.tokens for example in cut.examples) for cut in cuts), default=0)
                size = f"a micro-batch has up to {largest:,} tokens"
                if self.parts.arguments.world_size > 1 or max(map(len, cuts), default=0) < 2:
                    self.budgets = before  # a resumed run may have more memory, or need less
                    self.record(**self.for_record(self.trainer))
                    raise RunFailedError(f"{fault}; {size}") from error
            self.parts.tokens_per_micro_batch = smaller = min(largest, self.parts.tokens_per_micro_batch) // 2
            lower = f"train.tokens_per_micro_batch is {smaller:,} from here on"
            self.console.warn(f"out of memory: {size}; the step is repeated, and {lower}")
            self._keep(self.trainer.state.global_step)
            model.zero_grad()
            gc.collect()
            torch.cuda.empty_cache()
            torch.set_rng_state(cpu)
            torch.cuda.set_rng_state_all(gpus)

    def _choose(self) -> None:
        """Measure, choose, and say so; every process takes part, and the smallest budget is that of all."""
        rows = longest_rows(self.parts)
        longest = tokens_of(self.parts, rows[:1])
        found, room = measured(self.trainer, rows), available_memory(self.device) * (1 - KEPT_FREE)
        if found is None:
            tokens = self.parts.tokens_per_micro_batch
            self.console.info(
                f"micro-batches of at most {tokens:,} tokens: too few rows, or too little memory, to measure two sizes"
            )
            return
        fits = found.tokens(self._used() + room - self._optimizer_bytes())
        # A longer row is a micro-batch of its own, and more rows than these never come together.
        tokens = min(max(fits, longest), self.parts.rows_per_micro_batch * longest)
        self.parts.tokens_per_micro_batch = tokens = int(min(each_rank(tokens))[0])
        self.console.info(
            f"micro-batches of at most {tokens:,} tokens: {max(found.base, 0) / GIB:.2f} GiB and "
            f"{found.per_token * 1000 / 2**20:.1f} MiB per 1,000 tokens measured, {room / GIB:.2f} GiB available"
        )

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.parts.model.parameters()).device
        return found

    def _used(self) -> int:
        """Return the bytes that this process uses now."""
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        return int(psutil.Process().memory_info().rss)

    def _optimizer_bytes(self) -> int:
        """Return what the optimizer will allocate in its first step, at most."""
        optimizer = self.trainer.optimizer
        if getattr(optimizer, "state", None) or type(getattr(optimizer, "optimizer", optimizer)) is torch.optim.SGD:
            return 0
        return OPTIMIZER_BYTES * sum(int(p.numel()) for p in self.parts.model.parameters() if p.requires_grad)


def longest_rows(parts: Any) -> list[int]:
    """Return the training rows with most tokens, longest first, up to :data:`LARGE` tokens."""
    lengths = parts.train.lengths() if hasattr(parts.train, "lengths") else [row.tokens for row in parts.train]
    found: list[int] = []
    for row in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if tokens_of(parts, found) >= LARGE:
            break
        found.append(row)
    return found


def tokens_of(parts: Any, rows: Sequence[int]) -> int:
    """Return the tokens of the training rows at some positions."""
    return sum(example.tokens for example in examples(parts, rows))


def examples(parts: Any, rows: Sequence[int]) -> list[Example]:
    """Return training rows; prompts that are answered by sampling with the most and longest answers, of tokens without meaning."""
    found = [parts.train[row] for row in rows]
    return found if parts.rollouts is None else with_longest_answers(found, parts.rollouts.settings)


def measured(trainer: Any, rows: Sequence[int]) -> MemoryModel | None:
    """Return the memory model of a trainer by passes over the first of ``rows``; None where two sizes cannot be measured.

    Gradients, random states and the method's state are afterwards as before.
    """
    tokens = [tokens_of(trainer.parts, rows[: n + 1]) for n in range(len(rows))]
    small = next((n for n, total in enumerate(tokens, 1) if total >= min(SMALL, tokens[-1] / 2)), 1)
    if small == len(rows):
        return None
    method, policy = trainer.parts.session.method, trainer.parts.policy
    state, policy.model = method.state(), trainer.model
    try:
        with undisturbed(), torch.enable_grad():
            trainer.model.train()
            _pass(trainer, rows[:1])  # libraries allocate once
            peaks = [(tokens[n - 1], _pass(trainer, rows[:n])) for n in (small, len(rows))]
    except (RuntimeError, MemoryError) as error:
        if memory_fault(error) is None:
            raise
        return None
    finally:
        trainer.model.zero_grad()
        method.load_state(state)
        forget_peak_memory()
    return MemoryModel.through(*peaks)


def _pass(trainer: Any, rows: Sequence[int]) -> float:
    """Run a forward and backward pass over rows as one micro-batch and return the peak memory in bytes."""
    parts = trainer.parts
    trainer.model.zero_grad()
    forget_peak_memory()
    with trainer.compute_loss_context_manager():
        if parts.rollouts is not None:
            values = critic_of(parts.model) is not None
            loss = parts.policy.score(examples(parts, rows), values=values).logps.sum()
        else:
            batch = trainer.steps.prepare(trainer.steps.rows("train", parts.train, rows), 0, 1.0)
            loss = sum(term.sum * term.weight for term in parts.session.compute_loss(parts.policy, batch, 1.0).terms)
    loss.backward()
    return peak_memory_gb() * GIB
