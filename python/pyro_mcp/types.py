"""What calls give back. Made by generate.py from the document of `pyro rpc`."""

from typing import Dict, List, Literal, Optional, TypedDict, Union


class _EnvironmentAlways(TypedDict):
    cache_dir: str
    """The cache it was looked for in."""
    catalog_version: str
    """Version of the catalog that describes it."""
    compatibility: str
    """Versions of pyro that may use it."""
    default_packages: List[str]
    """Packages the environment promises to hold."""
    description: str
    """One line for people."""
    distribution: str
    """Distribution, such as `debian`."""
    distribution_version: str
    """Release of the distribution, such as `12`."""
    install_dir: str
    """Where it is or would be installed."""
    installed: bool
    """Whether the cache holds it whole."""
    name: str
    """Name, such as `debian:12`."""
    oci_reference: Optional[str]
    """Always `None`, see `oci_registry`."""
    oci_registry: Optional[str]
    """Always `None`: the environments are built from the distribution's archive, not pulled from a registry."""
    oci_repository: Optional[str]
    """Always `None`, see `oci_registry`."""
    platform: str
    """Host platform, `linux-x86_64`."""
    source_digest: Optional[str]
    """SHA-256 over the sorted `name=version` lines of every package in the installed image and its kernel; `None` while
    nothing is installed."""
    version: str
    """Version of the environment."""


class Environment(_EnvironmentAlways, total=False):
    """One environment: catalog data and what the cache holds of it."""

    install_manifest: Optional[str]
    """The installed manifest; the key is absent while nothing is installed."""


class _PulledEnvironmentAlways(TypedDict):
    cache_dir: str
    """The cache it was looked for in."""
    catalog_version: str
    """Version of the catalog that describes it."""
    compatibility: str
    """Versions of pyro that may use it."""
    default_packages: List[str]
    """Packages the environment promises to hold."""
    description: str
    """One line for people."""
    distribution: str
    """Distribution, such as `debian`."""
    distribution_version: str
    """Release of the distribution, such as `12`."""
    install_dir: str
    """Where it is or would be installed."""
    installed: bool
    """Whether the cache holds it whole."""
    kernel_image: str
    """The guest kernel."""
    name: str
    """Name, such as `debian:12`."""
    oci_reference: Optional[str]
    """Always `None`, see `oci_registry`."""
    oci_registry: Optional[str]
    """Always `None`: the environments are built from the distribution's archive, not pulled from a registry."""
    oci_repository: Optional[str]
    """Always `None`, see `oci_registry`."""
    platform: str
    """Host platform, `linux-x86_64`."""
    rootfs_image: str
    """The read-only base image."""
    source: str
    """What the image was made from, such as `debian:bookworm`."""
    source_digest: Optional[str]
    """SHA-256 over the sorted `name=version` lines of every package in the installed image and its kernel; `None` while
    nothing is installed."""
    version: str
    """Version of the environment."""


class PulledEnvironment(_PulledEnvironmentAlways, total=False):
    """An environment that is now installed, and its parts."""

    install_manifest: Optional[str]
    """The installed manifest; the key is absent while nothing is installed."""


class Pruned(TypedDict):
    """What pruning removed."""

    count: int
    """How many."""
    deleted_environment_dirs: List[str]
    """Names of the removed directories, sorted."""
    deleted_templates: int
    """How many templates."""


ExecutionMode = Literal["pending", "guest_vsock", "host_compat"]
"""Where commands of a VM run."""


VmState = Literal["created", "started", "stopped"]
"""State of a VM that exists."""


VmId = str
"""Id of a VM or a task: 12 lowercase hexadecimal digits."""


class Vm(TypedDict):
    """A VM as its callers see it."""

    accelerator: Optional[str]
    """`kvm` or `tcg`; `None` before the start and on the host."""
    allow_host_compat: bool
    """The caller agreed to host execution."""
    created_at: float
    """When it was created, in seconds since the epoch."""
    environment: str
    """Environment name."""
    environment_version: Optional[str]
    """Version of the environment it was made from."""
    execution_mode: ExecutionMode
    """Where its commands run."""
    expires_at: float
    """When it goes away by itself, in seconds since the epoch."""
    guest_ip: Optional[str]
    """Address in its network."""
    mem_mib: int
    """Memory in MiB."""
    metadata: Dict[str, str]
    """Diagnostics. Not a contract."""
    network_enabled: bool
    """A network was assigned."""
    state: VmState
    """State."""
    tap_name: Optional[str]
    """TAP device on the host; `None` with user-mode networking."""
    ttl_seconds: int
    """Lifetime in seconds, counted from creation."""
    vcpu_count: int
    """Virtual CPUs."""
    vm_id: VmId
    """Id."""


