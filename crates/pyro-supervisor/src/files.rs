//! Names of the files in a VM's directory.

/// Output of the guest's serial console and of the VMM.
pub const SERIAL_LOG: &str = "serial.log";
/// The supervisor's own log.
pub const SUPERVISOR_LOG: &str = "supervisor.log";
/// Locked while the VM's supervisor lives.
pub const OWNER_LOCK: &str = "owner.lock";
/// The supervisor's description of itself.
pub const OWNER: &str = "owner.json";
/// Socket on which the supervisor serves clients.
pub const CONTROL_SOCKET: &str = "control.sock";
/// Directory for the output of journalled commands.
pub const COMMANDS: &str = "commands";
/// Directory with one directory for each service that has written something: its log.
pub const SERVICES: &str = "services";
/// What the guest's network has denied, as JSON lines; see `pyro_machine::network::Denials`.
pub const NETWORK_DENIALS: &str = "network-denials.jsonl";
pub(crate) const INITRD: &str = "initrd.img";
/// The guest's writable layer.
pub const LAYER: &str = "layer.img";
