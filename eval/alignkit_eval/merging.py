"""How the weights of several runs become those of one model.

The mean of the weights of models trained from one start is a model soup (Wortsman et al. 2022, arXiv:2203.05482). The other
methods combine what training changed, the task vectors, and add the result to the start model:

    task_arithmetic  weighted sum                                                             Ilharco et al. 2023, arXiv:2212.04089
    ties             largest changes only, of the sign that has most of their sum, then mean     Yadav et al. 2023, arXiv:2306.01708
    dare_linear      random changes only, scaled up for those left out, then weighted sum        Yu et al. 2024, arXiv:2311.03099
    dare_ties        as dare_linear, with the signs of ties

The formulas are peft's, applied to each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from alignkit.errors import ConfigError

if TYPE_CHECKING:
    import torch

MergeMethod = Literal["mean", "task_arithmetic", "ties", "dare_linear", "dare_ties"]

DENSITY: Mapping[MergeMethod, float] = {"ties": 0.2, "dare_linear": 0.1, "dare_ties": 0.1}
"""Share of the changes that is kept by default, as in the papers: the largest fifth, a random tenth."""


@dataclass(frozen=True)
class Merging:
    """A method of merging with its settings, as given.

    Args:
        method: how weights are combined.
        weights: a factor for each run: of a mean they sum to 1 (default: equal), of changes the default is 1.
        density: share of the changes that is kept by ties and dare (default: :data:`DENSITY`).
        seed: random seed of dare.
    """

    method: MergeMethod = "mean"
    weights: Sequence[float] | None = None
    density: float | None = None
    seed: int | None = None

    @property
    def of_changes(self) -> bool:
        """Whether changes are combined, so that the start model is needed."""
        return self.method != "mean"

    def factors(self, count: int) -> list[float]:
        """Return the factor of each of ``count`` runs; raises :class:`ConfigError` for settings that do not fit."""
        if self.method not in get_args(MergeMethod):
            raise ConfigError(
                f"unknown method of merging {self.method!r} (the methods are {', '.join(get_args(MergeMethod))})"
            )
        if self.of_changes and count < 2:
            raise ConfigError(f"{self.method} combines several runs, and there is one: name others with --merge")
        if self.density is not None and self.method not in DENSITY:
            raise ConfigError(f"a density has no effect with {self.method} ({', '.join(DENSITY)} use it)")
        if self.density is not None and not 0 < self.density <= 1:
            raise ConfigError(f"the density is {self.density:g}, not above 0 and at most 1")
        if self.seed is not None and not self.method.startswith("dare"):
            raise ConfigError(f"a seed has no effect with {self.method} (dare_linear and dare_ties use it)")
        shares = list(self.weights or [1.0 if self.of_changes else 1 / count] * count)
        if len(shares) != count:
            raise ConfigError(f"{count} runs are merged, and {len(shares)} weights were given")
        if not self.of_changes and abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(f"the weights sum to {sum(shares):g}, not to 1")
        return shares

    def describe(self) -> str:
        """Return the beginning of a sentence about a merged model."""
        if not self.of_changes:
            return "The weighted mean of the weights"
        share = f" with density {self.density or DENSITY[self.method]:g}" if self.method in DENSITY else ""
        seed = f" and seed {self.seed or 0}" if self.method.startswith("dare") else ""
        return f"The start model plus the changes, combined by {self.method}{share}{seed},"

    def combine(
        self, start: Mapping[str, torch.Tensor], states: Iterable[Mapping[str, torch.Tensor]], count: int
    ) -> dict[str, torch.Tensor]:
        """Return the merged state, in float64, of ``count`` models with the same names and shapes.

        Args:
            start: state of the start model; not used by the mean.
            states: state of each run's model, read one after another; the mean keeps none of them.
        """
        import torch

        factors = self.factors(count)
        if not self.of_changes:
            total: dict[str, torch.Tensor] = {}
            for factor, state in zip(factors, states, strict=True):
                for name, tensor in state.items():
                    total[name] = total.get(name, 0) + tensor.double() * factor
            return total
        kept, merged = list(states), {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed or 0)
            for name, tensor in start.items():
                begin = tensor.double()
                changes = [state[name].double() - begin for state in kept]
                merged[name] = begin + self._formula()(changes, torch.tensor(factors, dtype=torch.float64))
        return merged

    def _formula(self) -> Callable[..., Any]:
        from functools import partial

        from peft.utils import merge_utils

        formula: Callable[..., Any] = getattr(merge_utils, self.method)
        return partial(formula, density=self.density or DENSITY[self.method]) if self.method in DENSITY else formula
