"""Writes docs/reference.md (hooks, public types and functions, the conformance kit) and docs/metrics.md from the code."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import alignkit
from alignkit import testing
from alignkit.contract import registry
from alignkit.contract.batch import COUNTS
from alignkit.contract.checks import hook_arguments, hook_names
from alignkit.contract.hooks import EXCLUSIVE, AlignSpecs
from alignkit_eval import glossary
from alignkit_losses.settings import settings_of

PAGE = Path(__file__).parent / "reference.md"
TYPES = (
    *(
        "Method",
        "Settings",
        "Batch",
        "Example",
        "Scores",
        "Policy",
        "LossOutput",
        "LossTerm",
        "Loss",
        "Pairs",
        "Answers",
        "Metric",
        "Reuse",
        "Rollouts",
    ),
    *(
        "OnPolicySettings",
        "Suite",
        "SuiteResult",
        "Contrast",
        "Estimate",
        "Target",
        "Reward",
        "Answered",
        "RewardModel",
    ),
    *(
        "Scheduler",
        "SchedulerSettings",
        "Stage",
        "StageContext",
        "Task",
        "Outcome",
        "Command",
        "RawRows",
        "Row",
        "LoadedModel",
        "TrainerParts",
        "NamedReward",
        "Run",
        "RunConfig",
    ),
)
FUNCTIONS = (
    *("run", "loss", "nll_term", "preference_metrics", "rollout_metrics", "whiten", "build_model", "build_classifier"),
    *("as_reward", "open_rewards", "carry_out"),
)


def page() -> str:
    """Return the reference as Markdown."""
    return "\n".join([*_head(), *_hooks(), *_types(), *_samplers(), *_losses(), *_functions(), *_kit()]) + "\n"


def _head() -> Iterator[str]:
    yield "# Reference"
    yield ""
    yield "Generated from the code by `make docs`. For a guide to writing plugins, see [plugins.md](plugins.md)."
    yield ""


def _hooks() -> Iterator[str]:
    yield "## Hooks"
    yield ""
    for name in hook_names():
        kind = "exclusive" if name in EXCLUSIVE else "first result" if _first(name) else "broadcast"
        yield f"### `{name}({', '.join(hook_arguments(name))})` - {kind}"
        yield ""
        yield _text(getattr(AlignSpecs, name))
        yield ""


def _first(name: str) -> bool:
    return bool(getattr(AlignSpecs, name).align_spec["firstresult"])


def _types() -> Iterator[str]:
    yield "## Types"
    yield ""
    yield "Shapes: `G` rows, `S` completions of all rows, `N` scored completion tokens, `M` scored prompt tokens."
    yield f"Counts a term or metric can be divided by: {', '.join(f'`{name}`' for name in COUNTS)}."
    yield ""
    for name in TYPES:
        found: Any = getattr(alignkit, name)
        yield f"### `alignkit.{name}`"
        yield ""
        yield _text(found)
        yield ""
        fields = _fields(found)
        if fields:
            yield f"Fields: {', '.join(f'`{field}`' for field in fields)}."
            yield ""
        for member, about in [*_attributes(found), *_members(found)]:
            yield f"- `{member}`: {about}"
        yield ""


def _fields(found: Any) -> list[str]:
    if dataclasses.is_dataclass(found):
        return [field.name for field in dataclasses.fields(found)]
    if hasattr(found, "model_fields"):
        return [info.alias or name for name, info in found.model_fields.items()]
    return list(getattr(found, "_fields", ()))


def _attributes(found: Any) -> Iterator[tuple[str, str]]:
    """Yield the attributes of a class that have a description or, on the next line, a docstring."""
    for name, info in getattr(found, "model_fields", {}).items():
        if info.description:
            yield info.alias or name, info.description
    for statement, following in pairwise(ast.parse(inspect.getsource(found)).body[0].body):  # type: ignore[attr-defined]
        text = following.value if isinstance(following, ast.Expr) else None
        if isinstance(statement, ast.AnnAssign) and isinstance(text, ast.Constant):
            yield ast.unparse(statement.target), " ".join(str(text.value).split())


def _members(found: Any) -> Iterator[tuple[str, str]]:
    for name, member in sorted(vars(found).items()):
        function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        if name.startswith("_") or not function.__doc__ or name in getattr(found, "_fields", ()):
            continue
        if inspect.isfunction(function):
            parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
            yield f"{name}({', '.join(parameters)})", _line(function)
        elif isinstance(function, property):
            yield name, _line(function)


def _samplers() -> Iterator[str]:
    yield "## Samplers"
    yield ""
    yield "Settings of `method.NAME`, for `method.sampler: NAME` of on-policy methods (`--set NAME.KEY=VALUE`)."
    yield ""
    for name, entry in registry.usable("align.samplers").items():
        if entry.built_in:
            yield f"### `{name}`"
            yield ""
            yield from (f"- `{key}`: {about}" for key, about in _attributes(registry.load(entry).settings_type))
            yield ""


def _losses() -> Iterator[str]:
    yield "## Losses"
    yield ""
    yield "Of a pair, for `--set loss=NAME` of the methods dpo (all) and cpo (those without a reference): [losses.md](losses.md)."
    yield ""
    for name, entry in registry.usable("align.losses").items():
        if entry.built_in:
            loss = registry.load(entry)
            yield f"### `{name}`"
            yield ""
            yield f"{loss.paper}{f', equation {loss.equation}' if loss.equation else ''}."
            yield f"Needs: {', '.join(sorted(loss.needs)) or 'no reference'}{'; of the whole step' if loss.whole_step else ''}."
            yield ""
            yield _text(loss).partition("\n\n```")[0]
            yield ""
            fields = settings_of(loss).model_fields
            yield from (
                f"- `{info.alias or key}` = {info.default!r}: {info.description}" for key, info in fields.items()
            )
            yield ""


def _functions() -> Iterator[str]:
    yield "## Functions"
    yield ""
    for name in FUNCTIONS:
        function = getattr(alignkit, name)
        yield f"### `alignkit.{name}{inspect.signature(function)}`"
        yield ""
        yield _text(function)
        yield ""


def _kit() -> Iterator[str]:
    yield "## The conformance kit"
    yield ""
    for name in testing.__all__:
        cls = getattr(testing, name)
        yield f"### `alignkit.testing.{name}`"
        yield ""
        yield _text(cls)
        yield ""
        for test, function in (member for base in reversed(cls.__mro__) for member in vars(base).items()):
            if test.startswith("test_"):
                yield f"- `{test}`: {_line(function)}"
        yield ""


def _text(found: Any) -> str:
    text = inspect.getdoc(found) or ""
    head, marker, examples = text.partition(">>> ")
    head = re.sub(r"^(Args|Returns|Raises):\n((?: {4}.*(?:\n|$))+)", _listed, head, flags=re.MULTILINE)
    return head.rstrip() + (f"\n\n```python\n>>> {examples.rstrip()}\n```" if marker else "")


def _listed(section: re.Match[str]) -> str:
    """Return a section of a docstring as a Markdown list, the names of arguments and exceptions as code."""
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?= {4}\S)", section[2].rstrip())]
    named = [entry if section[1] == "Returns" else re.sub(r"^[^:]+(?=: )", r"`\g<0>`", entry) for entry in entries]
    return "\n".join([f"{section[1]}:", "", *(f"- {entry}" for entry in named), ""])


def _line(found: Any) -> str:
    return " ".join((inspect.getdoc(found) or "").partition("\n\n")[0].split())


if __name__ == "__main__":
    import build_migrating
    import build_settings

    build_settings.write()
    build_migrating.write()
    PAGE.write_text(page(), encoding="utf-8")
    (PAGE.parent / "metrics.md").write_text(glossary.page(), encoding="utf-8")
