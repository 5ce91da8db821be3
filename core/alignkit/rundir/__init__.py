"""The run directory: its record (run.json), metrics log, evaluation results and lock."""
