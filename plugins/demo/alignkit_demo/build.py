"""Build of the embedded demo: tokenizer, base model, data and checksums.

A build is determined by its seed. Two builds on one machine are equal byte by byte; on different machines data and tokenizer
are equal, and the model's weights may differ in the last bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from alignkit.errors import ConfigError
from alignkit.system.files import staged_directory

from alignkit_demo import corpus, tasks
from alignkit_demo.pairs import pairs
from alignkit_demo.world import Split, questions

STEPS = 2400
TEXTS = 40_000
CHECKSUMS = "SHA256SUMS"

log = logging.getLogger(__name__)


def build(output: Path, *, steps: int = STEPS, seed: int = 0) -> None:
    """Write ``model/``, ``data/`` and ``SHA256SUMS`` of the demo to ``output``, all or nothing.

    An earlier build there is replaced; raises :class:`ConfigError` if ``output`` is anything else.

    Args:
        output: directory of the build.
        steps: number of pre-training steps (the default takes two to three minutes on one CPU core).
        seed: seed of the corpus and of the weights; the preference data do not depend on it.
    """
    output = Path(output)
    if output.exists() and not (output / CHECKSUMS).is_file():
        raise ConfigError(f"{output} exists and is not a build of the demo: choose another directory")
    with staged_directory(output) as fresh:
        write_data(fresh / "data")
        write_model(fresh / "model", steps=steps, seed=seed)
        write_checksums(fresh)


def write_data(directory: Path) -> None:
    """Write the demo's data.

    ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl`` hold preference pairs, ``questions.jsonl`` every question with its answers
    from worst to best, ``neutral.jsonl`` texts, ``facts.jsonl`` and ``agreement.jsonl`` the documents of the lm-eval tasks.
    """
    directory.mkdir(parents=True)
    for split in get_args(Split):
        _write_jsonl(directory / f"{split}.jsonl", pairs(split))
    asked = (question for split in get_args(Split) for question in questions(split))
    _write_jsonl(directory / "questions.jsonl", ({"prompt": q.prompt, "answers": q.answers} for q in asked))
    _write_jsonl(directory / "neutral.jsonl", corpus.neutral())
    _write_jsonl(directory / "facts.jsonl", tasks.facts_documents())
    _write_jsonl(directory / "agreement.jsonl", tasks.agreement_documents())


def write_model(directory: Path, *, steps: int, seed: int) -> None:
    """Train the tokenizer and the base model and save both (weights in bf16)."""
    import torch

    from alignkit_demo import pretrain
    from alignkit_demo.tokenizer import train_tokenizer

    texts = list(corpus.corpus(TEXTS, seed))
    tokenizer = train_tokenizer(texts)
    with pretrain.deterministic(seed):
        model = pretrain.new_model(tokenizer)
        loss = pretrain.pretrain(model, pretrain.windows(tokenizer, texts), steps)
    log.info("base model: %d parameters, last loss %.3f", model.num_parameters(), loss)
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only
    _drop_versions(directory)


def write_checksums(directory: Path) -> None:
    """Write the checksums of every file below ``directory`` to ``SHA256SUMS``, in the format of ``sha256sum``."""
    lines = [f"{digest}  {name}\n" for name, digest in checksums(directory).items()]
    (directory / CHECKSUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def checksums(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below ``directory`` except the list itself, by sorted relative path."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)


def _drop_versions(directory: Path) -> None:
    """Remove library versions from the saved configurations, so that an update alone does not change the demo."""
    for name in ("config.json", "generation_config.json"):
        path = directory / name
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("transformers_version", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