DeleteReason = Literal["explicit_delete", "post_exec_cleanup", "run_vm_error_cleanup"]
"""Why a VM was removed."""


class Deleted(TypedDict):
    """A VM was removed."""

    deleted: bool
    """Always true."""
    reason: DeleteReason
    """Why."""
    vm_id: VmId
    """Id it had."""


class Phase(TypedDict):
    """One part of a run. The parts follow one another, and together they are the whole."""

    ms: float
    """Milliseconds."""
    name: str
    """`environment`, `registry`, `supervisor`, the stages of the start, `command`, `end`."""


class _RunResultAlways(TypedDict):
    accelerator: Optional[str]
    """`kvm` or `tcg`; `None` on the host."""
    channel: Optional[str]
    """How the command reached the guest, such as `virtio-serial`; `None` on the host."""
    cleanup: Deleted
    """How the VM was removed."""
    command: str
    """The shell text that was run."""
    duration_ms: int
    """Duration of the command alone, in milliseconds."""
    environment: str
    """Environment name."""
    environment_version: Optional[str]
    """Version of the installed environment; `None` if none was needed."""
    execution_mode: ExecutionMode
    """Where it ran."""
    exit_code: int
    """Exit code; −S if signal S ended the shell; 124 after the time limit."""
    stderr: str
    """Standard error; empty if it was streamed."""
    stderr_truncated: int
    """Bytes of standard error beyond the limit, which were dropped."""
    stdout: str
    """Standard output; empty if it was streamed."""
    stdout_truncated: int
    """Bytes of standard output beyond the limit, which were dropped."""
    timed_out: bool
    """The time limit ended the command."""
    vm_id: VmId
    """Id of the VM, which is deleted already."""


class RunResult(_RunResultAlways, total=False):
    """Result of a command, of a one-shot run as well as of `exec_vm`."""

    kernel_release: Optional[str]
    """The guest kernel, as `uname -r` gives it."""
    timings: List[Phase]
    """Where the time went; empty unless it was a one-shot run."""


class _NetworkInfoAlways(TypedDict):
    network_enabled: bool
    """A network was assigned."""
    outbound_connectivity_expected: bool
    """The guest should reach the outside."""
    vm_id: VmId
    """Id of the VM."""


class NetworkInfo(_NetworkInfoAlways, total=False):
    """The network of a VM."""

    dns_servers: List[str]
    """The guest's name servers."""
    gateway_ip: Optional[str]
    """The guest's gateway."""
    guest_ip: Optional[str]
    """The guest's address."""
    mac_address: Optional[str]
    """The guest's MAC address."""
    reason: Optional[str]
    """Why there is no network."""
    subnet_cidr: Optional[str]
    """The guest's subnet."""
    tap_name: Optional[str]
    """TAP device on the host; `None` with user-mode networking."""


class Reaped(TypedDict):
    """VMs removed because their lifetime had ended."""

    count: int
    """How many."""
    deleted_vm_ids: List[VmId]
    """Their ids, sorted."""


class LastCommand(TypedDict):
    """The latest command of a task."""

    command: str
    """The shell text."""
    cwd: str
    """Where it ran."""
    duration_ms: int
    """Duration in milliseconds."""
    execution_mode: ExecutionMode
    """Where it ran."""
    exit_code: int
    """Exit code; −S if signal S ended the shell; 124 after the time limit."""
    sequence: int
    """Its number."""


StopReason = Literal["explicit_stop", "expired", "terminated", "guest_ended", "owner_vanished"]
"""Why a task does not run."""


