"""Exporting what a run trained: adapters merged in, several runs combined, and the export checked against the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import Example, LoadedModel, RunConfig, build_model, settings
from alignkit.config import ModelConfig
from alignkit.data.table.cache import tokenizer_content
from alignkit.errors import ConfigError, ModelError, NoRowsError, RunFailedError
from alignkit.models.positions import position_limit
from alignkit.rundir.directory import RunDir
from alignkit.rundir.record import RunRecord
from alignkit.runs.data import run_data
from alignkit.scoring.classifier import policy_of
from alignkit.system.files import require_writable, staged_directory

from alignkit_eval.evaluation.targets import plainly_scored
from alignkit_eval.merging import Merging
from alignkit_eval.report import write_card

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOLERANCE = 1e-4
"""Nats a token of the export may differ from the run, in full precision."""
CHECKED = 64
"""Held-out rows the export is checked on."""

Score = Callable[[LoadedModel], "torch.Tensor"]
"""Returns log-probabilities of the rows that the export is checked on, ``[tokens]``."""


def export(runs: Sequence[Path], output: Path, merging: Merging | None = None, dtype: str = "auto") -> Path:
    """Write the model of one run, or of several combined, as a stock model directory.

    Adapters are merged into their base. Every merged model must score held-out rows of the first run as its run does, and
    the export, loaded again from disk, as the model it was written from; until it has, nothing is left at ``output``.

    Args:
        runs: finished run directories; several must have one architecture and one tokenizer (else ``ModelError``).
        output: directory that is made; it must not exist, or be empty.
        merging: how several are combined (default: the mean).
        dtype: type of the weights that are written (auto: ``model.dtype`` of the first run).
    """
    import torch

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists already: export elsewhere with --output")
    require_writable(output, directory=True)
    merging = merging or Merging()
    shares = merging.factors(len(runs))
    directories = [_finished(run) for run in runs]
    config = settings.resolve(directories[0].config, resume=True).config
    own = "float32" if config.model.dtype == "auto" else config.model.dtype
    dtype = own if dtype == "auto" else dtype
    config.train = plainly_scored(config.train, bf16=False, fp16=False)  # scores are compared exactly
    loaded = build_model(ModelConfig(name=str(directories[0].path), dtype=own))
    score = partial(token_logps, config=config, examples=held_out_examples(config, loaded))
    tied = loaded.model.config.tie_word_embeddings
    _merge(loaded, directories[0], score)
    if len(directories) > 1:
        _combine(loaded, directories, merging, score)
    if tied:
        _tie_again(loaded.model)
    if dtype not in (own, "checkpoint"):
        loaded.model.to(getattr(torch, dtype))
    with staged_directory(output) as staged:
        with loaded.as_saved():
            loaded.model.save_pretrained(staged)
        loaded.tokenizer.save_pretrained(staged)
        _write_card(staged, directories, shares, merging)
        _require_same(score(loaded), score(build_model(ModelConfig(name=str(staged), dtype=dtype))), loaded, runs[0])
        if output.exists():
            output.rmdir()  # it was empty, and must still be
    return output


def _finished(path: Path) -> RunDir:
    run = RunDir.open(path)
    if not run.model.is_dir():
        raise ConfigError(f"{path} holds no trained model (its status is {run.status})")
    return run


def _merge(loaded: LoadedModel, run: RunDir, score: Score) -> None:
    """Merge a run's adapter, if it has one, into the model; it must then score as it did."""
    model: Any = loaded.model
    if not loaded.is_adapter:
        return
    before = score(loaded)
    _untie(model.get_base_model())
    loaded.model = model.merge_and_unload()
    loaded.is_adapter = False
    _require_same(before, score(loaded), loaded, run.path)


