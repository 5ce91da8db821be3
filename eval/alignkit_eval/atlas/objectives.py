"""The objectives of the atlas: every installed loss of pairs, every other method that trains on pairs, and known variants."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.contract.registry import find, load, usable
from alignkit.errors import ConfigError, suggest
from alignkit.settings.yaml_files import read, write
from alignkit.system.files import write_text

from alignkit_eval.schemas.attach import schema_line

BASELINE = "sigmoid"
"""The objective that the others are shown against: DPO."""

_FIRST = ("sft", "orpo")
"""Methods of the atlas whose loss is not chosen from ``align.losses``."""


class Objective(NamedTuple):
    """One way to train on preference pairs."""

    name: str
    method: Mapping[str, Any]
    """Section ``method`` of its configuration."""
    claim: str
    """What it computes, in a sentence."""
    paper: str
    equation: str = ""

    def recipe(self) -> str:
        """Return the configuration file that trains with it."""
        about = [self.paper + (f", equation {self.equation}" if self.equation else ""), self.claim]
        return "".join(f"# {line}\n" for line in about if line) + write({"method": dict(self.method)})


_VARIANTS = (
    Objective(
        "rpo",
        {"name": "dpo", "loss": "sigmoid", "alpha": 1.0},
        "DPO plus the negative log-likelihood of the chosen answer.",
        "Pang et al. 2024, Iterative Reasoning Preference Optimization, https://arxiv.org/abs/2404.19733",
        "1",
    ),
    Objective(
        "dpo_norm",
        {"name": "dpo", "loss": "sigmoid", "ratio": "mean", "beta": 5.0},
        "DPO with log-ratios divided by the answers' lengths.",
        "Lambert et al. 2024, Tulu 3, https://arxiv.org/abs/2411.15124",
        "6",
    ),
    Objective(
        "dpo_beta_0.5",
        {"name": "dpo", "loss": "sigmoid", "beta": 0.5},
        "DPO that stays closer to the reference.",
        "Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290",
        "7",
    ),
    Objective(
        "mpo",
        {"name": "dpo", "loss": {"sigmoid": 0.8, "bco": 0.2, "nll": 1.0}},
        "A mixture of a preference, a quality and a generation loss.",
        "Wang et al. 2024, Mixed Preference Optimization, https://arxiv.org/abs/2411.10442",
        "1",
    ),
    Objective(
        "tr_dpo",
        {"name": "dpo", "loss": "sigmoid", "reference_update_every": 64, "reference_mix": 0.6},
        "DPO whose reference is moved towards the policy every 64 steps.",
        "Gorbatovski et al. 2024, Learn Your Reference Model, https://arxiv.org/abs/2404.09656",
    ),
    Objective(
        "listwise_dpo",
        {"name": "listwise-dpo"},
        "The likelihood of the whole ranking of the answers to a prompt; on pairs it is DPO.",
        "Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290, appendix A.3",
    ),
    Objective(
        "kto_unpaired",
        {"name": "kto", "loss": "kto"},
        "Good and bad answers each against an estimate of the KL by answers to other prompts.",
        "Ethayarajh et al. 2024, KTO, https://arxiv.org/abs/2402.01306",
        "8",
    ),
    Objective(
        "apo_zero_unpaired",
        {"name": "kto", "loss": "apo_zero_unpaired"},
        "APO-zero on good and bad answers that are not pairs.",
        "D'Oosterlinck et al. 2024, Anchored Preference Optimization, https://arxiv.org/abs/2408.06266",
        "7",
    ),
    Objective(
        "orpo_1",
        {"name": "orpo", "lambda": 1.0},
        "ORPO with ten times the weight of the odds ratio.",
        "Hong et al. 2024, ORPO, https://arxiv.org/abs/2403.07691",
        "6",
    ),
)


def objectives(only: Sequence[str] = ()) -> list[Objective]:
    """Return the objectives, the baseline first; ``only`` names those to return.

    Raises:
        ConfigError: a name is unknown.
    """
    found = [_of_method(name) for name in _FIRST]
    for name in usable("align.losses"):
        loss = load(find("align.losses", name))
        if loss.rows == "preference" and name != "nll":  # the likelihood alone is sft
            method = "dpo" if "reference" in loss.needs else "cpo"
            found.append(Objective(name, {"name": method, "loss": name}, _summary(loss), loss.paper, loss.equation))
    found += _VARIANTS
    known = {objective.name: objective for objective in found}
    for name in only:
        if name not in known:
            raise ConfigError(f"unknown objective {name}{suggest(name, list(known))} (align atlas --list shows them)")
    chosen = [known[name] for name in (dict.fromkeys(only) if only else known)]
    return sorted(chosen, key=lambda objective: objective.name != BASELINE)


def write_recipes(directory: Path, chosen: Sequence[Objective]) -> list[Path]:
    """Write a configuration file for each objective, and return their paths; one that is there must have the same settings.

    Raises:
        ConfigError: a file is there with other settings; the key is named.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{objective.name}.yaml" for objective in chosen]
    for path, objective in zip(paths, chosen, strict=True):
        had = read(path).values.get("method") if path.is_file() else None
        if had is not None and (now := dict(objective.method)) != had:
            had = had if isinstance(had, dict) else {"name": had}
            key = next(key for key in {**now, **had} if now.get(key) != had.get(key))
            raise ConfigError(
                f"{path}: objective {objective.name} was trained with another method.{key} ({had.get(key)}, "
                f"now {now.get(key)}): choose another --name"
            )
    for path, objective in zip(paths, chosen, strict=True):
        write_text(path, schema_line(str(objective.method["name"])) + objective.recipe())
    return paths


def _of_method(name: str) -> Objective:
    method = load(find("align.methods", name))
    return Objective(name, {"name": name}, _summary(method), method.paper)


def _summary(documented: Any) -> str:
    """Return the first paragraph of a docstring in one line, without the verb that docstrings of functions begin with."""
    line = " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split()).removeprefix("Return ")
    return line[:1].upper() + line[1:]
