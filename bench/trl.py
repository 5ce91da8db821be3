"""TRL's trainers for tokenised rows, in the settings of one side of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.contract.batch import Example

from bench.cells import ANSWERS, BenchCell
from bench.models import adapter, build

BETA = 0.1
"""DPO's beta and ORPO's lambda (both called beta in TRL)."""

COLUMNS = {
    "orpo": [f"{side}_{kind}" for side in ("chosen", "rejected") for kind in ("input_ids", "attention_mask", "labels")]
    + ["prompt_input_ids", "prompt_attention_mask"],
    "dpo": ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"],
    "sft": ["input_ids", "labels"],
}
"""The columns each trainer's collator uses."""


@dataclass(frozen=True)
class Settings:
    """TRL's settings that a comparison chooses."""

    attention: str = "sdpa"
    """The model's ``attn_implementation``."""
    liger: bool = False
    padding_free: bool = False
    precomputed: bool = True
    """Whether DPO's reference log-probabilities are computed before training; otherwise in every step."""
    notes: dict[str, str] = field(default_factory=dict)
    """Why a setting was not used, by its name."""


def trl_row(example: Example) -> dict[str, Any]:
    """Return the columns of a row that :func:`make_trainer` turns into a method's."""
    names = ("chosen", "rejected")
    answers = {f"{name}_ids": list(ids) for name, ids in zip(names, example.completions, strict=False)}
    return {"prompt_ids": list(example.prompt), **answers}


def make_trainer(
    cell: BenchCell, model: Any, rows: list[dict[str, Any]], directory: Path, settings: Settings, parts: int = 1
) -> Any:
    """Return TRL's trainer of the cell's method; ``parts`` is the number of micro-batches of a step."""
    make = {"orpo": _orpo, "dpo": _dpo, "sft": _sft, "grpo": _grpo}[cell.method]
    trainer = make(cell, model, rows, directory, settings, parts)
    if settings.liger:  # normally applied when training starts
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(trainer.model, trainer.args.liger_kernel_config)
    return trainer


def split(rows: list[int], parts: int) -> list[list[int]]:
    """Return the rows in at most ``parts`` groups of equal size (the last may be smaller)."""
    size = -(-len(rows) // parts)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def rollout_batch(examples: Sequence[Example], device: Any) -> dict[str, Any]:
    """Return what GRPOTrainer makes of a rollout: prompts padded on the left, answers on the right, advantages."""
    import torch
    from trl.trainer.utils import pad

    from bench.rollouts import advantages

    def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [torch.tensor(row) for row in rows]
        masks = pad([torch.ones_like(row) for row in ids], padding_value=0, padding_side=side)
        return pad(ids, padding_value=0, padding_side=side).to(device), masks.to(device)

    pairs = [(list(example.prompt), list(answer)) for example in examples for answer in example.completions]
    prompts, prompt_mask = padded([prompt for prompt, _ in pairs], "left")
    answers, answer_mask = padded([answer for _, answer in pairs], "right")
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": answers,
        "completion_mask": answer_mask,
        "advantages": advantages(examples).to(device),
        "num_items_in_batch": answer_mask.sum(),
    }


def _arguments(
    kind: Any, cell: BenchCell, directory: Path, settings: Settings, parts: int, answers: int = 1, **more: Any
) -> Any:
    liger = {"liger_kernel_config": {"fused_linear_cross_entropy": False}} if settings.liger else {}
    beta = {} if cell.method == "sft" else {"beta": 0.0 if cell.method == "grpo" else BETA}
    return kind(
        output_dir=str(directory),
        per_device_train_batch_size=-(-cell.rows // parts) * answers,
        bf16=cell.bf16,
        gradient_checkpointing=False,  # with checkpointing it is enabled on both sides by hand
        use_cpu=cell.device == "cpu",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=cell.seed,
        use_liger_kernel=settings.liger,
        **liger,
        **beta,
        **more,
    )


def _peft(cell: BenchCell) -> Any:
    return adapter() if cell.tuning == "lora" else None


def _orpo(
    cell: BenchCell, model: Any, rows: list[dict[str, Any]], directory: Path, settings: Settings, parts: int
) -> Any:
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
        _arguments(ORPOConfig, cell, directory, settings, parts, remove_unused_columns=False),
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer(),
        peft_config=_peft(cell),
    )


def _dpo(
    cell: BenchCell, model: Any, rows: list[dict[str, Any]], directory: Path, settings: Settings, parts: int
) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):  # type: ignore[misc]
        """DPOTrainer for tokenised rows."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    # By default, rows are cut to 1,024 tokens.
    more = {"precompute_ref_log_probs": settings.precomputed, "max_length": None}
    kept = settings.precomputed or cell.tuning == "lora"  # an adapter's reference is the model without it
    return Tokenised(
        model,
        ref_model=None if kept else build(cell, settings.attention),
        args=_arguments(DPOConfig, cell, directory, settings, parts, **more),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=_peft(cell),
    )


def _sft(
    cell: BenchCell, model: Any, rows: list[dict[str, Any]], directory: Path, settings: Settings, parts: int
) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    more: dict[str, Any] = {"padding_free": settings.padding_free, "max_length": None}
    labelled = [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
        }
        for row in rows
    ]
    skip = {"skip_prepare_dataset": True}
    return SFTTrainer(
        model,
        args=_arguments(SFTConfig, cell, directory, settings, parts, dataset_kwargs=skip, **more),
        train_dataset=Dataset.from_list(labelled),
        processing_class=tokenizer(),
        peft_config=_peft(cell),
    )


def _grpo(
    cell: BenchCell, model: Any, rows: list[dict[str, Any]], directory: Path, settings: Settings, parts: int
) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Sampled(GRPOTrainer):  # type: ignore[misc]
        """GRPOTrainer whose steps are given rollouts instead of prompts."""

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            return generation_batch

    answers = ANSWERS["grpo"]
    own = {"num_generations": answers, "steps_per_generation": parts, "gradient_accumulation_steps": parts}
    return Sampled(
        model,
        reward_funcs=[_no_reward],
        args=_arguments(GRPOConfig, cell, directory, settings, parts, answers, **own),
        train_dataset=Dataset.from_list([{"prompt": "a"} for _ in rows]),
        processing_class=tokenizer(),
        peft_config=_peft(cell),
    )


def _no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """Return zeros: rollouts come with their advantages."""
    return [0.0] * len(completions)


def tokenizer() -> Any:
    """Return a tokenizer with three special tokens, which TRL requires although the rows are tokenised."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
