//! Names of the files in a VM's directory.

/// What the guest's serial console and the VMM printed.
pub const SERIAL_LOG: &str = "serial.log";
/// What the supervisor itself had to say.
pub const SUPERVISOR_LOG: &str = "supervisor.log";
/// Locked while the VM's owner lives.
pub const OWNER_LOCK: &str = "owner.lock";
/// What the owner says of itself.
pub const OWNER: &str = "owner.json";
/// Where the supervisor is reached.
pub const CONTROL_SOCKET: &str = "control.sock";
/// Directory of what the commands of a journal wrote.
pub const COMMANDS: &str = "commands";
pub(crate) const INITRD: &str = "initrd.img";
/// What the guest has written to its disk.
pub const LAYER: &str = "layer.img";
