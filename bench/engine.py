"""Drives the engine through `measure`, an example program of its crate."""

import host
from measure import Unavailable
from talk import Talker


class Engine(Talker):
    """An engine with VMs that outlive a call. Use it in a `with` statement."""

    def __init__(self, program, pyro, env, log):
        self.directory = env["PYRO_BASE_DIR"]
        spares = env.get("PYRO_WARM", "0")
        super().__init__([program, pyro, self.directory, env["PYRO_ENVIRONMENT_CACHE_DIR"], spares], env, log)

    def _ask(self, line):
        answer = self.answer(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def start(self, count=1, mem_mib=1024):
        """Starts VMs concurrently. Returns their IDs and the time until all have answered a first `true`."""
        answer = self._ask(f"start {count} {mem_mib}")
        return answer["vms"], answer["ms"]

    def boot(self, count):
        """Starts VMs concurrently without running a command. Returns their IDs."""
        return self._ask(f"boot {count} 1024")["vms"]

    def exec(self, vm, command):
        """Returns the time of one command and the number of bytes it wrote."""
        answer = self._ask(f"exec {vm} {command}")
        return answer["ms"], answer["bytes"]

    def run_ms(self, command):
        """Returns the time of one command in a new VM."""
        return self._ask(f"run {command}")["ms"]

    def task(self):
        """Creates a task and returns its ID."""
        return self._ask("task")["task"]

    def exec_task(self, task, command):
        """Returns the time of one command in a task, including its durable journal entry."""
        return self._ask(f"task-exec {task} {command}")["ms"]

    def status_task(self, task):
        """Returns the time of a status request for a task."""
        return self._ask(f"task-status {task}")["ms"]

    def open_shell(self, task):
        """Opens a login shell in a task, waits for its prompt, and returns its number."""
        return self._ask(f"shell {task}")["shell"]

    def press(self, task, shell, key):
        """Returns the time from typing a key into a shell to its echo."""
        return self._ask(f"press {task} {shell} {key}")["ms"]

    def delete(self):
        """Deletes all VMs and tasks that this engine started."""
        self._ask("delete")

    def start_ms(self, mem_mib=1024):
        """Returns the time from creating a VM to the answer of its first command. Deletes the VM."""
        _, elapsed = self.start(1, mem_mib)
        self.delete()
        return elapsed

    def memory_per_vm(self, vms):
        """Returns the mean RSS and PSS, in MiB, of the processes of idle VMs or tasks."""
        parts = {"qemu": [], "supervisor": []}
        for vm in vms:
            # QEMU is the only process whose arguments contain the VM's directory.
            qemu = next(iter(host.processes(f"{self.directory}/vms/{vm}/")))
            parts["qemu"].append(host.memory_mib(qemu))
            parts["supervisor"].append(host.memory_mib(host.parent(qemu)))
        return {
            f"{part}_{kind}_mib": round(sum(sample[kind] for sample in samples) / len(samples), 2)
            for part, samples in parts.items() for kind in ("rss", "pss")
        }
