"""Two processes share the work of an evaluation: they find what one finds, use the model equally often, and fail together."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers import ranks_worker
from tests.helpers.forked import run_ranks
from tests.helpers.third_party import Site

pytestmark = pytest.mark.slow

SUITES = """
import random
import torch
from alignkit import Estimate, Settings, Suite, SuiteResult
from alignkit.errors import NoRowsError
from alignkit.system.distributed import rank

class Own(Suite[Settings]):
    name = "own"
    settings_type = Settings

    def evaluate(self, target):
        examples = random.sample(list(target.examples("preference")), 9)
        scores = target.policy.score(examples, prompt=True, grad=False, entropy=True)
        ids = torch.tensor([list(examples[0].prompt)])
        found = {
            "sum": scores.sums().sum(),
            "chosen": scores.split(scores.means())[0][-1],
            "prompt": scores.prompt_sums()[3],
            "entropy": scores.entropy[-7:].sum(),
            "logit": target.policy.model(input_ids=ids).logits[0, -1, 3],
            "one": target.policy.score(examples[:1], grad=False).logps[0],
        }
        items = [{"id": e.id, "cluster": e.id, "rows": scores.rows} for e in examples]
        return SuiteResult("own", 9, 9, {k: Estimate(float(v)) for k, v in found.items()}, items)

class BreakSettings(Settings):
    how: str = "raise"
    process: int = 1

class Breaks(Suite[BreakSettings]):
    name = "breaks"
    settings_type = BreakSettings

    def content(self, target):
        if self.settings.how == "content" and rank() == self.settings.process:
            open("there/is/no/such/file")

    def evaluate(self, target):
        examples = target.examples("preference")
        if rank() == self.settings.process:
            if self.settings.how == "raise":
                raise OverflowError("too much")
            if self.settings.how == "no rows":
                raise NoRowsError("nothing for me")
            if self.settings.how == "more":
                target.policy.score(examples[:2], grad=False)
        try:
            target.policy.score(examples[:4], grad=False)
        except Exception:
            pass
        return SuiteResult("breaks", 0, 0, {}, [])
