"""The lab's machine: QEMU's emulation of a processor with SVM, so that the machine has a real /dev/kvm."""

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time

READY = "pyro-lab: ready"
# Time limit for the boot, in seconds. It takes 1 to 4 minutes on two processors, depending on what else they do.
BOOT_WITHIN = 900
PR_SET_PDEATHSIG = 1
# Nothing here needs mitigations, audits, or a watchdog. Without the rate of the counter, KVM's guests have no clock page
# (`tsc=reliable`: no other clock could check it in an emulated machine).
KERNEL = (
    "root=/dev/vda rw console=ttyS0,115200 net.ifnames=0 mitigations=off no_timer_check tsc=reliable tsc_early_khz={khz} "
    "nowatchdog nokaslr rcupdate.rcu_cpu_stall_suppress=1 audit=0 apparmor=0 transparent_hugepage=always quiet"
)
libc = ctypes.CDLL(None, use_errno=True)


class Lost(Exception):
    """The machine has ended, or did not boot."""


def dies_with_parent():
    """Between fork and exec: has the kernel kill the program when the thread that started it ends."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Machine:
    """A running machine. Its changes to the disk are gone when it ends. Use it in a `with` statement."""

    def __init__(self, image, console, log, cpus=2, memory="8G", parcel=None, share=None):
        self.image = image
        self.console = console
        self.log = log
        self.cpus, self.memory, self.parcel, self.share = cpus, memory, parcel, share
        self.port = None
        self.is_up = False
        self._ready = threading.Event()

    def __enter__(self):
        self._started = time.monotonic()
        # The image is not removed while a machine uses it.
        self._in_use = os.open(self.image.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._in_use, fcntl.LOCK_SH)
        ours, theirs = socket.socketpair()
        files = [theirs.fileno()]
        words = self._words(theirs.fileno())
        if self.parcel is not None:
            files.append(self.parcel.fileno())
            words += self._drive("parcel", f"/dev/fd/{self.parcel.fileno()}", "readonly=on")
        with theirs:
            # A session of its own, so that Ctrl-C ends what runs in it in order.
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=files,
                preexec_fn=dies_with_parent, start_new_session=True)
        try:
            threading.Thread(target=self._follow_console, daemon=True).start()
            self._monitor = Monitor(ours)
            self._boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._in_use)

    def _words(self, monitor):
        words = [
            "qemu-system-x86_64", "-name", "pyro-lab", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
            "-machine", "q35,usb=off,vmport=off", "-accel", "tcg,thread=multi,tb-size=1024",
            # Guests' tables with five levels are the slower ones to walk.
            "-cpu", "max,la57=off", "-smp", str(self.cpus), "-m", self.memory, "-rtc", "base=utc,clock=host",
            "-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", KERNEL.format(khz=counter_khz()),
            # The port of this host is a free one.
            "-netdev", "user,id=network,hostfwd=tcp:127.0.0.1:0-:22", "-device", "virtio-net-pci,netdev=network",
            "-device", "virtio-rng-pci",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
            "-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control",
        ]
        words += self._drive("disk", self.image.disk, "snapshot=on,cache=unsafe,discard=unmap")
        if self.share is not None:
            words += ["-fsdev", f"local,id=share,path={self.share},security_model=none",
                      "-device", "virtio-9p-pci,fsdev=share,mount_tag=share"]
        return words

    @staticmethod
    def _drive(name, file, options):
        return ["-drive", f"if=none,id={name},format=raw,file={file},{options}",
                "-device", f"virtio-blk-pci,drive={name},serial={name}"]

    def _follow_console(self):
        with open(self.console, "wb") as console:
            for line in self._process.stdout:
                console.write(line)
                console.flush()
                if READY.encode() in line:
                    self.is_up = True
                    self._ready.set()
        # The end of the machine wakes up those who wait as well.
        self._ready.set()

    def _boot(self):
        if not self._ready.wait(BOOT_WITHIN) or not self.is_up:
            what = "ended" if self._ready.is_set() else f"did not boot within {BOOT_WITHIN} s"
            raise Lost(f"the lab's machine {what}; see {self.console}:\n{self.console_tail()}")
        self.boot_seconds = time.monotonic() - self._started
        listing = self._monitor.ask("info usernet")
        self.port = int(re.search(r"HOST_FORWARD\S*\s+\S+\s+127\.0\.0\.1\s+(\d+)\s", listing)[1])
        self.log(f"the machine of {self.image.suite} is up after {self.boot_seconds:.0f} s")

    def wait(self):
        """Waits for the end of the machine."""
        self._process.wait()

    def console_tail(self):
        return pathlib.Path(self.console).read_text(errors="replace")[-2000:]

    def ssh(self, user="root"):
        """Returns the words of a command that runs shell text, their last argument, in the machine."""
        options = [
            "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes",
            "ConnectTimeout=120", "ServerAliveInterval=60", "ServerAliveCountMax=10",
            # The fastest under emulation.
            "Ciphers=chacha20-poly1305@openssh.com,aes128-ctr", "Compression=no",
        ]
        return ["ssh", "-F", "none", "-i", str(self.image.key), "-p", str(self.port), *(f"-o{option}" for option in options),
                f"{user}@127.0.0.1"]

    def start(self, script, user="root", **options):
        """Starts shell text in the machine, as `subprocess.Popen` does. Kill it to end the text's session too."""
        return subprocess.Popen([*self.ssh(user), script], preexec_fn=dies_with_parent, start_new_session=True, **options)

    def run(self, script, user="root", check=True, **options):
        """Runs shell text in the machine and returns its standard output."""
        options = {"stdin": subprocess.DEVNULL, **options}
        with self.start(script, user, stdout=subprocess.PIPE, text=True, **options) as process:
            try:
                output = process.communicate()[0]
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            raise Lost(f"in the lab, this ended with status {process.returncode}: {script}\n{output}")
        return output


class Monitor:
    """QEMU's monitor."""

    def __init__(self, connection):
        self._stream = connection.makefile("rw")
        connection.close()
        self._receive()
        self._send({"execute": "qmp_capabilities"})

    def ask(self, line):
        """Returns the answer to a line of the human monitor."""
        return self._send({"execute": "human-monitor-command", "arguments": {"command-line": line}})

    def _send(self, request):
        self._stream.write(json.dumps(request) + "\n")
        self._stream.flush()
        while "return" not in (answer := self._receive()):
            if "error" in answer:
                raise Lost(f"QEMU's monitor: {answer['error']}")
        return answer["return"]

    def _receive(self):
        line = self._stream.readline()
        if not line:
            raise Lost("the lab's QEMU has ended")
        return json.loads(line)


def counter_khz():
    """Measures the rate of this host's time stamp counter, which is also the emulated machine's."""
    # rdtsc; shl $32, %rdx; or %rdx, %rax; ret
    code = bytes([0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0xc3])
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(code)
        anchor = ctypes.c_char.from_buffer(page)
        counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))

        def reading():
            before = time.monotonic_ns()
            value = counter()
            after = time.monotonic_ns()
            return after - before, (before + after) / 2, value

        rates = []
        for _ in range(5):
            error, start, first = reading()
            # A pause that is measured, not one that waits for something.
            time.sleep(0.1)
            more, end, last = reading()
            rates.append((error + more, (last - first) * 1_000_000 / (end - start)))
        del anchor, counter
    # The pair of readings that were disturbed least.
    return round(min(rates)[1])
