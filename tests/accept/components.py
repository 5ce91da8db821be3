"""Acceptance checks of components: parts of the test suite, simulated statistics, benchmarks, and a clean clone."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.accept.commands import OUTPUT, ROOT, command, run_tests


def closed_forms(work: Path) -> dict[str, Any]:
    """Losses agree with 50-digit arithmetic to a relative error of 1e-6."""
    return run_tests("tests/contract/test_losses.py")


def parity(work: Path) -> dict[str, Any]:
    """Loss and gradient of ORPO and DPO agree with TRL's, and every scoring backend with plain forwards."""
    return run_tests("tests/scoring", "tests/attention")


def invariance(work: Path) -> dict[str, Any]:
    """Micro-batches, two processes and row order change nothing; lambda 0 is sft, DPO starts at ln 2, resume is exact."""
    return run_tests("tests/training/test_step.py", "tests/training/test_ddp.py", "tests/training/test_resume.py")


def other_examples(work: Path) -> dict[str, Any]:
    """Tests over drawn examples pass with other examples than the ones `make test` has each time."""
    drawn = [str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests").rglob("test_*.py")) if _draws(file)]
    return run_tests("-m", "hypothesis and not gpu", *drawn, ALIGN_TEST_EXAMPLES="other")


def _draws(file: Path) -> bool:
    return "from hypothesis import" in file.read_text(encoding="utf-8")  # to import the other files would take a minute


def bad_input(work: Path) -> dict[str, Any]:
    """Every kind of wrong input gives one clear sentence and exit code 2."""
    return run_tests("tests/cli/test_bad_input.py")


def statistics(work: Path) -> dict[str, Any]:
    """Type I error is at most 6.5 % at a nominal 5 %, with and without cluster and seed effects; power and coverage hold."""
    from tests.accept.kinds import missed, table
    from tests.helpers.simulate import NULLS, covered, expected_power, rejected

    trials = 4000
    errors = {name: rejected(trials, clusters=100, **about) for name, about in NULLS.items()}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 0.065, f"{worst}: {errors[worst]:.3f}"
    expected = expected_power(400, 0.1)
    found = rejected(trials, seeds=1, clusters=400, per_cluster=1, shift=0.1)
    assert abs(found - expected) < 0.04, f"power {found:.3f}, expected {expected:.3f}"
    coverage = covered(trials, 0.05, seeds=3, cluster_sd=0.1, seed_sd=0.03)
    assert coverage >= 0.935, f"coverage {coverage:.3f}"
    rows = table()
    (work / "kinds.json").write_text(json.dumps(rows, indent=2) + "\n")
    assert not missed(rows), missed(rows)
    return {
        "kinds": f"{len(rows)} kinds and sizes, table in kinds.json",
        "type I error": {name: round(error, 4) for name, error in errors.items()},
        "power": [round(found, 3), round(expected, 3)],
        "coverage": round(coverage, 3),
    }


def harness(work: Path) -> dict[str, Any]:
    """Suites, comparisons, sweeps and reports pass all tests, also in a real browser; lm-eval's results are reproduced.

    Its whole index of stock tasks is read; the tests read two of them.
    """
    from alignkit_eval.suites.lm_eval import _stock_tasks

    stock = _stock_tasks()
    assert {"hellaswag", "piqa", "mmlu"} <= stock.keys(), sorted(stock)[:9]
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        command("apt-get", "install", "-y", "-qq", "chromium", "chromium-driver", cwd=work)
    return {"stock tasks of lm-eval": len(stock), **run_tests("tests/eval")}


def onpolicy(work: Path) -> dict[str, Any]:
    """Advantages, first-step identities, padding, resume inside a rollout; pipelines; TRL's trainers as a method."""
    return run_tests("tests/onpolicy", "tests/plugins/test_trl.py", "tests/eval/pipelines/test_pipeline.py")


def data(work: Path) -> dict[str, Any]:
    """Malformed data gives exact messages, random rows load or are refused, eight runs share a cache; mixes and orders."""
    names = ("nasty", "size", "prefix", "order", "mixing", "answers", "templates", "check")
    return run_tests(*(f"tests/data/test_{name}.py" for name in names), "tests/eval/comparison/test_folds.py")


def bench(work: Path) -> dict[str, Any]:
    """Time and memory of a training step meet every target against TRL."""
    command(sys.executable, "-m", "bench", "--output", OUTPUT / "bench.json", cwd=ROOT)
    record = json.loads((OUTPUT / "bench.json").read_text())
    rows = record["rows"] + record["scoring"]
    missed = [row for row in rows if row.get("met") is False]
    assert not missed, f"{len(missed)} of {len(rows)} targets missed, first: {missed[0]}"
    return {"rows": len(rows), "targets met": sum(row.get("met") is True for row in rows)}


def data_bench(work: Path) -> dict[str, Any]:
    """Data preparation is at least twice as fast as TRL's with the same ids; a million pairs take at most 1.5 GB."""
    file = OUTPUT / "bench-data.json"
    command(sys.executable, "-m", "bench", "--data", "--output", file, cwd=ROOT)
    found = json.loads(file.read_text())["data"]
    assert not found["missed"], found["missed"]
    memory = {name: round(found["memory"][name]["bytes"] / 1e9, 2) for name in ("tokenised", "cached")}
    faster = {f"{row['rows']['name']} x{row['processes']}": round(row["ratio"], 2) for row in found["speed"]}
    return {"times as fast as TRL": faster, "GB above the libraries": memory}


def clean_clone(work: Path) -> dict[str, Any]:
    """``make run`` and ``make test`` succeed in a clean clone with a new environment."""
    clone = work / "clone"
    command("git", "clone", "-q", ROOT, clone, cwd=work)
    seconds = {}
    for target in ("run", "test"):
        started = time.monotonic()
        command("make", target, cwd=clone)
        seconds[f"make {target}"] = round(time.monotonic() - started)
    return {"wall seconds, installation included": seconds}
