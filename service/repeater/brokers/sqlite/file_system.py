"""On which kind of file system a folder is: SQLite's locks and syncs cannot be relied on in all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
_NETWORK: Final = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "ncpfs"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.rclone", "fuse.gcsfuse", "fuse.juicefs"),
}


def network_file_system(folder: Path, mounts: Path = _MOUNTS) -> str:
    """The name of a folder's file system if it is one over a network; empty if not, or unknown.

    The system's list of mounts names them (`man 5 proc_pid_mountinfo`): `<id> <parent>
    <major>:<minor> <root> <mount point> <options> [<field>...] - <type> ...`.
    """
    try:
        device = folder.stat().st_dev
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        place, _, kind = line.partition(" - ")
        name = kind.partition(" ")[0]
        if place.split()[2:3] == [wanted] and name in _NETWORK:
            return name
    return ""
