"""Damaged directories and files that alignkit reads back: models, runs, results, sweeps, pipelines, tasks, plugins."""

from __future__ import annotations

import json
import shutil

from tests.accept.campaign.base import write_rows
from tests.accept.campaign.inputs import Input, Place, run_options


def model_directory(place: Place) -> Input:
    """A model or adapter directory with a damaged or missing file."""
    draw, base = place.draw, place.base
    adapter = draw.random() < 0.3
    shutil.copytree(base.adapter if adapter else base.model, place.path / "model")
    names = {
        False: ["config.json"] * 3 + ["tokenizer.json", "tokenizer_config.json", "generation_config.json"],
        True: ["adapter_config.json"] * 2,
    }[adapter]
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    name = draw.choice([*names, weights, weights])
    if name == weights:
        words = place.damage(f"model/{name}", values=False)
    elif draw.random() < 0.1:
        (place.path / "model" / name).unlink()
        words = f"{name} is missing"
    else:
        words = place.damage(f"model/{name}")
    evaluation = ["eval", "model", "--data", str(base.held_out), "--suite", draw.choice(["perplexity", "prefs"])]
    generation = ["generate", "model", "--prompt", "Where?", "--max-new-tokens", "4"]
    return draw.choice([evaluation, evaluation, run_options(place, model="model"), generation]), words


def run_directory(place: Place) -> Input:
    """A finished or unfinished run with a damaged record, configuration, log or result."""
    draw, base = place.draw, place.base
    unfinished = draw.random() < 0.35
    shutil.copytree(base.runs / ("half" if unfinished else "a"), place.path / "one")
    name = draw.choice(["run.json", "run.json", "run.yaml", "metrics.jsonl"])
    if not unfinished:
        name = draw.choice([name, name, "eval/prefs.json", "eval/prefs.items.jsonl", "eval/perplexity.json"])
    words = place.damage(f"one/{name}")
    other = str(base.runs / "b")
    status = [["status", "one"], ["status", "one", "--json"]]
    if unfinished:
        return draw.choice([["resume", "one"], ["resume", "one"], *status]), words
    compared = [
        ["compare", "one", other],
        ["compare", other, "one", "--html", "page.html"],
        ["compare", "one", other, "--json"],
    ]
    evaluated = ["eval", "one", "--suite", "prefs", "--data", str(base.held_out)]
    if name.startswith("eval/"):
        return draw.choice(compared), words
    others = [
        *status,
        evaluated,
        ["export", "one", "--output", "out"],
        ["compare", "one", other, "--baseline", "start"],
    ]
    return draw.choice([*compared, *others]), words


def results(place: Place) -> Input:
    """Evaluation results outside a run, damaged, to be compared."""
    draw = place.draw
    shutil.copytree(place.base.path / "evaluations" / "tiny", place.path / "one")
    words = place.damage(
        "one/eval/" + draw.choice(["prefs.json", "prefs.json", "prefs.items.jsonl", "perplexity.json"])
    )
    return ["compare", "one", str(place.base.path / "evaluations" / "tiny2")], words


def sweep(place: Place) -> Input:
    """A sweep whose definition, record or a cell's record is damaged."""
    directory = place.path / "runs" / "grid"
    shutil.copytree(place.base.runs / "grid", directory, ignore=shutil.ignore_patterns("plots"))
    cell = next(path.name for path in sorted(directory.iterdir()) if (path / "run.json").is_file())
    name = place.draw.choice(["sweep.yaml", "sweep.json", "sweep.json", f"{cell}/run.json"])
    words = place.damage(f"runs/grid/{name}")
    return ["sweep", "--resume", "runs/grid"], words


def pipeline(place: Place) -> Input:
    """A pipeline file, or the record of a finished pipeline, with a wrong value or syntax."""
    place.write("stages.yaml", place.base.pipeline.read_bytes())
    if place.draw.random() < 0.6:
        return ["pipeline", "stages.yaml"], place.damage("stages.yaml")
    shutil.copytree(place.base.runs / "staged", place.path / "runs" / "staged")
    name = place.draw.choice(["pipeline.json", "start/run.json", "tuned/run.json"])
    return ["pipeline", "stages.yaml"], place.damage(f"runs/staged/{name}")


def task(place: Place) -> Input:
    """A task file of lm-eval with a wrong value or syntax."""
    rows = [{"q": f"{i} and 2 is", "choices": ["one", "two", "six"], "answer": i % 3} for i in range(6)]
    data = write_rows(place.path / "rows.jsonl", rows)
    values = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    place.write("tasks/sums.yaml", json.dumps(values, indent=1))
    words = place.damage("tasks/sums.yaml")
    return ["eval", str(place.base.model), "--tasks", "sums", "--include-path", "tasks"], words


_ENTRY_POINTS = {
    "no section": "odd = odd:Odd\n",
    "no object": "[align.methods]\nodd = odd\n",
    "a missing module": "[align.methods]\nodd = nothing_here:Odd\n",
    "a missing attribute": "[align.methods]\nodd = odd:Nothing\n",
    "not an identifier": "[align.methods]\nodd = 1/0\n",
    "an unknown group": "[align.nothing]\nodd = odd:Odd\n",
    "a class of another kind": "[align.methods]\nodd = odd:Odd\n",
    "the name of a built-in": "[align.methods]\ndpo = odd:Odd\n",
    "twice": "[align.methods]\nodd = odd:Odd\nodd = odd:Other\n",
    "control characters": "[align.methods]\n\x1b[31modd = odd:Odd\n",
    "random bytes": "\x01\x02\x03[[[===\n",
    "a module that raises": "[align.methods]\nodd = broken:Odd\n",
    "a module that exits": "[align.methods]\nodd = exits:Odd\n",
    "a module that prints": "[align.methods]\nodd = prints:Odd\n",
    "a command that raises": "[align.commands]\nodd = broken:Odd\n",
    "a suite of another kind": "[align.suites]\nodd = odd:Odd\n",
    "a service of another kind": "[align.services]\nodd = odd:Odd\n",
}
_METADATA = "Metadata-Version: 2.1\nName: odd-plugin\nVersion: 0.1\n"


def plugin(place: Place) -> Input:
    """An installed package whose metadata or modules are wrong."""
    draw = place.draw
    info = "site/odd_plugin-0.1.dist-info/"
    words = draw.choice(list(_ENTRY_POINTS))
    place.write(info + "entry_points.txt", _ENTRY_POINTS[words])
    metadata = draw.choice([_METADATA] * 4 + ["", "Name: \n", "\x00\xff", _METADATA.replace("0.1", "x.y")])
    place.write(info + "METADATA", metadata.encode("latin-1"))
    place.write("site/odd.py", "class Odd:\n    pass\n")
    place.write("site/broken.py", "raise RuntimeError('no such luck')\n")
    place.write("site/exits.py", "raise SystemExit(0)\n")
    place.write("site/prints.py", "print('hello from a plugin')\nclass Odd: pass\n")
    suite = ["eval", str(place.base.model), "--suite", "odd", "--data", str(place.base.held_out)]
    service = [*run_options(place), "--set", "run.services=[odd]"]
    run = run_options(place)
    run[2] = draw.choice(["odd", "odd", "dpo"])
    lists = [["plugins"], ["methods"], ["plugins", "check", "odd"], ["--help"]]
    return draw.choice([run, run, suite, service, *lists]), f"plugin: {words}, METADATA {metadata[:12]!r}"
