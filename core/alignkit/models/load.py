"""Loading of the model to train, with its tokenizer, adapter and dtype."""

from __future__ import annotations

import copy
import importlib.util
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.config import ModelConfig
from alignkit.contract import LoadedModel
from alignkit.errors import ConfigError, ModelError
from alignkit.models.adapters import add_adapter, load_adapter, saved_rows
from alignkit.models.configuration import read_config
from alignkit.models.directory import blamed
from alignkit.models.own_code import with_own_code
from alignkit.models.paths import adapter_parts, is_classifier, require_intact, resolve_path
from alignkit.models.sharding import run_hooks, sharding
from alignkit.models.tokenizer import has_tokenizer, load_tokenizer
from alignkit.models.weights import dropouts, fingerprint, require_fit, switch_off_dropout
from alignkit.system.sharded import shards

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def build_model(config: ModelConfig, *, seed: int = 0, meta: bool = False) -> LoadedModel:
    """Load the start model (a causal language model or a reward model) and its tokenizer; add an adapter if configured.

    Args:
        config: the ``model`` section.
        seed: seed of a new adapter or head.
        meta: build the model without weights, to count parameters; its fingerprint is then empty.

    Raises:
        ModelError: something is missing, broken or cannot be combined.
    """
    return _build(config, seed, meta, classifier=is_classifier(resolve_path(config.name)))


def build_classifier(config: ModelConfig, *, seed: int = 0) -> LoadedModel:
    """Load a model as a sequence classifier with one output; see :func:`build_model`.

    A language model or encoder gets a new output layer, initialised from ``seed``.
    """
    return _build(config, seed, meta=False, classifier=True)


def _build(config: ModelConfig, seed: int, meta: bool, *, classifier: bool) -> LoadedModel:
    import torch
    from transformers.trainer_utils import align_special_tokens

    path = resolve_path(config.name)
    base_path, adapter_path = adapter_parts(path, config, weights=not meta)
    if config.dtype == "auto":
        config = config.model_copy(update={"dtype": "checkpoint" if config.lora or adapter_path else "float32"})
    own = read_config(
        base_path, config, classifier=classifier, meta=meta
    )  # its errors are clearer than the tokenizer's
    for where in dict.fromkeys([path, base_path]):
        require_intact(where)
    tokenizer = load_tokenizer(config, path if has_tokenizer(path) else base_path, classifier=classifier)
    model = _load_base(base_path, config, own, meta, head_seed=seed if classifier else None)
    align_special_tokens(model, tokenizer)  # as Trainer does, so that a model is the same in a run and loaded from it
    if classifier:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if classifier and adapter_path is not None and not is_classifier(adapter_path):
        # A language model's adapter is merged into the trunk that the new head is put on.
        tuned = load_adapter(_load_base(base_path, config, own, meta), adapter_path, trainable=False).merge_and_unload()
        model.base_model.load_state_dict(tuned.base_model.state_dict())
        adapter_path = None
    if shards() > 1 and (config.quantization is not None or (config.lora and config.lora.modules_to_save)):
        key = "quantization" if config.quantization is not None else "lora.modules_to_save"
        raise ConfigError(f"model.{key} cannot be combined with run.strategy fsdp or zero3: use ddp or zero2")
    if len(tokenizer) > (rows := getattr(table := model.get_input_embeddings().weight, "ds_shape", table.shape)[0]):
        if not config.resize_embeddings and (adapter_path is None or saved_rows(adapter_path) != len(tokenizer)):
            raise ModelError(
                f"the tokenizer has {len(tokenizer):,} tokens and {base_path} only {rows:,} embeddings: name the model's own "
                "tokenizer, or add embeddings with model.resize_embeddings: true"
            )
        if shards() > 1:
            raise ConfigError(
                "model.resize_embeddings cannot be combined with run.strategy fsdp or zero3: save the resized model first, "
                "with an `align run` of one step"
            )
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the start model is the same for every seed
            model.resize_token_embeddings(len(tokenizer), mean_resizing=not meta)
    if adapter_path is not None:
        model = load_adapter(model, adapter_path, trainable=config.lora is None)
    digest = "" if meta else fingerprint(model)
    if adapter_path is not None and config.lora is not None:
        raise ModelError(
            f"{config.name} is an adapter and model.lora asks for another: remove model.lora to continue training the "
            "adapter, or merge it into its base first"
        )
    if config.lora is not None:
        model = add_adapter(model, config.lora, seed, "SEQ_CLS" if classifier else "CAUSAL_LM")
    elif adapter_path is None and config.quantization is not None:
        raise ModelError("model.quantization needs model.lora: a quantized base model cannot be trained")
    if config.dropout and not dropouts(model):
        raise ModelError(f"model.dropout has no effect: {config.name} has no dropout")
    if shards() > 1 and (config.lora is not None or adapter_path is not None):
        run_hooks(model)
    own_dropout = {} if config.dropout else switch_off_dropout(model)
    is_adapter = config.lora is not None or adapter_path is not None
    return LoadedModel(model, tokenizer, path, digest, is_adapter, classifier, own_dropout)


