"""The engine behind the command line, through the example program `measure` of its crate."""

import host
from measure import Unavailable
from talk import Talker


class Engine(Talker):
    """VMs that outlive a call, to be used in a `with`."""

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
        """Starts VMs at once. Their ids, and the time until all have answered a first `true`."""
        answer = self._ask(f"start {count} {mem_mib}")
        return answer["vms"], answer["ms"]

    def boot(self, count):
        """Starts VMs at once and sends them no command. Their ids."""
        return self._ask(f"boot {count} 1024")["vms"]

    def exec(self, vm, command):
        """Time of one command, and the bytes it wrote."""
        answer = self._ask(f"exec {vm} {command}")
        return answer["ms"], answer["bytes"]

    def run_ms(self, command):
        """Time of one command in a VM of its own."""
        return self._ask(f"run {command}")["ms"]

    def task(self):
        """Creates a task. Its id."""
        return self._ask("task")["task"]

    def exec_task(self, task, command):
        """Time of one command in a task, whose record is on the disk then."""
        return self._ask(f"task-exec {task} {command}")["ms"]

    def status_task(self, task):
        """Time of looking at a task."""
        return self._ask(f"task-status {task}")["ms"]

    def delete(self):
        """Deletes all VMs and tasks that this engine has started."""
        self._ask("delete")

    def start_ms(self, mem_mib=1024):
        """Time from creating a VM to the answer of its first command. It is gone afterwards."""
        _, elapsed = self.start(1, mem_mib)
        self.delete()
        return elapsed

    def memory_per_vm(self, vms):
        """Mean RSS and PSS in MiB of the processes of some VMs or tasks, which should be idle."""
        parts = {"qemu": [], "supervisor": []}
        for vm in vms:
            # Of all processes, only QEMU names the VM's directory.
            qemu = next(iter(host.processes(f"{self.directory}/vms/{vm}/")))
            parts["qemu"].append(host.memory_mib(qemu))
            parts["supervisor"].append(host.memory_mib(host.parent(qemu)))
        return {
            f"{part}_{kind}_mib": round(sum(sample[kind] for sample in samples) / len(samples), 2)
            for part, samples in parts.items() for kind in ("rss", "pss")
        }