def _untie(model: PreTrainedModel) -> None:
    """Give every module weights of its own: merged into shared ones, an adapter of one module would change the others."""
    import torch

    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                module.register_parameter(name, torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            seen.add(id(parameter))


def _tie_again(model: PreTrainedModel) -> None:
    """Let equal input and output embeddings share their weights again; else the configuration says that they do not."""
    import torch

    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None:
        model.config.tie_word_embeddings = torch.equal(table.weight, head.weight)
        if model.config.tie_word_embeddings:
            head.weight = table.weight


def _require_same(before: torch.Tensor, after: torch.Tensor, loaded: LoadedModel, run: Path) -> None:
    """Raise :class:`RunFailedError` unless log-probabilities agree, within what the weights' precision allows."""
    import torch

    difference = (before - after).abs()
    precision = torch.finfo(next(loaded.model.parameters()).dtype).eps
    most, mean = (TOLERANCE, TOLERANCE) if precision < 1e-6 else (64 * precision, 4 * precision)
    if not (difference.max() <= most and difference.mean() <= mean):
        raise RunFailedError(
            f"the export does not score like {run}: log-probabilities differ by up to {difference.max():.2g} nats; "
            "nothing was written"
        )


def _combine(loaded: LoadedModel, runs: Sequence[RunDir], merging: Merging, score: Score) -> None:
    """Replace the weights by those that ``merging`` makes of all runs'."""
    import torch

    _untie(loaded.model)
    own = loaded.model.state_dict()

    def states() -> Iterator[Mapping[str, torch.Tensor]]:
        yield own
        for run in runs[1:]:
            other = build_model(ModelConfig(name=str(run.path), dtype="float32"))
            if tokenizer_content(other.tokenizer) != tokenizer_content(loaded.tokenizer):
                raise ModelError(f"{run.path} has another tokenizer than {runs[0].path}: their weights do not combine")
            _merge(other, run, score)
            _untie(other.model)
            if _architecture(other) != _architecture(loaded):
                raise ModelError(
                    f"{run.path} has another architecture than {runs[0].path}: their weights do not combine"
                )
            yield other.model.state_dict()

    start = _start(runs, loaded, score) if merging.of_changes else {}
    merged = merging.combine(start, states(), len(runs))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(merged[name])


def _start(runs: Sequence[RunDir], like: LoadedModel, score: Score) -> Mapping[str, torch.Tensor]:
    """Return the weights that all runs started from."""
    records = [RunRecord.parse(run.read_record(), run.record).model for run in runs]
    for run, record in zip(runs[1:], records[1:], strict=True):
        if record.hash != records[0].hash:
            raise ModelError(
                f"{run.path} started from other weights than {runs[0].path}: their changes cannot be combined, only their mean"
            )
    config = settings.resolve(runs[0].config, resume=True).config.model
    start = build_model(config.model_copy(update={"lora": None, "dtype": "float32"}))
    if start.fingerprint != records[0].hash:
        raise ModelError(f"the start model of {runs[0].path}, {records[0].name}, has changed since the run began")
    _merge(start, runs[0], score)
    _untie(start.model)
    if _architecture(start) != _architecture(like):
        raise ModelError(f"{records[0].name} has another architecture than the model of {runs[0].path}")
    found: Mapping[str, torch.Tensor] = start.model.state_dict()
    return found


def _architecture(loaded: LoadedModel) -> dict[str, Any]:
    own = loaded.model.config.to_diff_dict()
    return {key: value for key, value in own.items() if key not in ("dtype", "tie_word_embeddings", "use_cache")}


def held_out_examples(config: RunConfig, loaded: LoadedModel) -> list[Example]:
    """Return the rows that an export is checked on."""
    data = run_data(config, loaded.tokenizer, position_limit(loaded.model))
    for kind in ("preference", "completion"):
        with suppress(NoRowsError):
            if rows := list(islice(data.held_out.examples(kind), CHECKED)):
                return rows
    # Of prompts alone, their own tokens are what can be scored; without any rows, the first ids of the vocabulary.
    prompts = [row.prompt for row in data.eval if len(row.prompt) > 1][:CHECKED]
    prompts = prompts or [range(min(64, len(loaded.tokenizer)))]
    return [Example(str(i), ids[:1], (ids[1:],)) for i, ids in enumerate(prompts)]


def token_logps(loaded: LoadedModel, config: RunConfig, examples: Sequence[Example]) -> torch.Tensor:
    """Return the log-probabilities of all completions' tokens, ``[tokens]``, by torch, whose weights are exported."""
    import torch

    loaded.model.eval()
    config = config.model_copy(update={"run": config.run.model_copy(update={"engine": "torch"})})
    return policy_of(loaded, config, torch.device("cpu")).score(examples, grad=False).logps.float().cpu()


def _write_card(directory: Path, runs: Sequence[RunDir], shares: Sequence[float], merging: Merging) -> None:
    """Write the model card of the export: of the one run, its adapter merged, or of several combined."""
    record = RunRecord.parse(runs[0].read_record(), runs[0].record)
    whole = record.model_copy(update={"model": record.model.model_copy(update={"adapter": False})})
    merged = [(run.path.name, share) for run, share in zip(runs, shares, strict=True)]
    write_card(directory, whole, merged if len(runs) > 1 else (), merging.describe())