def _load_base(
    path: str, config: ModelConfig, own: PreTrainedConfig, meta: bool, head_seed: int | None = None
) -> PreTrainedModel:
    """Load the causal language model of configuration ``own``, or with ``head_seed`` a sequence classifier with one output."""
    return with_own_code(lambda trusted: _load(path, config, own, meta, head_seed, trusted), path, config)


def _load(
    path: str, config: ModelConfig, own: PreTrainedConfig, meta: bool, head_seed: int | None, trusted: bool
) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.integrations import is_deepspeed_zero3_enabled

    kwargs: dict[str, Any] = {"revision": config.revision, "trust_remote_code": trusted}
    auto, what = AutoModelForCausalLM, "causal language model"
    if head_seed is not None:
        auto, what = AutoModelForSequenceClassification, "sequence classifier"
        own = copy.deepcopy(own)
        own.num_labels = 1
        kwargs["config"] = own
    if config.quantization is not None:
        kwargs["quantization_config"] = _quantization(config)
        kwargs["device_map"] = {"": torch.cuda.current_device()}
    dtype = "auto" if config.dtype == "checkpoint" else getattr(torch, config.dtype)
    try:
        if meta:
            with torch.device("meta"):
                return auto.from_config(own, trust_remote_code=trusted, dtype=own.dtype if dtype == "auto" else dtype)
        with torch.random.fork_rng():
            torch.manual_seed(head_seed or 0)  # for a new head
            if is_deepspeed_zero3_enabled():  # transformers shards the model with it
                importlib.import_module("deepspeed").init_distributed()
            elif shards() > 1:
                kwargs["distributed_config"] = sharding(auto, own, shards(), trusted)
            model, info = auto.from_pretrained(
                path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
    except Exception as error:
        files = [Path(path) / name for name in ("config.json", "generation_config.json")]
        raise blamed(f"cannot load a {what} from {path}", files, error, partial(_try_files, auto)) from error
    missing, unused = info["missing_keys"], info["unexpected_keys"]
    if head_seed is not None:
        # A language model has its own head and lacks the classifier's, and some encoders lack the pooler.
        trunk = f"{model.base_model_prefix}."
        missing = [name for name in missing if name.startswith(trunk) and ".pooler." not in name]
        unused = [name for name in unused if name.startswith(trunk)]
    require_fit(path, [*missing, *(name for name, *_ in info["mismatched_keys"])], unused)
    return model


def _try_files(auto: Any, directory: str) -> None:
    """Read the JSON files of a model and build it without weights."""
    import torch
    from transformers import AutoConfig, GenerationConfig

    with torch.device("meta"):
        auto.from_config(AutoConfig.from_pretrained(directory))
    with suppress(OSError):  # a model need not have one
        GenerationConfig.from_pretrained(directory)


def _quantization(config: ModelConfig) -> Any:
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
