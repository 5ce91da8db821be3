"""Notes on looks at the held-out items during training, which the statistics of a comparison do not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit_eval.comparison.arms import Group

_SHOWN = 3
"""Arms named in a note."""


def peeking_notes(groups: Sequence[Group]) -> list[str]:
    """Return a note for each kind of look at held-out items during training, with the arms that had it."""
    found: dict[str, list[str]] = {}
    for group in groups:
        for config in (run.config for run in group.runs):
            for text in (_looks(config), _choice(config)):
                names = found.setdefault(text, [])
                names += [] if group.name in names else [group.name]
    found.pop("", None)
    return [f"{_listed(names)} {'was' if len(names) == 1 else 'were'} {text}" for text, names in found.items()]


def _looks(config: Mapping[str, Any]) -> str:
    during = (config.get("eval") or {}).get("during") or {}
    pauses = (config.get("run") or {}).get("pause_at") or []
    looks = [f"{suite} every {steps} steps" for suite, steps in during.items()]
    looks += [f"pauses at {', '.join(f'{share:.0%}' for share in pauses)} of the steps"] if pauses else []
    if not looks:
        return ""
    return (
        f"looked at during training ({'; '.join(looks)}): intervals and p are those of the end, and hold only if no run was stopped, "
        "changed or left out because of these looks"
    )


def _choice(config: Mapping[str, Any]) -> str:
    train = config.get("train") or {}
    chooses = train.get("stop_on") or train.get("early_stopping_patience") or train.get("load_best_model_at_end")
    if not chooses and train.get("save_strategy") != "best":
        return ""
    metric = train.get("stop_on") or train.get("metric_for_best_model") or "eval_loss"
    return f"saved at the best {metric} on held-out rows: on those rows a model chosen so looks better than on new ones"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
