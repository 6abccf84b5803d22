//! Requests of the host to a running guest.

use std::fmt::Debug;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{
    ArchiveReply, Bootstrap, ChangeReply, ConnectReply, Exec, ExecInput, ExecReply, HaltReply, IdentifyReply,
    Input, InputEnd, InputReply, List, ListReply, MakeDirectory, Mount, MountInput, MountReply, Move, Probe,
    ProbeReply, Remove, Resize, Signal, Stat, StatReply, SteerReply, Watch, WatchReply,
};

/// First frame of the host on each stream. Closing the stream before the reply cancels the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run one command.
    Exec(Exec),
    /// Write to the standard input of a running command.
    Input(Input),
    /// Change the size of a running command's terminal.
    Resize(Resize),
    /// Send a signal to a running command.
    Signal(Signal),
    /// Send a file or a directory.
    Pack(Pack),
    /// Receive a file or a directory.
    Unpack(Unpack),
    /// Describe one file.
    Stat(Stat),
    /// Describe the entries of a directory.
    List(List),
    /// Give a file or a directory another path.
    Move(Move),
    /// Remove a file or a directory.
    Remove(Remove),
    /// Make a directory.
    MakeDirectory(MakeDirectory),
    /// Report what changes in a directory.
    Watch(Watch),
    /// Connect to a server in the machine.
    Connect(Connect),
    /// Find out whether a server or a file is there.
    Probe(Probe),
    /// Mount a directory of the host.
    Mount(Mount),
    /// Become another machine.
    Identify(Identify),
    /// Prepare for the end of the machine.
    Halt,
}

/// A request together with the types of everything that may follow it on its stream. A host that sends a request
/// through this trait can receive nothing but its own kind of reply.
pub trait Call: Into<Request> {
    /// Control messages that the host may send after the request.
    type Input: Serialize + DeserializeOwned + Clone + Debug + PartialEq;
    /// The guest's only control message, its last frame on the stream; [`Mount`] has two.
    type Reply: Serialize + DeserializeOwned + Clone + Debug + PartialEq;
}

macro_rules! calls {
    ($($call:ident($input:ident) -> $reply:ident;)*) => {
        $(
            impl Call for $call {
                type Input = $input;
                type Reply = $reply;
            }

            impl From<$call> for Request {
                fn from(call: $call) -> Self {
                    Self::$call(call)
                }
            }
        )*
    };
}

calls! {
    Exec(ExecInput) -> ExecReply;
    Input(InputEnd) -> InputReply;
    Resize(NoInput) -> SteerReply;
    Signal(NoInput) -> SteerReply;
    Pack(NoInput) -> ArchiveReply;
    Unpack(NoInput) -> ArchiveReply;
    Stat(NoInput) -> StatReply;
    List(NoInput) -> ListReply;
    Move(NoInput) -> ChangeReply;
    Remove(NoInput) -> ChangeReply;
    MakeDirectory(NoInput) -> ChangeReply;
    Watch(NoInput) -> WatchReply;
    Connect(ConnectInput) -> ConnectReply;
    Probe(NoInput) -> ProbeReply;
    Mount(MountInput) -> MountReply;
    Identify(NoInput) -> IdentifyReply;
}

impl Call for Halt {
    type Input = NoInput;
    type Reply = HaltReply;
}

impl From<Halt> for Request {
    fn from(Halt: Halt) -> Self {
        Self::Halt
    }
}

/// There is no control message of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoInput {}

/// Send a file or a directory as a stream of tar, in the form of `pyro-archive`, in
/// [`Frame::Output`](crate::Frame::Output) frames of the standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pack {
    /// File or directory; below [`WORKSPACE`](crate::WORKSPACE) unless it is absolute.
    pub path: String,
    /// What it may hold.
    pub limits: ArchiveLimits,
}

/// Take a file or a directory as a stream of tar. It follows on the stream of the request, in
/// [`Frame::Output`](crate::Frame::Output) frames of the standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unpack {
    /// An existing directory, to put it there under its own name, or the name that it gets; below
    /// [`WORKSPACE`](crate::WORKSPACE) unless it is absolute.
    pub path: String,
    /// Its own name.
    pub name: String,
    /// What it may hold.
    pub limits: ArchiveLimits,
    /// [`Self::path`] is the name that it gets, also where a directory has that name, and missing directories on the
    /// way there are made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
}

/// What an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArchiveLimits {
    /// Maximum number of entries.
    pub max_entries: u64,
    /// Maximum total size of all files, in bytes.
    pub max_bytes: u64,
}

/// Connect to a server that listens on the machine's loopback interface. Bytes follow in both directions, in
/// [`Frame::Output`](crate::Frame::Output) frames of the standard output. Closing the stream before both directions have
/// ended resets the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Connect {
    /// The TCP port.
    pub port: u16,
}

/// What the host may send while a connection is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConnectInput {
    /// The client sends nothing more.
    Finished,
}

/// Become this machine, instead of the one that the bootstrap made. For a machine that was started before it was
/// needed; its network does not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Identify(pub Bootstrap);

/// Stop every process, write everything to disk, remount read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Halt;
