"""The model that is trained: policy, tokenizer, adapter and dtype, with every way to go wrong said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.config import LoraConfig, ModelConfig
from alignkit.errors import ModelError, suggest
from alignkit.weights import fingerprint, switch_off_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


@dataclass
class LoadedModel:
    """A policy ready to train, its tokenizer, and the fingerprint of the weights it starts from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    """Where the weights came from: a directory or a hub id."""
    fingerprint: str
    """sha256 over the start weights (a fresh adapter left out: it changes nothing until it is trained)."""
    is_adapter: bool
    classifier: bool = False
    """Whether it is a reward model: a sequence classifier with one output."""
    own_dropout: dict[str, float] = field(default_factory=dict)
    """The configuration's dropouts where they were switched off for training; the saved model keeps them."""

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Give the model its own dropouts back for the block."""
        config = self.model.config.get_text_config()
        for name, value in self.own_dropout.items():
            setattr(config, name, value)
        try:
            yield
        finally:
            for name in self.own_dropout:
                setattr(config, name, 0.0)

    @property
    def parameters(self) -> int:
        """Number of parameters, adapter included."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def trainable(self) -> int:
        """Number of parameters that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def resolve_path(name: str) -> str:
    """Return what ``from_pretrained`` takes for ``name``: ``demo``, a run directory, a model directory or a hub id."""
    if name == "demo":
        from alignkit.demo import model_path

        return str(model_path())
    path = Path(name).expanduser()
    if (path / "run.json").is_file():
        return str((path / "model").resolve())
    if path.exists() or name.startswith((".", "/", "~")):
        return str(path.resolve())
    return name


def build_model(config: ModelConfig, *, seed: int = 0, meta: bool = False) -> LoadedModel:
    """Load the start model and its tokenizer, and put a fresh adapter on where the configuration asks for one.

    ``meta=True`` builds the model without its weights (for counting); its fingerprint is then empty.
    A reward model is loaded as one. Raises :class:`ModelError` with what is missing or broken.
    """
    return _build(config, seed, meta, classifier=is_classifier(resolve_path(config.name)))


def build_classifier(config: ModelConfig, *, seed: int = 0) -> LoadedModel:
    """Load a model as a sequence classifier with one output; a language model or encoder gets a new one, drawn by ``seed``.

    Raises :class:`ModelError` with what is missing or broken.
    """
    return _build(config, seed, meta=False, classifier=True)


def is_classifier(path: str) -> bool:
    """Whether a model or adapter directory holds a reward model; a hub id is taken for a language model."""
    import json

    directory = Path(path)
    for name, key in (("adapter_config.json", "task_type"), ("config.json", "architectures")):
        try:
            found = json.loads((directory / name).read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        return found == "SEQ_CLS" or "ForSequenceClassification" in str(found)
    return False


def _build(config: ModelConfig, seed: int, meta: bool, *, classifier: bool) -> LoadedModel:
    path = resolve_path(config.name)
    base_path, adapter_path = _adapter_parts(path, config)
    tokenizer = load_tokenizer(config, path if _has_tokenizer(path) else base_path, classifier=classifier)
    model = _load_base(base_path, config, meta, head_seed=seed if classifier else None)
    if classifier:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if classifier and adapter_path is not None and not is_classifier(adapter_path):
        # A language model's adapter: its changes go into the trunk, and the new head's classifier starts from that.
        tuned = _load_adapter(_load_base(base_path, config, meta), adapter_path, trainable=False).merge_and_unload()
        model.base_model.load_state_dict(tuned.base_model.state_dict())
        adapter_path = None
    if not meta:
        _check_embeddings(model, tokenizer, base_path)
    if adapter_path is not None and not meta:
        model = _load_adapter(model, adapter_path, trainable=config.lora is None)
    digest = "" if meta else fingerprint(model)
    if adapter_path is not None and config.lora is not None:
        raise ModelError(
            f"{config.name} is an adapter and model.lora asks for another: drop model.lora to train the adapter on, "
            "or merge it into its base first"
        )
    if config.lora is not None:
        model = _add_adapter(model, config.lora, seed, "SEQ_CLS" if classifier else "CAUSAL_LM")
    elif adapter_path is None and config.quantization is not None:
        raise ModelError("model.quantization needs model.lora: a quantized base cannot be trained itself")
    own_dropout = {} if config.dropout else switch_off_dropout(model)
    is_adapter = config.lora is not None or adapter_path is not None
    return LoadedModel(model, tokenizer, path, digest, is_adapter, classifier, own_dropout)


def load_tokenizer(config: ModelConfig, path: str, *, classifier: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer (``model.tokenizer`` or the model's own) and give it ``model.chat_template`` if there is one.

    An encoder's text ends with its separator, which stands for the end token it does not have.
    """
    from transformers import AutoTokenizer

    where = resolve_path(config.tokenizer) if config.tokenizer else path
    if Path(where).is_dir() and not _has_tokenizer(where):
        raise ModelError(f"{where} has no tokenizer: name one with model.tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where, revision=None if config.tokenizer else config.revision, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:
        raise ModelError(f"cannot load a tokenizer from {where}: {_first_line(error)}") from error
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
    """Return the template of a name, of a file, or the one that is given itself."""
    from alignkit.chat_templates import NAMED

    if given in NAMED:
        return NAMED[given]
    path = Path(given)
    is_file = len(given) < 400 and "\n" not in given and path.is_file()
    if not is_file and "{" not in given:
        raise ModelError(
            f'model.chat_template: "{given}" is no Jinja template, no file, and no name{suggest(given, [*NAMED])} '
            f"(known: {', '.join(NAMED)})"
        )
    text = path.read_text(encoding="utf-8") if is_file else given
    _check_syntax(text, given if is_file else "model.chat_template")
    return text


def _check_syntax(template: str, where: str) -> None:
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(
            template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        )
    except TemplateSyntaxError as error:
        raise ModelError(f"{where}: line {error.lineno} is no Jinja: {error.message}") from None


def _has_tokenizer(path: str) -> bool:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
    return any((Path(path) / name).is_file() for name in names)


def _adapter_parts(path: str, config: ModelConfig) -> tuple[str, str | None]:
    """Return (base, adapter directory or None) for a path, checking that a directory holds what it should."""
    import json

    directory = Path(path)
    if not directory.exists():
        if path.startswith(("/", ".", "~")):
            raise ModelError(f"there is no model at {config.name}")
        return path, None
    if not directory.is_dir():
        raise ModelError(f"{config.name} is a file, not a model directory")
    if not (directory / "adapter_config.json").is_file():
        if not (directory / "config.json").is_file():
            raise ModelError(f"{config.name} holds no model: it has neither config.json nor adapter_config.json")
        if not any(any(directory.glob(pattern)) for pattern in WEIGHT_FILES):
            raise ModelError(f"{config.name} has a config.json but no weights (*.safetensors)")
        return path, None
    try:
        base = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError) as error:
        raise ModelError(f"{directory / 'adapter_config.json'} is broken: {_first_line(error)}") from error
    if not any((directory / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
        raise ModelError(f"{config.name} has an adapter_config.json but no adapter_model.safetensors")
    if not base:
        raise ModelError(f"{directory / 'adapter_config.json'} does not say which base model the adapter belongs to")
    if str(base).startswith("/") and not Path(base).is_dir():
        raise ModelError(f"the base model of the adapter {config.name} is gone: there is no {base}")
    return str(base), path


def _dtype(config: ModelConfig) -> Any:
    import torch

    return "auto" if config.dtype == "auto" else getattr(torch, config.dtype)


def _load_base(path: str, config: ModelConfig, meta: bool, head_seed: int | None = None) -> PreTrainedModel:
    """Load the causal language model, or with ``head_seed`` a sequence classifier with one output."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kwargs: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        model_config = AutoConfig.from_pretrained(path, **kwargs)
    except Exception as error:
        raise ModelError(f"cannot read a model configuration from {path}: {_first_line(error)}") from error
    auto = AutoModelForCausalLM if head_seed is None else AutoModelForSequenceClassification
    what = "causal language model" if head_seed is None else "sequence classifier"
    if head_seed is not None:
        model_config.num_labels = 1
        kwargs["config"] = model_config
    if model_config.is_encoder_decoder:
        raise ModelError(f"{path} is an encoder-decoder model; alignkit trains causal language models")
    if config.quantization is not None:
        kwargs["quantization_config"] = _quantization(config)
        kwargs["device_map"] = {"": torch.cuda.current_device()}
    try:
        if meta:
            with torch.device("meta"):
                return auto.from_config(model_config, trust_remote_code=config.trust_remote_code)
        with torch.random.fork_rng():
            torch.manual_seed(head_seed or 0)  # of a new head
            model, info = auto.from_pretrained(path, dtype=_dtype(config), output_loading_info=True, **kwargs)
    except Exception as error:
        raise ModelError(f"cannot load a {what} from {path}: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info.get("mismatched_keys", []))
    if head_seed is not None:  # a language model has none of a classifier's head, and not every encoder a pooler
        trunk = f"{model.base_model_prefix}."
        missing = [name for name in missing if name.startswith(trunk) and ".pooler." not in name]
    if missing:
        raise ModelError(
            f"the weights of {path} are incomplete: {len(missing)} tensors are missing or of another shape, first {missing[0]}"
        )
    return model


def _quantization(config: ModelConfig) -> Any:
    import importlib.util

    import torch

    if not torch.cuda.is_available():
        raise ModelError(f"model.quantization={config.quantization} needs a GPU, and there is none here")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f'model.quantization={config.quantization} needs bitsandbytes: pip install "alignkit[quantization]"'
        )
    from transformers import BitsAndBytesConfig

    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def _check_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens and {path} only {rows} embeddings: they do not belong together"
        )


def _load_adapter(model: PreTrainedModel, path: str, trainable: bool) -> PreTrainedModel:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, path, is_trainable=trainable)
    except Exception as error:
        raise ModelError(f"cannot load the adapter {path}: {_first_line(error)}") from error


def _add_adapter(model: PreTrainedModel, config: LoraConfig, seed: int, task: str) -> PreTrainedModel:
    import peft
    import torch

    known = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "modules_to_save", "task_type"}
    clash = known & set(config.options)
    if clash:
        raise ModelError(f"model.lora.options.{min(clash)} is set by model.lora itself")
    try:
        adapter = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.target_modules,
            use_dora=config.dora,
            modules_to_save=config.modules_to_save,
            task_type=task,
            **config.options,
        )
        if getattr(model, "is_quantized", False):
            model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return peft.get_peft_model(model, adapter)
    except (ValueError, TypeError) as error:
        raise ModelError(f"model.lora does not fit this model: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(" .:")[:300]
