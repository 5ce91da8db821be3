"""Exporting what a run trained: adapters merged in, several runs averaged, and the export checked against the runs.

The average of the weights of models fine-tuned from one start is a model soup (Wortsman et al. 2022, arXiv:2203.05482).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import settings
from alignkit.config import ModelConfig, RunConfig
from alignkit.contract import Example, LoadedModel
from alignkit.contract.registry import load_report
from alignkit.data.table.cache import tokenizer_content
from alignkit.errors import ConfigError, ModelError, NoRowsError, RunFailedError
from alignkit.models.load import build_model
from alignkit.rundir.directory import RunDir
from alignkit.rundir.record import RunRecord
from alignkit.runs.data import run_data
from alignkit.scoring.classifier import policy_of
from alignkit.system.files import staged_directory

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
"""Nats a token of the export may differ from the model it was made of."""
CHECKED = 64
"""Held-out rows the export is checked on."""


def export(runs: Sequence[Path], output: Path, weights: Sequence[float] | None = None) -> Path:
    """Write the model of one run, or the weighted mean of several, as a stock model directory.

    Adapters are merged into their base. The export is loaded again from disk and must score held-out rows of the first
    run as the model it was written from does; until it has, nothing is left at ``output``.

    Args:
        runs: finished run directories; several must have one architecture and one tokenizer (else ``ModelError``).
        output: directory that is made; it must not exist, or be empty.
        weights: one each, summing to 1 (default: equal).
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists already: export elsewhere with --output")
    shares = _shares(runs, weights)
    directories = [_finished(run) for run in runs]
    config = settings.resolve(directories[0].config, resume=True).config
    loaded = _merged(directories[0].path)
    if len(directories) > 1:
        _average(loaded, directories, shares)
    examples = _held_out(config, loaded)
    before = _scores(loaded, config, examples)
    with staged_directory(output) as staged:
        with loaded.as_saved():
            loaded.model.save_pretrained(staged)
        loaded.tokenizer.save_pretrained(staged)
        _write_card(staged, directories, shares)
        after = _scores(build_model(ModelConfig(name=str(staged))), config, examples)
        worst = float((before - after).abs().max()) if len(before) else 0.0
        if not worst <= TOLERANCE:
            raise RunFailedError(
                f"the export does not score like {runs[0]}: log-probabilities differ by {worst:.2g} nats; nothing was written"
            )
        if output.exists():
            output.rmdir()  # it was empty, and must still be
    return output


def _shares(runs: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    shares = [1 / len(runs)] * len(runs) if weights is None else list(weights)
    if len(shares) != len(runs):
        raise ConfigError(f"{len(runs)} runs are merged, and {len(shares)} weights were given")
    if abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"the weights sum to {sum(shares):g}, not to 1")
    return shares


def _finished(path: Path) -> RunDir:
    run = RunDir.open(path)
    if not run.model.is_dir():
        raise ConfigError(f"{path} holds no trained model (its status is {run.status})")
    return run


def _merged(run: Path) -> LoadedModel:
    """Load a run's model with its adapter merged in."""
    loaded = build_model(ModelConfig(name=str(run)))
    model: Any = loaded.model
    if hasattr(model, "merge_and_unload"):
        loaded.model = model.merge_and_unload()
        loaded.is_adapter = False
    return loaded


def _average(loaded: LoadedModel, runs: Sequence[RunDir], shares: Sequence[float]) -> None:
    """Replace the weights by the weighted mean of all runs', summed in float32 or better."""
    import torch

    mean = {name: tensor.double() * shares[0] for name, tensor in loaded.model.state_dict().items()}
    for run, share in zip(runs[1:], shares[1:], strict=True):
        other = _merged(run.path)
        state = other.model.state_dict()
        if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in mean.items()}:
            raise ModelError(f"{run.path} has another architecture than {runs[0].path}: their weights have no mean")
        if tokenizer_content(other.tokenizer) != tokenizer_content(loaded.tokenizer):
            raise ModelError(f"{run.path} has another tokenizer than {runs[0].path}: their weights have no mean")
        for name, tensor in state.items():
            mean[name] += tensor.double() * share
    with torch.no_grad():
        for name, tensor in loaded.model.state_dict().items():
            tensor.copy_(mean[name])


def _held_out(config: RunConfig, loaded: LoadedModel) -> list[Example]:
    data = run_data(config, loaded.tokenizer)
    for kind in ("preference", "completion"):
        with suppress(NoRowsError):
            if rows := list(islice(data.held_out.examples(kind), CHECKED)):
                return rows
    # Of prompts alone, their own tokens are what can be scored.
    prompts = [row for row in data.eval if len(row.prompt) > 1][:CHECKED]
    return [replace(row, prompt=row.prompt[:1], completions=(row.prompt[1:],)) for row in prompts]


def _scores(loaded: LoadedModel, config: RunConfig, examples: Sequence[Example]) -> torch.Tensor:
    import torch

    if not examples:
        return torch.empty(0)
    loaded.model.eval()
    return policy_of(loaded, config.model, torch.device("cpu")).score(examples, grad=False).logps.float().cpu()


def _write_card(directory: Path, runs: Sequence[RunDir], shares: Sequence[float]) -> None:
    """Write the model card of the export: of the one run, its adapter merged, or of the mean of several."""
    if (card := load_report("card")) is None:
        return
    record = RunRecord.parse(runs[0].read_record(), runs[0].record)
    whole = record.model_copy(update={"model": record.model.model_copy(update={"adapter": False})})
    merged = [(run.path.name, share) for run, share in zip(runs, shares, strict=True)]
    card(directory, whole, merged if len(runs) > 1 else ())
