"""Benchmark of training steps against TRL's trainers, on the same token ids.

Measured are the forward and backward passes of one optimizer step over the same rows, from the same weights, in the same
precision, with transformers' SDPA and without gradient checkpointing (``--checkpointing`` also measures with it).

- alignkit: ``AlignTrainer.training_step``: selecting and batching the rows, scoring, loss, metrics, backward pass.
- TRL: the collator (padding) and ``training_step`` of ``trl.experimental.orpo.ORPOTrainer`` or ``DPOTrainer``: loss,
  metrics, backward pass. Settings are TRL's defaults, except precision (that of the comparison; TRL defaults to bf16) and
  gradient checkpointing (on by default in TRL, where it costs time; off here). In the version compared, TRL disables
  ``padding_free`` itself.

Excluded on both sides: reading and tokenising data, the optimizer's update (the same code), logging. ORPO uses TRL's
convention (NLL over prompt and chosen completion) on both sides. DPO's reference log-probabilities are computed beforehand
on both sides; their cost is reported in separate rows.

Time is process CPU time with one thread (CUDA: events around the step). The sides alternate (A B A B), and the ratio is the
median of the ratios of neighbouring measurements. The column ``user`` is the same ratio without kernel time, which is mostly
spent on fresh pages for large tensors and depends on machine and allocator (here the system's default). Memory is the peak
of a step above weights and optimizer state, gradients included, with each side in a fresh process (see :mod:`bench.memory`).
Loss and gradient of both sides must agree to 1e-4 in float32; otherwise no speed is reported.
"""
