"""The documents of an lm-eval task as texts, for checks of training data against them."""

from __future__ import annotations

from typing import Any

from alignkit.errors import AlignError, DataError, first_line

from alignkit_eval.suites.lm_eval import HarnessSettings, HarnessSuite
from alignkit_eval.suites.quiet import quiet


def task_documents(path: str) -> list[tuple[str, dict[str, str]]]:
    """Return place and texts of every document that a task file (.yaml) evaluates: its prompt, its choices and its target.

    Raises:
        ConfigError, DataError: there is no such file, or lm-eval cannot load it or make a prompt of a document.
    """
    _, tasks = HarnessSuite(HarnessSettings(tasks=[path])).tasks
    found = []
    for name, task in tasks.items():
        where = path if len(tasks) == 1 else f"{path} ({name})"
        for number, document in enumerate(task.eval_docs, start=1):
            place = f"{where} document {number}"
            try:
                with quiet():
                    found.append((place, _texts(task, document)))
            except AlignError:
                raise
            except Exception as error:
                raise DataError(f"{place}: lm-eval cannot make a prompt of it: {first_line(error)}") from error
    return found


def _texts(task: Any, document: Any) -> dict[str, str]:
    """Return the texts of a document by name; a prompt or target that is the number of a choice has none of its own."""
    texts = {"prompt": task.doc_to_text(document), "target": task.doc_to_target(document)}
    if task.config.doc_to_choice is not None:
        texts |= {f"choice {i}": choice for i, choice in enumerate(task.doc_to_choice(document), start=1)}
    targets = texts["target"] if isinstance(texts["target"], list | tuple) else [texts["target"]]
    texts["target"] = "\n".join(target for target in targets if isinstance(target, str))
    return {name: text for name, text in texts.items() if isinstance(text, str) and text}
