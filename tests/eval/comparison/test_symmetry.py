"""A comparison does not depend on which arm is called the baseline, nor on the order of items or of runs."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from alignkit import Run, SuiteResult
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.result import Comparison, ContrastResult
from alignkit_eval.suites.perplexity import Document, perplexity_metrics
from alignkit_eval.suites.prefs import ScoredPair, pair_metrics
from alignkit_eval.suites.scores import CompletionScore
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers.runs import short_run

pytestmark = pytest.mark.slow

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A hundred runs are written, each file synced to disk: in memory that costs nothing."""

NUMBERS = ("diff", "low", "high", "p", "p_holm", "detectable", "p_equivalent", "p_equivalent_holm")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose record, settings and provenance the simulated runs have."""
    quick: dict[str, Any] = {
        "train": {"max_steps": 1, "save_strategy": "no"},
        "eval": {"suites": ["prefs", "perplexity"], "samples": 0},
        "data": {"eval_limit": 4},
        "run": {"plots": False},
    }
    return short_run(tmp_path_factory.mktemp("runs"), "real", {"name": "orpo", "lambda": 0.1}, **quick)


class Experiment(NamedTuple):
    """Arms that were trained with some seeds each and evaluated on the same items."""

    arms: Mapping[float, Sequence[int]]
    """Lambda -> seeds."""
    items: int
    clusters: int
    seed: int
    """Of the simulated scores."""


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    seeds = st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)
    arms = draw(st.lists(seeds, min_size=2, max_size=3))
    items = draw(st.integers(2, 40))
    return Experiment(
        {float(i): found for i, found in enumerate(arms)}, items, draw(st.integers(1, items)), draw(st.integers(0, 999))
    )


def results(real: Run, experiment: Experiment, draw: random.Random, order: list[int]) -> Iterator[SuiteResult]:
    """Yield what the two suites would have found, the items in some order."""
    shift = draw.gauss(0, 2)
    pairs, documents = [], []
    for i in range(experiment.items):
        own = random.Random(f"{experiment.seed} {i}")  # what is the item's own, whatever the run
        cluster, tokens = f"cluster-{own.randrange(experiment.clusters)}", own.randint(1, 9)
        logp = -tokens * own.uniform(0.5, 4) + draw.gauss(0, 0.3)
        chosen = CompletionScore(round(logp + shift, 1), tokens)
        rejected = CompletionScore(round(logp + draw.gauss(0, 2), 1), own.randint(1, 9))
        pairs.append(ScoredPair(f"item-{i}", cluster, "", chosen, rejected))
        documents.append(Document(f"item-{i}", cluster, abs(logp), tokens, 4 * tokens))
    for suite, scored, metrics in (
        ("prefs", pairs, pair_metrics(pairs, 10)),
        ("perplexity", documents, perplexity_metrics(documents)),
    ):
        whole = read_evaluation(real.directory / "eval", suite)
        contrasts = [c for c in whole.contrasts if c.metric != "accuracy_ref"]
        clusters = len({one.cluster for one in scored})
        items = [scored[i].item() for i in order]
        yield replace(whole, n=len(items), clusters=clusters, metrics=metrics, items=items, contrasts=contrasts)


@contextmanager
def runs(real: Run, experiment: Experiment, orders: random.Random | None = None) -> Iterator[dict[float, list[Path]]]:
    """Write the runs of an experiment as a run writes itself; ``orders`` shuffles the items of each."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        written: dict[float, list[Path]] = {}
        for strength, seeds in experiment.arms.items():
            for seed in seeds:
                run = RunDir.create(folder, f"l{strength:g}-s{seed}")
                record = json.loads(json.dumps(real.record))
                record["config"]["method"]["lambda"] = strength
                record["config"]["run"]["seed"] = seed
                run.update_record(**record | {"seed": seed})
                order = list(range(experiment.items))
                if orders is not None:
                    orders.shuffle(order)
                for result in results(real, experiment, random.Random(f"{experiment} {strength} {seed}"), order):
                    write_evaluation(run.evaluation, result, target=str(run.path))
                written.setdefault(strength, []).append(run.path)
        yield written


