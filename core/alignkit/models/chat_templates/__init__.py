"""Chat templates by name, for tokenizers that have none (``model.chat_template: chatml``): the files ``NAME.jinja`` here.

Each ends the assistant's turns with the tokenizer's end token, so that the model learns to stop and no token has to be
added; the other markers are tokenised as plain text if the tokenizer does not know them. ``chatml`` is OpenAI's, ``zephyr``
that of huggingface.co/HuggingFaceH4/zephyr-7b-beta, ``vicuna`` Vicuna 1.1's (github.com/lm-sys/FastChat), ``alpaca`` repeats
Stanford Alpaca's headings for each turn, and ``plain`` has role names and line breaks only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NAMED: Mapping[str, str] = {
    file.stem: file.read_text(encoding="utf-8").removesuffix("\n")
    for file in sorted(Path(__file__).parent.glob("*.jinja"))
}
"""Jinja templates by name."""
