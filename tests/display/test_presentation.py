"""Console and log, table of metrics, plots."""

import io
import math
import os
import pty
import re
import threading
from pathlib import Path

import pytest
from alignkit import Contrast, Estimate, SuiteResult
from alignkit.display.console import Console
from alignkit_commands.bars import progress
from alignkit_commands.time_left import TimeLeft
from alignkit_eval.comparison.compare import changes
from alignkit_eval.headline import headline, number
from alignkit_eval.report.summary import comparison_table, print_summary
from rich.progress import Task, TaskID

# ------------------------------------------------------------------------------------------------- console


def test_messages_go_to_the_stream_and_with_the_time_to_the_log(tmp_path: Path) -> None:
    stream, log = io.StringIO(), tmp_path / "train.log"
    console = Console(stream=stream)
    console.info("before the log")
    console.log_to(log)
    long = "model [base] in " + "/a/very/long/path" * 12  # neither markup nor wrapped
    console.info(long)
    console.warn("two\nlines")
    assert stream.getvalue() == f"before the log\n{long}\nwarning: two\nlines\n"
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    expected = rf"{stamp} INFO    {re.escape(long)}\n{stamp} WARNING two\n{stamp} WARNING lines\n"
    assert re.fullmatch(expected, log.read_text())


def test_a_quiet_console_writes_its_log_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path / "train.log", quiet=True)
    console.info("hello")
    with progress(console, 2) as steps:
        steps.update(2)
    assert capfd.readouterr() == ("", "")
    assert "hello" in (tmp_path / "train.log").read_text()


def test_people_are_talked_to_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    Console().info("hello")
    assert capfd.readouterr() == ("", "hello\n")


def test_without_a_terminal_there_is_no_progress_bar_but_the_log_has_lines(tmp_path: Path) -> None:
    stream, log = io.StringIO(), tmp_path / "train.log"
    with progress(Console(log, stream), total=200, start=100) as steps:
        for step in range(101, 201):
            steps.update(step)
            steps.update(step, loss=1 / step, accuracy=0.5, tokens_per_second=12345.6)
    assert stream.getvalue() == ""
    lines = log.read_text().splitlines()
    assert len(lines) == 10
    assert "step 110/200  loss 0.0091  accuracy 0.500  tokens/s 12,346" in lines[0]
    assert "step 200/200" in lines[-1]


def test_on_a_terminal_the_bar_shows_steps_and_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def watch() -> None:
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other end of the terminal was closed
                return
            shown.append(chunk)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with os.fdopen(theirs, "w") as terminal, progress(Console(stream=terminal), total=7) as steps:
        steps.update(3, loss=0.125, accuracy=0.75, tokens_per_second=4321.0)
        steps.update(4)  # between logging steps the previous metrics stay
    watcher.join()
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(shown).decode())
    assert "4/7" in text
    assert "loss 0.1250  accuracy 0.750  tokens/s 4,321" in text.rsplit("4/7", 1)[1]


def test_time_left_is_known_where_a_step_takes_a_minute() -> None:
    now = [0.0]
    left = TimeLeft(clock=lambda: now[0])
    task = Task(TaskID(0), "training", total=10, completed=2, _get_time=lambda: now[0])
    seen = []
    for seconds, done in ((0, 2), (30, 2), (60, 3), (120, 4), (150, 4), (300, 4), (540, 10)):
        now[0], task.completed = seconds, done
        seen.append(str(left.render(task)))
    after_one, after_two, within, late = "about 7 min 0 s left", "about 6 min 0 s left", "5 min 30 s", "3 min 0 s"
    assert seen[:4] == ["0 s so far", "30 s so far", after_one, after_two]
    assert seen[4:6] == [f"about {within} left", f"about {late} left"]


def test_paths_are_shown_from_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stream, other = io.StringIO(), f"/elsewhere{tmp_path}/a"
    Console(stream=stream).info(f"run: {tmp_path}/runs/a  {tmp_path}, {tmp_path}-b/c {other} ({tmp_path}/x.jsonl:3)")
    assert stream.getvalue().strip() == f"run: runs/a  {tmp_path}, {tmp_path}-b/c {other} (x.jsonl:3)"


# ------------------------------------------------------------------------------------------------- table


def result(suite: str, **metrics: Estimate) -> SuiteResult:
    return SuiteResult(suite, 10, 5, metrics, [])


BEFORE = {
    "prefs": result("prefs", accuracy_sum=Estimate(0.5154, 0.48, 0.55), margin_sum=Estimate(1.0)),
    "perplexity": result("perplexity", perplexity=Estimate(1.9512)),
}
AFTER = {
    "prefs": result("prefs", accuracy_sum=Estimate(0.7432, 0.71, 0.78), accuracy_ref=Estimate(0.9, 0.85, 0.94)),
    "perplexity": result("perplexity", perplexity=Estimate(2.1404, 2.0, 2.3)),
    "arc": result("arc", **{"arc_easy/acc": Estimate(0.25)}),
}


