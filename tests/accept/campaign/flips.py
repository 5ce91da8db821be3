"""Flipped bits in every kind of file that alignkit reads back: noticed, or without effect on any result."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.accept.campaign.base import Base, interrupt
from tests.accept.campaign.judge import judge
from tests.accept.campaign.processes import Align, Ended, each
from tests.accept.campaign.results import differences, snapshot

OUTCOMES = ("refused", "made anew", "no effect", "valid other content", "used and said", "silent", "crashed")
SAID = re.compile(r"damaged|skipping|made again|not readable|cannot be read|changed since|differs from")
"""Words that say a damaged file was noticed."""

State = Callable[[Align, Base, Path], object]


@dataclass(frozen=True)
class Target:
    """A kind of file: where it lies after ``state``, and a command that reads it."""

    name: str
    state: State
    files: tuple[str, ...]
    """Patterns below the directory."""
    command: Callable[[Base], Sequence[str]]
    owned: bool = False
    """Whether the file is the user's own text, in which another digit is another valid input."""

    @property
    def undamaged(self) -> tuple[State, Callable[[Base], Sequence[str]]]:
        """What the result without damage depends on: kinds of files that share it are prepared once."""
        return self.state, self.command


@cache
def copied(*names: str) -> State:
    """A state with copies of files and directories of the base, one for each list of names."""

    def make(align: Align, base: Base, here: Path) -> None:
        for name in names:
            source = base.path / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            copy(source, here / name)

    return make


def warm_cache(align: Align, base: Base, here: Path) -> None:
    """A state with the cache of a run that ended."""
    ended = align(*_run(base, "first"), cwd=here, ALIGN_CACHE=str(here / "cache"))
    assert ended.code == 0, ended
    shutil.rmtree(here / "runs")


def half_an_adapter(align: Align, base: Base, here: Path) -> None:
    """A state with an unfinished run of an adapter."""
    copied("runs/lora")(align, base, here)
    interrupt(here / "runs/lora")


def _run(base: Base, name: str) -> list[str]:
    return ["run", "--method", "dpo", *base.options(), "--name", name]


def _evaluate(run: str) -> Callable[[Base], list[str]]:
    return lambda base: ["eval", run, "--suite", "prefs,perplexity", "--data", str(base.held_out), "--json"]


_again: Callable[[Base], list[str]] = lambda base: _run(base, "second")
_compare: Callable[[Base], list[str]] = lambda base: ["compare", "runs/a", "runs/b", "--json"]
_resume: Callable[[Base], list[str]] = lambda base: ["resume", "runs/long"]
_both = copied("runs/a", "runs/b")
_EVAL = "runs/a/eval"

TARGETS: dict[Target, int] = {
    Target("checkpoint", copied("runs/long"), ("runs/long/checkpoints/checkpoint-4/*",), _resume): 30,
    Target("adapter checkpoint", half_an_adapter, ("**/checkpoint-2/*",), lambda base: ["resume", "runs/lora"]): 10,
    Target("token cache", warm_cache, ("cache/tokens/*",), _again): 12,
    Target("reference cache", warm_cache, ("cache/reference/*",), _again): 8,
    Target("evaluation cache", warm_cache, ("cache/evaluation/*/*",), _again): 10,
    Target("checks cache", warm_cache, ("cache/checks/*",), _again): 6,
    Target("weights", copied("runs/a"), ("runs/a/model/*.safetensors",), _evaluate("runs/a")): 10,
    Target("adapter", copied("runs/lora"), ("runs/lora/model/adapter*",), _evaluate("runs/lora")): 8,
    Target(
        "model's other files", copied("runs/a"), ("runs/a/model/*.js*", "runs/a/model/*.jinja"), _evaluate("runs/a")
    ): 6,
    Target("run.json", _both, ("runs/a/run.json",), _compare): 8,
    Target("run.json, unfinished", copied("runs/long"), ("runs/long/run.json",), _resume): 4,
    Target("run.yaml", copied("runs/long"), ("runs/long/run.yaml",), _resume): 5,
    Target("metrics.jsonl", copied("runs/long"), ("runs/long/metrics.jsonl",), _resume): 5,
    Target("eval/*.json", _both, (f"{_EVAL}/prefs.json", f"{_EVAL}/perplexity.json"), _compare): 6,
    Target("items.jsonl", _both, (f"{_EVAL}/*.items.jsonl",), _compare): 6,
    Target("samples.jsonl", copied("runs/long"), ("runs/long/eval/before/*",), _resume): 3,
    Target(
        "sweep.json", copied("runs/grid"), ("runs/grid/sweep.json",), lambda base: ["sweep", "--resume", "runs/grid"]
    ): 4,
    Target(
        "sweep.yaml", copied("runs/grid"), ("runs/grid/sweep.yaml",), lambda base: ["sweep", "--resume", "runs/grid"]
    ): 2,
    Target(
        "pipeline.json", copied("runs/staged"), ("**/pipeline.json",), lambda base: ["pipeline", str(base.pipeline)]
    ): 4,
    Target(
        "data", copied("pairs.jsonl"), ("pairs.jsonl",), lambda b: [*_run(b, "x"), "--data", "pairs.jsonl"], True
    ): 3,
}
"""The kinds of files, and how many of 150 flips each gets."""


