"""Inputs that once failed, each as a function: its docstring is what must come, it returns what came, and asserts it."""
