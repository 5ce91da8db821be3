"""Shared prefixes as verl has them: GRPO's loss through the package prefix-grouper, a prompt once for all of its answers."""

from __future__ import annotations

from typing import Any

import torch

from bench.cells import BenchCell
from bench.gpu import flash
from bench.models import adapter, build
from bench.rollouts import advantages
from bench.sides import CHECKPOINTING, Side
from bench.trl import split

ATTENTION = "prefix_grouper_attention"
CLIP = 0.2


class PrefixGrouper(Side):
    """A training loop of the least parts around a model whose attention is prefix-grouper's."""

    name = "prefix-grouper"

    def __init__(self, cell: BenchCell, steps: int, parts: int = 1) -> None:
        from prefix_grouper.utils.register_transformers import register_attention  # type: ignore[import-not-found]
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        super().__init__(cell, steps)
        self.parts = parts
        flash.register()
        register_attention()
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, lambda *_, **__: None)
        self.model = build(cell, ATTENTION)
        if cell.tuning == "lora":
            from peft import get_peft_model

            self.model = get_peft_model(self.model, adapter())
        if cell.checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING)

    def step(self, number: int) -> torch.Tensor:
        """Run the forward and backward passes of the clipped surrogate over the rows of a step."""
        rows = self.rows(number)
        tokens = sum(len(answer) for i in rows for answer in self.examples[i].completions)
        losses = []
        for part in split(rows, self.parts):
            logps, given = self._logps([self.examples[i] for i in part])
            ratio = (logps - logps.detach()).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            loss = torch.maximum(-ratio * given, -clipped * given).sum() / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def reference(self, number: int) -> torch.Tensor:
        """GRPO is measured without a reference."""
        raise NotImplementedError("prefix-grouper is measured with GRPO alone")

    def _logps(self, examples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probability and the advantage of every token of every answer, ``[N]``."""
        from prefix_grouper import PrefixGrouper as Grouper  # type: ignore[import-not-found]
        from trl.trainer.utils import pad, selective_log_softmax

        device = self.cell.device
        grouper = Grouper([[len(e.prompt), *map(len, e.completions)] for e in examples], device=device)
        ids = pad([torch.tensor(sum((list(a) for a in e.completions), list(e.prompt))) for e in examples]).to(device)
        places = [
            [*range(len(e.prompt)), *(len(e.prompt) + i for a in e.completions for i in range(len(a)))]
            for e in examples
        ]
        positions = pad([torch.tensor(row) for row in places]).to(device)
        with torch.autocast(self.cell.device, torch.bfloat16, enabled=self.cell.bf16):
            inner = self.model.get_base_model() if self.cell.tuning == "lora" else self.model
            states = inner.model(
                input_ids=ids,
                position_ids=positions,
                use_cache=False,
                prefix_grouper=grouper,
                prefix_grouper_attn_func=flash.NAME,
            ).last_hidden_state
            _, _, states, mask = grouper.split_output(states, include_prefix_last=1)
            targets = pad([torch.tensor(answer) for e in examples for answer in e.completions]).to(device)
            scored = mask[:, 1:].bool()
            logits = inner.lm_head(states[:, :-1][scored])
        logps = selective_log_softmax(logits.float(), targets[scored])
        given = advantages(examples).to(device)[:, None].expand(scored.shape)[scored]
        return logps, given
