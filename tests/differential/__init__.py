"""The same seeded conversations with Centrifugo and with Repeater, and what differs.

`just differential` and `tests/test_differential.py` run it; both need a `centrifugo` program.
"""
