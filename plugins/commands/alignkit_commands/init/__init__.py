"""``align init``: write a configuration from answers, or from the configuration of another library."""
