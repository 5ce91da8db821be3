"""What the user sees of a run: console and log, table, plots, model card, samples."""

import io
import math
import os
import pty
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from alignkit import Estimate, SuiteResult
from alignkit.display.card import model_card, write_model_card
from alignkit.display.console import Console, comparison_table
from alignkit.display.headline import headline, number
from alignkit.display.plots import draw
from alignkit.models.generate import generate_samples
from alignkit.rundir.metrics import MetricsLog
from alignkit.scoring.scorer import install

from tests.helpers.eval import BOS, EOS, byte_tokenizer, tiny_model

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
    with console.progress(2) as progress:
        progress.update(2)
    assert capfd.readouterr() == ("", "")
    assert "hello" in (tmp_path / "train.log").read_text()


def test_people_are_talked_to_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    Console().info("hello")
    assert capfd.readouterr() == ("", "hello\n")


def test_without_a_terminal_there_is_no_progress_bar_but_the_log_has_lines(tmp_path: Path) -> None:
    stream, log = io.StringIO(), tmp_path / "train.log"
    with Console(log, stream).progress(total=200, start=100) as progress:
        for step in range(101, 201):
            progress.update(step)
            progress.update(step, loss=1 / step, accuracy=0.5, tokens_per_second=12345.6)
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
    with os.fdopen(theirs, "w") as terminal, Console(stream=terminal).progress(total=7) as progress:
        progress.update(3, loss=0.125, accuracy=0.75, tokens_per_second=4321.0)
        progress.update(4)  # between logging steps the last numbers stay
    watcher.join(timeout=10)
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(shown).decode())
    assert "4/7" in text
    assert "loss 0.1250  accuracy 0.750  tokens/s 4,321" in text.rsplit("4/7", 1)[1]


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
        ["accuracy (sum)", "0.515 [0.480, 0.550]", "0.743 [0.710, 0.780]", "+0.228"],
        ["accuracy (vs start)", "-", "0.900 [0.850, 0.940]", "-"],
        ["perplexity", "1.951", "2.140 [2.000, 2.300]", "+0.189"],
        ["arc_easy/acc", "-", "0.250", "-"],
    ]
    assert "0.743" in stream.getvalue()


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


# ------------------------------------------------------------------------------------------------- plots


