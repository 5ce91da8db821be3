"""Benchmark of training steps on a GPU against TRL in its best settings: ``python -m bench --device cuda``.

Parity comes first: every side's loss and gradient on a small model (:mod:`bench.gpu.parity`); a side that disagrees is not timed.
Then each cell is measured in rounds. In a round, every side takes a turn: its process builds the model, warms up, and runs some
steps, each timed by CUDA events; then the model is freed. So the sides alternate, and each has the whole device. If memory runs
out, a side tries again with twice as many micro-batches, down to one row in each; what did not fit is part of the result.

- ours: ``AlignTrainer.training_step``. GRPO's rollouts are given, not sampled; scoring them is part of the step, as in a run.
- ours-compiled: with ``train.torch_compile``. ours-liger: with Liger's kernels in the layers (``train.use_liger_kernel``).
- trl: flash attention, Liger's kernels, padding-free batches where TRL has them (SFT alone), DPO's reference log-probabilities
  computed before. Without the package flash-attn, flash attention is PyTorch's own (:mod:`bench.gpu.flash`).
- trl-reference: the same, with the reference model in every step of DPO. trl-default: TRL's defaults.
- prefix-grouper: the package by which verl shares prompts in GRPO, in a bare training loop.

All sides: the same token ids, products in bfloat16, trained weights in float32, frozen ones in bfloat16; with adapters gradient
checkpointing. The optimizer's update is not timed. Useful tokens count a prompt once and no padding. MFU is the operations that a
step needs at least (:func:`bench.cost_model.useful`) over time and the device's peak, the same operations for every side.
"""
