"""``make accept``: every claim of this release at full size, skipping nothing, as a table and ``accept/accept.json``.

Each check returns what it saw; it fails by raising. ``python -m tests.accept.__main__ NAME ...`` runs only the named checks.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "accept"
BIN = Path(sys.executable).parent
KILLS = 10
STEPS = 40


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def command(*arguments: str | Path, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(a) for a in arguments], cwd=cwd, env=environment(), capture_output=True, text=True, check=False, **more
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done


def tests(*selection: str) -> dict[str, Any]:
    """Run a part of the test suite and count; a skipped test is a failure here."""
    done = command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selection, cwd=ROOT)
    closing = done.stdout.strip().splitlines()[-1]
    if "skipped" in closing or "passed" not in closing:
        raise AssertionError(closing)
    return {"tests": closing}


# ------------------------------------------------------------------------------------------------- the checks


def demo_run(work: Path) -> dict[str, Any]:
    """``align run --method orpo`` on the demo: under 120 CPU-seconds, intervals apart, not one warning line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command(BIN / "align", "run", "--method", "orpo", "--name", "demo", cwd=work)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    evaluation = json.loads((work / "runs" / "demo" / "run.json").read_text())["evaluation"]
    start, end = (evaluation[when]["prefs"]["accuracy_sum"] for when in ("before", "after"))
    warnings = [line for line in done.stderr.splitlines() if "warning" in line.lower()]
    assert seconds < 120, f"{seconds:.0f} CPU-seconds"
    assert end["low"] > start["high"], f"the intervals meet: {start}, {end}"
    assert not warnings, warnings[0]
    shown = lambda e: f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"
    return {"cpu_seconds": round(seconds, 1), "before": shown(start), "after": shown(end), "warnings": 0}


def closed_forms(work: Path) -> dict[str, Any]:
    """Losses against 50-digit arithmetic, to 1e-6 relative."""
    return tests("tests/contract/test_losses.py")


def parity(work: Path) -> dict[str, Any]:
    """Loss and gradient of ORPO and DPO against TRL's, and every scoring backend against plain forwards."""
    return tests(*sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").glob("test_scoring*.py")))


def invariance(work: Path) -> dict[str, Any]:
    """Micro-batch cuts, two processes, row order, lambda 0 = sft bit for bit, DPO at ln 2, resume bit for bit."""
    return tests("tests/training/test_step.py", "tests/training/test_ddp.py", "tests/training/test_resume.py")


def bad_input(work: Path) -> dict[str, Any]:
    """One clear sentence and exit code 2 for everything a user can get wrong."""
    return tests("tests/cli/test_bad_input.py")


def kill_and_resume(work: Path) -> dict[str, Any]:
    """Kill -9 at ten random moments, while a checkpoint is being written among them; the weights equal the uninterrupted run's."""
    return _killed_and_resumed(work, ["--method", "orpo"], "model.safetensors")


def kill_and_resume_ppo(work: Path) -> dict[str, Any]:
    """The same inside PPO's rollouts: buffer, critic, adaptive KL penalty and random numbers go on as if nothing had been."""
    start = ["--set", "model.lora.r=8", "--set", "train.learning_rate=2e-3", "--set", "train.max_steps=60"]
    command(BIN / "align", "run", "--method", "sft", "--name", "sft", *start, "--set", "run.plots=false", cwd=work)
    ppo = [
        "--method",
        "ppo",
        "--model",
        "runs/sft",
        "--set",
        "epochs=2",
        "--set",
        "minibatches=2",
        "--set",
        "kl_target=0.2",
    ]
    ppo += ["--set", "critic=separate", "--set", "train.per_device_train_batch_size=16"]
    return _killed_and_resumed(work, ppo, "adapter_model.safetensors", "critic.safetensors")


def _killed_and_resumed(work: Path, method: list[str], *files: str) -> dict[str, Any]:
    options = [*method, "--set", f"train.max_steps={STEPS}", "--set", "train.save_strategy=steps"]
    options += ["--set", "train.save_steps=3", "--set", "train.logging_steps=1", "--set", "eval.suites=[]"]
    options += ["--set", "eval.samples=0", "--set", "run.plots=false"]
    command(BIN / "align", "run", *options, "--name", "whole", cwd=work)
    whole = [(work / "runs" / "whole" / "model" / file).read_bytes() for file in files]
    run = work / "runs" / "killed"
    draw = random.Random(0)
    in_save, killed_at = 0, []
    arguments = [str(BIN / "align"), "run", *options, "--name", "killed"]
    for kill in range(KILLS):
        process = subprocess.Popen(arguments, cwd=work, env=environment(), stderr=subprocess.DEVNULL)
        target = STEPS * (kill + 1) // (KILLS + 1)
        in_save += _kill(process, run, target, draw, inside_save=kill % 2 == 1)
        killed_at.append(_last_step(run))
        arguments = [str(BIN / "align"), "resume", str(run)]
    assert in_save, "no kill fell into the writing of a checkpoint"
    command(*arguments, cwd=work)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(run / "model" / file).read_bytes() for file in files] == whole, "the weights differ"
    assert [r["step"] for r in records if "loss" in r] == list(range(1, STEPS + 1)), "a step is missing or twice there"
    return {"kills": KILLS, "inside a save": in_save, "steps at the kills": killed_at}


