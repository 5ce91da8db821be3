"""The shared evaluation harness: suites, statistics, comparison, report."""
