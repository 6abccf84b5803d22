"""What the lab's machine gets: one tar archive, which it reads from a block device."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

from image import open_directory

# Where the machine unpacks it.
PLACE = "/srv/pyro-lab"


class Parcel:
    """An archive without a name, so that nothing of it is left if this program is killed."""

    def __init__(self, store):
        self.file = tempfile.TemporaryFile(dir=store)

    def add(self, name, directory, *names):
        """Adds the contents of a directory, or of some in it, as `name`. pyro checks the nanoseconds of modification times."""
        self._tar(f"flags=rh;s,^\\.,{name},", directory, [f"./{entry}" for entry in names] or ["."], None)

    def add_listed(self, name, directory, names):
        """Adds files of a directory as `name`."""
        self._tar(f"flags=rh;s,^,{name}/,", directory, ["--null", "--verbatim-files-from", "--files-from=-"], b"\0".join(names))

    def add_file(self, name, path):
        """Adds one file as `name`."""
        # What stands for anything in a pattern stands for itself as well.
        self._tar(f"flags=rh;s,^.*$,{name},", path.parent, [f"./{path.name}"], None)

    def _tar(self, transform, directory, words, listed):
        # The machine reads one archive after the other.
        subprocess.run(
            ["tar", "--create", "--format=posix", f"--transform={transform}", "--ignore-failed-read", f"--directory={directory}",
             *words],
            input=listed, stdin=None if listed is not None else subprocess.DEVNULL, stdout=self.file, check=True)

    def fileno(self):
        return self.file.fileno()


def sources(root):
    """Returns the names of the files of the repository."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, check=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout
    return [name for name in listed.split(b"\0") if name and os.path.lexists(os.path.join(os.fsencode(root), name))]


@contextlib.contextmanager
def temporary(store):
    """A directory for this program. Those that a killed program has left are removed."""
    # A lock tells the directory of a living program from one that was left.
    for stale in store.glob("unpacked-*"):
        with contextlib.suppress(OSError), open_directory(stale) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=store) as name, open_directory(name) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield pathlib.Path(name)


@contextlib.contextmanager
def unpacked(archive, store):
    """An archive of nextest, unpacked. It holds executables and, in `nextest`, their description."""
    with temporary(store) as directory:
        subprocess.run(["tar", "--extract", "--zstd", f"--file={archive}", f"--directory={directory}"], check=True,
                       stdin=subprocess.DEVNULL)
        yield directory / "target"


def digest(target, root):
    """Returns what identifies the tests: executables and the files that they may read, without times."""
    state = hashlib.sha256()
    for directory, directories, names in os.walk(target):
        directories.sort()
        # Only paths of this host.
        if directory == str(target) and "nextest" in directories:
            directories.remove("nextest")
        for name in sorted(names):
            add(state, pathlib.Path(directory) / name, target)
    for name in sorted(sources(root)):
        add(state, root / os.fsdecode(name), root)
    return state.hexdigest()[:16]


def add(state, path, root):
    state.update(os.fsencode(path.relative_to(root)) + b"\0")
    if path.is_symlink():
        state.update(os.fsencode(os.readlink(path)))
    elif path.is_file():
        with open(path, "rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