def _last_step(run: Path) -> int:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].endswith("}") else 0


def _kill(process: subprocess.Popen[bytes], run: Path, target: int, draw: random.Random, *, inside_save: bool) -> bool:
    """Kill a run once it has reached a step, at a random moment or while ``.partial`` holds a half-written checkpoint."""
    partial = run / "checkpoints" / ".partial"
    while process.poll() is None and _last_step(run) < target:
        time.sleep(0.002)
    if inside_save:
        while process.poll() is None and not any(partial.glob("checkpoint-*/*")):
            pass
    else:
        time.sleep(draw.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return partial.is_dir() and any(partial.glob("checkpoint-*"))


def statistics(work: Path) -> dict[str, Any]:
    """Type I error <= 6.5 % at nominal 5 % with and without cluster and seed effects; power as theory says; closed cases."""
    from scipy import stats

    from tests.helpers.simulate import NULLS, covered, rejected

    trials = 4000
    errors = {name: rejected(trials, clusters=100, **about) for name, about in NULLS.items()}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 0.065, f"{worst}: {errors[worst]:.3f}"
    # Items of their own cluster, rates uniform on [.3, .7]: p (1 - p) is .25 - .04 / 3 on average.
    error = (2 * (0.25 - 0.04 / 3) / 400) ** 0.5
    expected = float(stats.norm.sf(stats.norm.ppf(0.975) - 0.1 / error))
    found = rejected(trials, seeds=1, clusters=400, per_cluster=1, shift=0.1)
    assert abs(found - expected) < 0.04, f"power {found:.3f}, expected {expected:.3f}"
    cover = covered(trials, 0.05, seeds=3, cluster_sd=0.1, seed_sd=0.03)
    assert cover >= 0.935, f"coverage {cover:.3f}"
    shown = {name: round(error, 4) for name, error in errors.items()}
    return {"type I error": shown, "power": [round(found, 3), round(expected, 3)], "coverage": round(cover, 3)}


def harness(work: Path) -> dict[str, Any]:
    """Suites, comparison, sweep and report: every case, in a real browser; agreement with lm-eval to 1e-4."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        command("apt-get", "install", "-y", "-qq", "chromium", "chromium-driver", cwd=work)
    return tests(*sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").glob("test_eval_*.py")))


def demo_sweep(work: Path) -> dict[str, Any]:
    """lambda {0, .1, .5, 1, 5} and DPO x 3 seeds on the demo: within 10 CPU-minutes, at most the cost of its parts."""
    over = ["--over", "method=orpo,dpo", "--over", "lambda=0,0.1,0.5,1,5", "--seeds", "0,1,2"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command(BIN / "align", "sweep", *over, "--name", "demo", cwd=work)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    stored = json.loads((work / "runs/demo/sweep.json").read_text())
    spent = [cell["timings"] for cell in stored["cells"]]
    parts = {stage: sum(t.get(stage, {}).get("cpu_seconds", 0.0) for t in spent) for stage in spent[0]}
    arms = {arm["name"]: arm["metrics"]["prefs"]["accuracy_sum"]["value"] for arm in stored["comparison"]["arms"]}
    significant = sorted({c["arm"] for c in stored["comparison"]["contrasts"] if (c["p_holm"] or 1) < 0.05})
    assert seconds < 600, f"{seconds:.0f} CPU-seconds"
    assert (work / "runs/demo/report.html").is_file()
    return {
        "cpu_seconds": round(seconds),
        "train": round(parts["train"]),
        "evaluate": round(parts["evaluate before"] + parts["evaluate after"]),
        "all else": round(seconds - parts["train"] - parts["evaluate before"] - parts["evaluate after"]),
        "accuracy by sum": {name: round(value, 3) for name, value in arms.items()},
        "differ from lambda 0": significant,
    }


def ppo(work: Path) -> dict[str, Any]:
    """PPO on the demo, three seeds: held-out reward above the SFT start's, KL bounded; with a learned reward, both rewards."""
    sft = ["--set", "model.lora.r=16", "--set", "train.learning_rate=2e-3", "--set", "run.plots=false"]
    command(BIN / "align", "run", "--method", "sft", "--name", "sft", *sft, cwd=work)
    command(BIN / "align", "run", "--method", "reward", "--model", "runs/sft", "--name", "rm", cwd=work)
    measured = ["--set", "eval.settings.generate.prompts=821", "--set", "eval.settings.generate.rewards=runs/rm"]
    learned = ["--set", "reward={name: runs/rm, weight: 0.1}", "--set", "kl_coef=0.3"]
    found: dict[str, Any] = {}
    for name, more in (("checker", []), ("learned", learned)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        over = ["--over", "method=ppo", "--seeds", "0,1,2", "--name", name, "--model", "runs/sft"]
        command(BIN / "align", "sweep", *over, *measured, *more, cwd=work)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        runs = sorted(str(path.parent) for path in (work / "runs" / name).glob("*/run.json"))
        done = command(BIN / "align", "compare", *runs, "--baseline", "start", "--json", cwd=work)
        contrasts = {c["metric"]: c for c in json.loads(done.stdout)["contrasts"]}
        kls = [json.loads((Path(run) / "metrics.jsonl").read_text().splitlines()[-1])["kl"] for run in runs]
        assert len(runs) == 3
        assert seconds < 3 * 600, f"{seconds:.0f} CPU-seconds for three runs"
        assert max(kls) < 5, f"KL {kls}"
        found[name] = {
            metric: {key: contrasts[metric][key] for key in ("diff", "low", "high", "p")}
            for metric in ("quality", "reward/rm")
        } | {"kl": [round(kl, 2) for kl in kls], "cpu_seconds": round(seconds)}
        assert contrasts["quality"]["diff"] > 0, found
    assert contrasts["reward/rm"]["low"] > 0, found
    assert found["checker"]["quality"]["low"] > 0, found
    return found


def rlhf(work: Path) -> dict[str, Any]:
    """``align pipeline`` on the demo: sft, reward, ppo, grpo, dpo, orpo, comparison and export in 15 CPU-minutes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command(BIN / "align", "pipeline", ROOT / "examples" / "rlhf.yaml", cwd=work)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 900, f"{seconds:.0f} CPU-seconds"
    comparison = json.loads((work / "runs/rlhf/eval/comparison.json").read_text())
    assert (work / "runs/rlhf/report.html").is_file()
    assert (work / "runs/rlhf/export/model.safetensors").is_file()
    quality = {arm["name"]: round(arm["metrics"]["generate"]["quality"]["value"], 3) for arm in comparison["arms"]}
    assert set(quality) == {"sft", "dpo", "orpo", "ppo", "ppo-learned", "grpo"}
    tokens = {arm["name"]: round(arm["cost"]["tokens"]) for arm in comparison["arms"]}
    return {"cpu_seconds": round(seconds), "quality": quality, "tokens": tokens}


def onpolicy(work: Path) -> dict[str, Any]:
    """Advantages by hand, first-step identities, padding, resume inside a rollout; TRL's trainers beside our own."""
    return tests(
        "tests/onpolicy",
        "tests/plugins/test_trl.py",
        "tests/eval/pipelines/test_pipeline.py",
    )


def bench(work: Path) -> dict[str, Any]:
    """Time and memory of a training step against TRL, every target met."""
    command(sys.executable, "-m", "bench", "--output", OUTPUT / "bench.json", cwd=ROOT)
    rows = json.loads((OUTPUT / "bench.json").read_text())["rows"]
    rows += json.loads((OUTPUT / "bench.json").read_text())["scoring"]
    missed = [row for row in rows if row.get("met") is False]
    assert not missed, f"{len(missed)} of {len(rows)} targets missed, first: {missed[0]}"
    return {"rows": len(rows), "targets met": sum(row.get("met") is True for row in rows)}


def data(work: Path) -> dict[str, Any]:
    """Nasty inputs with exact messages, random rows that train or say why not, eight runs on one cache, mixes and orders."""
    names = ("nasty", "size", "prefix", "order", "mixing", "answers", "templates", "check")
    return tests(*(f"tests/data/test_{name}.py" for name in names), "tests/eval/comparison/test_folds.py")


def data_bench(work: Path) -> dict[str, Any]:
    """Tokenised rows a second at least twice TRL's, to the same ids; a million pairs within 1.5 GB above the libraries."""
    file = OUTPUT / "bench-data.json"
    command(sys.executable, "-m", "bench", "--data", "--output", file, cwd=ROOT)
    found = json.loads(file.read_text())["data"]
    assert not found["missed"], found["missed"]
    memory = {name: round(found["memory"][name]["bytes"] / 1e9, 2) for name in ("tokenised", "cached")}
    faster = {f"{row['rows']['name']} x{row['processes']}": round(row["ratio"], 2) for row in found["speed"]}
    return {"times as fast as TRL": faster, "GB above the libraries": memory}


def clean_clone(work: Path) -> dict[str, Any]:
    """``make run`` and ``make test`` in a clean clone with an environment of its own."""
    clone = work / "clone"
    command("git", "clone", "-q", ROOT, clone, cwd=work)
    seconds = {}
    for target in ("run", "test"):
        started = time.monotonic()
        command("make", target, cwd=clone)
        seconds[f"make {target}"] = round(time.monotonic() - started)
    return {"wall seconds, installation included": seconds}


CHECKS: list[Callable[[Path], dict[str, Any]]] = [
    demo_run,
    closed_forms,
    parity,
    invariance,
    bad_input,
    kill_and_resume,
    kill_and_resume_ppo,
    statistics,
    harness,
    demo_sweep,
    onpolicy,
    ppo,
    rlhf,
    bench,
    data,
    data_bench,
    clean_clone,
]


def main(names: list[str]) -> int:
    work = OUTPUT / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    results = []
    for check in CHECKS:
        if names and check.__name__ not in names:
            continue
        started = time.monotonic()
        try:
            seen, passed = check(work), True
        except AssertionError as error:
            seen, passed = {"failed": str(error)}, False
        row = {"check": check.__name__, "claim": (check.__doc__ or "").strip(), "passed": passed, "seen": seen}
        results.append(row | {"seconds": round(time.monotonic() - started, 1)})
        print(
            f"{'pass' if passed else 'FAIL'}  {check.__name__:<16} {results[-1]['seconds']:>8.1f} s  {seen}", flush=True
        )
    (OUTPUT / "accept.json").write_text(json.dumps(results, indent=2) + "\n")
    failed = sum(not row["passed"] for row in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
