"""Cases of evaluation: lm-eval's metrics, the cache's keys, intervals, names, and rows left out."""

from __future__ import annotations

import json
import random
import re
import shutil

from tests.accept.cases.place import METALS, Place
from tests.accept.models import make_adapter

WORDS = "box two three plus is red the what colour thank you kitchen much very five".split()


def _estimate(at: Place, file: str, metric: str) -> dict[str, float]:
    found: dict[str, float] = at.read(file)["metrics"][metric]
    return found


def _task(at: Place, **values: object) -> None:
    (at.path / "tasks").mkdir(exist_ok=True)
    base = {"dataset_path": "json", "test_split": "test"}
    (at.path / "tasks" / f"{values['task']}.yaml").write_text(json.dumps(base | values))


def translation_metrics(at: Place) -> str:
    """BLEU, chrF and TER of a stock kind of task are lm-eval's own numbers."""
    rows = [
        {"q": f"Question: How many are {i} and 6?\nAnswer:", "a": f"so it is {i + 6}\n#### {i + 6}"} for i in range(8)
    ]
    data = {"data_files": {"test": str(at.path / at.rows("sums.jsonl", rows))}}
    metrics = [{"metric": name} for name in ("bleu", "chrf", "ter")]
    generation = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 24}
    about = {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "generation_kwargs": generation, "metric_list": metrics}
    _task(at, task="sums", dataset_kwargs=data, output_type="generate_until", **about)
    return _like_lm_eval(at, "tiny", "sums", ["bleu", "chrf", "ter"])


def one_class_f1(at: Place) -> str:
    """F1 and MCC of a model that always gives one answer are lm-eval's own numbers: 0 and 0."""
    rows = [{"q": f"The cup {i} is red. Is it?", "yes": i % 3 != 0} for i in range(12)]
    data = {"data_files": {"test": str(at.path / at.rows("cups.jsonl", rows))}}
    metrics = [{"metric": name} for name in ("acc", "f1", "mcc")]
    about = {"doc_to_text": "{{q}}", "doc_to_choice": ["no", "yes"], "doc_to_target": "yes", "metric_list": metrics}
    _task(at, task="cups", dataset_kwargs=data, output_type="multiple_choice", **about)
    return _like_lm_eval(at, "uniform", "cups", ["acc", "f1", "mcc"])


def _like_lm_eval(at: Place, model: str, task: str, metrics: list[str]) -> str:
    """Compare the metrics of ``align eval`` with those of lm-eval's own simple_evaluate."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    at.good("eval", at.model(model), "--tasks", task, "--include-path", "tasks", "--output", "out")
    stored = at.read(f"out/{model}/eval/lm-eval.json")["metrics"]
    ours = {
        metric: next(v["value"] for name, v in stored.items() if re.search(rf"\b{metric}\b", name))
        for metric in metrics
    }
    tasks = TaskManager(include_path=str(at.path / "tasks"))
    arguments = f"pretrained={at.model(model)},dtype=float32"
    found = lm_eval.simple_evaluate(
        model="hf", model_args=arguments, tasks=[task], device="cpu", task_manager=tasks, bootstrap_iters=0
    )
    theirs = {metric: found["results"][task][f"{metric},none"] for metric in metrics}
    assert all(abs(ours[m] - theirs[m]) < 1e-6 * max(1.0, abs(theirs[m])) for m in metrics), f"{ours}, lm-eval {theirs}"
    return ", ".join(f"{metric} {ours[metric]:.3g}" for metric in metrics)


def two_scales_of_one_adapter(at: Place) -> str:
    """Two adapters with equal tensors and other lora_alpha get two results, and a difference."""
    base = at.models / "tiny"
    for name, alpha in (("low", 4), ("high", 64)):
        make_adapter(at.path / name, base, alpha=alpha)
    data = at.rows("rows.jsonl", METALS)
    at.good("eval", "low", "high", "--suite", "perplexity", "--data", data, "--output", "out")
    values = [_estimate(at, f"out/{name}/eval/perplexity.json", "perplexity")["value"] for name in ("low", "high")]
    at.good("eval", "high", "--suite", "perplexity", "--data", data, "--output", "fresh", cache="another")
    fresh = _estimate(at, "fresh/high/eval/perplexity.json", "perplexity")["value"]
    assert values[0] != values[1], values
    assert values[1] == fresh, f"{values[1]} from the cache, {fresh} without"
    contrasts = json.loads(at.good("compare", "out/low", "out/high", "--json").out)["contrasts"]
    assert any(contrast["diff"] for contrast in contrasts), contrasts[0]
    return f"perplexities {values[0]:.5g} and {values[1]:.5g}"


def interval_of_the_best_of_several(at: Place) -> str:
    """accuracy_best has an interval inside [0, 1], with some width."""
    draw = random.Random(0)
    text = lambda: " " + " ".join(draw.choices(WORDS, k=draw.randint(3, 7)))
    rows = [{"prompt": f"box {i}", "chosen": text(), "rejected": [text() for _ in range(3)]} for i in range(12)]
    few = [{"prompt": "the box", "chosen": " is red", "rejected": [" is two", " is five", " thank you"]}]
    few.append({"prompt": "two plus", "chosen": " three", "rejected": [" box"]})
    seen = []
    for name, part in (("twelve", rows), ("two", few)):
        data = at.rows(f"{name}.jsonl", part)
        at.good("eval", at.model("tiny"), "--suite", "prefs", "--data", data, "--output", name)
        found = _estimate(at, f"{name}/tiny/eval/prefs.json", "accuracy_best")
        assert 0 <= found["low"] < found["high"] <= 1, found
        seen.append(f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]")
    return ", ".join(seen)


def two_models_of_one_name(at: Place) -> str:
    """Of two models called ``model`` in different folders both results remain, or the second is refused."""
    data = at.rows("rows.jsonl", METALS)
    results, codes = [], []
    for folder, model in (("one", "tiny"), ("two", "tiny2")):
        shutil.copytree(at.model(model), at.path / folder / "model")
        ended = at("eval", f"{folder}/model", "--suite", "prefs", "--data", data, "--output", "out")
        codes.append(ended.code)
        results = [
            json.loads(file.read_text())["metrics"]["margin_sum"] for file in (at.path / "out").rglob("prefs.json")
        ]
    assert codes[0] == 0
    assert codes[1] == 2 or len(results) == 2, f"{len(results)} result remains, exit codes {codes}"
    return f"exit codes {codes}, {len(results)} results: {sorted(path.name for path in (at.path / 'out').iterdir())}"


def rows_left_out(at: Place) -> str:
    """Rows that are dropped and answers that are cut are said, with n, or refused by data.max_dropped."""
    same = [{"prompt": "the box", "chosen": " is red", "rejected": " is red"}, *METALS[:1]]
    long = [{"prompt": "the red box is in the " * 60, "chosen": " kitchen" * 90, "rejected": " two"}, *METALS[:2]]
    seen = []
    for name, rows, words in (
        ("same", same, r"1 (of|row|drop)|drop"),
        ("long", long, r"cut|truncated|dropped|shorten"),
    ):
        data = at.rows(f"{name}.jsonl", rows)
        options = ["--suite", "prefs", "--data", data, "--set", "data.max_length=64", "--output", name]
        ended = at("eval", at.model("tiny"), *options)
        assert ended.code in (0, 2), ended
        said = [line for line in (ended.err + ended.out).splitlines() if re.search(words, line)]
        assert said, f"{name}: {ended.err}{ended.out}"
        seen.append(f"{name}: code {ended.code}, {said[0].strip()}")
    return "; ".join(seen)
