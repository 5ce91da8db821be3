"""Benchmark of data preparation: rows per second against TRL's preparation of the same rows, and memory for a million pairs.

TRL's side is ``DPOTrainer._prepare_dataset`` on a loaded data set with empty caches; ours reads the file, checks and normalises
every row, tokenises, and writes the cache. Both use the same number of processes and must produce the same token ids. The rows
are synthetic: words of a few syllables with Zipfian frequencies, and a byte-level BPE tokenizer trained on them.

Memory is the proportional set size (shared pages divided among processes) of the preparing process and its workers, sampled
while they run, minus that of the process after importing its libraries.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

SPEED_TARGET = 2.0
MEMORY_TARGET = 1.5e9
MILLION = 1_000_000

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class Rows:
    """A kind of rows: the number of words of prompt and answer (inclusive ranges), as text or conversation."""

    name: str
    prompt: tuple[int, int]
    answer: tuple[int, int]
    chat: bool = False


WORKLOADS = (
    Rows("short", (10, 40), (10, 40)),
    Rows("long", (100, 300), (30, 80)),
    Rows("chat", (20, 60), (20, 60), chat=True),
)


@dataclass(frozen=True)
class PreparationResult:
    """Rows per second of both sides, measured alternately."""

    rows: Rows
    processes: int
    ours: list[float]
    theirs: list[float]
    agrees: bool

    @property
    def ratio(self) -> float:
        """The median speed-up over repetitions."""
        return median(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def met(self) -> bool:
        """Whether both sides agree and the target is met."""
        return self.agrees and self.ratio >= SPEED_TARGET

    def line(self) -> str:
        """Return the result as a table line."""
        return (
            f"{self.rows.name:<8} {self.processes:>9} {median(self.theirs):>12,.0f} {median(self.ours):>12,.0f} "
            f"{self.ratio:>7.2f} {SPEED_TARGET:>7.2f}" + ("" if self.agrees else "  the token ids differ")
        )

    def row(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "ratio": self.ratio, "target": SPEED_TARGET, "met": self.met}


HEADER = f"{'rows':<8} {'processes':>9} {'TRL rows/s':>12} {'ours rows/s':>12} {'faster':>7} {'target':>7}"


def vocabulary(size: int = 20_000) -> list[str]:
    """Return synthetic words, shorter ones first."""
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "il")]
    words = {"".join(draw.choices(syllables, k=1 + min(i // 300, 4))): None for i in range(2 * size)}
    return sorted(words, key=len)[:size]


def write_rows(path: Path, rows: Rows, count: int) -> Path:
    """Write synthetic pairs as JSON Lines."""
    draw, words = random.Random(1), vocabulary()
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    with path.open("w") as file:
        for number in range(count):
            sizes = [draw.randint(*rows.prompt), draw.randint(*rows.answer), draw.randint(*rows.answer)]
            text = draw.choices(words, cum_weights=weights, k=sum(sizes))
            prompt = " ".join(text[: sizes[0]]) + f" {number}?"
            answers = [" ".join(text[sizes[0] : sizes[0] + sizes[1]]), " ".join(text[-sizes[2] :])]
            row: dict[str, Any] = {"prompt": prompt + "\n", "chosen": f"{answers[0]}.", "rejected": f"{answers[1]}."}
            if rows.chat:
                row = {"prompt": [{"role": "user", "content": prompt}]} | {
                    name: [{"role": "assistant", "content": f"{answer}."}]
                    for name, answer in zip(("chosen", "rejected"), answers, strict=True)
                }
            file.write(json.dumps(row) + "\n")
    return path


def make_tokenizer(path: Path) -> Any:
    """Return a byte-level BPE tokenizer with GPT-2's splitting, trained on a file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train([str(path)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE)


