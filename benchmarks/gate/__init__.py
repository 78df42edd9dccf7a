"""The gate: what a delivery costs in instructions and system calls, next to committed numbers.

`python -m benchmarks.gate`, or `just bench-gate`. Counts, and no times: a busy machine changes
none of them.
"""
