"""Benchmarks: ``python -m bench.e2e`` (side by side with other tunnels) and ``python -m bench.micro`` (in memory)."""
