"""Chat templates by name, for tokenizers that have none (``model.chat_template: chatml``).

Each ends the assistant's turns with the tokenizer's end token, so that the model learns to stop and no token has to be
added; the other markers are tokenised as plain text if the tokenizer does not know them.
"""

from __future__ import annotations

from collections.abc import Mapping

_LOOP = "{% for message in messages %}"
_END = "{% endfor %}"

NAMED: Mapping[str, str] = {
    # OpenAI's ChatML.
    "chatml": _LOOP + "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|im_end|>' + (eos_token if message['role'] == 'assistant' else '') + '\\n' }}"
    + _END
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    # Zephyr (huggingface.co/HuggingFaceH4/zephyr-7b-beta).
    "zephyr": _LOOP
    + "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    + _END
    + "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    # Vicuna 1.1 (github.com/lm-sys/FastChat).
    "vicuna": _LOOP + "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ 'USER: ' + message['content'] + '\\nASSISTANT:' }}{% endif %}" + _END,
    # Stanford Alpaca's headings, repeated for each turn.
    "alpaca": _LOOP + "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    + _END
    + "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
    # Role names and line breaks only.
    "plain": _LOOP + "{{ message['role'].capitalize() + ': ' + message['content'] }}"
    "{{ (eos_token if message['role'] == 'assistant' else '') + '\\n' }}"
    + _END
    + "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
}
"""Jinja templates by name."""
