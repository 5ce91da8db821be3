"""The training loop: ``transformers.Trainer`` around an optimizer step of our own.

One Trainer batch is one optimizer step. Read :meth:`AlignTrainer.training_step` from top to bottom, with
:mod:`alignkit.training.steps` for the rows:

1. rows of the step: a pure function of seed, step and rank (``Steps.rows_of_step``);
2. the method prepares them (``align_prepare_batch``): rollouts, statistics of the whole step (``Steps.prepare``);
3. cut into micro-batches by a token budget, which bounds memory whatever the lengths;
4. counts over the whole step and all ranks, known before the first backward pass;
5. a forward and a backward pass a micro-batch: every loss term is a sum divided by its count of the whole step, so that
   neither the loss nor its gradient depends on how the step was cut;
6. the guard: nothing that is not finite reaches the weights.

Trainer then clips the gradient (``max_grad_norm``), calls ``optimizer.step()`` and the scheduler's, and logs, evaluates and
saves when they are due.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from transformers import Trainer

from alignkit.contract import Batch, LossOutput
from alignkit.scoring.evaluating import cast_once
from alignkit.scoring.in_step import in_step
from alignkit.system.distributed import each_rank
from alignkit.training.checkpoints import CriticApart, WholeCheckpoints
from alignkit.training.held_out import held_out_loss
from alignkit.training.metrics import TrainingLog
from alignkit.training.non_finite import check_finite, gradient_norm, guilty_rows, watch_gradients
from alignkit.training.parts import EngineParts
from alignkit.training.sharded import ShardedState
from alignkit.training.steps import Steps


class AlignTrainer(WholeCheckpoints, ShardedState, CriticApart, Trainer):
    """``transformers.Trainer`` with alignkit's optimizer step, logging, held-out loss and checkpoints."""

    def __init__(self, parts: EngineParts) -> None:
        self.parts = parts
        # The layers have Liger's kernels already, and Trainer would also replace the scorer's forward.
        parts.arguments.use_liger_kernel = False
        super().__init__(
            model=parts.model,
            args=parts.arguments,
            train_dataset=parts.train,
            eval_dataset=parts.eval,
            processing_class=parts.tokenizer,
            callbacks=list(parts.callbacks),
        )
        self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO  # layers are compiled, not the model
        self.taken: list[torch.Tensor] = []
        if self.is_deepspeed_enabled:
            watch_gradients(self.model, self.taken)
        self.steps = Steps(parts, self.args.process_index, self.args.world_size)
        self.numbers = TrainingLog(self.args.device, first=self.args.process_index == 0)

    def get_train_dataloader(self) -> Any:
        """Return a ticker: one empty batch an optimizer step. Rows follow from the step's number, so resuming is exact."""
        return torch.utils.data.DataLoader(range(self.steps.per_epoch), collate_fn=lambda _: {})  # type: ignore[arg-type]

    @property
    def progress(self) -> float:
        """Share of training done, 0 to 1."""
        return float(self.state.global_step / max(self.state.max_steps, 1))

    # ------------------------------------------------------------------ the step

    @cast_once()
    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run the forward and backward passes of one optimizer step and return its loss, a scalar."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # schedule-free optimizers
        self.parts.policy.model = model
        self.steps.total = self.state.max_steps
        with self.compute_loss_context_manager():
            batch = self.steps.batch(self.state.global_step, self.progress)
        cuts, losses = self.passes(model, batch)
        self.steps.read_ahead(self.state.global_step + 1)
        self._check_finite(model, cuts, losses)
        if self.is_deepspeed_enabled:
            self.deepspeed.step()
        total = torch.stack(losses).sum()
        self.numbers.add_step(total / self.args.world_size, sum(example.tokens for example in batch.examples))
        return total

    def passes(self, model: torch.nn.Module, batch: Batch) -> tuple[list[Batch], list[torch.Tensor]]:
        """Run the forward and backward passes of a step; return its micro-batches and losses. It can be repeated."""
        cuts = self.parts.cut(batch)
        counts, passes = self._counts_of_step(batch, len(cuts))
        self.numbers.pending, losses = [], []
        self.taken.clear()
        for k in range(passes):
            last = k == passes - 1  # gradients are reduced over ranks in the last pass only
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                with in_step(self.parts.policy, self.steps.filler):
                    loss = self._micro_batch_loss(cuts[k], counts) if k < len(cuts) else self.steps.zero_loss()
                if self.is_deepspeed_enabled:  # accelerate would take the optimizer step in it
                    self.deepspeed.set_gradient_accumulation_boundary(last)
                    self.deepspeed.backward(loss)
                else:
                    self.accelerator.backward(loss)
            losses.append(loss.detach())
        return cuts, losses

    def _counts_of_step(self, batch: Batch, cuts: int) -> tuple[dict[str, float], int]:
        """Return every count over the whole step and all ranks (at least 1), and the passes of the rank with the most.

        A rank with fewer micro-batches than that still takes part in the collectives, with a loss of zero.
        """
        counts = batch.counts
        names = sorted(counts)
        *columns, passes = zip(*each_rank(*(counts[name] for name in names), cuts), strict=True)
        return {name: max(sum(own), 1.0) for name, own in zip(names, columns, strict=True)}, int(max(passes))

    def _micro_batch_loss(self, cut: Batch, counts: Mapping[str, float]) -> torch.Tensor:
        """Return a micro-batch's share of the step's loss: ``sum_i weight_i * sum_i / count_i`` over its terms, a scalar."""
        output = self._loss_of(cut)
        self.numbers.add_micro_batch(output, cut.counts, counts)
        # A term of weight 0 is logged only: 0.0 times its gradient would still change bits.
        parts = [term.sum * (term.weight / counts[term.per]) for term in output.terms if term.weight != 0]
        loss: torch.Tensor = torch.stack(parts).sum() if len(parts) > 1 else parts[0]
        return loss * int(self.args.world_size)  # DDP and FSDP average over ranks

    def _loss_of(self, cut: Batch) -> LossOutput:
        with self.compute_loss_context_manager():
            return self.parts.session.compute_loss(self.parts.policy, cut, self.progress)

    def gradient_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Return the 2-norm of the gradients of a step, before they are clipped."""
        return gradient_norm(model, self.taken)

    def _check_finite(self, model: torch.nn.Module, cuts: list[Batch], losses: list[torch.Tensor]) -> None:
        """Stop before the optimizer. The gradient is checked before it is clipped: an overflowing norm clips it to zeros."""

        def describe(what: str) -> str:
            with torch.no_grad(), in_step(self.parts.policy, self.steps.filler):
                rows = guilty_rows(cuts, self._loss_of)
            saved = any(Path(self.args.output_dir).glob("checkpoint-*"))
            return (
                f"non-finite {what} at step {self.state.global_step + 1}, rows {rows}; the weights were not updated, "
                f"{'resume from the last checkpoint with align resume' if saved else 'no checkpoint was saved yet'} "
                "(a lower train.learning_rate or train.max_grad_norm often helps)"
            )

        norm = None if self.args.fp16 else self.gradient_norm(model)
        check_finite(losses, norm, describe, self.args.device)

    # ------------------------------------------------------------------ what Trainer does besides

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace Trainer's running means (wrong after a resume) by exact ones, and add tokens, speed and memory."""
        super().log(logs | self.numbers.drain() if "loss" in logs else logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: Trainer would count the ticker's empty batches (tokens are counted exactly instead)."""
        return 0

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the method's loss and metrics over held-out rows, exact for any cut into batches."""
        rows = self.parts.eval if eval_dataset is None else eval_dataset
        values = held_out_loss(self.steps, self.model, rows, self.progress, self.compute_loss_context_manager)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    # ------------------------------------------------------------------ what a checkpoint keeps besides Trainer's state

    def engine_state(self) -> dict[str, Any]:
        return self.numbers.state() | self.steps.state(self.state.global_step)

    def load_engine_state(self, state: Mapping[str, Any]) -> None:
        self.numbers.load_state(state)
        self.steps.load_state(state)
