"""Loading of models, tokenizers and adapters, and text generation."""
