"""The harness on the command line: ``align eval``, ``align compare``, ``align sweep``."""
