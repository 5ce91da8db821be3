"""Conversion of a run's parts to the arguments of a TRL trainer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from alignkit import Answered
from alignkit.errors import PluginError
from transformers import TrainerCallback, TrainingArguments

if TYPE_CHECKING:
    from alignkit import NamedReward, Row, TrainerParts


def arguments(kind: Any, parts: TrainerParts, settings: dict[str, Any]) -> Any:
    """Return TRL's configuration: the run's training arguments, updated by the method's settings.

    TRL accumulates micro-batches itself: a step has ``per_device_train_batch_size`` times the accumulation rows.
    """
    given = parts.arguments
    values = {f.name: getattr(given, f.name) for f in dataclasses.fields(TrainingArguments) if f.init}
    accumulation = max(parts.rows_per_step // (parts.rows_per_micro_batch * given.world_size), 1)
    return kind(**values | settings | {"gradient_accumulation_steps": accumulation})


def columns(rows: Sequence[Row], kind: str) -> Any:
    """Return rows as a data set in TRL's format, with conversations as messages."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    names = {"preference": ("chosen", "rejected"), "completion": ("completion",), "unpaired": ("completion",)}
    table: dict[str, list[Any]] = {"prompt": [_plain(row.prompt) for row in rows]}
    for i, name in enumerate(names.get(kind, ())):
        table[name] = [_plain(row.answers[i]) for row in rows]
    if kind == "unpaired":
        table["label"] = [bool(row.fields["label"]) for row in rows]
    if kind == "prompt":
        # Rewards are given a row's own fields; Arrow cannot hold lists and objects of several types.
        plain = (name for row in rows for name, v in row.fields.items() if isinstance(v, (str, int, float, bool)))
        others = set(plain) - table.keys()
        table |= {name: [row.fields.get(name) for row in rows] for name in sorted(others)}
        table["row"] = list(range(len(rows)))
    return datasets.Dataset.from_dict(table)


def _plain(text: Any) -> Any:
    return text if isinstance(text, str) else [dict(message) for message in text]


class OurOrder(torch.utils.data.Sampler[int]):
    """Rows in the order of alignkit's engine, so that runs of both train on the same rows in the same steps."""

    def __init__(self, parts: TrainerParts) -> None:
        self.parts, self.epoch = parts, 0

    def __len__(self) -> int:
        return len(self.parts.rows_of_epoch(0))

    def __iter__(self) -> Iterator[int]:
        return iter(self.parts.rows_of_epoch(self.epoch))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by the data loader."""
        self.epoch = epoch


def in_our_order(trainer: Any, parts: TrainerParts) -> Any:
    """Return the trainer class with its training rows in alignkit's order.

    Raises ``PluginError`` where accelerate would not keep it.
    """

    class InOurOrder(trainer):
        def get_train_dataloader(self) -> Any:
            loader, order = super().get_train_dataloader(), OurOrder(parts)
            loader.set_sampler(order)
            if loader.get_sampler() is not order:
                raise PluginError(
                    f"{trainer.__name__} does not read its rows in alignkit's order with this version of accelerate"
                )
            return loader

    InOurOrder.__name__ = trainer.__name__
    return InOurOrder


class RunMetrics(TrainerCallback):
    """Adds the metrics that every run logs to TRL's records: tokens so far and memory."""

    def __init__(self, parts: TrainerParts, memory: Callable[[], float]) -> None:
        self.parts, self.memory = parts, memory
        self._steps = self._count = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        tokens = logs.pop("num_tokens", None)
        logs["tokens"] = int(self._tokens(state) if tokens is None else tokens)
        logs["memory_gb"] = self.memory()

    def _tokens(self, state: Any) -> int:
        """Return the tokens trained on so far; a prompt counts once per completion, because TRL does not share it.

        Only the steps since the last call are counted.
        """
        for step in range(self._steps, state.global_step):
            rows = (self.parts.train[row] for row in self.parts.rows_of_step(step, state.max_steps))
            self._count += sum(sum(len(row.prompt) + len(c) for c in row.completions) for row in rows)
        self._steps = state.global_step
        return self._count


def as_trl_reward(reward: NamedReward, rows: Sequence[Row], tokenizer: Any) -> Any:
    """Return a reward of alignkit as a reward function of TRL."""

    def reward_function(prompts: Any, completions: Any, completion_ids: Any, row: Any, **_: Any) -> list[float | None]:
        answers = [
            Answered(
                id=rows[number].id,
                prompt=rows[number].prompt,
                answer=completion if isinstance(completion, str) else str(completion[-1]["content"]),
                prompt_ids=tokenizer(_text(prompt, tokenizer), add_special_tokens=False)["input_ids"],
                answer_ids=ids,
                ended=bool(ids) and ids[-1] == tokenizer.eos_token_id,
                tokenizer=tokenizer,
                fields=rows[number].fields,
                place=rows[number].place,
            )
            for prompt, completion, ids, number in zip(prompts, completions, completion_ids, row, strict=True)
        ]
        return [None if value != value else value for value in reward(answers)]  # NaN: not judged

    reward_function.__name__ = reward.label
    return reward_function


def _text(prompt: Any, tokenizer: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
