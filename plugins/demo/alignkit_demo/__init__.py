"""Build of the embedded demo (``align demo build``): corpus, tokenizer, base model and preference data."""

from alignkit import Command

DEMO = Command("alignkit_demo.cli:demo", "Rebuild the data and model of the embedded demo.")
