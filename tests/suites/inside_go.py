"""Runs the tests of the Go SDK one by one against one server, in a network of its own.

`python -m tests.suites.inside_go SETTINGS PROGRAM WORKPLACE LEFT_OUT`: the server's settings, the
compiled tests, a new folder for the server and for the counts, and one test that is not run. The
exit status is 1 if a test fails; what it said is printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.deadlines import PROCESS_STARTS
from tests.suites.inside import raise_loopback, serving
from tests.suites.reached import count


def main(settings: str, program: str, workplace: str, left_out: str) -> int:
    """Run the tests; the exit status."""
    place = Path(workplace)
    place.mkdir()
    raise_loopback()
    counts: dict[str, int] = {}
    failures: list[str] = []
    with serving(settings, place):
        listed = subprocess.run([program, "-test.list", "^Test"], capture_output=True, text=True)
        for name in listed.stdout.split():
            if name == left_out:
                continue
            before = count()
            one = [program, f"-test.run=^{name}$", f"-test.timeout={PROCESS_STARTS:.0f}s"]
            done = subprocess.run(one, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                failures.append(f"{name}: {done.stdout}")
            counts[name] = count() - before
    (place / "counts.json").write_text(json.dumps(counts))
    print(*failures, sep="\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
