"""Commands for training and around it: run, resume, status, chat, listings, plugin checks and the cache. Importing this loads nothing heavy."""

from __future__ import annotations

from alignkit import Command

RUN = Command(
    "alignkit_commands.runs:run", "Train a model with one method and evaluate it before and after.", distributed=True
)
INIT = Command("alignkit_commands.init.command:init", "Write a configuration, or carry over another library's.")
EXAMPLES = Command("alignkit_commands.examples:examples", "List the examples, or copy one.")
RESUME = Command("alignkit_commands.runs:resume", "Resume an interrupted run.", distributed=True)
STATUS = Command("alignkit_commands.status:status", "Show the status, progress and latest metrics of a run.")
WATCH = Command("alignkit_commands.status:watch", "Follow a run live in the terminal.")
GENERATE = Command("alignkit_commands.models:generate", "Generate completions for prompts with one or more models.")
CHAT = Command("alignkit_commands.models:chat", "Chat with a model.")
SERVE = Command("alignkit_commands.serving.command:serve", "Serve runs with an API like OpenAI's.")
METHODS = Command("alignkit_commands.listing:methods", "List the installed methods.")
LOSSES = Command("alignkit_commands.losses:losses", "List the installed losses of pairs, with their papers.")
SUITES = Command("alignkit_commands.listing:suites", "List the installed evaluation suites.")
REWARDS = Command("alignkit_commands.listing:rewards", "List the installed rewards.")
SERVICES = Command("alignkit_commands.listing:services", "List the installed services (loggers, data sources).")
SAMPLERS = Command("alignkit_commands.listing:samplers", "List the installed samplers of on-policy methods.")
SCHEDULERS = Command("alignkit_commands.listing:schedulers", "List the installed schedulers of sweeps and pipelines.")
ENGINES = Command("alignkit_commands.listing:engines", "List the installed engines: what scores and updates a model.")
STAGES = Command("alignkit_commands.listing:stages", "List the installed kinds of stages of pipelines.")
PLUGINS = Command("alignkit_commands.plugins:plugins", "List all plugins with their state, or check one.")
NEW_PLUGIN = Command("alignkit_commands.plugins:new_plugin", "Create a package with one working plugin.")
COMPLETION = Command("alignkit_commands.completion:completion", "Print the completion script of bash, zsh or fish.")
CACHE = Command("alignkit_commands.cache:cache", "List, measure or prune the cache on disk.")
