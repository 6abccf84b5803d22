//! A guest whose root has replaced the agent: whatever it sends, no command succeeds by it, the supervisor's memory is
//! bounded, and the VM can be ended.

use std::time::Duration;

use pyro_wire::{Exec, ExecReply, Exit, Frame, FrameCodec, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Encoder;
use tokio_util::sync::CancellationToken;

use super::fake::{Conditions, Fact, Supervised};
use super::races::{ask, run, started};
use crate::client::Run;
use crate::conversation::{CommandEnd, CommandOutcome};
use crate::protocol::Request;

/// What the agent does once the VM is up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attack {
    /// Sent at first.
    first: fn() -> Vec<u8>,
    /// Then sent again and again, without reading an answer.
    repeated: fn() -> Vec<u8>,
}

/// Maximum number of bytes that the host may take from an agent that reads nothing of what the host answers.
const TAKEN: usize = 64 << 20;

/// Header of a yamux frame: version, type, flags, stream, length.
fn header(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let mut header = vec![0, kind];
    header.extend_from_slice(&flags.to_be_bytes());
    header.extend_from_slice(&stream.to_be_bytes());
    header.extend_from_slice(&length.to_be_bytes());
    header
}

const DATA: u8 = 0;
const WINDOW: u8 = 1;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;
/// The flag that opens a stream, or asks for the answer to a ping.
const SYN: u16 = 1;

fn nothing() -> Vec<u8> {
    Vec::new()
}

/// The agent. Returns whether the host took more than it may.
pub(super) async fn serve(mut channel: UnixStream, attack: Attack) -> bool {
    if channel.write_all(&(attack.first)()).await.is_err() {
        return false;
    }
    let repeated = (attack.repeated)();
    let mut taken = 0;
    while !repeated.is_empty() {
        match timeout(Duration::from_secs(1), channel.write_all(&repeated)).await {
            Ok(Ok(())) => taken += repeated.len(),
            Ok(Err(_)) => return false,
            Err(_) => break,
        }
        if taken > TAKEN {
            return true;
        }
    }
    let mut rest = [0; 4096];
    while channel.read(&mut rest).await.is_ok_and(|length| length > 0) {}
    false
}

/// Runs commands on such a guest, and ends it.
async fn endure(attack: Attack) {
    let mut supervised = started(Conditions { attack: Some(attack), ..Conditions::task() }).await;
    for journal in [true, false] {
        let outcome = outcome(&supervised, journal).await;
        let succeeded =
            matches!(outcome, Some(CommandOutcome::Ended(CommandEnd { status: Some(Status::Code(0)), .. })));
        assert!(!succeeded, "{attack:?}: {outcome:?}");
    }
    // The VM may have ended by itself.
    let _ = ask(&supervised, Request::Delete).await;
    supervised.ended().await;
    assert!(
        !supervised.world.has(&Fact::TookTooMuch),
        "{attack:?}: the host takes all and keeps the answers"
    );
}

/// Returns what became of a command, if it ran at all.
async fn outcome(supervised: &Supervised, journal: bool) -> Option<CommandOutcome> {
    let exec = Exec { kill_grace_ms: 1000, ..Exec::new("true", Duration::from_secs(2)) };
    let never = CancellationToken::new();
    let ran = supervised.client().run(Run { exec, journal }, &never, async |_| {}).await;
    ran.ok().map(|ran| ran.outcome)
}

#[test]
fn what_is_not_the_protocol_is_not_believed() {
    run(async {
        endure(Attack { first: || vec![0xff; 1 << 16], repeated: nothing }).await;
        endure(Attack { first: || header(GO_AWAY, 0, 0, 0), repeated: nothing }).await;
    });
}

#[test]
fn a_silent_agent_delays_no_more_than_the_time_limits() {
    run(endure(Attack { first: nothing, repeated: nothing }));
}

#[test]
fn a_frame_that_is_announced_as_huge_takes_no_memory() {
    run(endure(Attack { first: || header(DATA, 0, 1, u32::MAX), repeated: || vec![0; 1 << 16] }));
}

#[test]
fn exits_of_commands_that_were_not_sent_are_not_believed() {
    let forged = || {
        let exit = Exit {
            status: Status::Code(0),
            timed_out: false,
            duration_ms: 1,
            stdout_dropped: 0,
            stderr_dropped: 0,
        };
        let mut reply = BytesMut::new();
        let frame = Frame::Control(ExecReply::Exited(exit));
        FrameCodec::<(), ExecReply>::default().encode(frame, &mut reply).unwrap();
        let forge = |stream: u32| [header(DATA, 0, stream, reply.len() as u32), reply.to_vec()].concat();
        (1..50).flat_map(forge).collect()
    };
    run(endure(Attack { first: forged, repeated: nothing }));
}

#[test]
fn a_flood_of_streams_pings_or_credit_takes_no_memory() {
    run(async {
        let streams = || (1..100_000).flat_map(|n| header(DATA, SYN, 2 * n, 0)).collect();
        endure(Attack { first: nothing, repeated: streams }).await;
        let pings = || (0..1000).flat_map(|n| header(PING, SYN, 0, n)).collect();
        endure(Attack { first: nothing, repeated: pings }).await;
        let credit = || (0..1000).flat_map(|n| header(WINDOW, 0, 2 * (n % 8) + 1, u32::MAX)).collect();
        endure(Attack { first: credit, repeated: nothing }).await;
    });
}
