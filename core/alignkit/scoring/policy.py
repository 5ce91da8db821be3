"""The policy of a method: a causal language model that scores plans, wrapped or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import nn

from alignkit.contract import Distributions, Example, Scores
from alignkit.errors import ConfigError
from alignkit.scoring.backends import TokenLogps
from alignkit.scoring.evaluating import evaluating
from alignkit.scoring.in_step import Meeting
from alignkit.scoring.masks import unread_masks
from alignkit.scoring.plan import Scorer, Wanted
from alignkit.scoring.reference import StartWeights
from alignkit.scoring.scorer import install
from alignkit.system.sharded import is_sharded


class ModelPolicy:
    """A causal language model as a :class:`~alignkit.contract.engines.RunPolicy`."""

    precision: Mapping[str, str] = {}
    """Types of the weights and of the matrix products, for the record."""

    def __init__(self, model: nn.Module, scorer: Scorer | None = None) -> None:
        self.start: StartWeights | None = None
        """The weights of step 0; None if the method does not need them."""
        self.meeting: Meeting | None = None
        self.model = model
        self.scorer = scorer or install(model)

    def keep_start(self) -> None:
        """Keep a copy of the trained weights as they are now, for ``score(reference=True)``."""
        self.start = StartWeights(self.model)

    def score(
        self,
        examples: Sequence[Example],
        *,
        prompt: bool = False,
        grad: bool = True,
        values: bool = False,
        entropy: bool | Literal["grad"] = False,
        temperature: float = 1.0,
        reference: bool = False,
        distributions: Callable[[Distributions], Any] | None = None,
    ) -> Scores:
        """Score every completion of ``examples``, in their order; see :class:`~alignkit.contract.types.Policy`.

        Raises :class:`~alignkit.errors.DataError` for rows that cannot be scored.
        """
        if reference and self.start is None:
            raise KeyError('the policy of step 0 is not kept: declare needs = frozenset({"start"}) on the method')
        if reference and distributions and is_sharded(self.model):  # its head's weights are not kept
            raise ConfigError("the distributions of the policy of step 0 cannot be read from a sharded model")
        if self.meeting is not None:
            gradient = grad and not reference and torch.is_grad_enabled()
            self.meeting.forward(gradient=gradient, values=values, reference=reference)
        with self.start.in_place() if reference and self.start else nullcontext():
            wanted = Wanted(values, entropy, temperature, distributions)
            return self._score(examples, prompt, grad and not reference, wanted)

    def _score(self, examples: Sequence[Example], prompt: bool, grad: bool, wanted: Wanted) -> Scores:
        model: Any = self.model
        plan = self.scorer.plan(examples, prompt=prompt, wanted=wanted).to(next(model.parameters()).device)
        if not grad and isinstance(model, nn.parallel.DistributedDataParallel):
            # Without gradients there is nothing to synchronise, and the wrapper would broadcast buffers, for which all
            # processes must make the same number of calls. Sharded models still need their wrapper.
            model = model.module
        whole = plan.backend in ("packed", "rows")  # their masks are given
        with nullcontext() if whole else unread_masks(plan.padded), nullcontext() if grad else evaluating(model):
            logps = TokenLogps(*model(plan=plan))
        tokens = logps.completions, plan.sequence, plan.lengths, logps.prompts, plan.prompt_row, plan.rows
        return Scores(*tokens, logps.values, logps.entropy, logps.distributions)
