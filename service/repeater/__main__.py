"""`python -m repeater`, and the script `repeater`: the command, protected before it is imported."""

from __future__ import annotations

import sys

from repeater.serving import early_signals


def run() -> None:
    """Run the `repeater` command, and exit with its status."""
    if sys.argv[1:2] == ["serve"]:
        early_signals.begin()
    # The imports take up to two seconds: a signal that comes meanwhile must find its handler.
    from repeater.log_output import open_missing_descriptors

    open_missing_descriptors()
    from repeater.cli.main import main

    try:
        main(prog_name="repeater")
    finally:
        early_signals.ignore_all()


if __name__ == "__main__":
    run()
