"""Benchmarks: they compare the cost of a delivery with the cost of the bare system call.

`python -m benchmarks` pins each process that it measures to one core, and generates the load on
another core in the same run. The server imports nothing from this package.
"""
