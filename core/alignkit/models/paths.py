"""Model names resolved to directories or hub ids, and what a model directory holds."""

from __future__ import annotations

from pathlib import Path

from alignkit.config import ModelConfig
from alignkit.contract.registry import provided
from alignkit.errors import ModelError, first_line, suggest
from alignkit.models.directory import check_files, read_object
from alignkit.system.files import parse_json, read_regular
from alignkit.system.manifest import MANIFEST, problems, warn_changed


def resolve_path(name: str) -> str:
    """Return the path or hub id for ``from_pretrained``; ``name`` is ``demo``, a run or model directory, or a hub id."""
    if name == "demo":
        from alignkit.demo import model_path

        return str(model_path())
    path = Path(name).expanduser()
    if (path / "run.json").is_file():
        return str((path / "model").resolve())
    if path.exists() or name.startswith((".", "/", "~")):
        return str(path.resolve())
    return name


def _names_a_directory(name: str) -> bool:
    """Return whether a missing target is a path, not a hub id: ``a/b/c``, or ``runs/x`` if ``runs`` exists and no such model is cached."""
    from huggingface_hub import try_to_load_from_cache

    if name.endswith("/") or name.count("/") > 1:
        return True
    return (
        "/" in name and Path(name).parent.is_dir() and not isinstance(try_to_load_from_cache(name, "config.json"), str)
    )


def is_classifier(path: str) -> bool:
    """Whether a model or adapter directory holds a reward model; a hub id is assumed to be a language model."""
    for name, key in (("adapter_config.json", "task_type"), ("config.json", "architectures")):
        if (file := Path(path) / name).is_file():
            found = read_object(file).get(key)
            return found == "SEQ_CLS" or "ForSequenceClassification" in str(found)
    return False


def adapter_parts(path: str, config: ModelConfig, *, weights: bool = True) -> tuple[str, str | None]:
    """Return ``(base, adapter directory or None)``; raises :class:`ModelError` if files, or ``weights``, of a directory, or a hub id, are missing."""
    directory = Path(path)
    if not directory.exists():
        if path.startswith(("/", ".", "~")) or _names_a_directory(path):
            near = [child.name for child in directory.parent.iterdir()] if directory.parent.is_dir() else []
            raise ModelError(f"there is no model or run at {config.name}{suggest(directory.name, near)}")
        if check := provided("align.checks", "hub"):
            check(path, config.revision)
        return path, None
    if not directory.is_dir():
        raise ModelError(f"{config.name} is a file, not a model directory")
    check_files(directory)
    if not (directory / "adapter_config.json").is_file():
        if not (directory / "config.json").is_file():
            raise ModelError(f"{config.name} holds no model: it has neither config.json nor adapter_config.json")
        if weights and not any(any(directory.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin")):
            raise ModelError(f"{config.name} has a config.json but no weights (*.safetensors)")
        return path, None
    base = read_object(directory / "adapter_config.json").get("base_model_name_or_path")
    if weights and not any((directory / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
        raise ModelError(f"{config.name} has an adapter_config.json but no adapter_model.safetensors")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{directory / 'adapter_config.json'} does not say which base model the adapter belongs to")
    if str(base).startswith("/") and not Path(base).is_dir():
        raise ModelError(f"the base model of the adapter {config.name} is missing: there is no {base}")
    return resolve_path(base), path


def require_intact(path: str) -> None:
    """Raise :class:`ModelError` if a checkpoint, or weights of a run's model, are not as saved; other changed files are logged."""
    directory = Path(path)
    in_run = directory.name == "model" and not (directory / MANIFEST).exists()
    record = directory.parent / "run.json" if in_run else directory / MANIFEST
    try:
        files = parse_json(read_regular(record)).get("files", {} if in_run else None)  # older runs did not record them
        changed = dict(problems(directory, files))
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{record} is damaged, so that {path} cannot be verified: {first_line(error)}") from None
    for name, problem in changed.items():
        if not in_run or Path(name).suffix in (".safetensors", ".bin"):
            raise ModelError(
                f"{directory / name} {problem}: restore it or train again; a model changed on purpose belongs into a "
                "directory of its own"
            )
        warn_changed(directory / name)
