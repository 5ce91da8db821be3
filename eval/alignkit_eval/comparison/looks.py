"""The record of a race: its plan, its looks, the arms that left, and what was saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from alignkit.config import Section, Words
from pydantic import Field, field_validator

from alignkit_eval.comparison.racing import Shortfall
from alignkit_eval.comparison.result import total

Share = Annotated[float, Field(gt=0, lt=1)]


class RaceSettings(Section):
    """The plan of a race: ``align sweep --race``, and the section ``race`` of the sweep's configuration file."""

    rungs: list[Share] = Field(
        [0.25, 0.5, 0.75], min_length=1, description="shares of each arm's training at which the arms are compared"
    )
    alpha: float = Field(
        0.05, gt=0, le=0.5, description="probability that an arm that is never truly worse than another one is stopped"
    )
    spending: Literal["pocock", "obrien-fleming"] = Field(
        "pocock", description="how the error is spent over the rungs: pocock early, obrien-fleming late"
    )
    objective: Words = Field(
        default_factory=list,
        description="metrics that decide, an arm being worse if it is by all of them (default: compare.objective, else accuracy by sum and by mean)",
    )

    @field_validator("rungs")
    @classmethod
    def _in_order(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError("must increase")
        return value


@dataclass(frozen=True)
class Departure:
    """An arm that was stopped, and why."""

    arm: str
    than: str
    """The arm that it is worse than."""
    shortfalls: tuple[Shortfall, ...]
    """Arm minus other, by every deciding metric."""
    p: float
    """Largest p of the metrics, corrected for arms and opponents; at most the look's level."""
    saved_tokens: float | None = None
    """Training tokens that its seeds were not trained on, at the rate so far; None where unknown."""
    saved_cpu_seconds: float | None = None


@dataclass(frozen=True)
class Look:
    """A planned comparison of the arms at a share of their training."""

    rung: float
    level: float
    """Error spent at this look."""
    arms: tuple[str, ...]
    """Arms that were compared."""
    stopped: tuple[Departure, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Race:
    """A race as sweep.json has it."""

    rungs: Sequence[float]
    alpha: float
    spending: str
    objective: Sequence[str]
    arms: Sequence[str]
    looks: list[Look] = field(default_factory=list)
    revived: list[str] = field(default_factory=list)
    spent_tokens: float | None = None
    """Training tokens of all cells so far, of revived arms too."""

    @property
    def departures(self) -> list[tuple[Look, Departure]]:
        """Every arm that was stopped, with the look at which it was."""
        return [(look, gone) for look in self.looks for gone in look.stopped]

    @property
    def stopped(self) -> set[str]:
        """Arms that were stopped, revived ones included."""
        return {gone.arm for _, gone in self.departures}

    def saved(self) -> tuple[float | None, float | None, float | None]:
        """Return what arms that were not revived saved: tokens, their share of the whole grid's, and CPU seconds."""
        gone = [departure for _, departure in self.departures if departure.arm not in self.revived]
        tokens = total([departure.saved_tokens for departure in gone])
        whole = None if tokens is None or self.spent_tokens is None else tokens + self.spent_tokens
        return tokens, tokens / whole if tokens and whole else None, total([one.saved_cpu_seconds for one in gone])
