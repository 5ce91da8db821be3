"""A small real tokenizer for the data tests, with and without BOS, EOS and chat template."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.config import RunConfig
from alignkit.contract.rows import RawRows, Row
from alignkit.contract.types import RowKind
from alignkit.data.load import Data, load_data
from alignkit.data.table.tokenised_rows import TokenisedRows
from alignkit_checks.reading import with_unique_ids
from alignkit_shapes.normalise import Normaliser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "What colour is the sky? The sky is blue. The sky is green.",
    "Where does Anna live? Anna lives in Paris. Anna lives in Rome.",
    "How much is two and two? It is four. It is five. I do not know that.",
)
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@cache
def _backend() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return str(tokenizer.to_str())


def make_tokenizer(*, adds_bos: bool = True, bos: bool = True, eos: bool = True, chat: bool = True) -> Any:
    """Return a byte-level BPE tokenizer; ``adds_bos``: it prepends BOS, ``bos``/``eos``: it has the token."""
    tokenizer = Tokenizer.from_str(_backend())
    if adds_bos and bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    names = {"pad_token": "<pad>"} | ({"bos_token": "<s>"} if bos else {}) | ({"eos_token": "</s>"} if eos else {})
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    if chat:
        made.chat_template = CHAT_TEMPLATE
    return made


TOKENIZER = make_tokenizer()


def load(source: Path, kind: RowKind = "preference", tokenizer: Any = TOKENIZER, **data: Any) -> Data:
    """Load one source; ``data`` are other keys of the data section."""
    return load_data(RunConfig(method="m", data={"source": str(source)} | data), kind, tokenizer)


def normalise(raw: RawRows, kind: RowKind, columns: dict[str, str] | None = None, **options: bool) -> list[Row]:
    """Return the rows of ``raw`` as rows of ``kind``, with unique ids."""
    return with_unique_ids(Normaliser(raw, kind, columns or {}, **options).rows(raw))


def load_all(kind: RowKind = "preference", tokenizer: Any = TOKENIZER, **data: Any) -> Data:
    """Load the sources of the data section without held-out rows."""
    return load_data(RunConfig(method="m", data={"eval_split": 0.0, **data}), kind, tokenizer)


def same(first: TokenisedRows, second: TokenisedRows) -> bool:
    """Return whether two sets of rows have the same rows and fingerprint."""
    return list(first) == list(second) and first.fingerprint == second.fingerprint


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(n: int) -> list[dict[str, Any]]:
    """Return ``n`` preference rows with different prompts."""
    return [
        {"id": f"p{i}", "prompt": f"How much is {i} and two? ", "chosen": f"It is {i + 2}.", "rejected": f"It is {i}5."}
        for i in range(n)
    ]
