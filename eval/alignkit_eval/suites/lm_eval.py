"""Benchmarks of EleutherAI's lm-evaluation-harness, run in process on the loaded model.

Three problems of running it this way are handled here: a model that returns NaN would score as right wherever the first
choice is the right one, so it is an error; random states and the model's mode are restored; the request cache, whose key
does not include the weights, is not used.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from alignkit import Estimate, Omission, Settings, Suite, SuiteResult, Target
from alignkit.config import Words
from alignkit.errors import AlignError, ConfigError, DataError, NoRowsError, RunFailedError, first_line, suggest
from alignkit.system import trust
from alignkit.system.together import from_first
from pydantic import Field

from alignkit_eval.suites.counting_model import counting_model
from alignkit_eval.suites.guarded import Failures
from alignkit_eval.suites.quiet import machine_undescribed, quiet
from alignkit_eval.suites.scores import suite_result
from alignkit_eval.suites.task_code import functions_in, is_installed
from alignkit_eval.suites.task_metrics import TaskMetrics, key_of, measure, task_items

TASKS = Path(__file__).parents[1] / "tasks"
"""Directory of the demo's tasks, which come with alignkit."""

_RESULTS = ("samples", "results", "groups", "higher_is_better")
"""Parts of lm-eval's results that are used."""

_OPTIONS = ("system_instruction", "fewshot_as_multiturn", "gen_kwargs")
"""Settings that lm-eval has a default of its own for."""


class HarnessSettings(Settings):
    """Settings of the lm-eval suite."""

    tasks: Words | None = Field(None, description="names of tasks or task groups, or task files (.yaml)")
    include_path: str | None = Field(None, description="directory of additional task files")
    limit: int | None = Field(None, ge=1, description="maximum number of documents per task")
    num_fewshot: int | None = Field(None, ge=0, description="few-shot examples in the prompt (default: the task's own)")
    batch_size: int = Field(16, ge=1, description="requests per forward pass")
    apply_chat_template: bool = Field(False, description="apply the model's chat template to the prompts")
    system_instruction: str | None = Field(
        None, description="text before every prompt, as the system's turn of a template"
    )
    fewshot_as_multiturn: bool | None = Field(
        None,
        description="few-shot examples are turns of the conversation (with apply_chat_template; lm-eval's default: true)",
    )
    gen_kwargs: dict[str, Any] | str | None = Field(
        None,
        description="settings of generation in place of the tasks' own: max_gen_toks=64,temperature=0.7,do_sample=true",
    )
    resamples: int = Field(
        200,
        ge=0,
        description="bootstrap draws for the interval of a metric that is not a mean, such as BLEU (0: no interval)",
    )


