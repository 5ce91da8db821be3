"""Worker processes started by torch's elastic launcher, on this node, and one sentence on how they ended."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from alignkit.errors import RunFailedError, first_line
from alignkit.system.worker import FOLDER, Ended

from alignkit_cluster.nodes import Nodes

STOPPING = 900
"""Seconds that workers may take to save a checkpoint after a signal; a second signal stops them at once."""
MEETING = 900
"""Seconds that nodes wait for each other at the start."""


class Verdict(NamedTuple):
    """How the workers of this node ended together: the exit code of the command, and what to print."""

    code: int
    message: str = ""
    traceback: str = ""
    head: str = "Error"
    run: Path | None = None
    """Directory of the run, as the first worker named it."""
    unrecorded: bool = False
    """Whether the first worker's record of the run does not say how the run ended."""


def launch(arguments: Sequence[str], processes: int, nodes: Nodes) -> Verdict:
    """Run ``align ARGUMENTS`` in ``processes`` workers on this node, and return how they ended.

    Ctrl-C, SIGTERM and SIGHUP are passed on to the workers, which save a checkpoint together. When one fails, the others
    are stopped. Raises :class:`RunFailedError` if the nodes do not meet.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logger = logging.getLogger("torch.distributed")
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    alone = nodes.number == 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // processes, 1)))
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup
    if not alone:  # Ctrl-C could not interrupt the wait for other nodes
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    exits: dict[int, int] = {}
    received = 0
    with tempfile.TemporaryDirectory(prefix="align-") as folder:
        os.environ[FOLDER] = folder
        config = LaunchConfig(
            nodes.number,
            nodes.number,
            processes,
            DefaultLogsSpecs(os.devnull),
            run_id=f"{nodes.job}-{uuid.uuid4()}" if alone else nodes.job,
            rdzv_backend="c10d" if alone else "static",
            rdzv_endpoint="localhost:0" if alone else nodes.rendezvous,
            rdzv_configs={"timeout": MEETING} if alone else {"timeout": MEETING, "rank": nodes.rank},
            max_restarts=0,
            local_addr="localhost" if alone else None,
            signals_to_handle="SIGTERM,SIGINT" if ignored else "SIGTERM,SIGINT,SIGHUP",
            shutdown_timeout=STOPPING,
        )
        # Without -P, `python -m` would import from the current directory, which the command `align` does not.
        flags = [] if Path(sys.argv[0]).name == "__main__.py" else ["-P"]
        words = [argument.replace("$", "$$") for argument in arguments]  # torch substitutes ${local_rank}
        try:
            elastic_launch(config, sys.executable)(*flags, "-m", "alignkit", *words)
        except ChildFailedError as error:
            exits = {rank: failure.exitcode for rank, failure in error.failures.items()}
        except SignalException as error:
            received = int(error.sigval)
        except (DistError, RendezvousError) as error:
            raise RunFailedError(
                f"the {nodes.number} nodes did not meet at {nodes.rendezvous}: {first_line(error)}"
            ) from error
        finally:
            del os.environ[FOLDER]
        return verdict(Path(folder), exits, received)


def verdict(folder: Path, exits: Mapping[int, int], received: int) -> Verdict:
    """Choose what the command says and returns, from what every worker left and from how it was killed."""
    told = {int(file.name.removeprefix("end-")): Ended(**json.loads(file.read_text())) for file in folder.glob("end-*")}
    ends = sorted(told.values(), key=lambda end: end.time)
    run = Path((folder / "run").read_text()) if (folder / "run").is_file() else None
    stopped = (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP)
    failed = [end for end in ends if end.code not in (0, *stopped)]
    own = [end for end in failed if not end.lost]
    # The launcher stops the others by SIGTERM, and after a while by SIGKILL.
    killed = [(rank, code) for rank, code in exits.items() if rank not in told and code != -signal.SIGTERM]
    if own or (failed and not killed):
        first = min(own or failed, key=lambda end: (told.get(end.rank) != end, end.time))  # itself, if it can be
        message = f"rank {first.rank}: {first.message}"
        return Verdict(first.code, message, first.traceback, first.head, run, first.rank != 0)
    if killed:
        rank, code = killed[0]
        return Verdict(1, f"rank {rank} {_death(code)}", run=run, unrecorded=True)
    if ends:
        end = min(ends, key=lambda end: (end.code == 0, end.rank))
        return Verdict(end.code, end.message, end.traceback, end.head, run=run)
    received = received or signal.SIGTERM * bool(exits)
    return Verdict(
        128 + received if received else 0, "stopped before training" * bool(received), head="Interrupted", run=run
    )


def _death(code: int) -> str:
    if code >= 0:
        return f"ended without a word, with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    why = " (often because the machine is out of memory)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{why}"
