"""The disk of the lab's machine: Debian with QEMU, built by mmdebstrap from the archive that this host uses."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
RECIPE = HERE / "recipe"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Debian 12 has a QEMU that is too old for templates; `scripts/setup-host` also takes the one from backports there.
BACKPORTS = {"bookworm": ["qemu-system-x86"]}
# Of the disk, most of which is a hole in the file.
SIZE = "12G"
APT_OPTIONS = [
    'Acquire::Languages "none"', 'Acquire::Retries "3"', 'Acquire::http::Timeout "20"', 'Acquire::https::Timeout "20"',
    'APT::Install-Recommends "false"',
]
LEAVE_OUT = [f"path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "info", "locale", "lintian")]
# From Debian's tree to a disk. Runs as root, or as root of a user namespace. Device files come from devtmpfs.
FINISH = """
set -eu
mkdir tree
tar --extract --numeric-owner --same-owner --preserve-permissions --exclude './dev/*' --file root.tar --directory tree
rm root.tar
for home in root home/member home/outsider; do
    cp id.pub "tree/$home/.ssh/authorized_keys"
done
cp tree/boot/vmlinuz-* vmlinuz
cp tree/boot/initrd.img-* initrd.img
mke2fs -q -t ext4 -d tree -E lazy_itable_init=1,root_owner=0:0 disk.img "$1"
rm -rf tree
"""


class Image:
    """A built disk with its kernel, its initrd, and the key of its users."""

    def __init__(self, directory, suite):
        self.directory = directory
        self.suite = suite
        self.disk = directory / "disk.img"
        self.kernel = directory / "vmlinuz"
        self.initrd = directory / "initrd.img"
        self.key = directory / "id"


def digest(suite):
    """Returns what identifies the image of a suite: everything that it is made from, but neither the archive nor the date."""
    return hashlib.sha256(json.dumps([bootstrap(suite), FINISH, SIZE]).encode()).hexdigest()[:16]


def image(suite, store, log):
    """Returns the image of a suite, which is built unless the store has it. Images of older recipes are removed."""
    store.mkdir(parents=True, exist_ok=True)
    name = f"image-{suite}-{digest(suite)}"
    directory = store / name
    with open(store / f"image-{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Images of older recipes, unless a machine uses them, and what a build that was killed has left.
        for other in store.glob(f"image-{suite}-*"):
            with contextlib.suppress(BlockingIOError), open_directory(other) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if other != directory:
                    shutil.rmtree(other)
        if not directory.exists():
            log(f"building the machine of {suite}; this takes some minutes")
            build(suite, store, directory)
    return Image(directory, suite)


@contextlib.contextmanager
def open_directory(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def build(suite, store, directory):
    """Builds the image of a suite."""
    with tempfile.TemporaryDirectory(prefix=f"image-{suite}-partial-", dir=store) as name:
        work = pathlib.Path(name)
        with open(work / "log", "w+") as output:
            run([*bootstrap(suite), *sources(suite)], work, output)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "pyro-lab", "-f", "id"], work, output)
            namespace = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--map-auto"]
            run([*namespace, "sh", "-c", FINISH, "finish", SIZE], work, output)
        (work / "log").unlink()
        work.rename(directory)
        # The context manager would complain about the directory that has got another name.
        work.mkdir()


def run(words, work, output):
    # The root of mmdebstrap's namespace cannot enter private directories, such as a home.
    environment = {**os.environ, "TMPDIR": "/var/tmp", "DPKG_FORCE": "unsafe-io"}
    ended = subprocess.run(words, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if ended.returncode != 0:
        output.seek(0)
        sys.stderr.write(output.read()[-4000:])
        raise SystemExit(f"kvm-lab: building the machine failed: {words[0]} ended with status {ended.returncode}")


def bootstrap(suite):
    """Returns the command that builds the root file system."""
    # The hooks are texts, because they could not read a file in a private directory.
    lines = (RECIPE / "packages").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    configure = shlex.quote((RECIPE / "configure").read_text())
    preferences = "".join(
        f"Package: {name}\nPin: release n={suite}-backports\nPin-Priority: 900\n\n" for name in BACKPORTS.get(suite, []))
    return [
        "mmdebstrap", "--mode=unshare", "--format=tar", "--variant=minbase", "--architectures=amd64",
        *(f"--aptopt={option}" for option in APT_OPTIONS),
        *(f"--dpkgopt={option}" for option in LEAVE_OUT),
        f"--include={','.join(packages)}",
        f"--setup-hook=sh -c {configure} configure before \"$1\" {shlex.quote(preferences)}",
        f"--customize-hook=sh -c {configure} configure after \"$1\"",
        suite, "root.tar",
    ]


def sources(suite):
    """Returns apt's lines for a suite, from the archive that this host uses; none means mmdebstrap's default."""
    main, security = archives()
    if not main:
        return []
    lines = [f"deb [signed-by={KEYRING}] {main} {suite} main"]
    if suite not in ("sid", "unstable"):
        lines.append(f"deb [signed-by={KEYRING}] {main} {suite}-updates main")
        if security:
            lines.append(f"deb [signed-by={KEYRING}] {security} {suite}-security main")
    if suite in BACKPORTS:
        lines.append(f"deb [signed-by={KEYRING}] {main} {suite}-backports main")
    return lines


def archives():
    """Returns the addresses of Debian's archive and its security archive in this host's configuration of apt."""
    main = security = None
    with contextlib.suppress(FileNotFoundError):
        form = "$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)"
        targets = subprocess.run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
                                 stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
        for line in targets.splitlines():
            origin, release, component, uri = line.split("|", 3)
            # A user's name and password would stay in the image.
            if origin not in ("Debian", "") or component != "main" or "@" in uri:
                continue
            if release.endswith("-security"):
                security = security or uri
            elif "-" not in release:
                main = main or uri
    return main, security
