"""Benchmarks: what the bus does per second, each beside the limit of this machine.

`python -m benchmarks` (`make bench`) runs them on real engines in a temporary folder.
"""