def test_plots_are_drawn_for_what_was_logged_and_nothing_else(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert draw(tmp_path) == []
    for step in range(1, 6):
        log.append(
            {"step": step, "loss": 1.0 / step, "loss/nll": math.nan if step == 2 else 0.9, "learning_rate": 1e-4}
        )
        log.append({"step": step, "eval_rewards/accuracies": 0.5})
    paths = draw(tmp_path)
    assert [path.name for path in paths] == ["loss.png", "accuracy.png", "learning_rate.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in paths)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_the_plots_show_the_logged_values(tmp_path: Path) -> None:
    from alignkit.display.plots import PLOTS, _curves

    records = [{"step": s, "loss": 2.0 - s, "loss/odds_ratio": 0.1 * s} for s in (1, 2)] + [
        {"step": 2, "eval_loss": 9.0}
    ]
    curves = _curves(PLOTS[0], records)
    assert [(c.label, c.steps, c.values, c.held_out) for c in curves] == [
        ("loss", [1, 2], [1.0, 0.0], False),
        ("loss, held out", [2], [9.0], True),
        ("odds ratio", [1, 2], [0.1, 0.2], False),
    ]
    assert curves[0].colour == curves[1].colour != curves[2].colour


def test_a_long_run_is_drawn_without_touching_pyplot(tmp_path: Path) -> None:
    import sys

    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(200):
        log.append({"step": step, "loss": random.Random(step).random()})
    had = "matplotlib.pyplot" in sys.modules
    assert [path.name for path in draw(tmp_path)] == ["loss.png"]
    assert ("matplotlib.pyplot" in sys.modules) == had


# ------------------------------------------------------------------------------------------------- card

SUMMARY = {
    "method": "orpo",
    "paper": "ORPO: Monolithic Preference Optimization without Reference Model, https://arxiv.org/abs/2403.07691",
    "settings": {"lambda": 0.1, "schedule": {"kind": "constant"}},
    "conventions": {"nll_scope": "completion"},
    "model": {"name": "org/base-model", "hash": "abc123", "adapter": False},
    "data": {"source": "prefs.jsonl", "rows": 804, "hash": "def456"},
    "steps": 150,
    "train": {"loss": 1.23456789, "tokens": 99},
    "evaluation": {
        "before": {"prefs": {"accuracy_sum": {"value": 0.515, "low": 0.48, "high": 0.55}}},
        "after": {"prefs": {"accuracy_sum": {"value": 0.743, "low": 0.71, "high": 0.78}}},
    },
    "environment": {"versions": {"torch": "2.13.0"}},
}


def parts(card: str) -> tuple[dict[str, object], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_tells_what_the_run_knows(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    path = write_model_card(tmp_path, SUMMARY)
    assert path == tmp_path / "README.md"
    head, body = parts(path.read_text())
    assert head == {
        "base_model": "org/base-model",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignkit", "orpo"],
    }
    assert "| accuracy (sum) | 0.515 [0.480, 0.550] | 0.743 [0.710, 0.780] | +0.228 |" in body
    for text in (
        "2403.07691",
        "| lambda | `0.1` |",
        "| schedule.kind | `constant` |",
        "| hash | `def456` |",
        "1.23457",
    ):
        assert text in body
    assert "AutoModelForCausalLM.from_pretrained" in body
    assert "| torch | `2.13.0` |" in body
    assert ModelCard.load(path).data.base_model == "org/base-model"


def test_the_card_of_an_adapter_loads_with_peft() -> None:
    head, body = parts(model_card(SUMMARY | {"model": {"name": "org/base-model", "adapter": True}}))
    assert head["library_name"] == "peft"
    assert head["tags"] == ["alignkit", "orpo", "lora"]
    assert "AutoPeftModelForCausalLM.from_pretrained" in body


@pytest.mark.parametrize("name", ["demo", "/models/llama", "runs/a/model", "."])
def test_a_base_model_that_is_no_hub_id_stays_out_of_the_head(name: str) -> None:
    head, body = parts(model_card(SUMMARY | {"model": name}))
    assert "base_model" not in head
    assert f"`{name}`" in body


def test_the_method_alone_makes_a_card_and_the_code_in_it_is_python() -> None:
    for summary in ({"method": "sft"}, {"method": "sft", "model": {"adapter": True}}):
        head, body = parts(model_card(summary))
        assert "sft" in head["tags"]  # type: ignore[operator]
        (code,) = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
        compile(code, "card", "exec")


# ------------------------------------------------------------------------------------------------- samples


def greedy(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    tokens: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            token = int(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax())
        if token == EOS:
            break
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("scored", [False, True], ids=["plain", "with the scorer's forward"])
def test_samples_are_the_greedy_answers_whatever_stands_beside_them(scored: bool) -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    model.config.use_cache = False
    if scored:
        install(model)
    rng = random.Random(0)
    prompts = [[BOS, *(rng.randrange(256) for _ in range(rng.randint(0, 20)))] for _ in range(19)]
    answers = generate_samples(model, tokenizer, prompts, max_new_tokens=8)
    expected = [tokenizer.decode(greedy(model, prompt, 8), skip_special_tokens=True) for prompt in prompts]
    assert answers == expected
    assert generate_samples(model, tokenizer, [], max_new_tokens=8) == []


def test_samples_end_at_the_end_token() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    prompt = [BOS, 65, 66]
    first, second, *_ = greedy(model, prompt, 8)
    assert first != second
    model.generation_config.eos_token_id = [EOS, second]
    assert generate_samples(model, tokenizer, [prompt], max_new_tokens=8) == [tokenizer.decode([first])]


def test_sampling_leaves_training_undisturbed() -> None:
    model, tokenizer = tiny_model().train(), byte_tokenizer()
    model.model.layers[0].eval()  # one frozen part in evaluation mode
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=5)
    modes = [module.training for module in model.modules()]
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    generate_samples(model, tokenizer, [[BOS, 1]], max_new_tokens=4, seed=3)
    assert [module.training for module in model.modules()] == modes
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.generation_config.do_sample is True


def test_the_modes_come_back_after_a_failure() -> None:
    model = tiny_model().train()
    with pytest.raises(IndexError):
        generate_samples(model, byte_tokenizer(), [[BOS, 100_000]], max_new_tokens=4)
    assert model.training
