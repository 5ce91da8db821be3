"""``align serve``: models behind an API like OpenAI's."""
