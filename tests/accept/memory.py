"""Acceptance check of a model that is too large for one process: two of them train it."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path
from typing import Any

from tests.accept.commands import ALIGN, environment, settings

WIDTH, LAYERS = 1024, 12
BYTES = 14
"""Limit for each parameter, above what a small model needs: one process needs 16 (weight, gradient, two moments of AdamW),
two need 8 each, and the first of them 12 when it saves."""
OPTIONS = settings(train__max_steps=2, train__per_device_train_batch_size=4, train__save_strategy="no", data__limit=64)
OPTIONS += settings(data__eval_limit=16, eval__suites="[]", eval__samples=0, run__plots="false")
SHARDED = ["--processes", "2", "--strategy", "fsdp"]


def memory_limit(work: Path) -> dict[str, Any]:
    """A model that exceeds the memory limit of one process (ulimit -v) trains and is saved by two that have the same limit."""
    parameters = _make_model(work / "large")
    _, _, small = _run(work, "small", SHARDED)
    limit = small + BYTES * parameters
    large = ["--model", str(work / "large")]
    code, said, _ = _run(work, "one", large, limit)
    assert code != 0, "one process trained the model"
    assert "memory" in said.splitlines()[-1].lower(), said
    code, said, peak = _run(work, "two", [*large, *SHARDED], limit)
    assert code == 0, said
    record = json.loads((work / "runs/two/run.json").read_text())
    saved = sum(file.stat().st_size for file in (work / "runs/two/model").glob("*.safetensors"))
    assert saved >= 4 * parameters, f"the saved model has {saved} bytes"
    return {
        "parameters": parameters,
        "limit of a process, GB": round(limit / 1e9, 2),
        "peak of two, GB": round(peak / 1e9, 2),
        "resident, by rank, GB": record["processes"]["peak_memory_gb"],
    }


def _make_model(path: Path) -> int:
    """Save a model with random weights and the demo's tokenizer; return the number of its parameters."""
    from alignkit.models.paths import resolve_path
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve_path("demo"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return int(model.num_parameters())


def _run(work: Path, name: str, options: list[str], limit: int | None = None) -> tuple[int, str, int]:
    """Run ``align run`` with a limit of address space for every process; return exit code, stderr and the highest use."""
    words = [str(ALIGN), "run", "--method", "orpo", "--name", name, *OPTIONS, *options]

    variables = environment() | {"MALLOC_ARENA_MAX": "1"}  # no address space that is set aside for threads

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit or resource.RLIM_INFINITY,) * 2)

    with (work / f"{name}.err").open("w") as err:
        process = subprocess.Popen(
            words, cwd=work, env=variables, stdout=subprocess.DEVNULL, stderr=err, preexec_fn=limited
        )
    peak = 0
    while process.poll() is None:
        for pid in [process.pid, *_children(process.pid)]:
            peak = max(peak, _address_space(pid))
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    return process.returncode, (work / f"{name}.err").read_text(), peak


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def _address_space(pid: int) -> int:
    """Return the highest use of address space of a process so far, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPeak")), 0)
