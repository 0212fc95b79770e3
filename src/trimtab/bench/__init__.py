"""Benchmarks: methods compared on suites of tasks, under a protocol that is written down."""
