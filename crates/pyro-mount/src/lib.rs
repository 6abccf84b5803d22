//! The server of one live directory: a directory of the host that a guest has mounted.
//!
//! ```text
//! guest kernel ── /dev/fuse ── agent ══ guest channel ══ supervisor ── socket ── `pyro mount-server` ── the directory
//! ```
//!
//! It speaks FUSE: each packet of a `SOCK_SEQPACKET` socket is one message. The guest is hostile, and so may be whatever
//! carries its messages. [`Directory`] serves what is below one open directory and nothing else: it works on open
//! directories, one name at a time, follows no symbolic link, opens nothing but regular files and directories, and bounds
//! how many it keeps open. [`confine`](confine()) leaves the process nothing but that directory. Knows nothing of machines.

mod attributes;
mod change;
mod confine;
mod directory;
mod handles;
mod name;
mod nodes;
mod process;
mod server;
mod special;

pub use confine::{ConfineError, confine};
pub use directory::{Directory, Export};
pub use process::{DIRECTORY_FD, REPORT_FD, RunError, SOCKET_FD, run_from_parent};
pub use server::{MAX_MESSAGE_BYTES, ServeError, serve};
pub use special::is_of_kernel;
