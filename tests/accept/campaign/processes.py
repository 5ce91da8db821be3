"""``align`` commands in processes forked from one that has imported everything: a tenth of a second each, not six."""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

HOOK = Path(__file__).parent / "hook"
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``code`` is minus the signal's number after a signal, None if it was stopped at its time limit."""

    arguments: Sequence[str]
    cwd: str
    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def error(self) -> str:
        """The error message, without its prefix; empty if there is none."""
        lines = self.err.splitlines()
        return next((line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")), "")

    def __str__(self) -> str:
        return f"align {' '.join(self.arguments)}: code {self.code}: {(self.error or self.err)[-600:]}"


class Align:
    """Runs commands one after the other, through a server process of its own."""

    def __init__(self, model: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.accept.campaign.processes", str(model)],
            env=environment | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait()

    def __call__(self, *arguments: str | Path, cwd: Path, timeout: float = 120.0, **environment: str) -> Ended:
        """Run ``align ARGUMENTS`` in ``cwd`` and return how it ended; ``environment`` is added to the process's."""
        given = [str(argument) for argument in arguments]
        job = {"arguments": given, "cwd": str(cwd), "timeout": timeout, "environment": environment}
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return Ended(given, str(cwd), **answer)


def each(aligns: Sequence[Align], function: Callable[[Align, T], R], values: Sequence[T]) -> list[R]:
    """Return ``function(align, value)`` of every value, as many at a time as there are servers."""
    free: SimpleQueue[Align] = SimpleQueue()
    for align in aligns:
        free.put(align)

    def call(value: T) -> R:
        align = free.get()
        try:
            return function(align, value)
        finally:
            free.put(align)

    with ThreadPoolExecutor(len(aligns)) as pool:
        return list(pool.map(call, values))


def serve(model: str) -> None:
    """Import everything, then fork for every job read from stdin, and answer on stdout."""
    from alignkit.system.quiet import set_environment

    set_environment()
    for name in IMPORTS:
        with suppress(ImportError):
            importlib.import_module(name)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model)  # builds tables that every load of a model needs
    gc.collect()
    gc.freeze()  # a collection in the child would copy every page
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Fork, wait for the child or its time limit, and return the end."""
    output = [os.memfd_create(name) for name in ("out", "err")]
    began = time.monotonic()
    if (child := os.fork()) == 0:
        _child(job, output)
    code: int | None = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() - began > job["timeout"]:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the command left running
    texts = []
    for file in output:
        os.lseek(file, 0, os.SEEK_SET)
        with os.fdopen(file, "rb") as stream:
            texts.append(stream.read().decode(errors="replace"))
    return {"code": code, "out": texts[0], "err": texts[1], "seconds": time.monotonic() - began}


def _child(job: Mapping[str, Any], output: Sequence[int]) -> None:
    """Carry out a job as the installed command would, and end this process."""
    code = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output[0], 1)
        os.dup2(output[1], 2)
        os.chdir(job["cwd"])
        os.environ.update(job["environment"])
        sys.path[:0] = job["environment"].get("PYTHONPATH", "").split(os.pathsep)
        sys.argv = ["align", *job["arguments"]]
        runpy.run_path(str(HOOK / "sitecustomize.py"))
        from alignkit.__main__ import main

        code = main()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


IMPORTS = """
torch transformers peft datasets pyarrow pyarrow.parquet accelerate trl pandas scipy.stats jinja2 safetensors.torch
transformers.models.llama.modeling_llama transformers.models.qwen3.modeling_qwen3 torch.optim.adamw torch.utils._foreach_utils
alignkit.runs.api alignkit.runs.execute alignkit.training.trainer alignkit_checks.before_training alignkit_eval.export
alignkit_eval.cli.evaluate alignkit_eval.sweeps.sweep alignkit_eval.pipelines.pipeline alignkit_eval.comparison.compare
alignkit_eval.suites.prefs alignkit_eval.suites.perplexity alignkit_eval.report.pages alignkit_dpo alignkit_orpo alignkit_sft
alignkit_checks.rules
""".split()
"""Modules that commands import, loaded once."""


if __name__ == "__main__":
    serve(sys.argv[1])
