"""Training steps of alignkit against TRL's trainers, on the same token ids.

What is compared: one optimizer step's forward and backward passes over the same rows, from the same weights, in the same
precision, with transformers' SDPA and without gradient checkpointing on either side (``--checkpointing`` adds it to both).

- alignkit: the whole ``AlignTrainer.training_step``: choosing the rows, laying them out, scoring, the loss, its metrics,
  the backward pass.
- TRL: its collator (padding) and the whole ``training_step`` of ``trl.experimental.orpo.ORPOTrainer`` or ``DPOTrainer``:
  its loss, its metrics, the backward pass. The settings are TRL's defaults but for precision (that of the comparison;
  TRL's own default is bf16 everywhere) and gradient checkpointing (on by default in TRL, where it costs time: off here).
  ``padding_free`` is switched off by TRL itself in the version compared with.

Left out on both sides: tokenising, reading the data set, the optimizer's update (it is the same code), logging.
ORPO uses TRL's convention (NLL over prompt and chosen answer) on both sides, so that both do the same work. DPO's
reference log-probabilities are computed beforehand on both sides; what they cost stands in rows of its own.

Time is process CPU time with one thread (CUDA: events around the step). Both sides take turns, A B A B, and the ratio is the
median of the ratios of neighbours. The column ``user`` is the same ratio without time spent in the kernel, most of which is
fresh pages for large tensors and depends on the machine and its allocator (here the system's default, as a user has it). Memory is the peak of a step above weights and optimizer state, gradients included, each
side in a fresh process (see :mod:`bench.memory`). Before anything is timed, loss and gradient of both sides must agree to
1e-4 in float32; where they do not, no speed is reported.
"""