class Task(TypedDict):
    """A task as its callers see it."""

    accelerator: Optional[str]
    """`kvm` or `tcg`; `None` on the host."""
    allow_host_compat: bool
    """The caller agreed to host execution."""
    command_count: int
    """Commands that were accepted."""
    created_at: float
    """When it was created, in seconds since the epoch."""
    disk_mib: Optional[int]
    """Size of its disk in MiB; `None` if it has none."""
    disk_used_bytes: int
    """Bytes of the host's disk that it takes: its disk and what is kept of its commands' output."""
    environment: str
    """Environment name."""
    environment_version: Optional[str]
    """Version of the environment it was made from."""
    execution_mode: ExecutionMode
    """Where its commands run."""
    expires_at: float
    """When it is stopped, in seconds since the epoch."""
    guest_ip: Optional[str]
    """Address in its network."""
    last_command: Optional[LastCommand]
    """The latest of those that have ended."""
    last_error: Optional[str]
    """More about that, such as the last words of its console."""
    mem_mib: int
    """Memory in MiB."""
    metadata: Dict[str, str]
    """Diagnostics. Not a contract."""
    network_enabled: bool
    """A network was assigned."""
    state: VmState
    """State."""
    stop_reason: Optional[StopReason]
    """Why it does not run; `None` while it does."""
    tap_name: Optional[str]
    """TAP device on the host; `None` with user-mode networking."""
    task_id: VmId
    """Id."""
    ttl_seconds: int
    """Lifetime in seconds, counted from creation or from its last renewal."""
    vcpu_count: int
    """Virtual CPUs."""
    workspace_path: str
    """Where its commands start."""


class TaskDeleted(TypedDict):
    """A task was removed."""

    deleted: bool
    """Always true."""
    reason: DeleteReason
    """Why."""
    task_id: VmId
    """Id it had."""


class TaskList(TypedDict):
    """Every task."""

    count: int
    """How many there are, damaged ones included."""
    damaged_task_ids: List[VmId]
    """Ids of those whose record is damaged. They can be deleted."""
    tasks: List[Task]
    """Those that can be read, oldest first."""


Outcome = Literal["running", "exited", "killed", "not_run", "unknown"]
"""What became of a command of a task."""


class TaskExec(TypedDict):
    """Result of a command in a task."""

    command: str
    """The shell text that was run."""
    cwd: str
    """Where it ran."""
    duration_ms: int
    """Duration of the command alone, in milliseconds."""
    environment: str
    """Environment name."""
    environment_version: Optional[str]
    """Version of the environment the task was made from."""
    execution_mode: ExecutionMode
    """Where it ran."""
    exit_code: int
    """Exit code; −S if signal S ended the shell; 124 after the time limit."""
    outcome: Outcome
    """`exited`, or `killed` if someone ended it."""
    sequence: int
    """Number of the command in the task's journal, from 1."""
    stderr: str
    """Standard error; empty if it was streamed."""
    stderr_truncated: int
    """Bytes of standard error beyond the limit, which were dropped."""
    stdout: str
    """Standard output; empty if it was streamed."""
    stdout_truncated: int
    """Bytes of standard output beyond the limit, which were dropped."""
    task_id: VmId
    """Id of the task."""
    timed_out: bool
    """The time limit ended the command."""


class TaskDetached(TypedDict):
    """A command that was begun and is not waited for."""

    command: str
    """The shell text."""
    cwd: str
    """Where it runs."""
    outcome: Outcome
    """`running`."""
    sequence: int
    """Number of the command in the task's journal, from 1."""
    task_id: VmId
    """Id of the task."""


class _TaskLogEntryAlways(TypedDict):
    command: str
    """The shell text."""
    cwd: str
    """Where it ran."""
    duration_ms: Optional[int]
    """Duration in milliseconds; `None` like the exit code."""
    execution_mode: ExecutionMode
    """Where it ran."""
    exit_code: Optional[int]
    """Exit code; −S if signal S ended the shell; 124 after the time limit; `None` unless it ended and its end is known."""
    outcome: Outcome
    """What became of it."""
    recorded_at: float
    """When its latest change was recorded, in seconds since the epoch."""
    sequence: int
    """Its number, from 1."""
    started_at: float
    """When it was accepted, in seconds since the epoch."""
    stderr: str
    """What is kept of its standard error."""
    stderr_file: str
    """Name of the file that keeps its standard error, if it wrote any."""
    stderr_truncated: int
    """Bytes of standard error that are not kept."""
    stdout: str
    """What is kept of its standard output."""
    stdout_file: str
    """Name of the file that keeps its standard output, if it wrote any."""
    stdout_truncated: int
    """Bytes of standard output that are not kept."""
    timed_out: bool
    """The time limit ended it."""