def test_the_table_shows_before_and_after_with_intervals(tmp_path: Path) -> None:
    stream, log = io.StringIO(), tmp_path / "train.log"
    Console(log, stream).table(comparison_table(BEFORE, AFTER))
    lines = [re.sub(r"\s+", " ", line) for line in log.read_text().splitlines()]
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert cells == [
        ["accuracy (sum)", "0.515", "0.743", "+0.228", "-"],
        ["", "[0.480, 0.550]", "[0.710, 0.780]", "", ""],
        ["accuracy (vs start)", "-", "0.900", "-", "-"],
        ["", "", "[0.850, 0.940]", "", ""],
        ["perplexity", "1.951", "2.140", "+0.189", "-"],
        ["", "", "[2.000, 2.300]", "", ""],
        ["arc_easy/acc", "-", "0.250", "-", "-"],
    ]
    assert "0.743" in stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_numbers_are_whole_in_a_terminal_of_any_width(width: int) -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    console.rich.width = width
    print_summary(console, BEFORE, AFTER, [])
    shown = stream.getvalue()
    assert "…" not in shown
    assert all(number in shown for number in ("[0.480, 0.550]", "[0.710, 0.780]", "+0.228", "[2.000, 2.300]"))
    line = "accuracy (sum): before 0.515 [0.480, 0.550], after 0.743 [0.710, 0.780], change +0.228, items -"
    assert (line in shown.splitlines()) == (width == 40)


def test_a_change_has_its_paired_interval_and_the_number_of_items() -> None:
    """60 documents that all lose between 0.1 and 0.2: the change is certain, although each value's interval is wide."""
    levels = [0.2 + 0.01 * i for i in range(60)]
    contrast = Contrast("quality", "quality")

    def scored(values: list[float]) -> dict[str, SuiteResult]:
        items = [{"id": str(i), "cluster": str(i), "quality": value} for i, value in enumerate(values)]
        metrics = {"quality": Estimate(sum(values) / 60, 0.4, 0.6)}
        return {"own": SuiteResult("own", 60, 60, metrics, items, contrasts=[contrast])}

    after = scored([level - 0.1 - 0.1 * (i % 2) for i, level in enumerate(levels)])
    stream = io.StringIO()
    Console(stream=stream).table(comparison_table(scored(levels), after))
    shown = re.search(r"-0.150\s+│\s+60 │.*?\[(-0\.\d+), (-0\.\d+)\]\s+│\s+│", stream.getvalue(), re.DOTALL)
    assert shown, stream.getvalue()
    assert -0.18 < float(shown[1]) < -0.15 < float(shown[2]) < -0.12


def test_without_a_before_the_table_has_one_column_of_numbers() -> None:
    assert [column.header for column in comparison_table({}, AFTER).columns] == ["metric", "after"]


def test_the_record_gives_the_same_lines_as_the_results() -> None:
    stored = {
        suite: {name: {"value": e.value, "low": e.low, "high": e.high} for name, e in r.metrics.items()}
        for suite, r in AFTER.items()
    }
    assert headline({}, stored) == headline({}, {suite: r.metrics for suite, r in AFTER.items()})


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (-1.25, "-1.250"), (23.46, "23.5"), (12345.6, "12,346"), (1e9, "1e+09")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
    assert number(math.inf) == number(math.nan) == "not finite"


def test_a_change_has_a_paired_interval_where_both_have_the_items() -> None:
    """By hand: eight changes of which the smallest is 1 and the largest 8; two flips of 256 reach p .016, 10 are 4 %."""

    def measured(*values: float) -> dict[str, SuiteResult]:
        items = [{"id": f"i{k}", "cluster": f"c{k}", "reward/own": value} for k, value in enumerate(values)]
        mean = Estimate(sum(values) / len(values))
        contrasts = [Contrast("reward/own", "reward/own")]
        return {"generate": SuiteResult("generate", 8, 8, {"reward/own": mean}, items, contrasts=contrasts)}

    before, after = measured(*[0.0] * 8), measured(1, 2, 3, 4, 5, 6, 7, 8)
    change = changes(before, after)["generate", "reward/own"]
    assert (change.diff, change.n, change.p) == (4.5, 8, 2 / 256)
    assert changes(before, measured(1, 0, 1)) == {}, "other items"
    assert changes({}, before) == changes(before, {}) == {}
    table = comparison_table(before, after)
    assert [list(column.cells) for column in table.columns[-2:]] == [
        [f"+4.500\n[+{change.low:.3f}, +{change.high:.3f}]"],
        ["8"],
    ]
