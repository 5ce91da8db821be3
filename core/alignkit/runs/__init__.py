"""One run from its configuration to its record: prepare, evaluate, train, save, report, resume and export."""
