"""The harness's commands, declared as entry points of the group ``align.commands``. Importing this loads nothing heavy."""

from __future__ import annotations

from alignkit import Command

EVAL = Command(
    "alignkit_eval.cli.evaluate:evaluate", "Evaluate models: preferences, perplexity, benchmarks.", distributed=True
)
COMPARE = Command("alignkit_eval.cli.compare:compare", "Compare runs on the same items, with confidence intervals.")
SWEEP = Command("alignkit_eval.cli.sweep:sweep", "Train a grid of settings and seeds and compare the results.")
ATLAS = Command("alignkit_eval.cli.atlas:atlas", "Train and compare every objective on the same pairs.")
LEADERBOARD = Command("alignkit_eval.cli.leaderboard:leaderboard", "Rank all runs of a directory, with their costs.")
PIPELINE = Command("alignkit_eval.cli.pipeline:pipeline", "Train in stages, e.g. sft, reward, ppo, eval, export.")
SCHEMA = Command("alignkit_eval.cli.schema:schema", "Print the JSON schema of configuration files, for editors.")
EXPORT = Command("alignkit_eval.cli.export:export", "Export a run's model, or the average of several.")
