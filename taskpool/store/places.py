"""Where everything of a store lies: `x.db`, its WAL, and `x.db.d/` (run, logs, blobs, lock, ledger).

A store's file may only lie on a local file system: the WAL's index is shared memory, and record locks of network file systems lie.
Directories are 0700 and files 0600, whatever the umask: whoever can write rows can run tasks.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from taskpool.errors import StoreUnusable

# Types as /proc/self/mountinfo spells them; fuse file systems only where they are known to be a network's.
NETWORK_FILE_SYSTEMS = frozenset(
    (
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fuse.ceph",
        "fuse.cephfs",
        "fuse.davfs",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.goofys",
        "fuse.juicefs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "prl_fs",
        "pvfs2",
        "smb3",
        "smbfs",
        "vboxsf",
        "vmhgfs",
        "wekafs",
    )
)
_ESCAPE = re.compile(r"\\([0-7]{3})")  # mountinfo writes spaces and the like as octal


class Places:
    """The paths of one store. Nothing is made or touched until `make`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Take the path of the database file; symbolic links are followed, so that one file has one owner."""
        self.db = Path(os.path.realpath(os.fspath(path)))
        self.dir = Path(f"{self.db}.d")
        self.run = self.dir / "run"
        self.logs = self.dir / "logs"
        self.blobs = self.dir / "blobs"
        self.lock = self.dir / "lock"
        self.ledger = self.dir / "ledger"

    @property
    def wal(self) -> Path:
        """The write-ahead log, SQLite's own."""
        return Path(f"{self.db}-wal")

    def check(self) -> None:
        """Raise StoreUnusable if this place cannot serve a store; nothing is changed."""
        parent = self.db.parent
        if not parent.is_dir():
            raise StoreUnusable(f"{parent} is no directory", hint="make it first")
        kind = file_system(parent)
        if kind in NETWORK_FILE_SYSTEMS:
            raise StoreUnusable(
                f"{self.db} lies on a network file system ({kind}), where a write-ahead log is not safe",
                hint="put the store on a local disk",
            )
        if not os.access(parent, os.W_OK | os.X_OK):
            raise StoreUnusable(f"the directory {parent} is read-only", hint="a store writes beside its file")
        try:
            found = os.stat(self.db)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(found.st_mode):
            raise StoreUnusable(f"{self.db} is not a regular file")
        if found.st_nlink > 1:
            raise StoreUnusable(
                f"{self.db} has {found.st_nlink} names (hard links)",
                hint="SQLite needs a file with one name; copy it with VACUUM INTO",
            )
        if not os.access(self.db, os.R_OK | os.W_OK):
            raise StoreUnusable(f"{self.db} is read-only", hint="a store must be writable by its owner")

    def make(self) -> None:
        """Make the directories that are missing; StoreUnusable if one of them is not ours alone."""
        for place in (self.dir, self.run, self.logs, self.blobs):
            try:
                place.mkdir(mode=0o700)
            except FileExistsError:
                _check_own(place)
            except OSError as error:
                raise StoreUnusable(f"cannot make {place}: {error.strerror}") from error

    def make_file(self, durable: bool) -> None:
        """Make the empty database file with mode 0600; durable: its name reaches the disk too.

        SQLite would create it with the umask's mode. This is done before the process has a connection to it and never again:
        closing a descriptor of the file drops the locks of the process that holds a connection.
        """
        try:
            os.close(os.open(self.db, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise StoreUnusable(f"cannot make {self.db}: {error.strerror}") from error
        if durable:
            parent = os.open(self.db.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)


def _check_own(place: Path) -> None:
    found = os.lstat(place)
    if not stat.S_ISDIR(found.st_mode):
        raise StoreUnusable(f"{place} is in the way: not a directory (or a symbolic link)")
    if found.st_uid != os.geteuid():
        raise StoreUnusable(f"{place} belongs to user {found.st_uid}, not to us ({os.geteuid()})")
    if found.st_mode & 0o077:
        os.chmod(place, 0o700)


def file_system(directory: Path) -> str:
    """Return the type of the file system a directory lies on, as the kernel names it ("" if it does not say)."""
    try:
        table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return ""
    device = os.stat(directory).st_dev
    return file_system_in(table, os.path.realpath(directory), f"{os.major(device)}:{os.minor(device)}")


def file_system_in(table: str, directory: str, device: str) -> str:
    """Find a directory's type in a mountinfo table: the longest mount point above it, one on its own device before any other."""
    best, kind = (False, -1), ""
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = _ESCAPE.sub(lambda found: chr(int(found[1], 8)), fields[4])
        if directory == point or directory.startswith(point.rstrip("/") + "/"):
            rank = (fields[2] == device, len(point))
            if rank >= best:  # a later mount on the same point covers the earlier one
                best, kind = rank, right.split(" ")[0]
    return kind