def compare(rows: Rows, processes: int, repeats: int, count: int = 12_000) -> PreparationResult:
    """Prepare the same rows with both sides alternately."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = write_rows(Path(folder) / "rows.jsonl", rows, count)
        tokenizer = make_tokenizer(path)
        ours: list[float] = []
        theirs: list[float] = []
        agrees = True
        for turn in range(repeats + 1):  # the first turn is a warm-up and not timed
            with _timed(ours, count, keep=turn > 0), _environment(ALIGN_CACHE=f"{folder}/ours{turn}"):
                own = _ours(path, tokenizer, processes)
            with _environment(HF_DATASETS_CACHE=f"{folder}/trl{turn}"):
                data_set = _loaded(path, f"{folder}/trl{turn}")
                with _timed(theirs, count, keep=turn > 0):
                    other = _trl(data_set, tokenizer, processes)
            agrees = agrees and _agree(own, other)
    return PreparationResult(rows, processes, ours, theirs, agrees)


@contextmanager
def _timed(into: list[float], count: int, *, keep: bool) -> Iterator[None]:
    started = time.perf_counter()
    yield
    if keep:
        into.append(count / (time.perf_counter() - started))


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _ours(path: Path, tokenizer: Any, processes: int) -> Any:
    from alignkit.config import RunConfig
    from alignkit.data.load import load_data

    section = {"source": str(path), "eval_split": 0.0, "workers": processes, "max_length": 1024}
    return load_data(RunConfig(method="dpo", data=section), "preference", tokenizer).train


def _loaded(path: Path, cache: str) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(path), split="train", cache_dir=cache)


def _trl(data_set: Any, tokenizer: Any, processes: int) -> Any:
    from trl import DPOConfig, DPOTrainer

    with tempfile.TemporaryDirectory() as output:
        several = processes if processes > 1 else None
        settings = DPOConfig(output_dir=output, max_length=1024, dataset_num_proc=several, use_cpu=True)
        trainer: Any = SimpleNamespace(_tokenizer=tokenizer)  # the only attribute the method uses
        return DPOTrainer._prepare_dataset(trainer, data_set, tokenizer, settings, "train")


def _agree(ours: Any, theirs: Any) -> bool:
    if len(ours) != len(theirs):
        return False
    for i in range(0, len(ours), 97):
        own, other = ours[i], theirs[i]
        ids = [other[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
        if [own.prompt, *own.completions] != ids:
            return False
    return True


# ------------------------------------------------------------------------------------------------ memory


def million(processes: int, count: int = MILLION) -> dict[str, Any]:
    """Prepare a million pairs in a fresh process; return its peak memory above the libraries, and its speed."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = write_rows(Path(folder) / "rows.jsonl", Rows("short", (10, 40), (10, 40)), count)
        sample = Path(folder) / "sample.jsonl"
        with path.open() as file:
            sample.write_text("".join(next(file) for _ in range(min(count, 20_000))))
        make_tokenizer(sample).save_pretrained(Path(folder) / "tokenizer")
        environment = {**os.environ, "ALIGN_CACHE": f"{folder}/cache"}
        found = {
            which: _watched([sys.executable, "-m", "bench.data", folder, str(processes)], environment, count)
            for which in ("tokenised", "cached")
        }
        size = path.stat().st_size
        shutil.rmtree(f"{folder}/cache")
    peak = max(part["bytes"] for part in found.values())
    return {
        "rows": count,
        "file_bytes": size,
        "processes": processes,
        **found,
        "target": MEMORY_TARGET,
        "met": peak <= MEMORY_TARGET,
    }


def _watched(command: list[str], environment: dict[str, str], count: int) -> dict[str, float]:
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()  # printed once its libraries are imported
    before = _family_bytes(process.pid)
    process.stdin.write("\n")
    process.stdin.flush()
    started, peak = time.perf_counter(), before
    while process.poll() is None:
        peak = max(peak, _family_bytes(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError("preparing a million rows failed")
    return {"bytes": peak - before, "rows_per_second": count / (time.perf_counter() - started)}


def _family_bytes(parent: int) -> int:
    """Return the proportional set size of a process and its children."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    total = 0
    try:
        family = [parent, *map(int, children.read_text().split())]
    except OSError:
        return 0
    for number in family:
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _prepare(folder: str, processes: int) -> None:
    """Prepare the data in the measured process."""
    import datasets  # noqa: F401
    import pyarrow.compute  # noqa: F401
    import scipy.sparse.csgraph  # noqa: F401
    from alignkit.config import RunConfig
    from alignkit.data.load import load_data
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/tokenizer")
    print("ready", flush=True)
    sys.stdin.readline()
    section = {"source": f"{folder}/rows.jsonl", "workers": processes, "eval_split": 0.01}
    data = load_data(RunConfig(method="dpo", data=section), "preference", tokenizer)
    assert len(data.train) + len(data.eval) > 0


if __name__ == "__main__":
    _prepare(sys.argv[1], int(sys.argv[2]))
