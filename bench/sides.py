"""The two sides of the comparison: alignkit's and TRL's trainer, each able to run any optimizer step."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from alignkit.contract.batch import Example
from alignkit.data.order.row_order import RowOrder

from bench.cells import BenchCell
from bench.models import adapter, build

BETA = 0.1
"""DPO's beta and ORPO's lambda (both called beta in TRL)."""

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
        return RowOrder(len(self.examples), self.cell.seed).step(self.cell.rows, number, 0)


class Ours(Side):
    """alignkit's trainer, built as by ``align run``."""

    name = "alignkit"

    def __init__(self, cell: BenchCell, steps: int) -> None:
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
        config = _configuration(cell, steps)
        session = Session.open(config)
        arguments, shape = training_arguments(config, self.directory)
        model = build(cell)
        if cell.tuning == "lora":
            from peft import get_peft_model

            model = get_peft_model(model, adapter())
        if cell.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING)
        policy = ModelPolicy(model, install(model))
        set_precision(innermost(model), config)
        references = {}
        if "reference" in session.method.needs:
            references["train"] = score_rows(policy, self.examples, shape.tokens_per_micro_batch)
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
            tokens_per_micro_batch=shape.tokens_per_micro_batch,
            seed=config.run.seed,
            references=references,
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
    """TRL's trainer of the method, with tokenised rows."""

    name = "TRL"

    def __init__(self, cell: BenchCell, steps: int) -> None:
        super().__init__(cell, steps)
        rows = [_trl_row(example) for example in self.examples]
        make = {"orpo": _trl_orpo, "dpo": _trl_dpo}[cell.method]
        model = build(cell)
        self.trainer = make(cell, model, rows, self.directory)
        if cell.checkpointing:
            self.trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING)
        self.trainer.current_gradient_accumulation_steps = 1  # normally set by the training loop
        self.model = self.trainer.accelerator.prepare_model(self.trainer.model)
        keys = _COLUMNS[cell.method]
        self._rows = [{key: row[key] for key in keys} for row in self.trainer.train_dataset]

    def step(self, number: int) -> torch.Tensor:
        """Run the collator and ``training_step``."""
        loss: torch.Tensor = self.trainer.training_step(self.model, self._batch(number))
        return loss

    def reference(self, number: int) -> torch.Tensor:
        """Score a batch as ``precompute_ref_log_probs`` does, without writing to disk."""
        inputs = self.trainer._prepare_inputs(self._batch(number))
        return torch.cat(self.trainer.compute_ref_log_probs(self.model, inputs)).cpu()

    def _batch(self, number: int) -> Any:
        return self.trainer.data_collator([self._rows[i] for i in self.rows(number)])


SIDES: dict[str, type[Ours] | type[Theirs]] = {"ours": Ours, "trl": Theirs}


def _configuration(cell: BenchCell, steps: int) -> Any:
    from alignkit.config import RunConfig
    from alignkit.settings import check_config

    method = {"orpo": {"name": "orpo", "convention": "trl", "lambda": BETA}, "dpo": {"name": "dpo", "beta": BETA}}
    train = {
        "per_device_train_batch_size": cell.rows,
        "max_steps": steps,
        "save_strategy": "no",
        "use_cpu": cell.device == "cpu",
        "bf16": cell.bf16,
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


# ---------------------------------------------------------------------------------------------- TRL

_COLUMNS = {
    "orpo": [f"{side}_{kind}" for side in ("chosen", "rejected") for kind in ("input_ids", "attention_mask", "labels")]
    + ["prompt_input_ids", "prompt_attention_mask"],
    "dpo": ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"],
}
"""The columns each trainer's collator uses."""


def _trl_row(example: Example) -> dict[str, Any]:
    chosen, rejected = example.completions
    return {"prompt_ids": list(example.prompt), "chosen_ids": list(chosen), "rejected_ids": list(rejected)}


def _trl_arguments(kind: Any, cell: BenchCell, directory: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(directory),
        per_device_train_batch_size=cell.rows,
        beta=BETA,
        bf16=cell.bf16,
        gradient_checkpointing=False,  # with --checkpointing it is enabled on both sides by hand
        use_cpu=cell.device == "cpu",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=cell.seed,
        **more,
    )


def _trl_orpo(cell: BenchCell, model: Any, rows: list[dict[str, Any]], directory: Path) -> Any:
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class Tokenised(ORPOTrainer):  # type: ignore[misc]
        """ORPOTrainer for tokenised rows: makes the columns of the original ``tokenize_row``."""

        def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
            prompt = feature["prompt_ids"]
            columns = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
            for side in ("chosen", "rejected"):
                ids = prompt + feature[f"{side}_ids"]
                columns[f"{side}_input_ids"] = ids
                columns[f"{side}_attention_mask"] = [1] * len(ids)
                columns[f"{side}_labels"] = [-100] * len(prompt) + feature[f"{side}_ids"]
            return columns

    texts = [row | {"prompt": "", "chosen": "", "rejected": ""} for row in rows]
    return Tokenised(
        model,
        _trl_arguments(ORPOConfig, cell, directory, remove_unused_columns=False),
        train_dataset=Dataset.from_list(texts),
        processing_class=_tokenizer(),
        peft_config=adapter() if cell.tuning == "lora" else None,
    )


def _trl_dpo(cell: BenchCell, model: Any, rows: list[dict[str, Any]], directory: Path) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):  # type: ignore[misc]
        """DPOTrainer for tokenised rows."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    return Tokenised(
        model,
        args=_trl_arguments(DPOConfig, cell, directory, precompute_ref_log_probs=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
        peft_config=adapter() if cell.tuning == "lora" else None,
    )


def _tokenizer() -> Any:
    """Return a tokenizer with three special tokens, which TRL requires although the rows are tokenised."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