class TaskLogEntry(_TaskLogEntryAlways, total=False):
    """What is known of one command of a task."""

    error: Optional[str]
    """Why it was not run."""


class TaskLogs(TypedDict):
    """The journal of a task."""

    count: int
    """How many entries."""
    entries: List[TaskLogEntry]
    """In the order in which the commands were accepted."""
    task_id: VmId
    """Id of the task."""


class LogsPage(TypedDict):
    """Part of the journal of a task."""

    logs: TaskLogs
    """The entries."""
    next_after: Optional[int]
    """`after` for the next page; `None` if there is none."""


class TaskCopied(TypedDict):
    """Files were copied."""

    bytes: int
    """Bytes of all files together."""
    entries: int
    """Files, directories and symbolic links."""
    left_out: int
    """What was not copied, such as sockets and links that lead elsewhere."""
    left_out_examples: List[str]
    """Names of the first of these."""
    task_id: VmId
    """Id of the task."""


FileEncoding = Literal["utf-8", "base64"]
"""How the bytes of a file are written as text."""


class TaskFile(TypedDict):
    """Part of a file."""

    content: str
    """The part."""
    encoding: FileEncoding
    """How `content` is written."""
    next_offset: Optional[int]
    """Where the rest begins; `None` if there is none."""
    offset: int
    """Where the part begins, in bytes."""
    path: str
    """The path that was asked for."""
    size_bytes: int
    """Bytes of the whole file."""
    task_id: VmId
    """Id of the task."""


class TaskFileWritten(TypedDict):
    """A file was written."""

    bytes: int
    """Bytes of the file."""
    path: str
    """The path that was asked for."""
    task_id: VmId
    """Id of the task."""


class AcceleratorReport(TypedDict):
    """How guest code would run. Comes from a measurement, so it is an input of the report."""

    cached: bool
    """The verdict is an earlier one of the same host boot."""
    measured_ms: Optional[float]
    """Time the measurement took, in milliseconds; `None` if there was none."""
    reason: str
    """Why."""
    selected: Optional[str]
    """`kvm` or `tcg`; `None` if neither can be used."""


class DiskReport(TypedDict):
    """Space on the host's disks, in MiB; `None` if it could not be found out."""

    cache_dir_free_mib: Optional[int]
    """Free for this user where the environment cache is, or would be."""
    state_dir_free_mib: Optional[int]
    """Free for this user where the state directory is, or would be."""
    state_dir_used_mib: int
    """Taken by the whole state directory, templates included."""
    vms_used_mib: int
    """Taken by the disks and journals of all VMs and tasks."""


class BuildReport(TypedDict):
    """What building an environment needs."""

    keyring: Optional[str]
    """Path of the Debian archive keys."""
    mmdebstrap: Optional[str]
    """Path of `mmdebstrap`."""


class GuestKernelReport(TypedDict):
    """The kernel that guests boot."""

    image: Optional[str]
    """Path of the configured one; `None`: each environment's own."""
    release: Optional[str]
    """Its release, such as `6.12.9-pyro`; `None` if it cannot be used."""


class KvmReport(TypedDict):
    """What the current user may do with `/dev/kvm`."""

    exists: bool
    """It is there."""
    readable: bool
    """It may be read."""
    writable: bool
    """It may be written."""


class NetworkingReport(TypedDict):
    """What TAP networking would find."""

    enabled_by_default: bool
    """VMs get a network without asking: never."""
    ip_binary: Optional[str]
    """Path of `ip`."""
    ip_forward_enabled: bool
    """The host forwards IPv4."""
    iptables_binary: Optional[str]
    """Path of `iptables`."""
    nft_binary: Optional[str]
    """Path of `nft`."""
    tun_available: bool
    """`/dev/net/tun` is there."""


class Remedy(TypedDict):
    """What to do about an issue."""

    issue: str
    """The issue, as in `issues`."""
    remedy: str
    """The one thing to do."""


