"""`python -m service` is the `repeater` command."""

from __future__ import annotations

from service.cli import main

if __name__ == "__main__":
    main(prog_name="repeater")
