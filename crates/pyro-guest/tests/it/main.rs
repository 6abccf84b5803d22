//! Tests of the agent as its host sees it: over a channel, in a temporary directory, without a machine.
#![expect(clippy::unwrap_used, reason = "clippy knows only functions marked as tests, not their helpers")]

mod channel;
mod connect;
mod copy;
mod end;
mod exec;
mod files;
mod groups;
mod handshake;
mod host;
mod input;
mod login;
mod machine;
mod probe;
mod programs;
mod terminal;
mod users;
