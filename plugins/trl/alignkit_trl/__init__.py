"""TRL's trainers as methods: the same data, run directory, logging and evaluation as every other method."""
