"""On which file systems a ledger file may lie: a local one, where locks and its log are sound."""

from __future__ import annotations

import re
from pathlib import Path

from budget_proxy.ledgers import LedgerRefusedError

MOUNTS = Path("/proc/self/mountinfo")
NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "ncpfs", "lustre", "beegfs"),
        *("ceph", "fuse.ceph-fuse", "glusterfs", "fuse.glusterfs", "gpfs"),
        *("fuse.sshfs", "fuse.s3fs", "fuse.rclone"),
    )
)
_ESCAPED = re.compile(r"\\([0-7]{3})")


def refuse_network(path: Path) -> None:
    """Raises LedgerRefusedError where the file is, or would be, on a network file system."""
    try:
        mounts = MOUNTS.read_text(encoding="utf-8")
    except OSError:
        return  # a system that does not tell
    kind = file_system(path.parent, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise LedgerRefusedError(
            f"{path} is on a network file system ({kind}), where SQLite can lose commits. "
            "Name a file on a local disk."
        )


def file_system(folder: Path, mounts: str) -> str:
    """The type of the file system a folder is on, by Linux's table of mounts (`mountinfo`)."""
    best, kind = "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), left.split()[4])
        inside = folder == Path(point) or Path(point) in folder.parents
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind
