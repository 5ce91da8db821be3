"""The two sides of the comparison: alignkit's and TRL's trainer, each able to run any optimizer step."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from alignkit.data.order import RowOrder

from bench.cells import BenchCell
from bench.models import adapter, build
from bench.trl import BETA, COLUMNS, Settings, make_trainer, rollout_batch, split, trl_row

CHECKPOINTING = {"use_reentrant": False}


class Side(ABC):
    """A trainer with its model and rows."""

    name: str
    model: Any

    def __init__(self, cell: BenchCell, steps: int) -> None:
        self.cell = cell
        self.examples = cell.examples(steps)
        self._directory = tempfile.TemporaryDirectory(prefix="bench-")

    @property
    def directory(self) -> Path:
        """A temporary directory for the trainer, removed with this object."""
        return Path(self._directory.name)

    @abstractmethod
    def step(self, number: int) -> torch.Tensor:
        """Run the forward and backward passes of optimizer step ``number`` (from 0); return the loss."""

    @abstractmethod
    def reference(self, number: int) -> torch.Tensor:
        """Return DPO's reference log-probabilities of the rows of step ``number``: all chosen, then all rejected, ``[2 G]``."""

    def rows(self, number: int) -> list[int]:
        """Return the rows of a step, the same for both sides."""
        return rows_of_step(self.cell, len(self.examples), number)


class Ours(Side):
    """alignkit's trainer, built as by ``align run``; ``train`` are more settings of its section ``train``."""

    name = "alignkit"

    def __init__(
        self, cell: BenchCell, steps: int, tokens_per_micro_batch: int | None = None, **train: bool | str
    ) -> None:
        from alignkit.scoring.backends import innermost
        from alignkit.scoring.policy import ModelPolicy
        from alignkit.scoring.reference import score_rows
        from alignkit.scoring.scorer import install
        from alignkit.settings.training_arguments import training_arguments
        from alignkit.training.parts import EngineParts
        from alignkit.training.session import Session
        from alignkit.training.trainer import AlignTrainer
        from alignkit_precision import set_precision

        super().__init__(cell, steps)
        config = configuration(cell, steps, train)
        session = Session.open(config)
        arguments, shape = training_arguments(config, self.directory)
        model = build(cell)
        if cell.tuning == "lora":
            from peft import get_peft_model

            model = get_peft_model(model, adapter())
        if cell.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING)
        self.policy = policy = ModelPolicy(model, install(model))
        set_precision(innermost(model), config)
        tokens = tokens_per_micro_batch or shape.tokens_per_micro_batch
        references, rollouts = {}, None
        if "reward" in session.method.needs:
            from bench.rollouts import fixed_rollouts

            rollouts = fixed_rollouts(session.method.settings, self.examples, tokens)
        elif "reference" in session.method.needs:
            references["train"] = score_rows(policy, self.examples, tokens)
        parts = EngineParts(
            session=session,
            model=model,
            tokenizer=None,  # nothing is saved or decoded
            policy=policy,
            train=self.examples,
            eval=[],
            arguments=arguments,
            rows_per_step=shape.rows,
            rows_per_micro_batch=shape.rows_per_micro_batch,
            tokens_per_micro_batch=tokens,
            seed=config.run.seed,
            references=references,
            rollouts=rollouts,
        )
        self.trainer = AlignTrainer(parts)
        self.trainer.state.max_steps = steps
        self.model = self.trainer.accelerator.prepare_model(self.trainer.model)

    def step(self, number: int) -> torch.Tensor:
        """Run ``AlignTrainer.training_step``."""
        self.trainer.state.global_step = number
        return self.trainer.training_step(self.model, {})

    def reference(self, number: int) -> torch.Tensor:
        """Score rows as for the cache of reference log-probabilities."""
        from alignkit.scoring.reference import score_rows

        rows = [self.examples[i] for i in self.rows(number)]
        logps = score_rows(self.trainer.parts.policy, rows, self.trainer.parts.tokens_per_micro_batch)
        sums = []
        for i, example in enumerate(rows):
            first = len(example.completions[0])
            sums.append([float(logps[i][:first].sum()), float(logps[i][first:].sum())])
        return torch.tensor(sums).t().flatten()


class Theirs(Side):
    """TRL's trainer of the method, with tokenised rows.

    Args:
        settings: TRL's settings (None: its defaults).
        parts: micro-batches of a step.
    """

    name = "TRL"

    def __init__(self, cell: BenchCell, steps: int, settings: Settings | None = None, parts: int = 1) -> None:
        super().__init__(cell, steps)
        self.settings, self.parts = settings or Settings(), parts
        model = build(cell, self.settings.attention)
        rows = [trl_row(example) for example in self.examples]
        self.trainer = make_trainer(cell, model, rows, self.directory, self.settings, parts)
        if cell.checkpointing:
            self.trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING)
        self.trainer.current_gradient_accumulation_steps = parts  # normally set by the training loop
        self.model = self.trainer.accelerator.prepare_model(self.trainer.model)
        if cell.method != "grpo":
            keys = COLUMNS[cell.method]
            self._rows = [{key: row[key] for key in keys if key in row} for row in self.trainer.train_dataset]

    def step(self, number: int) -> torch.Tensor:
        """Run the collator and ``training_step``."""
        rows = self.rows(number)
        batches = [self._batch(part) for part in split(rows, self.parts)]
        losses = [self.trainer.training_step(self.model, batch, None) for batch in batches]
        return torch.stack(losses).sum()

    def reference(self, number: int) -> torch.Tensor:
        """Score a batch as ``precompute_ref_log_probs`` does, without writing to disk."""
        inputs = self.trainer._prepare_inputs(self._batch(self.rows(number)))
        return torch.cat(self.trainer.compute_ref_log_probs(self.model, inputs)).cpu()

    def _batch(self, rows: list[int]) -> Any:
        if self.cell.method == "grpo":
            return rollout_batch([self.examples[i] for i in rows], self.trainer.accelerator.device)
        return self.trainer.data_collator([self._rows[i] for i in rows])


SIDES: dict[str, type[Ours] | type[Theirs]] = {"ours": Ours, "trl": Theirs}


def rows_of_step(cell: BenchCell, count: int, number: int) -> list[int]:
    """Return which of ``count`` rows step ``number`` has."""
    return RowOrder(count, cell.seed).step(cell.rows, number, 0)


def configuration(cell: BenchCell, steps: int, more: dict[str, Any]) -> Any:
    """Return the configuration of alignkit's side; ``more`` are settings of its section ``train``."""
    from alignkit.config import RunConfig
    from alignkit.settings import check_config

    method = {
        "orpo": {"name": "orpo", "convention": "trl", "lambda": BETA},
        "dpo": {"name": "dpo", "beta": BETA},
        "sft": {"name": "sft"},
        "grpo": {"name": "grpo", "rewards": ["length"], "max_new_tokens": cell.workload.completion[1]},
    }
    train = {
        "per_device_train_batch_size": cell.rows,
        "max_steps": steps,
        "save_strategy": "no",
        "use_cpu": cell.device == "cpu",
        "bf16": cell.bf16,
        **more,
    }
    return check_config(
        RunConfig.model_validate(
            {
                "method": method[cell.method],
                "model": "built-by-the-benchmark",
                "data": "built-by-the-benchmark",
                "train": train,
                "eval": {"suites": []},
                "run": {"seed": cell.seed},
            }
        )
    )
