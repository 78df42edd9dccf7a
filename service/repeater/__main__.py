"""`python -m repeater` is the `repeater` command."""

from __future__ import annotations

from repeater.cli.main import main

if __name__ == "__main__":
    main(prog_name="repeater")
