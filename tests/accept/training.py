"""Acceptance checks of training on the demo: runs, sweeps, pipelines, and resumption after kills."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.accept.commands import ALIGN, ROOT, command, environment, settings, timed

KILLS = 10
STEPS = 40


def demo_run(work: Path) -> dict[str, Any]:
    """``align run --method orpo`` on the demo takes under 120 CPU seconds, improves significantly, and logs no warning."""
    done, seconds = timed(ALIGN, "run", "--method", "orpo", "--name", "demo", cwd=work)
    evaluation = json.loads((work / "runs/demo/run.json").read_text())["evaluation"]
    start, end = (evaluation[when]["prefs"]["accuracy_sum"] for when in ("before", "after"))
    warnings = [line for line in done.stderr.splitlines() if "warning" in line.lower()]
    assert seconds < 120, f"{seconds:.0f} CPU seconds"
    assert end["low"] > start["high"], f"the intervals overlap: {start}, {end}"
    assert not warnings, warnings[0]
    shown = lambda e: f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"
    return {"cpu_seconds": round(seconds, 1), "before": shown(start), "after": shown(end), "warnings": 0}


def kill_and_resume(work: Path) -> dict[str, Any]:
    """After ten kills at random moments, also while writing checkpoints, the weights equal the uninterrupted run's."""
    return _killed_and_resumed(work, ["--method", "orpo"], "model.safetensors")


def kill_and_resume_ppo(work: Path) -> dict[str, Any]:
    """The same inside PPO's rollouts: rollout buffer, critic, adaptive KL coefficient and random states are restored."""
    start = settings(model__lora__r=8, train__learning_rate=2e-3, train__max_steps=60, run__plots="false")
    command(ALIGN, "run", "--method", "sft", "--name", "sft", *start, cwd=work)
    ppo = settings(epochs=2, minibatches=2, kl_target=0.2, critic="separate", train__per_device_train_batch_size=16)
    method = ["--method", "ppo", "--model", "runs/sft", *ppo]
    return _killed_and_resumed(work, method, "adapter_model.safetensors", "critic.safetensors")


def _killed_and_resumed(work: Path, method: list[str], *files: str) -> dict[str, Any]:
    options = [*method, *settings(train__max_steps=STEPS, train__save_strategy="steps", train__save_steps=3)]
    options += settings(train__logging_steps=1, eval__suites="[]", eval__samples=0, run__plots="false")
    command(ALIGN, "run", *options, "--name", "whole", cwd=work)
    whole = [(work / "runs/whole/model" / file).read_bytes() for file in files]
    run = work / "runs/killed"
    draw = random.Random(0)
    in_save, killed_at = 0, []
    arguments = [str(ALIGN), "run", *options, "--name", "killed"]
    for kill in range(KILLS):
        process = subprocess.Popen(arguments, cwd=work, env=environment(), stderr=subprocess.DEVNULL)
        target = STEPS * (kill + 1) // (KILLS + 1)
        in_save += _kill(process, run, target, draw, inside_save=kill % 2 == 1)
        killed_at.append(last_step(run))
        arguments = [str(ALIGN), "resume", str(run)]
    assert in_save, "no kill happened while a checkpoint was being written"
    command(*arguments, cwd=work)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(run / "model" / file).read_bytes() for file in files] == whole, "the weights differ"
    assert [r["step"] for r in records if "loss" in r] == list(range(1, STEPS + 1)), "a step is missing or duplicated"
    return {"kills": KILLS, "inside a save": in_save, "steps at the kills": killed_at}


