"""Commands killed at random file operations: repeated, or resumed as their message says, each must end as if unkilled."""

from __future__ import annotations

import random
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.accept.campaign.base import Base, interrupt, pairs, write_rows
from tests.accept.campaign.processes import Align, Ended, each
from tests.accept.campaign.results import differences, leftovers, snapshot

OUTCOMES = ("same", "after a sentence", "not killed", "lost", "silent")
DELAYED = 3
"""Every third kill comes up to :data:`DELAY` milliseconds after its operation: inside a write, or between operations."""
DELAY = 15.0


@dataclass(frozen=True)
class Command:
    """A command that is killed, its arguments, and what must be in its directory before."""

    name: str
    arguments: Callable[[Base], Sequence[str]]
    prepare: Callable[[Base, Path], object] = lambda base, here: None


def _copied(run: str) -> Callable[[Base, Path], object]:
    return lambda base, here: shutil.copytree(base.runs / run, here / "runs" / run)


def _half_a_run(base: Base, here: Path) -> None:
    _copied("a")(base, here)
    interrupt(here / "runs" / "a")


def _dirty_rows(base: Base, here: Path) -> None:
    rows: list[Any] = pairs(30)
    rows[3]["chosen"] = rows[3]["rejected"]
    rows[5]["chosen"] = " "
    write_rows(here / "rows.jsonl", [*rows, rows[0]])


GRID = ["--over", "beta=0.1,0.5", "--name", "grid"]

COMMANDS: dict[Command, int] = {
    Command("run", lambda b: ["run", "--method", "dpo", *b.options(), "--name", "x"]): 30,
    Command("resume", lambda b: ["resume", "runs/a"], _half_a_run): 16,
    Command("sweep", lambda b: ["sweep", "--method", "dpo", *b.options(), *GRID]): 12,
    Command("pipeline", lambda b: ["pipeline", str(b.pipeline)]): 12,
    Command("eval", lambda b: ["eval", "runs/a", str(b.models / "tiny2"), "--data", str(b.held_out)], _copied("a")): 10,
    Command("export", lambda b: ["export", "runs/lora", "--output", "out"], _copied("lora")): 10,
    Command("data check", lambda b: ["data", "check", "rows.jsonl", "--fix", "clean.jsonl"], _dirty_rows): 10,
}
"""The commands, and how many of 100 kills each gets."""


@dataclass
class Kill:
    """One kill, and how the command was brought to its end."""

    command: str
    operation: int
    delay: float
    outcome: str = ""
    about: str = ""
    left: list[str] = field(default_factory=list)
    """Temporary files that remained after success."""


class Campaign:
    """Unkilled results and numbers of operations by command, and the kills."""

    def __init__(self, base: Base, work: Path, aligns: Sequence[Align], seed: int = 0) -> None:
        self.base, self.work, self.aligns, self.seed = base, work, aligns, seed
        self.whole: dict[str, tuple[int, dict[str, Any]]] = {}

    def run(self, numbers: Sequence[int]) -> list[Kill]:
        """Carry out the kills of these numbers, 0 to 99 being all commands in their shares."""
        chosen = [(number, command_of(number)) for number in numbers]
        each(self.aligns, self._count, list(dict.fromkeys(command for _, command in chosen)))
        return each(self.aligns, self._kill, chosen)

    def _place(self, command: Command, name: str) -> Path:
        here = self.work / f"{command.name.replace(' ', '-')}-{name}"
        here.mkdir(parents=True)
        command.prepare(self.base, here)
        return here

    def _run(self, align: Align, arguments: Sequence[str], here: Path, **environment: str) -> Ended:
        return align(*arguments, cwd=here, ALIGN_CACHE=str(here / "cache"), **environment)

    def _count(self, align: Align, command: Command) -> None:
        """Run a command to its end, counting its file operations."""
        here = self._place(command, "whole")
        counter = here / "count"
        ended = self._run(align, command.arguments(self.base), here, KILL_COUNT=str(counter), KILL_ROOT=str(here))
        assert ended.code == 0, ended
        assert not leftovers(here), leftovers(here)
        self.whole[command.name] = counter.stat().st_size, snapshot(here)

    def _kill(self, align: Align, chosen: tuple[int, Command]) -> Kill:
        number, command = chosen
        draw = random.Random(f"{self.seed} {number}")
        operations, whole = self.whole[command.name]
        kill = Kill(command.name, draw.randint(1, operations), draw.random() * DELAY if number % DELAYED == 0 else 0.0)
        here, arguments = self._place(command, str(number)), command.arguments(self.base)
        hook = {"KILL_COUNT": str(here / "count"), "KILL_ROOT": str(here), "KILL_AT": str(kill.operation)}
        killed = self._run(align, arguments, here, **hook, KILL_DELAY=str(kill.delay))
        if killed.code == 0:
            kill.outcome = "not killed"  # it ended within the delay
            return kill
        assert killed.code == -9, killed
        kill.outcome, kill.about = self._recover(align, arguments, here, whole)
        kill.left = leftovers(here)
        return kill

    def _recover(self, align: Align, arguments: Sequence[str], here: Path, whole: dict[str, Any]) -> tuple[str, str]:
        """Repeat the killed command, follow the message of a refusal, and compare; return outcome and reason."""
        ended, outcome, sentence = self._run(align, arguments, here), "same", ""
        if ended.code == 2 and ended.error:
            outcome, sentence = "after a sentence", ended.error
            if said := re.search(r"`?align ((?:run|resume|sweep|pipeline|export|eval|data) [^`;,)]*)", sentence):
                ended = self._run(align, shlex.split(said[1]), here)
            elif not differences(whole, snapshot(here)):
                return outcome, sentence  # the result was complete, and was kept
        if ended.code != 0:
            return "lost", str(ended)
        if found := differences(whole, snapshot(here)):
            return "silent", f"{len(found)} differences: {'; '.join(found[:4])}"
        return outcome, sentence


def command_of(number: int) -> Command:
    """Return the command of a kill; commands are spread evenly over the numbers."""
    order = [command for command, share in COMMANDS.items() for _ in range(share)]
    return order[number * 37 % len(order)]
