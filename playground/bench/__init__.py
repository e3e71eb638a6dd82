"""Benchmarks: what the project measures about itself, always with its rival in the same run."""
