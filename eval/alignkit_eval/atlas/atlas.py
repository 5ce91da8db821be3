"""Training and comparing the objectives: a sweep over recipes and seeds, resumable, with every pair of objectives judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.rundir.directory import child_of
from alignkit.settings import resolve
from alignkit.system.files import require_writable, write_json, write_text
from alignkit.system.manifest import sealed

from alignkit_eval.atlas.cosines import Cosines, cosines
from alignkit_eval.atlas.objectives import Objective, objectives, write_recipes
from alignkit_eval.atlas.page import index, write_atlas_page
from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.result import Comparison
from alignkit_eval.sweeps.manifest import read_spec
from alignkit_eval.sweeps.sweep import Sweep, sweep

MARGIN = 0.03
"""Difference of accuracies that counts as none."""

SUITES = ("prefs", "perplexity", "kl", "generate")


@dataclass(frozen=True)
class Atlas:
    """A finished atlas."""

    directory: Path
    objectives: tuple[Objective, ...]
    sweep: Sweep
    comparison: Comparison
    cosines: Cosines


def atlas(
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    model: str | None = None,
    data: str | None = None,
    eval_data: str | None = None,
    sets: Sequence[str] = (),
    margin: float = MARGIN,
    output: Path | str = "runs",
    name: str = "atlas",
    say: Callable[[str], None] = lambda message: None,
    **scheduling: Any,
) -> Atlas:
    """Train every objective with every seed, compare all pairs, and write the atlas; the same call resumes it.

    Further objectives and seeds are added to an atlas of the same name.

    Args:
        only: names of objectives (default: all), besides those that the atlas has already.
        seeds, model, data, eval_data, sets: as for ``align sweep``.
        margin: difference of accuracies that counts as none.
        output, name: the directory.
        say: called with progress messages.
        scheduling: ``jobs``, ``scheduler`` and ``options`` of :func:`alignkit_eval.sweeps.sweep.sweep`.

    Raises:
        ConfigError: an objective, key or value cannot be used, or fewer than two objectives could be trained.
        InterruptedRun: the same call resumes it.
    """
    directory = child_of(Path(output), name)
    chosen = objectives([*_trained(directory), *(objective.name for objective in objectives(only))])
    if len(chosen) < 2:
        raise ConfigError("an atlas compares objectives: choose at least two")
    suites = [] if any(text.startswith("eval.suites=") for text in sets) else [f"eval.suites=[{','.join(SUITES)}]"]
    about: dict[str, Any] = {"model": model, "data": data, "eval_data": eval_data}
    with _recipes(directory, chosen) as recipes:
        trained = sweep(
            {"config": list(map(str, recipes))},
            seeds=seeds,
            sets=[*suites, *sets],
            output=directory,
            name="runs",
            say=say,
            **about,
            **scheduling,
        )
    of = {
        Path(cell.run): Path(str(cell.settings["config"])).stem for cell in trained.cells if cell.status == "finished"
    }
    if len(set(of.values())) < 2:
        first = next((f": {cell.name}: {cell.error}" for cell in trained.failed), "")
        raise ConfigError(f"fewer than two objectives could be trained{first}")
    base = next((run for run, objective in of.items() if objective == chosen[0].name), next(iter(of)))
    comparison = compare(list(of), base, names=of, margins={"accuracy_sum": margin, "accuracy_mean": margin})
    say("gradients at the start model")
    done = tuple(objective for objective in chosen if objective.name in of.values())
    configs = [
        resolve(recipe, sets=list(sets), **about).config
        for recipe, objective in zip(recipes, chosen, strict=True)
        if objective in done
    ]
    found = Atlas(directory, done, trained, comparison, cosines(configs))
    _write(found, margin)
    return found


@contextmanager
def _recipes(directory: Path, chosen: Sequence[Objective]) -> Iterator[list[Path]]:
    """Write the recipes and yield their paths; on an error, those that no sweep names are removed, with directories made for them."""
    folder = directory / "recipes"
    require_writable(folder, directory=True)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    new = [path for objective in chosen if not (path := folder / f"{objective.name}.yaml").exists()]
    try:
        yield write_recipes(folder, chosen)
    except BaseException:
        kept = _trained(directory)
        for path in new:
            if path.stem not in kept:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # one that is not empty stays, and so do those above it
            for place in made:
                place.rmdir()
        raise


def _trained(directory: Path) -> list[str]:
    """Return the names of the objectives of the atlas in ``directory``."""
    runs = directory / "runs"
    return (
        [Path(path).stem for path in read_spec(runs).over.get("config", ())] if (runs / "sweep.yaml").is_file() else []
    )


def pair_outcomes(comparison: Comparison, *, models: bool = False) -> Mapping[tuple[str, str], str]:
    """Return what is shown of every pair ``(arm, baseline)``: ``better`` or ``worse`` by both accuracies, ``equivalent`` by
    both, or ``undecided``. ``models``: as to the trained models, their seeds fixed, instead of the objectives.
    """
    by_pair: dict[tuple[str, str], list[str]] = {}
    for contrast in comparison.pairs:
        if contrast.suite == "prefs":
            asked = (contrast.models or contrast) if models else contrast
            by_pair.setdefault((contrast.arm, contrast.baseline), []).append(asked.outcome)
    return {pair: found[0] if len(set(found)) == 1 else "undecided" for pair, found in by_pair.items()}


def _write(found: Atlas, margin: float) -> None:
    outcomes, models = (pair_outcomes(found.comparison, models=fixed) for fixed in (False, True))
    names = [objective.name for objective in found.objectives]
    write_json(
        found.directory / "atlas.json",
        sealed(
            {
                "objectives": [objective._asdict() for objective in found.objectives],
                "margin": margin,
                "pairs": [
                    {"arm": arm, "baseline": base, "outcome": outcome, "models": models[arm, base]}
                    for (arm, base), outcome in outcomes.items()
                ],
                "outcomes": Counter(outcomes.values()),
                "models": Counter(models.values()),
                "cosines": {"names": names, "values": found.cosines.values.tolist(), "rows": found.cosines.rows},
                "comparison": found.comparison.to_json(),
            }
        ),
    )
    page = found.directory / "atlas.html"
    write_atlas_page(page, found.objectives, found.comparison, (outcomes, models), found.cosines, margin)
    write_text(found.directory / "papers.md", index(found.objectives, found.comparison))