def by_name(found: Comparison) -> dict[tuple[str, str], ContrastResult]:
    return {(c.arm, c.metric): c for c in found.contrasts}


def same(one: ContrastResult, other: ContrastResult) -> None:
    for name in NUMBERS:
        assert getattr(one, name) == near(getattr(other, name)), (other.metric, name)
    assert one == replace(other, **{name: getattr(one, name) for name in (*NUMBERS, "models")})


def near(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)


def negated(value: float | None) -> Any:
    return near(None if value is None else -value)


@given(experiment=experiments())
@settings(deadline=None, max_examples=25)
def test_the_baseline_is_only_a_point_of_view(real: Run, experiment: Experiment) -> None:
    """``compare(a, b)`` is ``-compare(b, a)``: differences and ends change their sign, certainty does not."""
    first_seeds, second_seeds = list(experiment.arms.values())[:2]
    with runs(real, experiment) as written:
        first, second = list(written.values())[:2]
        there, back = compare([*first, *second]), compare([*second, *first])
    assert (there.baseline, there.arms[1].name) == (back.arms[1].name, back.baseline)
    assert there.winner == back.winner
    assert len(there.contrasts) == 4
    for a, b in zip(there.contrasts, back.contrasts, strict=True):
        assert (a.suite, a.metric) == (b.suite, b.metric)
        assert a.diff == negated(b.diff), a.metric
        assert (a.p, a.p_holm) == (near(b.p), near(b.p_holm)), a.metric
        assert (a.n, a.clusters, a.seeds, a.test) == (b.n, b.clusters, b.seeds, b.test)
        assert a.significant == b.significant
        assert a.better is b.better is None or a.better is not b.better
        if a.metric != "perplexity":
            assert (a.low, a.high, a.detectable) == (negated(b.high), negated(b.low), near(b.detectable)), a.metric
        elif a.low is not None and b.high is not None and set(first_seeds) == set(second_seeds):
            # The interval of a ratio, in units of the baseline's own level.
            level, other = (c.arms[0].metrics["perplexity"]["perplexity"].value for c in (there, back))
            assert math.log1p(a.low / level) == negated(math.log1p(b.high / other))


@example(experiment=Experiment({0.0: [0, 1, 2], 1.0: [0]}, 28, 10, 0), order=random.Random(0))
@given(experiment=experiments(), order=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=25)
def test_neither_the_order_of_items_nor_of_runs_matters(
    real: Run, experiment: Experiment, order: random.Random
) -> None:
    with runs(real, experiment) as written:
        in_order = compare([path for paths in written.values() for path in paths])
    with runs(real, experiment, order) as written:
        baseline = order.choice(written[0.0])
        shuffled = [path for paths in written.values() for path in paths]
        order.shuffle(shuffled)
        found = compare(shuffled, baseline)
    assert (found.baseline, found.winner) == (in_order.baseline, in_order.winner)
    assert {arm.name: arm.seeds for arm in found.arms} == {arm.name: arm.seeds for arm in in_order.arms}
    # A note on two arms names them in the order in which they were given.
    assert {frozenset(note.split()) for note in found.notes} == {frozenset(note.split()) for note in in_order.notes}
    assert by_name(found).keys() == by_name(in_order).keys()
    for key, contrast in by_name(in_order).items():
        other = by_name(found)[key]
        same(other, contrast)
        if other.models is not None and contrast.models is not None:
            same(other.models, contrast.models)
    for arm in in_order.arms:
        for suite, metrics in arm.metrics.items():
            for name, estimate in metrics.items():
                value = found.arm(arm.name).metrics[suite][name].value
                assert value == pytest.approx(estimate.value, rel=1e-9, nan_ok=True), name
