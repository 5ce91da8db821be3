"""Acceptance checks of faults: inputs that once failed, kills, flipped bits and malformed input at full size."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.accept.campaign import flips, kills, malformed
from tests.accept.campaign.base import Base
from tests.accept.campaign.processes import Align
from tests.accept.cases import data, evaluation, outer, runs
from tests.accept.cases.place import Place
from tests.accept.commands import OUTPUT
from tests.accept.models import make_models

CASES: list[Callable[[Place], str]] = [
    data.tool_calls_in_parquet,
    data.messages_as_text,
    data.a_system_column,
    data.aliases_that_multiply,
    runs.a_generation_config_that_cannot_be_saved,
    runs.lora_on_tied_embeddings,
    runs.patience,
    runs.resuming_after_the_last_step,
    runs.an_adapter_with_foreign_tensors,
    runs.a_cache_that_cannot_be_written,
    evaluation.translation_metrics,
    evaluation.one_class_f1,
    evaluation.two_scales_of_one_adapter,
    evaluation.interval_of_the_best_of_several,
    evaluation.two_models_of_one_name,
    evaluation.rows_left_out,
]

KILLS, FLIPS, INPUTS = 100, 150, 300
PROCESSES = 2


@contextmanager
def prepared(work: Path) -> Iterator[tuple[Base, list[Align]]]:
    """Yield the base of the campaign and what runs its commands."""
    base = Base(work / "base")
    base.path.mkdir()
    base.prepare_models()
    aligns = [Align() for _ in range(PROCESSES)]
    base.prepare_runs(aligns[0])
    yield base, aligns


def cases(work: Path) -> dict[str, Any]:
    """Inputs that once failed end as the case says; those in ``$ALIGN_CASES`` are run, and their output kept, as well."""
    models = make_models(work / "models")
    align = Align()
    rows = [_case(case, Place(work / case.__name__, models, align)) for case in CASES]
    if directory := os.environ.get("ALIGN_CASES"):
        rows += outer.run_scripts(Path(directory), work / "scripts", models)
    _keep("cases", rows)
    bad = [row for row in rows if row["passed"] is False]
    assert not bad, f"{len(bad)} of {len(rows)}: " + "; ".join(f"{row['name']}: {row['seen'][:300]}" for row in bad)
    return {"cases": len(rows), "passed": sum(row["passed"] is True for row in rows)}


def _case(case: Callable[[Place], str], place: Place) -> dict[str, Any]:
    place.path.mkdir()
    try:
        seen, passed = case(place), True
    except AssertionError as error:
        seen, passed = str(error), False
    return {"name": case.__name__, "expectation": (case.__doc__ or "").strip(), "seen": seen, "passed": passed}


def kill_campaign(work: Path) -> dict[str, Any]:
    """A hundred kills at random file operations of seven commands: each is carried to the same end, none lost, none silent."""
    with prepared(work) as (base, aligns):
        found = kills.Campaign(base, work, aligns).run(range(KILLS))
    seen = _table((kill.command, kill.outcome) for kill in found)
    _keep("kills", [asdict(kill) for kill in found])
    bad = [kill for kill in found if kill.outcome in ("lost", "silent") or kill.left]
    assert not bad, f"{len(bad)} of {len(found)}, {seen}; first: {bad[0]}"
    return {"kills": len(found)} | seen


def bit_flips(work: Path) -> dict[str, Any]:
    """A hundred and fifty flipped bits in every kind of file: noticed, or without effect; none silent, no crash."""
    with prepared(work) as (base, aligns):
        found = flips.Campaign(base, work, aligns).run(range(FLIPS))
    seen = _table((flip.kind, flip.outcome) for flip in found)
    _keep("flips", [asdict(flip) for flip in found])
    bad = [flip for flip in found if flip.outcome in ("silent", "crashed")]
    assert not bad, f"{len(bad)} of {len(found)}, {seen}; first: {bad[0]}"
    return {"flips": len(found)} | seen


def malformed_input(work: Path) -> dict[str, Any]:
    """Three hundred malformed inputs end in seconds, with one clear sentence and exit code 2, or are read as they are."""
    with prepared(work) as (base, aligns):
        found = malformed.try_all(base, work, aligns, range(INPUTS))
    seen = _table((one.kind, one.verdict) for one in found)
    _keep("malformed", [asdict(one) for one in found])
    bad = [one for one in found if one.verdict not in ("refused", "used")]
    assert not bad, f"{len(bad)} of {len(found)}, {seen}; first: {bad[0].fault}: {bad[0].reason}: {bad[0].ended}"
    return {"inputs": len(found)} | seen


def _table(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the number of each outcome, in all and by kind."""
    found = list(pairs)
    by_kind: dict[str, dict[str, int]] = {}
    for kind, outcome in found:
        by_kind.setdefault(kind, {}).setdefault(outcome, 0)
        by_kind[kind][outcome] += 1
    return {**Counter(outcome for _, outcome in found), "by kind": by_kind}


def _keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Write every single result beside accept.json."""
    (OUTPUT / f"{name}.json").write_text(json.dumps(rows, indent=1, default=str) + "\n")