@dataclass
class Flip:
    """One flipped bit, and what the command did."""

    kind: str
    file: str
    bit: int
    outcome: str = ""
    about: str = ""


class Campaign:
    """The states with their undamaged results, and the flips."""

    def __init__(self, base: Base, work: Path, aligns: Sequence[Align], seed: int = 0) -> None:
        self.base, self.work, self.aligns, self.seed = base, work, aligns, seed
        self.whole: dict[Any, tuple[Path, dict[str, Any]]] = {}
        """By :attr:`Target.undamaged`: a directory in that state, and the command's results there."""

    def run(self, numbers: Sequence[int]) -> list[Flip]:
        """Carry out the flips of these numbers, 0 to 149 being all kinds of files in their shares."""
        chosen = [(number, target_of(number)) for number in numbers]
        each(self.aligns, self._prepare, list({target.undamaged: target for _, target in chosen}.values()))
        return each(self.aligns, self._flip, chosen)

    def _prepare(self, align: Align, target: Target) -> None:
        """Make a target's state, and run its command on a copy without damage."""
        state = self.work / re.sub(r"\W+", "-", target.name)
        state.mkdir(parents=True)
        target.state(align, self.base, state)
        here = Path(shutil.copytree(state, f"{state}-whole"))
        ended = self._run(align, target, here)
        assert ended.code == 0, ended
        assert not SAID.search(ended.err), ended
        self.whole[target.undamaged] = state, _seen(ended, here)

    def _run(self, align: Align, target: Target, here: Path) -> Ended:
        return align(*target.command(self.base), cwd=here, ALIGN_CACHE=str(here / "cache"))

    def _flip(self, align: Align, chosen: tuple[int, Target]) -> Flip:
        number, target = chosen
        draw = random.Random(f"{self.seed} {number}")
        state, _ = self.whole[target.undamaged]
        here = Path(shutil.copytree(state, f"{state}-{number}"))
        file = draw.choice(sorted({path for pattern in target.files for path in here.glob(pattern) if path.is_file()}))
        content = bytearray(file.read_bytes())
        near = 200 if draw.random() < 0.3 else len(content)  # headers are short, and matter
        bit = draw.randrange(8 * min(near, len(content)))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        flip = Flip(target.name, str(file.relative_to(here)), bit)
        flip.outcome, flip.about = self._outcome(target, self._run(align, target, here), here, flip.file)
        return flip

    def _outcome(self, target: Target, ended: Ended, here: Path, file: str) -> tuple[str, str]:
        verdict, reason = judge(ended)
        if verdict == "refused":
            return "refused", ended.error
        if verdict != "used":
            return "crashed", f"{verdict}: {reason}: {ended}"
        found = differences(self.whole[target.undamaged][1], _seen(ended, here))
        found = [line for line in found if not line.startswith(file)]  # the damaged file itself
        said = SAID.search(ended.err + _logs(here))
        if found and said and Path(file).name in ended.err + _logs(here):
            return "used and said", "; ".join(found[:3])
        if found:
            return "valid other content" if target.owned else "silent", "; ".join(found[:3])
        return ("made anew", said[0]) if said else ("no effect", "")


def target_of(number: int) -> Target:
    """Return the kind of file of a flip; kinds are spread evenly over the numbers."""
    order = [target for target, share in TARGETS.items() for _ in range(share)]
    return order[number * 61 % len(order)]


def _seen(ended: Ended, here: Path) -> dict[str, Any]:
    """Return everything a command showed and left as its result."""
    printed = json.loads(ended.out.replace(str(here), ".")) if "--json" in ended.arguments else ""
    return {"printed": printed} | snapshot(here)


def _logs(here: Path) -> str:
    return "".join(log.read_text(errors="replace") for log in here.rglob("train.log"))
