"""The atlas: recipes that train, gradients from one forward, and the map of pairs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignkit import run
from alignkit.config import RunConfig
from alignkit.contract import Batch
from alignkit.errors import AlignError, ConfigError
from alignkit.runs.prepare import plan_run, prepare
from alignkit.settings import resolve
from alignkit_eval.atlas.atlas import atlas, pair_outcomes
from alignkit_eval.atlas.cosines import cosines
from alignkit_eval.atlas.objectives import BASELINE, objectives, write_recipes
from alignkit_eval.comparison.result import Comparison, ContrastResult

from tests.helpers.runs import align, records

pytestmark = pytest.mark.slow

NAMES = [objective.name for objective in objectives()]
QUICK = ["train.max_steps=2", "train.save_strategy=no", "data.limit=48", "data.eval_limit=8", "eval.suites=[]"]
QUICK += ["eval.samples=0", "run.plots=false", "train.per_device_train_batch_size=4"]


def config(objective: str, tmp_path: Path, *more: str) -> RunConfig:
    (recipe,) = write_recipes(tmp_path, objectives([objective]))
    assert recipe.read_text().startswith("# yaml-language-server: $schema=file://")
    return resolve(recipe, output=str(tmp_path / "runs"), name=objective, sets=[*QUICK, *more]).config


def test_there_are_at_least_thirty_five_and_each_names_its_paper() -> None:
    assert len(NAMES) >= 35
    assert NAMES[0] == BASELINE
    assert all("http" in objective.paper and objective.claim for objective in objectives())
    with pytest.raises(ConfigError, match="unknown objective ipp, did you mean"):
        objectives(["ipp"])


@pytest.mark.parametrize("name", NAMES)
def test_its_recipe_trains(name: str, tmp_path: Path) -> None:
    done = run(config(name, tmp_path))
    losses = [record["loss"] for record in records(done.directory) if "loss" in record]
    assert losses
    assert np.isfinite(losses).all()


def direct(objective: str, tmp_path: Path, rows: int) -> torch.Tensor:
    """The gradient of an objective by a forward and backward of its own, through the real policy."""
    plan = plan_run(config(objective, tmp_path))
    made = prepare(plan)
    examples = [made.data.train[i] for i in range(rows)]
    made.loaded.model.eval()
    with torch.no_grad():
        scores = made.policy.score(examples)
    counts = scores.lengths.view(rows, -1).sum(1).tolist()
    batch = Batch(examples).with_column("reference", [part.numpy() for part in scores.logps.split(counts)])
    terms = plan.session.compute_loss(made.policy, batch, 0.0).terms
    torch.as_tensor(sum(term.weight * term.sum / batch.counts[term.per] for term in terms)).backward()
    return torch.cat([p.grad.flatten() for p in made.loaded.model.parameters() if p.grad is not None]).double()


def test_cosines_from_one_forward_are_those_of_each_objectives_own_backward(tmp_path: Path) -> None:
    names = ["sigmoid", "simpo", "orpo", "sft"]
    own = [direct(name, tmp_path, 12) for name in names]
    expected = torch.stack([gradient / gradient.norm() for gradient in own])
    alike = ["aot", "listwise_dpo", "tr_dpo", "apo_zero", "kto_unpaired", "apo_zero_unpaired", "tdpo", "tdpo1"]
    found = cosines([config(name, tmp_path) for name in [*names, *alike]], rows=12)
    np.testing.assert_allclose(found.values[:4, :4], (expected @ expected.T).numpy(), atol=1e-5)
    assert found.values[0, 4:].tolist() == pytest.approx([1] * 8, abs=1e-6), "all ratios are 1 at the start"


def pair(arm: str, base: str, metric: str, diff: float, p: float, q: float) -> ContrastResult:
    about: dict[str, Any] = {"p_holm": p, "n": 9, "clusters": 9, "seeds": 3, "detectable": 0.1, "test": "t"}
    ends = {"low": diff - 0.01, "high": diff + 0.01, "higher_is_better": True, "p_equivalent_holm": q}
    return ContrastResult(arm, "prefs", metric, diff, p=p, baseline=base, margin=0.03, **ends, **about)


def test_a_pair_differs_only_if_both_accuracies_say_so() -> None:
    both = ("accuracy_sum", "accuracy_mean")
    pairs = [
        *(pair("b", "a", metric, 0.1, 0.01, 1.0) for metric in both),
        *(pair("c", "a", metric, 0.0, 0.9, 0.01) for metric in both),
        pair("d", "a", both[0], 0.1, 0.01, 1.0),
        pair("d", "a", both[1], 0.0, 0.9, 0.01),
    ]
    comparison = Comparison("a", (), (), "", None, pairs=tuple(pairs))
    assert pair_outcomes(comparison) == {("b", "a"): "better", ("c", "a"): "equivalent", ("d", "a"): "undecided"}
    fixed = [replace(one, models=replace(one, p_holm=0.001, diff=-0.1)) if one.arm == "d" else one for one in pairs]
    assert pair_outcomes(replace(comparison, pairs=tuple(fixed)), models=True) == {
        ("b", "a"): "better",  # one seed: both questions are the same
        ("c", "a"): "equivalent",
        ("d", "a"): "worse",
    }


@pytest.mark.parametrize(
    "given",
    [
        {"only": ["ipp", "aot"]},
        {"only": ["aot"]},
        {"sets": ["nope=1"]},
        {"sets": ["train.max_steps=x"]},
        {"scheduler": "nope"},
        {"seeds": [-1]},
        {"output": "a/b"},
        {"data": "nope.jsonl"},
        {"model": "./nope"},
    ],
    ids=str,
)
def test_one_that_is_refused_leaves_nothing(given: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "a").write_text("a file where a directory is to be\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AlignError):
        atlas(**({"only": ["sigmoid", "aot"], "output": "mine"} | given))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_writes_the_map_resumes_and_adds_to_it(tmp_path: Path) -> None:
    words = ["--seeds", "0", "--set", "eval.suites=prefs"]
    words += [word for one in QUICK if not one.startswith("eval.suites") for word in ("--set", one)]
    done = align("atlas", "--only", "sigmoid,aot", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Of 1 pair" in " ".join(done.stderr.split())
    found = json.loads((tmp_path / "runs/atlas/atlas.json").read_text())
    assert found["cosines"]["names"] == ["sigmoid", "aot"]
    assert sum(found["outcomes"].values()) == sum(found["models"].values()) == 1
    assert "their seeds fixed" in (tmp_path / "runs/atlas/atlas.html").read_text()
    assert "arxiv.org/abs/2305.18290" in (tmp_path / "runs/atlas/papers.md").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/atlas/runs/*/run.json")}
    more = align("atlas", "--only", "aot,tdpo", *words, cwd=tmp_path)
    said = " ".join(more.stderr.split())
    assert "which is extended: config tdpo" in said
    assert "2 of 3 cells are already finished" in said
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    added = json.loads((tmp_path / "runs/atlas/atlas.json").read_text())
    assert added["cosines"]["names"] == ["sigmoid", "aot", "tdpo"]
    assert sum(added["outcomes"].values()) == 3
    other = align("atlas", "--only", "ipo", *words, "--set", "train.learning_rate=1e-5", cwd=tmp_path)
    assert other.returncode == 2
    assert "has a sweep with a different train.learning_rate (not set, now 1e-5)" in " ".join(other.stderr.split())
    kept = {path.stem for path in (tmp_path / "runs/atlas/recipes").iterdir()}
    assert kept == {"sigmoid", "aot", "tdpo"}, "the recipe of the refused one is not left"
    recipe = tmp_path / "runs/atlas/recipes/aot.yaml"
    recipe.write_text(recipe.read_text() + "  beta: 0.3\n")
    with pytest.raises(ConfigError, match=r"objective aot was trained with another method\.beta \(0\.3, now None\)"):
        write_recipes(recipe.parent, objectives(["aot"]))
