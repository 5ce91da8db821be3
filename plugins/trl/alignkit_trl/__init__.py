"""TRL's trainers as methods, with the data, run directory, logging and evaluation of every other method."""
