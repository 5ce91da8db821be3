"""Two processes that each score half of the rows get the gradient of one process that scores all of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from alignkit.scoring.policy import ModelPolicy

from tests.helpers.forked import run_ranks
from tests.helpers.scoring import assert_same_gradients, build, gradients, rows


def work(path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for checkpointing in (False, True):
        torch.save(half(dist.get_rank(), checkpointing), f"{path}.{checkpointing}.{dist.get_rank()}")
    dist.barrier()
    dist.destroy_process_group()


def half(rank, checkpointing):
    """Return the gradients of this process."""
    model = build("qwen2-window")
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = ModelPolicy(model)
    policy.model = torch.nn.parallel.DistributedDataParallel(model)
    policy.model.train()
    examples = rows(6)
    mine = examples[:2] if rank == 0 else examples[2:]
    scores = policy.score(mine, prompt=True)
    (2 * (scores.sums().sum() + scores.prompt_sums().sum())).backward()  # data parallelism averages over two
    if rank == 0:
        policy.score(mine, grad=False)  # a single process may score without gradient
    return gradients(model)


def test_gradients_of_two_processes_equal_those_of_one(tmp_path):
    model = build("qwen2-window")
    scores = ModelPolicy(model).score(rows(6), prompt=True)
    (scores.sums().sum() + scores.prompt_sums().sum()).backward()
    expected = gradients(model)
    path = tmp_path / "gradients"
    run_ranks(2, work, str(path), cwd=tmp_path)
    for checkpointing in (False, True):
        for rank in (0, 1):
            assert_same_gradients(torch.load(f"{path}.{checkpointing}.{rank}"), expected, tol=1e-5)
