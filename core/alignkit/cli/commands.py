"""Core's own commands, declared as entry points of the group ``align.commands`` in pyproject.toml, as any package declares its own."""

from __future__ import annotations

from alignkit.contract.commands import Command

RUN = Command("alignkit.cli.runs:run", "Train a model with one method and evaluate it before and after.")
RESUME = Command("alignkit.cli.runs:resume", "Resume an interrupted run.")
STATUS = Command("alignkit.cli.status:status", "Show the status, progress and latest metrics of a run.")
WATCH = Command("alignkit.cli.status:watch", "Follow a run live in the terminal.")
GENERATE = Command("alignkit.cli.models:generate", "Generate completions for prompts with one or more models.")
CHAT = Command("alignkit.cli.models:chat", "Chat with a model.")
EXPORT = Command("alignkit.cli.models:export", "Export a run's model, or the average of several.")
DATA = Command("alignkit.cli.data:data", "Check data before training on it.")
METHODS = Command("alignkit.cli.listing:methods", "List the installed methods.")
SUITES = Command("alignkit.cli.listing:suites", "List the installed evaluation suites.")
REWARDS = Command("alignkit.cli.listing:rewards", "List the installed rewards.")
SERVICES = Command("alignkit.cli.listing:services", "List the installed services (loggers, data sources).")
PLUGINS = Command("alignkit.cli.plugins:plugins", "List all plugins with their state, or check one.")
NEW_PLUGIN = Command("alignkit.cli.plugins:new_plugin", "Create a package with one working plugin.")
SCHEMA = Command("alignkit.cli.listing:schema", "Print the JSON schema of a method's configuration.")
CACHE = Command("alignkit.cli.cache:cache", "List, measure or prune the cache on disk.")