class RootlessReport(TypedDict):
    """What an ordinary user may do here."""

    euid: int
    """Effective user id."""
    newuidmap: bool
    """`newuidmap` is installed."""
    subuid: bool
    """`/etc/subuid` has a range for this user."""
    user_namespaces: bool
    """User namespaces may be made."""


class VmmReport(TypedDict):
    """The program that runs VMs."""

    note: str
    """What to know about it; empty if there is nothing."""
    ok: bool
    """It can be used."""
    program: Optional[str]
    """Its path."""
    version: Optional[str]
    """Its version, such as `10.0.2`."""


class Capabilities(TypedDict):
    """What works on this host."""

    reason: Optional[str]
    """Why something does not work."""
    supports_guest_exec: bool
    """VMs run commands."""
    supports_guest_network: bool
    """VMs can have a network."""
    supports_vm_boot: bool
    """VMs boot."""


class RuntimeReport(TypedDict):
    """What VMs are made from."""

    cache_dir: str
    """Environment cache."""
    capabilities: Capabilities
    """What works."""
    catalog_version: str
    """Version of the environment catalog."""
    component_versions: Dict[str, str]
    """Versions of parts that are known, by name."""
    environments: List[Environment]
    """Environments of the catalog."""


class _DoctorReportAlways(TypedDict):
    accelerator: AcceleratorReport
    """How guest code would run, and why."""
    disk: DiskReport
    """Space."""
    environment_build: BuildReport
    """What building an environment needs."""
    guest_kernel: GuestKernelReport
    """The kernel that guests boot."""
    issues: List[str]
    """What is wrong, one line each."""
    kvm: KvmReport
    """`/dev/kvm`, for the current user."""
    networking: NetworkingReport
    """What TAP networking would find. VMs use user-mode networking, which needs none of it."""
    platform: str
    """Platform that was asked for."""
    remedies: List[Remedy]
    """One remedy per issue, in the order of `issues`."""
    rootless: RootlessReport
    """What an ordinary user may do here."""
    runtime_ok: bool
    """VMs can run here."""
    vmm: VmmReport
    """The program that runs VMs."""


class DoctorReport(_DoctorReportAlways, total=False):
    """What this host can do."""

    runtime: Optional[RuntimeReport]
    """What VMs are made from; absent if the platform is not supported."""


PhaseName = Literal["create", "start", "execute"]
"""Phase of a one-shot run."""


class _PhaseEventAlways(TypedDict):
    phase: PhaseName
    """Which."""
    type: Literal["phase"]


class PhaseEvent(_PhaseEventAlways, total=False):
    """A one-shot run entered its next phase."""

    environment: Optional[str]
    """Environment that the VM is made from; with `create`."""
    vm_id: Optional[VmId]
    """Id of the VM; with `start` and `execute`."""


class PullStartedEvent(TypedDict):
    """The installation of an environment began."""

    environment: str
    """Its name."""
    type: Literal["pull_started"]


class PullStepEvent(TypedDict):
    """An installation went on."""

    done: int
    """How much of `total` is done."""
    text: str
    """What is being done, for people."""
    total: int
    """The whole; 0 if it is not known."""
    type: Literal["pull_step"]


class PullReadyEvent(TypedDict):
    """An environment is installed and checked."""

    environment: str
    """Its name."""
    type: Literal["pull_ready"]


class FirstOfKindEvent(TypedDict):
    """The VM is the first of its kind, and so takes some seconds more to start than later ones."""

    type: Literal["first_of_kind"]


class WarningEvent(TypedDict):
    """Something that a person should know and that does not stop the call."""

    text: str
    """One line."""
    type: Literal["warning"]


OutputStream = Literal["stdout", "stderr"]
"""One of a command's two output streams."""


class OutputEvent(TypedDict):
    """Output of a command, in order within its stream."""

    data: str
    """What it wrote, in base64 with padding; any bytes, cut anywhere."""
    stream: OutputStream
    """Where the command wrote it."""
    type: Literal["output"]


CallEvent = Union[PhaseEvent, PullStartedEvent, PullStepEvent, PullReadyEvent, FirstOfKindEvent, WarningEvent, OutputEvent]
"""Something that happened during a call."""


Progress = Union[PhaseEvent, PullStartedEvent, PullStepEvent, PullReadyEvent, FirstOfKindEvent, WarningEvent]
"""What is told of a call while it runs."""
