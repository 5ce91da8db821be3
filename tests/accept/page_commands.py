"""Acceptance check of the documentation: every ``align`` command of a page runs as it stands, on tiny models and few rows."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

from alignkit.demo import data_path, model_path

from tests.helpers.pages import PAGES, TUTORIALS, commands
from tests.helpers.runs import align

ELSEWHERE = {
    "run orpo.yaml --processes 8": "needs other machines; planned by tests/docs/test_scale_page.py",
    "slurm orpo.yaml": "writes to a file; run by tests/docs/test_scale_page.py",
    "run --method orpo --processes 2": "run by tests/docs/test_scale_page.py",
    "status runs/pair": "run by tests/docs/test_scale_page.py",
    "sweep --method orpo --over lambda=0,1 --jobs 2": "run by tests/docs/test_scale_page.py",
    "serve ": "does not end by itself; run by the check serving",
    "export runs/dpo --format ollama": "needs llama.cpp; run by the check exports",
    "eval runs/a --suite prefs,kl,generate,lm-eval --tasks hellaswag": "needs a data set of the hub",
    "eval my-model --tasks hellaswag": "needs a data set of the hub; own tasks: tests/eval/suites/test_lm_eval.py",
    "eval runs/a --suite judge --set judge.url": "needs a server; run by tests/judge/test_remote.py",
    "compare lm_base": "needs results of lm-eval; run by tests/eval/elsewhere",
    "compare logs/": "needs results of Inspect; run by tests/eval/elsewhere",
    "compare a_all.jsonl": "needs results of RewardBench; run by tests/eval/elsewhere",
    "sweep ... --race": "stands for any sweep",
    "sweep --method orpo --over lambda=0,0.1,1,5": "a race of 24 runs; one is run by the check demo_race",
    "pipeline rlhf.yaml": "run by the check rlhf",
    "run --method mine": "needs the package of the page; start-researcher.md is run by the check pages",
    "compare runs/orpo runs/mine": "needs the package of the page; start-researcher.md is run by the check pages",
    "sweep --over method=orpo,mine": "needs the package of the page; start-researcher.md is run by the check pages",
}
"""Beginnings of commands that are not run here -> why."""

MODELS = ("M", "DIR_OR_HUB_ID", "my-model", "model", "policy", "base-model", "judge-model", "before", "small")
RUNS = {"a": "orpo", "b": "dpo", "c": "orpo", "sft": "sft", "large": "sft", "reward": "reward"}
RUNS |= {name: name for name in ("dpo", "orpo", "ppo")}
"""Runs that pages name -> their method."""

FEW = ("data.eval_limit=20", "data.limit=60", "eval.samples=0", "run.plots=false", "train.max_steps=2")
ON_POLICY = ("ppo", "grpo", "online-dpo")


def page_commands(work: Path) -> dict[str, Any]:
    """Every command of a page that is no tutorial runs as it stands, with few rows and steps; the others are named with the reason."""
    world = work / "world"
    _prepare(world)
    ran, elsewhere, failed = 0, {}, []
    for page in PAGES:
        found = [*commands(page)]
        if page.stem in TUTORIALS or not found:
            continue
        place = work / page.stem
        shutil.copytree(world, place, symlinks=True)
        for name in {words[words.index("--name") + 1] for words in found if words[0] == "run" and "--name" in words}:
            shutil.rmtree(place / "runs" / name, ignore_errors=True)  # the page makes it
        for words in found:
            line = " ".join(words)
            if reason := next((why for start, why in ELSEWHERE.items() if line.startswith(start)), None):
                elsewhere[f"{page.stem}: align {line}"] = reason
                continue
            done = align(*_short(words), cwd=place)
            ran += 1
            if done.returncode:
                failed.append(f"{page.stem}: align {line}: exit code {done.returncode}: {done.stderr[-600:]}")
    assert not failed, "\n".join(failed)
    return {"run": ran, "not run here": elsewhere}


def _short(words: list[str]) -> list[str]:
    """Return a command with fewer rows and steps; a sweep with two values of its first axis, one of others, and one seed."""
    few = [word for setting in FEW for word in ("--set", setting)]
    if words[0] == "run":
        sampled = any(f"--method {method}" in " ".join(words) for method in ON_POLICY)
        return [*words, *few, *(["--set", "max_new_tokens=8"] if sampled else [])]
    if words[0] == "atlas":
        return [*words, *few, "--only", "sigmoid,ipo", "--seeds", "0"]
    if words[0] == "sweep":
        kept, axes = [*words], 0
        for place, (option, value) in enumerate(pairwise(words), 1):
            key, _, values = value.partition("=")
            if option == "--over":
                kept[place] = f"{key}={','.join(values.split(',')[: 1 if axes else 2])}"
                axes += 1
            elif option == "--seeds":
                kept[place] = "0"
        return [*kept, *few]
    return words


def _prepare(world: Path) -> None:
    """Write what pages name: models, rows of every kind, a task of lm-eval, a function, and short runs."""
    world.mkdir()
    for name in MODELS:
        (world / name).symlink_to(model_path(), target_is_directory=True)
    (world / "path/to").mkdir(parents=True)
    (world / "path/to/judge").symlink_to(model_path(), target_is_directory=True)
    for split, names in {"train": ("prefs", "pairs", "answers", "prompts"), "test": ("held_out", "test")}.items():
        lines = data_path(split).read_text(encoding="utf-8").splitlines()[:60]
        for name in names:
            rows = [json.loads(line) for line in lines]
            if name == "prompts":
                rows = [row | {"kind": "safe" if n % 2 else "unsafe"} for n, row in enumerate(rows)]
            _write(world / f"{name}.jsonl", rows)
    _write(world / "sums.jsonl", [{"prompt": f"what is {n} plus one ?", "answer": f"#### {n + 1}"} for n in range(40)])
    sentence = "Ada wears a red hat . Bea has a white cup . "
    _write(world / "corpus.jsonl", [{"text": sentence * 40}])
    asked = ["what does Ada wear ?", "who has a cup ?"]
    (world / "xstest.csv").write_text(
        "prompt,label,type,id\n"
        + "".join(f"{q},{l},{l},{n}\n" for n, (q, l) in enumerate(zip(asked, ("safe", "unsafe"), strict=True)))
    )
    best = {
        "prompt": asked[0],
        "chosen": [" a red hat ."],
        "rejected": [" a cup .", " no .", " who ?"],
        "subset": "Math",
    }
    _write(world / "rewardbench2.jsonl", [best | {"id": str(number)} for number in range(4)])
    (world / "tasks").mkdir()
    (world / "tasks/my_task.yaml").write_text(
        "task: my_task\ndataset_path: json\ndataset_kwargs: {data_files: {test: test.jsonl}}\ntest_split: test\n"
        "output_type: loglikelihood\ndoc_to_text: '{{prompt}}'\ndoc_to_target: ' a hat .'\n"
    )
    (world / "my_package").mkdir()
    (world / "my_package/__init__.py").touch()
    (world / "my_package/checks.py").write_text("def is_correct(prompt, answer):\n    return float('.' in answer)\n")
    (world / "run.yaml").write_text("method: orpo\ndata: prefs.jsonl\n")
    for name, method in RUNS.items():
        adapter = ["--set", "model.lora.r=4"] if name in ("dpo", "orpo") else []
        reward = ["--set", "reward=length"] if method in ON_POLICY else []
        seed = "1" if name == "c" else "0"
        words = ["run", "--method", method, "--name", name, "--seed", seed, *adapter, *reward]
        done = align(*_short(words), cwd=world)
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
    for name, target in {"reward-model": "runs/reward", "after": "runs/b/model"}.items():
        (world / name).symlink_to(target, target_is_directory=True)


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
