"""The three kinds of report: what each says, and in which order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit import Estimate
from alignkit.errors import ConfigError
from alignkit.headline import TITLES, headline, number, signed, with_interval
from alignkit.rundir import RunDir, write_text

from alignkit_eval.comparison import Comparison
from alignkit_eval.report.diff import words
from alignkit_eval.report.parts import (
    Answer,
    Cell,
    Facts,
    Figure,
    Figures,
    Generation,
    Generations,
    Item,
    Items,
    Page,
    Section,
    Table,
    number_cell,
    picture,
    plain,
)
from alignkit_eval.report.render import render
from alignkit_eval.report.texts import answers_before, answers_of, held_out_pairs, jsonl
from alignkit_eval.verdict import p_text

MOST = 200
"""Items and generations a page shows at most: beyond that nobody reads on, and the page grows."""


def run_report(run: Path) -> Path:
    """Write ``report.html`` of a finished run and return its path."""
    from alignkit_eval.comparing import compare

    directory = RunDir.open(run)
    record = directory.read_record()
    try:
        comparison = compare([run], "start")
        verdict, notes = comparison.verdict, comparison.notes
    except ConfigError as error:  # evaluated after training alone, or not at all
        comparison, verdict, notes = None, f"There is nothing to compare this run with: {error}.", ()
    sections: list[Section] = [_before_and_after(record)]
    if comparison is not None:
        sections.append(_contrasts(comparison))
    sections += [*_training(run), *_between("start", answers_before(run), run.name, answers_of(run))]
    sections += _disagreements(("start", run / "eval" / "before"), (run.name, run / "eval"), run)
    sections += [_time([(run.name, record)]), *_repeat([(run.name, run)])]
    page = Page(f"Run {run.name}", _subtitle(record), verdict, notes, sections)
    return _write(directory.report, page)


def comparison_report(comparison: Comparison, path: Path) -> Path:
    """Write a comparison as one page and return its path."""
    title = "Comparison of " + ", ".join(arm.name for arm in comparison.arms)
    return _write(path, Page(title, "", comparison.verdict, comparison.notes, list(_compared(comparison))))


def sweep_report(directory: Path, comparison: Comparison | None) -> Path:
    """Write ``report.html`` of a sweep and return its path."""
    stored = json.loads((directory / "sweep.json").read_bytes())
    sections: list[Section] = [_cells(stored["cells"])]
    if comparison is not None:
        sections = [*_compared(comparison), *sections]
    verdict = "No cells were compared." if comparison is None else comparison.verdict
    notes = [*stored["notes"], *(comparison.notes if comparison is not None else ())]
    failed = [cell for cell in stored["cells"] if cell["status"] == "failed"]
    subtitle = f"{len(stored['cells'])} cells" + (f", {len(failed)} failed" if failed else "")
    return _write(directory / "report.html", Page(f"Sweep {directory.name}", subtitle, verdict, notes, sections))


def _write(path: Path, page: Page) -> Path:
    write_text(path, render(page))
    return path


# ------------------------------------------------------------------------------------------------- sections


def _compared(comparison: Comparison) -> Iterator[Section]:
    yield _arms(comparison)
    yield _contrasts(comparison)
    figures = _pictures(comparison)
    if figures:
        yield Figures("Pictures", figures)
    yield _costs(comparison)
    base = comparison.arm(comparison.baseline)
    others = [arm for arm in comparison.arms if arm is not base]
    for arm in others:
        yield from _between(base.name, answers_of(base.runs[0]), arm.name, answers_of(arm.runs[0]))
    for arm in others:
        data = next((run for run in (arm.runs[0], base.runs[0]) if (run / "run.json").is_file()), None)
        yield from _disagreements((base.name, _results(base.runs[0])), (arm.name, _results(arm.runs[0])), data)
    records = [(run.name, RunDir(run).read_record()) for arm in comparison.arms for run in arm.runs]
    yield _time([(name, record) for name, record in records if record])
    yield from _repeat([(arm.name, arm.runs[0]) for arm in comparison.arms])
    shared = sorted((key, plain(value)) for key, value in comparison.settings.items() if value is not None)
    yield Facts("What all arms share", shared)


def _results(run: Path) -> Path:
    """Return where a run's item files are; the start model's lie in the directory itself."""
    return run / "eval" if (run / "eval").is_dir() else run


def _before_and_after(record: Mapping[str, Any]) -> Table:
    found = record.get("evaluation", {})
    lines = _all_lines(found.get("before", {}), found.get("after", {}))
    rows = [
        (
            Cell(title),
            _estimate_cell(before),
            _estimate_cell(after),
            Cell(signed(change), change) if change is not None else Cell("-"),
        )
        for title, before, after, change in lines
    ]
    return Table("Before and after training", ("metric", "before", "after", "change"), rows, "With 95 % intervals.")


def _all_lines(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[tuple[str, Estimate | None, Estimate | None, float | None]]:
    """Yield the main metrics, then all others of the built-in suites."""
    shown = set(TITLES)
    for line in headline(before, after):
        yield line.title, line.before, line.after, line.change
    for suite in sorted({suite for suite, _ in TITLES} & after.keys()):
        for name in after[suite]:
            if (suite, name) not in shown:
                (line,) = headline(
                    {"": {name: before[suite][name]}} if name in before.get(suite, {}) else {},
                    {"": {name: after[suite][name]}},
                )
                yield name, line.before, line.after, line.change


def _estimate_cell(estimate: Estimate | None) -> Cell:
    return Cell("-") if estimate is None else Cell(with_interval(estimate), estimate.value)


def _arms(comparison: Comparison) -> Table:
    lines = [headline({}, arm.metrics) for arm in comparison.arms]
    titles = list(dict.fromkeys(line.title for found in lines for line in found))
    rows = []
    for arm, found in zip(comparison.arms, lines, strict=True):
        cells = {line.title: _estimate_cell(line.after) for line in found}
        seeds = Cell(", ".join(map(str, arm.seeds)), float(len(arm.seeds)))
        rows.append([Cell(arm.name), seeds, *(cells.get(title, Cell("-")) for title in titles)])
    return Table("Arms", ("arm", "seeds", *titles), rows, "Means over seeds with 95 % intervals.")


def _contrasts(comparison: Comparison) -> Table:
    rows = []
    for c in comparison.contrasts:
        interval = "-" if c.low is None or c.high is None else f"{signed(c.low)} .. {signed(c.high)}"
        verdict = "better" if c.better else "worse" if c.better is False else "cannot be told apart"
        rows.append(
            (
                Cell(c.arm),
                Cell(TITLES.get((c.suite, c.metric), c.metric)),
                Cell(signed(c.diff), c.diff),
                Cell(interval, c.low),
                Cell("-") if c.p_holm is None else Cell(p_text(c.p_holm), c.p_holm),
                Cell("-") if c.detectable is None else Cell(number(c.detectable), c.detectable),
                Cell(f"{c.n:,} in {c.clusters:,}", float(c.n)),
                Cell(verdict),
            )
        )
    columns = ("arm", "metric", "difference", "95 % interval", "p (Holm)", "detectable", "items in clusters", "verdict")
    note = f"Each arm less {comparison.baseline}, paired on the same items; detectable: found four times in five."
    return Table(f"Differences to {comparison.baseline}", columns, rows, note)


def _costs(comparison: Comparison) -> Table:
    rows = [
        (
            Cell(arm.name),
            number_cell(arm.cost.tokens, ",.0f"),
            number_cell(None if arm.cost.flops is None else arm.cost.flops / 1e12, ",.3g"),
            number_cell(arm.cost.seconds, ",.1f"),
            number_cell(arm.cost.memory_gb, ".2f"),
        )
        for arm in comparison.arms
    ]
    note = "A mean over seeds; the runs an arm's start model came from, and reference passes, are charged as well."
    return Table("Cost of training", ("arm", "tokens", "TFLOP", "seconds", "memory (GiB)"), rows, note)


def _time(records: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    stages = list(dict.fromkeys(stage for _, record in records for stage in record.get("timings", {})))
    rows = [
        [
            Cell(name),
            *(number_cell(record.get("timings", {}).get(stage, {}).get("seconds"), ".2f") for stage in stages),
            number_cell(record.get("seconds"), ".1f"),
        ]
        for name, record in records
    ]
    return Table("Where the time went, in seconds", ("run", *stages, "all"), rows)


def _cells(cells: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            Cell(cell["name"]),
            Cell(cell["status"]),
            number_cell(cell["seconds"], ".1f"),
            number_cell(cell["cpu_seconds"], ".1f"),
            Cell(plain(cell["error"])),
        )
        for cell in cells
    ]
    return Table("Cells", ("cell", "status", "seconds", "CPU seconds", "error"), rows)


def _training(run: Path) -> Iterator[Section]:
    from alignkit.plots import figures

    drawn = [picture(plot.title, f"{plot.title} along training ({plot.unit})", figure) for plot, figure in figures(run)]
    if drawn:
        yield Figures("Training", drawn)


def _pictures(comparison: Comparison) -> list[Figure]:
    from alignkit_eval.sweep_plots import accuracy_and_perplexity, against_setting, along_training

    found = []
    for (suite, metric), title in TITLES.items():
        if all(metric in arm.metrics.get(suite, {}) for arm in comparison.arms):
            alt = "; ".join(f"{arm.name}: {with_interval(arm.metrics[suite][metric])}" for arm in comparison.arms)
            found.append(picture(title, alt, against_setting(comparison.arms, suite, metric, title)))
    frontier = accuracy_and_perplexity(comparison.arms)
    if frontier is not None:
        found.append(picture("Accuracy against perplexity", "Each arm's accuracy and perplexity, as in Arms", frontier))
    if any((run / "metrics.jsonl").is_file() for arm in comparison.arms for run in arm.runs):
        alt = "Log-probability per token of chosen and rejected answers, by arm and step"
        found.append(picture("Log-probabilities along training", alt, along_training(comparison.arms)))
    return found


def _between(
    name: str, answers: Mapping[str, tuple[str, str]], other: str, theirs: Mapping[str, tuple[str, str]]
) -> Iterator[Section]:
    """Yield the answers both gave to the same prompts."""
    rows = []
    for key in [key for key in answers if key in theirs][:MOST]:
        (prompt, first), (_, second) = answers[key], theirs[key]
        both = [Answer(name, words(first, first)), Answer(other, words(first, second))]
        rows.append(Generation(key, prompt, both))
    if rows:
        yield Generations(f"Answers: {name} and {other}", rows)


def _disagreements(first: tuple[str, Path], second: tuple[str, Path], data: Path | None) -> Iterator[Section]:
    """Yield the pairs that one model ranks right and the other wrong, those that moved farthest first."""
    before, after = (
        {str(item["id"]): item for item in jsonl(place / "prefs.items.jsonl")} for _, place in (first, second)
    )
    odd = [key for key in before if key in after and before[key]["credit_sum"] != after[key]["credit_sum"]]
    if not odd:
        return
    texts = {} if data is None else held_out_pairs(data)
    odd.sort(key=lambda key: -abs(after[key]["margin_sum"] - before[key]["margin_sum"]))
    rows = []
    for key in odd[:MOST]:
        mine, theirs, text = before[key], after[key], texts.get(key)
        rows.append(
            Item(
                key,
                str(mine["cluster"]),
                str(mine["category"]),
                _credit(mine["credit_sum"]),
                _credit(theirs["credit_sum"]),
                mine["margin_sum"],
                theirs["margin_sum"],
                *(text or ("", "", "")),
            )
        )
    title = f"Pairs on which {first[0]} and {second[0]} disagree"
    yield Items(title, (first[0], second[0]), rows, len(odd))


def _credit(credit: float) -> str:
    return {1.0: "right", 0.5: "tie", 0.0: "wrong"}.get(credit, str(credit))


def _repeat(runs: Sequence[tuple[str, Path]]) -> Iterator[Section]:
    """Yield what is needed to repeat each run: versions, hashes, revision, configuration."""
    for name, path in runs:
        record = RunDir(path).read_record()
        if not record:
            continue
        model, about = record.get("model", {}), record.get("environment", {})
        facts = [
            ("start model", f"{model.get('name')} (sha256 {model.get('hash')})"),
            ("data", f"sha256 {record.get('data', {}).get('hash')}"),
            ("seed", plain(record.get("seed"))),
            ("loss conventions", json.dumps(record.get("conventions", {}))),
            ("versions", ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())),
            ("git", json.dumps(about.get("git"))),
            ("hardware", json.dumps(about.get("hardware"))),
        ]
        config = RunDir(path).config
        text = config.read_text(encoding="utf-8") if config.is_file() else ""
        yield Facts(f"To repeat {name}: align run {path / 'run.yaml'}", facts, text)


def _subtitle(record: Mapping[str, Any]) -> str:
    model, train = record.get("model", {}), record.get("train", {})
    parts = [f"{record.get('method')} on {model.get('name')}", f"{record.get('steps')} steps"]
    if train.get("tokens"):
        parts.append(f"{train['tokens']:,} tokens")
    return ", ".join(parts)
