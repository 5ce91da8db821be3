"""The built-in evaluation suites."""
