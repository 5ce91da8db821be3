"""The one training loop: ``transformers.Trainer`` around an optimizer step that is ours.

One Trainer batch is one optimizer step. ``training_step`` takes the rows of the step (a pure function of seed and step), lets
the method prepare them, cuts them into micro-batches by a token budget, and divides every loss term by a count over the
whole step and all ranks, known before the first backward: neither loss nor gradient depends on how the step was cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers import Trainer

from alignkit.contract.batch import Batch, Example, by_length
from alignkit.contract.types import LossOutput
from alignkit.errors import RunFailedError
from alignkit.system.environment import peak_memory_gb
from alignkit.training.checkpoints import CriticApart, WholeCheckpoints
from alignkit.training.metrics import MetricSums
from alignkit.training.parts import EngineParts
from alignkit.training.steps import Steps


class AlignTrainer(WholeCheckpoints, CriticApart, Trainer):
    """``transformers.Trainer`` with alignkit's optimizer step, metrics, evaluation and checkpoints."""

    loss_is_scaled_for_ga = True

    def __init__(self, parts: EngineParts) -> None:
        self.parts = parts
        super().__init__(
            model=parts.model,
            args=parts.arguments,
            train_dataset=parts.train,
            eval_dataset=parts.eval,
            processing_class=parts.tokenizer,
            callbacks=list(parts.callbacks),
        )
        self.sums = MetricSums(self.args.device)
        self.steps = Steps(parts, self.args.process_index, self.args.world_size)
        self.tokens_seen = 0
        self._window_tokens, self._window_start = 0, time.perf_counter()
        self._step_batches: list[Batch] = []
        self._step_losses: list[torch.Tensor] = []

    # ------------------------------------------------------------------ data

    def get_train_dataloader(self) -> Any:
        """A ticker: one empty batch an optimizer step. The rows follow from the step's number, which makes resume exact."""
        return torch.utils.data.DataLoader(range(self.steps.per_epoch), collate_fn=lambda _: {})  # type: ignore[arg-type]

    @property
    def progress(self) -> float:
        """Share of training done, 0 to 1."""
        return float(self.state.global_step / max(self.state.max_steps, 1))

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        """Cut a step, longest rows first: like lengths together, and memory's worst case comes at once."""
        order = sorted(range(len(batch)), key=lambda i: batch.examples[i].tokens, reverse=True)
        return list(batch.rows(order).cut(self.parts.rows_per_micro_batch, self.parts.tokens_per_micro_batch))

    # ------------------------------------------------------------------ the step

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one optimizer step's forward and backward passes and return its loss."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # schedule-free optimizers
        self.parts.policy.model = model
        session, progress = self.parts.session, self.progress
        self.steps.total = self.state.max_steps
        with self.compute_loss_context_manager():
            batch = self.steps.batch(self.state.global_step, progress)
        cuts = self._micro_batches(batch)
        counts, passes = self._step_counts(batch, len(cuts))
        self._step_batches, self._step_losses = cuts, []
        for k in range(passes):
            with self._synchronised(model, last=k == passes - 1):
                if k < len(cuts):
                    with self.compute_loss_context_manager():
                        output = session.compute_loss(self.parts.policy, cuts[k], progress)
                    loss = self._normalise(output, counts) * self.args.world_size  # DDP and FSDP average over ranks
                    self._observe(output, cuts[k].counts, counts)
                else:  # a rank with nothing left still takes part in the collectives
                    loss = self.steps.zero_loss()
                self.accelerator.backward(loss)
            self._step_losses.append(loss.detach())
        total = torch.stack(self._step_losses).sum()
        self.sums.add("loss", total / self.args.world_size, 1 if self.args.process_index == 0 else 0)
        spent = sum(example.tokens for example in batch.examples)
        self.tokens_seen += spent
        self._window_tokens += spent
        return total

    @contextlib.contextmanager
    def _synchronised(self, model: torch.nn.Module, *, last: bool) -> Iterator[None]:
        """Let gradients be reduced over ranks in the last pass of a step only."""
        self.accelerator.gradient_state._set_sync_gradients(last)  # DeepSpeed's boundary
        with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
            yield

    def _step_counts(self, batch: Batch, cuts: int) -> tuple[dict[str, float], int]:
        """Return every count over the whole step and all ranks (at least 1), and how many passes the longest rank needs."""
        counts = batch.counts
        names = sorted(counts)
        mine = torch.tensor([counts[name] for name in names] + [cuts], dtype=torch.int64, device=self.args.device)
        table = mine[None]
        if self.args.world_size > 1:
            rows = [torch.empty_like(mine) for _ in range(self.args.world_size)]
            dist.all_gather(rows, mine)
            table = torch.stack(rows)
        totals = table.sum(0).tolist()
        return {name: float(max(total, 1)) for name, total in zip(names, totals, strict=False)}, int(table[:, -1].max())

    def _normalise(self, output: LossOutput, counts: Mapping[str, float]) -> torch.Tensor:
        """Divide each term by its count. A term of weight 0 is logged only: 0.0 times a gradient still moves bits."""
        parts = [term.sum * (term.weight / counts[term.per]) for term in output.terms if term.weight != 0]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def _observe(self, output: LossOutput, own: Mapping[str, int], whole: Mapping[str, float]) -> None:
        """Keep what is logged. Terms are divided by the step's counts, as in the loss, so that they add up to it."""
        for term in output.terms:
            self.sums.add(f"loss/{term.name}", term.sum / whole[term.per], 0)
        for name, metric in output.metrics.items():
            self.sums.add(name, metric.sum, own[metric.per])

    # ------------------------------------------------------------------ non-finite numbers

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Called by Trainer right before the optimizer: the last moment at which the weights are still good."""
        norm = super()._get_grad_norm(model, grad_norm)
        scaled = self.accelerator.scaler is not None  # fp16: the scaler skips overflowing steps itself
        value = torch.as_tensor(norm).detach().float().to(self.args.device)
        bad = ~torch.isfinite(torch.stack(self._step_losses)).all()
        if not scaled:
            bad = bad | ~torch.isfinite(value)
        if bool(bad):
            raise RunFailedError(self._describe_non_finite(float(value)))
        return norm

    def _describe_non_finite(self, norm: float) -> str:
        losses = [float(loss) for loss in self._step_losses]
        what = "loss" if not all(map(_finite, losses)) else f"gradient (norm {norm})"
        rows = [e for cut in self._step_batches for e in cut.examples]
        guilty = [example.id for example, batch in self._single_rows() if self._is_bad(batch)]
        names = ", ".join((guilty or [e.id for e in rows])[:8])
        saved = sorted(Path(self.args.output_dir).glob("checkpoint-*"))
        advice = "go on from the last checkpoint with align resume" if saved else "no checkpoint was saved yet"
        return (
            f"non-finite {what} at step {self.state.global_step + 1}, rows {names}"
            f"{' and more' if len(guilty or rows) > 8 else ''}; the weights were left as they were, {advice} "
            "(a lower train.learning_rate or train.max_grad_norm often helps)"
        )

    def _single_rows(self) -> Iterator[tuple[Example, Batch]]:
        for cut in self._step_batches:
            for i, example in enumerate(cut.examples):
                yield example, cut.rows([i])

    def _is_bad(self, batch: Batch) -> bool:
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self.parts.session.compute_loss(self.parts.policy, batch, self.progress)
        return not all(_finite(float(term.sum)) for term in output.terms)

    # ------------------------------------------------------------------ logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace Trainer's running means (wrong after a resume) by exact ones, and add tokens, speed and memory."""
        if "loss" in logs:
            drained = self.sums.drain()
            steps = max(drained["loss"][1], 1)
            values = {name: total / (count or steps) for name, (total, count) in drained.items()}
            now = time.perf_counter()
            spent = self._over_ranks(self._window_tokens)
            logs = logs | values | {"tokens": self._over_ranks(self.tokens_seen), "memory_gb": peak_memory_gb()}
            logs["tokens_per_second"] = spent / max(now - self._window_start, 1e-9)
            self._window_tokens, self._window_start = 0, now
        super().log(logs, start_time)

    def _over_ranks(self, value: int, op: Any = None) -> int:
        if self.args.world_size == 1:
            return value
        box = torch.tensor([value], dtype=torch.int64, device=self.args.device)
        dist.all_reduce(box, op=op or dist.ReduceOp.SUM)
        return int(box)

    def _most_over_ranks(self, value: int) -> int:
        return value if self.args.world_size == 1 else self._over_ranks(value, dist.ReduceOp.MAX)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: Trainer would count the ticker's empty batches (tokens are counted exactly instead)."""
        return 0

    # ------------------------------------------------------------------ evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the method's loss and metrics over the held-out rows, exact whatever the batches.

        Random numbers are left untouched, so that a run resumes to the same weights whether or not it evaluated.
        """
        examples: Sequence[Example] = self.parts.eval if eval_dataset is None else eval_dataset
        model = self.model  # not DDP's wrapper, whose forward broadcasts buffers and waits for ranks with more batches
        training = model.training
        self.parts.policy.model = model
        sums, weights = MetricSums(self.args.device), dict[str, float]()
        mine = range(self.args.process_index, len(examples), self.args.world_size)
        batches = list(by_length([examples[i] for i in mine], self.parts.tokens_per_micro_batch))
        model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            for number, which in enumerate(batches):
                rows = self.steps.rows("eval", examples, [mine[i] for i in which])
                with self.compute_loss_context_manager():
                    prepared = self.steps.prepare(rows, number, self.progress, training=False)
                    for batch in self._micro_batches(prepared):
                        output = self.parts.session.compute_loss(self.parts.policy, batch, self.progress)
                        counts = batch.counts
                        for term in output.terms:
                            sums.add(f"loss/{term.name}", term.sum, counts[term.per])
                            weights[f"loss/{term.name}"] = term.weight
                        for name, metric in output.metrics.items():
                            sums.add(name, metric.sum, counts[metric.per])
            for _ in range(self._most_over_ranks(len(batches)) - len(batches)):  # sharded weights: all ranks or none
                self.steps.zero_loss()
        model.train(training)
        values = {name: total / max(count, 1) for name, (total, count) in sums.drain().items()}
        values = {"loss": sum(values[name] * weight for name, weight in weights.items()), **values}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    # ------------------------------------------------------------------ state that belongs into a checkpoint

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        sums = {name: pair.cpu() for name, pair in self.sums.pairs.items()}
        state = {"sums": sums, "tokens_seen": self.tokens_seen, "window_tokens": self._window_tokens}
        state |= self.steps.state(self.state.global_step)
        torch.save(state, Path(output_dir) / f"engine_{self.args.process_index}.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = Path(checkpoint or "") / f"engine_{self.args.process_index}.pt"
        if checkpoint and path.is_file():
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.sums.pairs = {name: pair.to(self.args.device) for name, pair in state["sums"].items()}
            self.tokens_seen, self._window_tokens = state["tokens_seen"], state["window_tokens"]
            self.steps.load_state(state)


def _finite(value: float) -> bool:
    return value - value == 0


def release(trainer: Trainer) -> None:
    """Let go of the optimizer and of the data-parallel wrapper, which training is over for."""
    trainer.model_wrapped = trainer.model
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    trainer.accelerator.free_memory()
