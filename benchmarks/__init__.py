"""Benchmarks: what a delivery costs next to the bare system call, in one run on two cores.

`python -m benchmarks` starts every process it measures, pinned to one core, and generates the
load from another. Nothing here is imported by the server.
"""
