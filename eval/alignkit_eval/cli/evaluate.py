"""``align eval``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from alignkit import RunConfig
from alignkit.contract import registry

if TYPE_CHECKING:
    from alignkit.display.console import Console
    from rich.table import Table

    from alignkit_eval.evaluation.evaluate import Evaluation

_launch_options: Callable[[Callable[..., Any]], Callable[..., Any]] = registry.load(
    registry.find("align.launchers", "options")
)


def _launch(config: RunConfig, arguments: Sequence[str], **where: Any) -> int | None:
    """Carry out ``align ARGUMENTS`` in several processes and return the exit code; None: this process shall do it."""
    code: int | None = registry.load(registry.find("align.launchers", "torch"))(config, arguments, **where)
    return code


def _joined(_context: click.Context, _option: click.Parameter, given: Sequence[str]) -> str | None:
    """Return what an option names each time it is given, none of which is left out."""
    return ",".join(given) or None


@click.command("eval")
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option(
    "--suite",
    "suites",
    metavar="NAME[,NAME]",
    default=("prefs,perplexity",),
    show_default=True,
    multiple=True,
    callback=_joined,
    help="Suites to run.",
)
@click.option("--data", metavar="D", help="Rows to evaluate on, in place of each target's own data.")
@click.option(
    "--tasks",
    metavar="A,B",
    multiple=True,
    callback=_joined,
    help="lm-eval tasks by name or file (.yaml); without --suite, only lm-eval is run.",
)
@click.option("--include-path", metavar="DIR", help="Directory of additional lm-eval task files.")
@click.option(
    "--output",
    metavar="DIR",
    default="evaluations",
    show_default=True,
    help="Directory for results that are not stored in a run.",
)
@click.option(
    "--set",
    "sets",
    metavar="KEY=VALUE",
    multiple=True,
    help="Any other key, such as data.max_length=512 or eval.settings.SUITE.KEY=VALUE (in short SUITE.KEY=VALUE).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
@click.option(
    "--export",
    "form",
    type=click.Choice(["lm-eval"]),
    help="Also write the results as another tool does (with --log_samples).",
)
@click.option("--rate", is_flag=True, help="Write a page for blind A/B ratings of two targets' completions.")
@click.option("--ratings", metavar="CSV", type=click.Path(path_type=Path), help="Report the result of such ratings.")
@click.option(
    "--strategy",
    type=click.Choice(["auto", "ddp", "fsdp"]),
    default="auto",
    show_default=True,
    help="What processes share: nothing (ddp), or the weights of a model too large for one (fsdp); auto: as the run.",
)
@click.option(
    "--engine", metavar="NAME", help="What computes: torch, mlx, ... (default: that of each run, else torch)."
)
@_launch_options
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    targets: tuple[str, ...],
    suites: str,
    data: str | None,
    tasks: str | None,
    include_path: str | None,
    output: str,
    sets: tuple[str, ...],
    as_json: bool,
    form: str | None,
    rate: bool,
    ratings: Path | None,
    strategy: str,
    engine: str | None,
    **where: Any,
) -> int | None:
    """Evaluate models: run, model or adapter directories, hub ids, or demo.

    The default target is the newest finished run under runs/, or the demo's start model where there is none.
    """
    from alignkit.display.console import Console
    from alignkit.system.distributed import rank
    from alignkit.system.quiet import quiet_libraries

    asked = RunConfig(
        method="eval", run={"strategy": strategy, **{key: where[key] or 1 for key in ("processes", "nodes")}}
    )
    if (code := _launch(asked, context.obj.arguments, **where)) is not None:
        return code

    from alignkit_eval.evaluation.evaluate import default_target
    from alignkit_eval.evaluation.evaluate import evaluate as run

    quiet_libraries()
    console = Console(quiet=rank() > 0)
    if ratings is not None:
        from alignkit_eval.rating import rating_result

        click.echo(rating_result(Path(output), ratings).sentence())
        return None
    if rate and len(targets) != 2:
        raise click.UsageError("--rate needs two targets to compare")
    if not targets:
        targets = (default_target(),)
        console.info(f"evaluating {'the demo start model' if targets[0] == 'demo' else targets[0]}")
    named = context.get_parameter_source("suites") == click.core.ParameterSource.COMMANDLINE
    if (tasks or include_path) and not named:
        suites = "lm-eval"
    names = ["generate"] if rate else [name.strip() for name in suites.split(",") if name.strip()]
    sets += () if engine is None else (f"run.engine={engine}",)
    keys = _settings(names, data, tasks, include_path, sets)
    found = run(targets, names, data=data, sets=keys, output=output, strategy=strategy, say=console.warn)
    if rank() > 0:
        return None
    if form:
        _export(found, console)
    if rate:
        from alignkit_eval.rating import write_rating_page

        first, second = (evaluation.results["generate"].items for evaluation in found)
        page = write_rating_page(first, second, (found[0].target, found[1].target), Path(output))
        console.info(f"rate the completions in {page}, then run: align eval --output {output} --ratings ratings.csv")
    elif as_json:
        click.echo(json.dumps([evaluation.to_json() for evaluation in found], indent=2))
    else:
        console.table(_table(found))
        for evaluation in found:
            for line in evaluation.lines():
                console.info(f"{evaluation.target}: {line}")
            console.info(f"{evaluation.target}: {evaluation.directory / 'eval'}")
    return None


def _export(found: Sequence[Evaluation], console: Console) -> None:
    from alignkit_eval.elsewhere.export import write_lm_eval

    for evaluation in found:
        path, left_out = write_lm_eval(evaluation.results, evaluation.target, evaluation.directory / "eval" / "lm-eval")
        console.info(f"{evaluation.target}: {path}")
        if left_out:
            console.warn(f"not in lm-eval's form, because no item has a value: {', '.join(left_out)}")


def _settings(
    names: Sequence[str], data: str | None, tasks: str | None, include_path: str | None, sets: Sequence[str]
) -> list[str]:
    """Return the options as ``--set`` texts, the user's own ``--set`` last."""
    from alignkit.contract import registry

    from alignkit_eval.suites.perplexity import PerplexitySettings

    values = {
        # The named data in place of a run's texts.
        "perplexity.text": None if data is None else "null",
        "perplexity.max_length": None if data is None else str(PerplexitySettings().max_length),
        **{f"{name}.data": data for name in names if "data" in registry.load_suite(name)[1].settings_type.model_fields},
        "lm-eval.tasks": tasks,
        "lm-eval.include_path": include_path,
    }
    own = [f"eval.settings.{key}={value}" for key, value in values.items() if value is not None]
    suites = registry.usable("align.suites")
    return [*own, *(f"eval.settings.{text}" if text.partition(".")[0] in suites else text for text in sets)]


def _table(found: Sequence[Evaluation]) -> Table:
    """Return a table with one row per metric and one column per target."""
    from rich.table import Table

    from alignkit_eval.headline import headline, with_interval

    table = Table(title="evaluation, with 95 % intervals", title_justify="left", title_style="bold")
    table.add_column("metric", overflow="fold")
    shown = []
    for evaluation in found:
        table.add_column(evaluation.target, justify="right", overflow="fold")
        metrics = {name: result.metrics for name, result in evaluation.results.items()}
        shown.append({line.title: line.after for line in headline({}, metrics)})
    for title in dict.fromkeys(title for lines in shown for title in lines):
        table.add_row(title, *(with_interval(lines.get(title)) for lines in shown))
    return table
