"""The machines that run together, and what other launchers say of them in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from alignkit.errors import ConfigError


class Nodes(NamedTuple):
    """The machines that run together: how many, which of them this is, and where they meet (``HOST:PORT``)."""

    number: int = 1
    rank: int = 0
    rendezvous: str = ""
    job: str = "align"


def slurm_nodes(environment: Mapping[str, str] = os.environ) -> Nodes | None:
    """Return the nodes of the Slurm job step that this process is in; None outside of one with several nodes.

    The port follows from the job's number, so that all nodes know it and two jobs on a node do not share it.
    """
    count = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or 1)
    if count < 2 or "SLURM_NODEID" not in environment:
        return None
    listed = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    job = environment.get("SLURM_JOB_ID", "0")
    port = 15000 + int(re.sub(r"\D", "", job) or 0) % 15000  # below the ports that systems give to clients
    return Nodes(count, int(environment["SLURM_NODEID"]), f"{first_host(listed)}:{port}", f"slurm-{job}")


def first_host(nodelist: str) -> str:
    """Return the first name of a Slurm list of nodes.

    >>> first_host("gpu[003-006,9],login1"), first_host("a1,a2"), first_host("rack[2-3]-n[01,07]")
    ('gpu003', 'a1', 'rack2-n01')
    """
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodelist)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "") or "localhost"


def refuse_copies(given: Mapping[str, str] = os.environ) -> None:
    """Raise :class:`ConfigError` where a launcher started this process without telling it of the others.

    ``accelerate launch --cpu`` starts one process for any ``--num_processes`` and sets the address of a main process alone
    (accelerate.utils.launch.prepare_simple_launcher_cmd_env); ``srun`` starts the same command in every task.
    """
    if any(f"{kind}_SIZE" in given for kind in ("OMPI_COMM_WORLD", "MV2_COMM_WORLD")):
        return
    if given.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in given:
        raise ConfigError(
            "accelerate launch --cpu starts one process, whatever --num_processes says: use align run --processes N"
        )
    tasks, nodes = (int(given.get(f"SLURM_STEP_NUM_{what}") or 1) for what in ("TASKS", "NODES"))
    if tasks > nodes:
        raise ConfigError(
            f"srun started {tasks} copies of this command on {nodes} node{'s' * (nodes > 1)}: use srun "
            "--ntasks-per-node=1, and --processes N for the processes of a node"
        )