class HarnessSuite(Suite[HarnessSettings]):
    """Any task of lm-eval by name, the demo's tasks, and your own with --include-path."""

    name = "lm-eval"
    metrics = ("*/*",)  # TASK/METRIC
    settings_type = HarnessSettings

    def __init__(self, settings: HarnessSettings) -> None:
        super().__init__(settings)
        if settings.include_path is not None and not Path(settings.include_path).is_dir():
            raise ConfigError(f"lm-eval: there is no task directory {settings.include_path}")
        if settings.fewshot_as_multiturn is not None and not settings.apply_chat_template:
            raise ConfigError(
                "eval.settings.lm-eval.fewshot_as_multiturn has no effect without apply_chat_template: true"
            )
        if settings.include_path is not None:  # task files call functions, and their templates can
            files = [*Path(settings.include_path).rglob("*.py"), *Path(settings.include_path).rglob("*.y*ml")]
            trust.require(settings.include_path, sorted(files))
        for name in filter(_is_file, settings.tasks or ()):
            if not Path(name).is_file():
                raise ConfigError(f"lm-eval: there is no task file {name}")
            trust.require(name, sorted([Path(name), *Path(name).parent.glob("*.py")]))

    def content(self, target: Target) -> str:
        """Return a digest of the tasks' configurations and documents, those of few-shot examples included."""
        _, tasks = self.tasks
        content = hashlib.sha256()
        for name, task in sorted(tasks.items()):
            about = {key: value for key, value in task.dump_config().items() if key != "metadata"}
            few = self.settings.num_fewshot if self.settings.num_fewshot is not None else task.config.num_fewshot
            for part in ([name, about], *task.eval_docs, "few-shot", *((task.fewshot_docs() or ()) if few else ())):
                content.update(json.dumps(part, sort_keys=True, default=_stable).encode())
        return content.hexdigest()

    @property
    def cacheable(self) -> bool:
        """Whether the tasks call no Python code but that of installed libraries: other code may read and call anything."""
        tasks = self.tasks[1].values()
        return all(map(is_installed, (part for task in tasks for part in (type(task), *functions_in(task.config)))))

    def evaluate(self, target: Target) -> SuiteResult:
        """Run the tasks; ``RunFailedError`` is also raised where lm-eval fails."""
        from alignkit.scoring.evaluating import undisturbed

        manager, tasks = self.tasks
        notes = self._without_examples(tasks)
        model = target.policy.model
        with undisturbed(model), quiet():  # lm-eval seeds all random generators
            _require_numbers(model, target)
            failures = Failures()
            failures.watch(manager)
            found, cut = self._run(manager, target)
            failures = from_first(failures)  # lm-eval aggregates on the first process only
        samples: Mapping[str, list[dict[str, Any]]] = found["samples"]
        for task, rows in samples.items():
            _require_finite(task, rows)
        items: list[dict[str, Any]] = []
        whole = TaskMetrics()
        with undisturbed(model), quiet():  # a task's aggregation may be any code
            for task, rows in samples.items():
                own = task_items(task, rows)
                better = found.get("higher_is_better", {}).get(task, {})
                made = measure(
                    task,
                    rows,
                    own,
                    failures.usable(task, found["results"][task]),
                    tasks[task].aggregation(),
                    better,
                    self.settings.resamples,
                )
                whole.metrics |= made.metrics
                whole.contrasts += made.contrasts
                whole.notes += made.notes
                whole.draws |= made.draws
                items += own.values()
        for name in sorted(found.get("groups", {})):
            for key, value in _reported(found["groups"][name]).items():
                if not math.isfinite(value):
                    whole.notes.append(f"{name}/{key} is left out: a metric that it combines failed or is not finite")
                    continue
                whole.metrics[f"{name}/{key}"] = Estimate(value)
                whole.notes.append(f"{name}/{key} has no interval: it combines several tasks")
        whole.notes += failures.notes()
        if not whole.metrics:
            raise RunFailedError(f"lm-eval gives no metric: {'; '.join(whole.notes)}")
        result = suite_result(self, items, whole.metrics, whole.contrasts)
        return replace(result, left_out=cut, notes=[*notes, *whole.notes], draws=whole.draws)

    # ------------------------------------------------------------------ tasks

    @cached_property
    def tasks(self) -> tuple[Any, dict[str, Any]]:
        """lm-eval's task manager and the tasks by name."""
        from alignkit.scoring.evaluating import undisturbed

        names = self.settings.tasks
        if not names:
            raise NoRowsError("lm-eval needs tasks: name them with --tasks A,B")
        with undisturbed(), quiet():
            manager = self._manager(names)
            try:
                tasks = manager.load([_spec(name) for name in names])["tasks"]
            except Exception as error:
                hint = (
                    ""
                    if self.settings.include_path
                    else " (a stock task needs its data set on disk or access to the hub)"
                )
                raise DataError(f"lm-eval cannot load {', '.join(names)}: {_cause(error)}{hint}") from error
        self._require_generation(tasks)
        return manager, tasks

    def _require_generation(self, tasks: Mapping[str, Any]) -> None:
        """Raise where no task generates text, so that ``gen_kwargs`` would have no effect."""
        if self.settings.gen_kwargs and all(task.OUTPUT_TYPE != "generate_until" for task in tasks.values()):
            raise ConfigError(f"eval.settings.lm-eval.gen_kwargs has no effect: {', '.join(tasks)} generate no text")

    def _without_examples(self, tasks: Mapping[str, Any]) -> list[str]:
        """Return a note on tasks that ``num_fewshot`` does not change, because they ask for no examples themselves."""
        fixed = sorted(
            name for name, task in tasks.items() if self.settings.num_fewshot and task.config.num_fewshot == 0
        )
        if fixed and len(fixed) == len(tasks):
            raise ConfigError(f"eval.settings.lm-eval.num_fewshot has no effect: {fixed[0]} sets num_fewshot: 0 itself")
        return [f"num_fewshot does not change {', '.join(fixed)}, set to 0 in the task itself"] if fixed else []

    def _manager(self, names: Sequence[str]) -> Any:
        """Return a manager of the named tasks, and of the stock tasks where one of these is named."""
        from lm_eval.tasks import TaskManager

        paths = [str(TASKS)] + ([self.settings.include_path] if self.settings.include_path else [])
        manager = TaskManager(include_defaults=False, include_path=paths)
        known = manager.task_index
        names = [name for name in names if not _is_file(name)]
        if all(name in known for name in names):
            return manager
        for name, task in _stock_tasks().items():
            known.setdefault(name, task)
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            raise ConfigError(
                f"lm-eval has no task {unknown!r}{suggest(unknown, sorted(known))} "
                "(lm-eval ls tasks lists them; --include-path adds a directory)"
            )
        return manager

    def _run(self, manager: Any, target: Target) -> tuple[dict[str, Any], list[Omission]]:
        """Return lm-eval's results, and the requests that were cut to the model's positions."""
        from lm_eval import simple_evaluate

        settings = self.settings
        model = counting_model(target, settings.batch_size)
        try:
            with machine_undescribed():
                found: dict[str, Any] | None = simple_evaluate(
                    model=model,
                    tasks=[_spec(name) for name in settings.tasks or ()],
                    task_manager=manager,
                    num_fewshot=settings.num_fewshot,
                    limit=settings.limit,
                    apply_chat_template=settings.apply_chat_template,
                    **{name: value for name in _OPTIONS if (value := getattr(settings, name)) is not None},
                    log_samples=True,
                    bootstrap_iters=0,
                )
        except AlignError:
            raise
        except Exception as error:
            raise RunFailedError(f"lm-eval stopped: {type(error).__name__}: {first_line(error)}") from error
        # lm-eval returns its results on the first process only.
        found = from_first(found and {name: found[name] for name in _RESULTS if name in found})
        if not found or not any(found["samples"].values()):
            raise NoRowsError(f"the tasks {', '.join(settings.tasks or ())} have no documents")
        return found, model.left_out()


