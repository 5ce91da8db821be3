"""Losses of preference pairs as plugins (entry-point group ``align.losses``): pure functions of log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from alignkit.contract.batch import Scores


class Answers(NamedTuple):
    """The chosen or the rejected answers of ``G`` pairs, ``[G]`` each: log-probabilities by policy and reference, and tokens."""

    logps: torch.Tensor
    reference: torch.Tensor
    lengths: torch.Tensor

    @property
    def ratios(self) -> torch.Tensor:
        """Log-ratios of policy to reference."""
        return self.logps - self.reference

    @property
    def means(self) -> Answers:
        """The same answers with means over tokens instead of sums."""
        return Answers(self.logps / self.lengths, self.reference / self.lengths, self.lengths)


@dataclass(frozen=True)
class Pairs:
    """What a loss is computed from: both answers of each pair, and the log-probabilities of their scored tokens.

    A loss of the whole step is given no tokens, but ``state``: numbers that it keeps from step to step, in checkpoints too.
    Without a reference, ``tokens_reference`` is None and the answers' log-probabilities by it are NaN. ``of_tokens`` are the
    values of the loss's function of distributions, ``[N]``.
    """

    chosen: Answers
    rejected: Answers
    tokens: Scores | None = None
    tokens_reference: Scores | None = None
    of_tokens: torch.Tensor | None = None
    state: dict[str, float] = field(default_factory=dict)

    @property
    def margins(self) -> torch.Tensor:
        """Log-ratio of the chosen answer minus that of the rejected one, ``[G]``."""
        return self.chosen.ratios - self.rejected.ratios


@dataclass(eq=False)
class Loss:
    """A loss of pairs: a function that returns one number per pair, ``[G]``; its keyword-only arguments are its settings.

    The engine divides the sum over pairs by the count ``per`` of the step. A ``whole_step`` loss depends on the other pairs of
    the optimizer step and is given all of them at once. ``nll_weight`` is the weight of the NLL that its paper adds (default of
    the method's ``alpha``). ``reward`` returns the implicit rewards of both answers, for the metrics: by default, ``beta``
    times log-ratios, or without a reference times mean log-probabilities.
    """

    function: Callable[..., torch.Tensor]
    paper: str
    equation: str = ""
    needs: Collection[str] = ()
    """``{"reference"}`` if it uses log-probabilities of the reference."""
    rows: str = "preference"
    per: str = "rows"
    of_tokens: Callable[..., torch.Tensor] | None = None
    """Function of tokens' log-probabilities ``[n, V]`` by the policy (and reference) and settings, in chunks: a value per token."""
    whole_step: bool = False
    nll_weight: float = 0.0
    reward: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None

    def __post_init__(self) -> None:
        update_wrapper(self, self.function)

    def __call__(self, pairs: Pairs, **settings: Any) -> torch.Tensor:
        return self.function(pairs, **settings)


def loss(paper: str, **declared: Any) -> Callable[[Callable[..., torch.Tensor]], Loss]:
    """Return a decorator that makes a function a :class:`Loss` with these declarations."""
    return partial(Loss, paper=paper, **declared)
