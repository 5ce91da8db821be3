"""Tokenizers and their chat templates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.config import ModelConfig
from alignkit.errors import ModelError, first_line, suggest
from alignkit.models.chat_templates import NAMED
from alignkit.models.directory import blamed, check_files
from alignkit.models.own_code import with_own_code
from alignkit.models.paths import resolve_path
from alignkit.system.files import read_regular

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(config: ModelConfig, path: str, *, classifier: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer (``model.tokenizer`` or the model's own) and set ``model.chat_template`` if given.

    An encoder has no end token: its separator takes that place. Raises :class:`ModelError` if the tokenizer is missing,
    broken or without an end token.
    """
    from transformers import AutoTokenizer

    where = resolve_path(config.tokenizer) if config.tokenizer else path
    if Path(where).exists() and not Path(where).is_dir():
        raise ModelError(f"{where} is a file, not the directory of a tokenizer")
    if Path(where).is_dir() and not has_tokenizer(where):
        raise ModelError(f"{where} has no tokenizer: name one with model.tokenizer")
    check_files(Path(where))

    def load(trusted: bool) -> PreTrainedTokenizerBase:
        revision = None if config.tokenizer else config.revision
        try:
            return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trusted)
        except Exception as error:
            files = [Path(where) / f"{name}.json" for name in ("tokenizer_config", "special_tokens_map")]
            raise blamed(
                f"cannot load a tokenizer from {where}", files, error, AutoTokenizer.from_pretrained
            ) from error

    tokenizer = with_own_code(load, where, config)
    if classifier and tokenizer.eos_token_id is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {where} has no end-of-sequence token, which training needs")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if config.chat_template:
        tokenizer.chat_template = _chat_template(config.chat_template)
    return tokenizer


def _chat_template(given: str) -> str:
    """Return the chat template: one by name, one from a file, or ``given`` itself."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if given in NAMED:
        return NAMED[given]
    path = Path(given)
    is_file = len(given) < 400 and "\n" not in given and path.exists()
    if not is_file and "{" not in given:
        raise ModelError(
            f'model.chat_template: "{given}" is not a template name, a file, or a Jinja template{suggest(given, [*NAMED])} '
            f"(known names: {', '.join(NAMED)})"
        )
    where = given if is_file else "model.chat_template"
    try:
        text = read_regular(path).decode("utf-8") if is_file else given
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{where} cannot be read: {first_line(error)}") from None
    standard = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", text)  # of transformers, not of Jinja
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(standard)
    except RecursionError:
        raise ModelError(f"{where}: the template is nested too deeply") from None
    except TemplateSyntaxError as error:
        raise ModelError(f"{where}: line {error.lineno} is not valid Jinja: {error.message}") from None
    return text


def has_tokenizer(path: str) -> bool:
    """Whether a directory holds a tokenizer."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
    return any((Path(path) / name).is_file() for name in names)
