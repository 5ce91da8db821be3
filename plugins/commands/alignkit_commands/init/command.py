"""``align init``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click
from alignkit.errors import ConfigError

HARDWARE: dict[str, dict[str, Any]] = {
    "cpu": {"train.per_device_train_batch_size": 8, "train.use_cpu": True},
    "gpu": {"train.per_device_train_batch_size": 16, "train.tokens_per_micro_batch": "auto"},
    "small-gpu": {
        "model.lora.r": 16,
        "model.quantization": "4bit",
        "train.per_device_train_batch_size": 8,
        "train.gradient_checkpointing": True,
    },
    "gpus": {"train.per_device_train_batch_size": 16, "run.processes": "auto", "run.strategy": "auto"},
}
"""Hardware -> the settings for it."""


@click.command()
@click.argument("output", required=False, type=click.Path(path_type=Path))
@click.option("--from", "source", metavar="FILE", type=click.Path(path_type=Path), help="Configuration to carry over.")
@click.option(
    "--tool",
    type=click.Choice(["autotrain", "axolotl", "llamafactory", "trl"]),
    help="Library that FILE is for (default: recognised).",
)
@click.option("--method", metavar="NAME", help="Training method (align methods lists them).")
@click.option("--model", metavar="M", help="Model or adapter directory, run directory, hub id, or demo.")
@click.option("--data", metavar="D", help="File, directory, URL, saved data set, hub id, or demo.")
@click.option("--hardware", type=click.Choice([*HARDWARE]), help="What the run is for.")
def init(
    output: Path | None,
    source: Path | None,
    tool: str | None,
    method: str | None,
    model: str | None,
    data: str | None,
    hardware: str | None,
) -> None:
    """Write a configuration to OUTPUT (default: METHOD.yaml), with every key explained.

    Asks for what no option says. With --from, the configuration of TRL (also the command line, in a file), AutoTrain,
    LLaMA-Factory or axolotl is carried over, and every key that cannot be is named with its line.
    """
    from alignkit.contract import registry
    from alignkit.settings.layers import from_dotted
    from alignkit.system.quiet import quiet_libraries

    from alignkit_commands.init.carry import Carried, carry, settle
    from alignkit_commands.init.tools import recognise

    quiet_libraries()
    if method is not None:
        registry.find("align.methods", method)
    if tool is not None and source is None:
        raise ConfigError("--tool says which library a file is for: add --from FILE")
    if source is not None:
        carried = carry(*recognise(source, tool), method)
    else:
        method = method or _ask("Method", "orpo", "--method", known=registry.usable("align.methods"))
        model = model or _ask("Model (directory, hub id, or demo)", "demo", "--model")
        data = data or _ask("Data (file, directory, hub id, or demo)", "demo", "--data")
        hardware = hardware or _ask(f"Hardware ({', '.join(HARDWARE)})", "cpu", "--hardware", known=[*HARDWARE])
        carried = Carried(from_dotted({"method.name": method, **_usual(method, data, hardware)}, "align init"))
    for key, value in {"model.name": model, "data.source": data, **HARDWARE.get(hardware or "", {})}.items():
        if value is not None:
            carried.layer.put(tuple(key.split(".")), value, f"--{key.partition('.')[0]}")
    target = output or Path(f"{carried.method.replace(':', '-')}.yaml")
    _refuse_existing(target)
    problem = settle(carried, _check)
    _write(target, carried.layer.values, carried.method)
    for line in carried.left:
        click.echo(f"not carried over: {line}", err=True)
    if problem:
        click.echo(f"Note: this is to be mended in {target} before it runs here: {problem}", err=True)
    click.echo(f"{target} is written; next: align run {target} --dry-run", err=True)


def _usual(method: str, data: str, hardware: str) -> dict[str, Any]:
    """Return the settings that people look for first, at their defaults; the demo has its own."""
    from alignkit.contract import registry

    if data == "demo":
        return {}
    kind = registry.load_method(method)[1]
    defaults = {**kind.defaults, **(kind.lora_defaults if "model.lora.r" in HARDWARE[hardware] else {})}
    return {"data.max_length": 1024, "data.eval_split": 0.1, "train.num_train_epochs": 1, **defaults, "run.seed": 0}


def _ask(question: str, default: str, option: str, known: Collection[str] = ()) -> str:
    """Ask until the answer is known."""
    while True:
        try:
            answer = str(click.prompt(question, default=default, err=True)).strip()
        except click.Abort:
            raise ConfigError(f"no answer to {question!r}: answer, or use {option}") from None
        if not known or answer in known:
            return answer
        click.echo(f"{answer} is not one of {', '.join(known)}", err=True)


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise ConfigError(f"{target} exists and is not overwritten: name another file, align init OTHER.yaml")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: the directory {target.parent} does not exist")


def _check(layer: Any) -> None:
    """Raise for a setting that a run would refuse before it loads anything."""
    from alignkit.runs.api import plan
    from alignkit.settings.resolve import resolve_layers

    plan(resolve_layers([layer]).config)


def _write(target: Path, values: Any, method: str) -> None:
    from alignkit.contract.registry import provided
    from alignkit.system.files import write_text

    from alignkit_commands.init.written import written

    schema = provided("align.reports", "schema")
    head = (schema(method) if schema else "") + "# Run it: align run FILE. All keys: align schema METHOD."
    write_text(target, written(values, head.replace("FILE", target.name).replace("METHOD", method)))