"""

SETS = {
    "data.eval_limit": 40,
    "eval.settings.prefs.tokens_per_batch": 600,
    "eval.settings.lm-eval.tasks": "demo_facts,demo_written",
    "eval.settings.lm-eval.include_path": "tasks",
    "eval.settings.lm-eval.limit": 21,
    "eval.settings.generate.prompts": 32,  # two batches, with an answer of full length in each: equally many forwards
    "eval.settings.generate.temperature": 1.0,
    "eval.settings.generate.max_new_tokens": 8,
    "eval.settings.generate.rewards": "length",
}
TASK = """
task: demo_written
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
"""
BREAKS = {
    "raise on the first": ("raise", 0, 'suite "breaks" (broken-suites 1.2.3) failed: OverflowError: too much'),
    "raise on the second": ("raise", 1, "failed: OverflowError: too much"),
    "content": ("content", 0, "failed: FileNotFoundError"),
    "no rows": ("no rows", 1, "nothing could be evaluated: suite breaks is skipped: nothing for me"),
    "more": ("more", 1, "process 0 is at scores of 4 items"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], list[dict[str, Any]]]:
    """What each process found in a job, by its name and the number of processes."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "site").mkdir()
    Site(folder / "site").install(
        "broken-suites", SUITES, group="suites", own="broken_suites:Own", breaks="broken_suites:Breaks"
    )
    (folder / "tasks").mkdir()
    (folder / "tasks/written.yaml").write_text(TASK.replace("documents", str(folder / "tasks/documents")))
    rows = [{"q": "abcdefghi"[: 1 + i % 9], "a": "x"} for i in range(21)]
    (folder / "tasks/documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [f"{key}={value}" for key, value in SETS.items()]
    for count in (1, 2):
        jobs: list[dict[str, Any]] = [
            {"name": "suites", "suites": ["prefs", "perplexity", "lm-eval", "generate", "own"], "sets": sets}
        ]
        if count == 2:
            jobs.append({**jobs[0], "name": "sharded", "strategy": "fsdp"})
        for during in ({}, {"prefs": 1, "generate": 3})[2 - count :]:
            settings: dict[str, Any] = {
                "method": "dpo",
                "train": {"per_device_train_batch_size": 8 // count, "max_steps": 4},
                "data": {
                    "limit": None
                },  # in the first steps on all rows, both processes have equally many micro-batches
                "eval": {"suites": ["prefs", "kl"], "during": during, "samples": 3},
                "run": {"plots": False},
            }
            jobs.append({"name": f"run{len(during)}", "run": settings})
        if count == 2:
            sharded = {"plots": False, "strategy": "fsdp"}
            jobs.append({"name": "sharded-run", "run": settings | {"run": sharded}})
        for name, (how, process, _) in BREAKS.items() if count == 2 else ():
            here = [f"eval.settings.breaks.how={how}", f"eval.settings.breaks.process={process}", "data.eval_limit=9"]
            jobs.append({"name": name, "suites": ["breaks"], "sets": here})
        own = folder / str(count)
        own.mkdir()
        cache = str(folder / f"cache{count}")
        run_ranks(count, ranks_worker.main, own, jobs, cwd=folder, path=[folder / "site"], ALIGN_CACHE=cache)

    def read(name: str, count: int) -> list[dict[str, Any]]:
        return [json.loads((folder / str(count) / f"{name}.{rank}.json").read_text()) for rank in range(count)]

    return read


def _same(one: Any, two: Any) -> None:
    """Assert that two trees are equal, numbers with a fraction to 1e-6."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            _same(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            _same(a, b)
    else:
        assert two == (pytest.approx(one, rel=1e-6, abs=1e-6) if isinstance(one, float) else one)


def test_two_processes_find_what_one_finds(found: Any) -> None:
    (one,), (first, second) = found("suites", 1), found("suites", 2)
    assert first["results"].keys() == {"prefs", "perplexity", "lm-eval", "generate", "own"}
    assert len(first["results"]["lm-eval"]["items"]) == 42
    assert first["results"] == second["results"]
    _same(one["results"], first["results"])


def test_a_model_sharded_over_two_processes_has_the_same_results(found: Any) -> None:
    (one,), (first, second) = found("suites", 1), found("sharded", 2)
    assert first["forwards"] == second["forwards"]
    assert first["forwards"].keys() == {"FSDPLlamaForCausalLM"}
    assert first["results"] == second["results"]
    _same(one["results"], first["results"])


@pytest.mark.parametrize("job", ["suites", "run2", "sharded-run"])
def test_no_process_uses_the_model_alone(found: Any, job: str) -> None:
    first, second = found(job, 2)
    assert first["forwards"] == second["forwards"]
    assert sum(first["forwards"].values()) > 0
    if job == "suites":  # training does not take fewer forwards, each is smaller
        (one,) = found(job, 1)
        assert sum(first["forwards"].values()) < 0.8 * sum(one["forwards"].values())


def test_runs_evaluate_alike(found: Any) -> None:
    (one,), (first, _) = found("run2", 1), found("run2", 2)
    _same(one["results"]["evaluation"]["before"], first["results"]["evaluation"]["before"])
    after = first["results"]["evaluation"]["after"]
    for suite, metrics in one["results"]["evaluation"]["after"].items():
        for name, estimate in metrics.items():
            assert after[suite][name]["value"] == pytest.approx(estimate["value"], rel=1e-3, abs=1e-5)
    during = [record["prefs/margin_sum"] for record in first["results"]["metrics"] if "prefs/margin_sum" in record]
    assert len(during) == 3


def test_evaluation_leaves_training_as_it_was(found: Any) -> None:
    plain, evaluated = found("run0", 2), found("run2", 2)
    for before, after in zip(plain, evaluated, strict=True):
        assert before["results"]["weights"] == after["results"]["weights"]
        assert before["draws"] == after["draws"]


@pytest.mark.parametrize("name", BREAKS)
def test_what_fails_on_one_process_fails_on_all(found: Any, name: str) -> None:
    first, second = found(name, 2)
    assert first["error"] == second["error"]
    _, process, words = BREAKS[name]
    assert words in first["error"]
    assert first["origin"] == second["origin"]
    if name.startswith("raise"):
        assert first["origin"] == process