def last_step(run: Path) -> int:
    """Return the last step in a run's metrics, 0 if there is none yet."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].endswith("}") else 0


def _kill(process: subprocess.Popen[bytes], run: Path, target: int, draw: random.Random, *, inside_save: bool) -> bool:
    """Kill a run after it has reached a step: at a random moment, or while a checkpoint is in ``.partial``."""
    partial = run / "checkpoints" / ".partial"
    while process.poll() is None and last_step(run) < target:
        time.sleep(0.002)
    if inside_save:
        while process.poll() is None and not any(partial.glob("checkpoint-*/*")):
            pass
    else:
        time.sleep(draw.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return partial.is_dir() and any(partial.glob("checkpoint-*"))


def demo_sweep(work: Path) -> dict[str, Any]:
    """ORPO with five lambdas and DPO, three seeds each, on the demo take under 10 CPU minutes in total."""
    over = ["--over", "method=orpo,dpo", "--over", "lambda=0,0.1,0.5,1,5", "--seeds", "0,1,2"]
    _, seconds = timed(ALIGN, "sweep", *over, "--name", "demo", cwd=work)
    stored = json.loads((work / "runs/demo/sweep.json").read_text())
    spent = [cell["timings"] for cell in stored["cells"]]
    parts = {stage: sum(t.get(stage, {}).get("cpu_seconds", 0.0) for t in spent) for stage in spent[0]}
    evaluation = parts["evaluate before"] + parts["evaluate after"]
    arms = {arm["name"]: arm["metrics"]["prefs"]["accuracy_sum"]["value"] for arm in stored["comparison"]["arms"]}
    significant = sorted({c["arm"] for c in stored["comparison"]["contrasts"] if (c["p_holm"] or 1) < 0.05})
    assert seconds < 600, f"{seconds:.0f} CPU seconds"
    assert (work / "runs/demo/report.html").is_file()
    return {
        "cpu_seconds": round(seconds),
        "train": round(parts["train"]),
        "evaluate": round(evaluation),
        "other": round(seconds - parts["train"] - evaluation),
        "accuracy by sum": {name: round(value, 3) for name, value in arms.items()},
        "differ from lambda 0": significant,
    }


def ppo(work: Path) -> dict[str, Any]:
    """PPO on the demo, three seeds, improves the held-out reward over the SFT model with bounded KL, also a learned one."""
    sft = settings(model__lora__r=16, train__learning_rate=2e-3, run__plots="false")
    command(ALIGN, "run", "--method", "sft", "--name", "sft", *sft, cwd=work)
    command(ALIGN, "run", "--method", "reward", "--model", "runs/sft", "--name", "rm", cwd=work)
    measured = settings(eval__settings__generate__prompts=821, eval__settings__generate__rewards="runs/rm")
    learned = settings(reward="{name: runs/rm, weight: 0.1}", kl_coef=0.3)
    found: dict[str, Any] = {}
    for name, more in (("checker", []), ("learned", learned)):
        over = ["--over", "method=ppo", "--seeds", "0,1,2", "--name", name, "--model", "runs/sft"]
        _, seconds = timed(ALIGN, "sweep", *over, *measured, *more, cwd=work)
        runs = sorted(str(path.parent) for path in (work / "runs" / name).glob("*/run.json"))
        done = command(ALIGN, "compare", *runs, "--baseline", "start", "--json", cwd=work)
        contrasts = {c["metric"]: c for c in json.loads(done.stdout)["contrasts"]}
        kls = [json.loads((Path(run) / "metrics.jsonl").read_text().splitlines()[-1])["kl"] for run in runs]
        assert len(runs) == 3
        assert seconds < 3 * 600, f"{seconds:.0f} CPU seconds for three runs"
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
    """``align pipeline`` on the demo runs sft, reward, ppo, grpo, dpo, orpo, comparison and export in 15 CPU minutes."""
    _, seconds = timed(ALIGN, "pipeline", ROOT / "examples" / "rlhf.yaml", cwd=work)
    assert seconds < 900, f"{seconds:.0f} CPU seconds"
    comparison = json.loads((work / "runs/rlhf/eval/comparison.json").read_text())
    assert (work / "runs/rlhf/report.html").is_file()
    assert (work / "runs/rlhf/export/model.safetensors").is_file()
    quality = {arm["name"]: round(arm["metrics"]["generate"]["quality"]["value"], 3) for arm in comparison["arms"]}
    assert set(quality) == {"sft", "dpo", "orpo", "ppo", "ppo-learned", "grpo"}
    tokens = {arm["name"]: round(arm["cost"]["tokens"]) for arm in comparison["arms"]}
    return {"cpu_seconds": round(seconds), "quality": quality, "tokens": tokens}
