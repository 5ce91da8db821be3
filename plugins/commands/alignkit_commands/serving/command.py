"""``align serve``."""

from __future__ import annotations

from typing import Any

import click


@click.command(context_settings={"show_default": True})
@click.argument("targets", metavar="[NAME=]RUN...", nargs=-1, required=True)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", help="Address to listen at; 0.0.0.0: every network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port; 0: any free one.")
@click.option(
    "--token",
    metavar="TEXT",
    envvar="ALIGN_SERVE_TOKEN",
    help="API key that clients must send (or $ALIGN_SERVE_TOKEN).",
)
@click.option("--backend", type=click.Choice(["transformers", "vllm"]), default="transformers", help="What generates.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Type of the weights; auto: the checkpoint's on a GPU, float32 on the CPU.",
)
def serve(targets: tuple[str, ...], backend: str, **options: Any) -> None:
    """Serve each RUN (a run, model or adapter directory, hub id, or demo) with an API like OpenAI's.

    Clients choose a model by NAME (default: the name of its directory). Runs that trained adapters of one base share it.
    Endpoints below http://HOST:PORT/v1: chat/completions, completions, models. Ctrl-C ends it.
    """
    from alignkit.system.quiet import quiet_libraries

    from alignkit_commands.serving.served import named_targets

    quiet_libraries()
    named = named_targets(targets)
    if backend == "vllm":
        from alignkit_commands.serving.vllm import serve_with_vllm

        serve_with_vllm(named, **options)
    else:
        from alignkit_commands.serving.server import serve_with_transformers

        serve_with_transformers(named, **options)