# ------------------------------------------------------------------------------------------------- results


@cache
def _stock_tasks() -> dict[str, Any]:
    """Return lm-eval's own tasks by name: 14,000 files, which take seconds to read."""
    from lm_eval.tasks import TaskManager

    found: dict[str, Any] = TaskManager().task_index
    return found


def _is_file(name: str) -> bool:
    """Whether a task is named by its file."""
    return name.endswith((".yaml", ".yml"))


def _spec(name: str) -> str:
    return str(Path(name).absolute()) if _is_file(name) else name


def _reported(results: Mapping[str, Any]) -> dict[str, float]:
    """Return lm-eval's numbers as ``{"acc": .., "exact_match:strict-match": ..}``, without standard errors."""
    named = ((*key.partition(","), value) for key, value in results.items())
    return {
        key_of(metric, chosen): float(value)
        for metric, comma, chosen, value in named
        if comma and not metric.endswith("_stderr") and isinstance(value, bool | int | float | np.number)
    }


# ------------------------------------------------------------------------------------------------- hazards


def _require_finite(task: str, samples: Sequence[Mapping[str, Any]]) -> None:
    """Raise where a log-likelihood is not finite: argmax over NaN is the first choice, which may be the right one."""
    broken = [s["doc_id"] for s in samples if not all(map(math.isfinite, _numbers(s["resps"])))]
    if broken:
        raise RunFailedError(
            f"suite 'lm-eval': log-likelihoods of {task} are not finite on {len(broken)} of {len(samples)} documents "
            f"(first: {broken[0]})"
        )


def _numbers(responses: Any) -> list[float]:
    if isinstance(responses, list | tuple):
        return [number for response in responses for number in _numbers(response)]
    return [responses] if isinstance(responses, float) else []


def _require_numbers(model: Any, target: Target) -> None:
    """Raise where the model's logits are NaN: lm-eval would silently score meaningless generations."""
    ids = target.tokenizer("0", return_tensors="pt")["input_ids"].to(next(model.parameters()).device)
    logits = model(input_ids=ids).logits
    if bool(logits.isnan().any()):
        raise RunFailedError(f"suite 'lm-eval': the logits of {target.name} are NaN")


def _stable(value: Any) -> str:
    """Return a text for a value that JSON cannot represent, the same in every process."""
    return getattr(value, "__qualname__", None) or type(value).__name__


def _cause(error: Exception) -> str:
    """Return what an error of lm-eval says about a task, in words for whoever wrote the task's file."""
    if found := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
        return f"its file has the unknown key {found[1]}"
    if isinstance(error, AttributeError | TypeError | StopIteration | IndexError):
        return "a key of its file is missing or has a value of the wrong type"
    return first_line(error)
