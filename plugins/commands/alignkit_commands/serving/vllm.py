"""The models served by vLLM, which must be installed."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Mapping

import click
from alignkit.config import ModelConfig
from alignkit.errors import ConfigError, RunFailedError
from alignkit.models.paths import adapter_parts, is_classifier, resolve_path
from alignkit.system.signals import Terminated, terminable


def serve_with_vllm(named: Mapping[str, str], *, host: str, port: int, token: str | None, dtype: str) -> None:
    """Run vLLM's server until Ctrl-C, which it receives itself, or SIGTERM or SIGHUP, which are passed on."""
    port = port or _free_port(host)
    words = arguments(named, host=host, port=port, dtype=dtype)
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError('--backend vllm needs vLLM: pip install "alignkit[vllm]"')
    environment = os.environ | ({} if token is None else {"VLLM_API_KEY": token})
    click.echo(f"serving {', '.join(named)} with vLLM at http://{host}:{port}/v1; Ctrl-C ends it", err=True)
    process = subprocess.Popen([sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words], env=environment)
    stopped = False
    with terminable():
        while True:
            try:
                code = process.wait()
                break
            except Terminated as error:
                stopped = True
                process.send_signal(error.number)
            except KeyboardInterrupt:
                stopped = True  # the terminal sent it to vLLM as well
    if code != 0 and not stopped:
        raise RunFailedError(f"vLLM's server ended with exit code {code}")


def _free_port(host: str) -> int:
    """Return a port that nothing listens at: vLLM has none of its own choice."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def arguments(named: Mapping[str, str], *, host: str, port: int, dtype: str) -> list[str]:
    """Return the options of vLLM's server: one model, or a base with adapters.

    Raises ``ConfigError`` for several bases, and for a reward model.
    """
    parts: dict[str, tuple[str, str | None]] = {}
    for name, target in named.items():
        path = resolve_path(target)
        if is_classifier(path):
            raise ConfigError(f"{target} is a reward model: it scores answers and cannot generate them")
        parts[name] = adapter_parts(path, ModelConfig(name=target))
    bases = {base for base, _ in parts.values()}
    if len(bases) > 1:
        raise ConfigError(
            f"vLLM serves one base model at a time, not {' and '.join(sorted(bases))}: start one for each"
        )
    adapters = [f"{name}={adapter}" for name, (_, adapter) in parts.items() if adapter is not None]
    plain = [name for name, (_, adapter) in parts.items() if adapter is None]
    words = ["--model", bases.pop(), "--host", host, "--port", str(port), "--dtype", dtype]
    words += ["--served-model-name", *plain] if plain else []
    return words + (["--enable-lora", "--lora-modules", *adapters] if adapters else [])
