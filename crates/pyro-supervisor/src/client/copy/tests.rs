//! Copies whose supervisor or guest falls silent, with the clock paused.

use std::time::Duration;

use pyro_wire::{ArchiveLimits, ArchiveReport, Request as GuestRequest};
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_util::codec::Framed;

use super::*;
use crate::client::ANSWER_LIMIT;
use crate::client::tests::accept;
use crate::dir;

const LIMITS: ArchiveLimits = ArchiveLimits { max_entries: 1, max_bytes: 1 << 20 };

type GuestEnd = Framed<UnixStream, FrameCodec<GuestRequest, ArchiveReply>>;

/// Accepts a copy and becomes its guest, as far as the client can see.
async fn guest_of(listener: &UnixListener) -> GuestEnd {
    let mut client = accept(listener).await;
    assert_eq!(client.next().await.unwrap().unwrap(), Frame::Control(protocol::Request::Copy));
    client.send(Frame::Control(Reply::Done)).await.unwrap();
    let mut guest: GuestEnd = client.map_codec(|_| FrameCodec::default());
    guest.next().await.unwrap().unwrap();
    guest
}

/// Goes on greeting clients.
async fn greet(listener: &UnixListener) -> ! {
    loop {
        drop(accept(listener).await);
    }
}

/// Takes pieces of an archive without a thread, for which a paused clock would wait.
async fn take(chunks: &mut Chunks<'_>) -> Result<usize, ArchiveError> {
    let mut taken = 0;
    while let Some(chunk) = chunks.next().await {
        taken += chunk.map_err(|source| ArchiveError::Stream { action: "receive", source })?.len();
        if taken == 8 {
            return Ok(taken);
        }
    }
    Err(ArchiveError::Truncated)
}

async fn receive_from(client: &Client) -> Result<usize, CopyError> {
    let pack = Pack { path: "file".to_owned(), limits: LIMITS };
    client.receive(pack, take).await.map(|(taken, _)| taken)
}

async fn send_to(client: &Client, pieces: usize) -> Result<(), CopyError> {
    let (path, name) = ("file".to_owned(), "file".to_owned());
    let unpack = Unpack { path, name, limits: LIMITS, exact: true };
    let give = async |sink: &mut ChunkSink<'_>| {
        for _ in 0..pieces {
            let sent = sink.send(Bytes::from(vec![0; 64 * 1024])).await;
            sent.map_err(|_| ArchiveError::Stream {
                action: "send",
                source: io::ErrorKind::BrokenPipe.into(),
            })?;
        }
        Ok(())
    };
    client.send(unpack, give).await
}

fn piece(bytes: usize) -> Frame<ArchiveReply> {
    Frame::Output(OutputStream::Stdout, vec![0; bytes].into())
}

/// A place at which a supervisor listens, and its client.
fn supervisor() -> (tempfile::TempDir, UnixListener, Client) {
    let base = tempfile::tempdir().unwrap();
    let listener = dir::listen(base.path()).unwrap();
    let client = Client::new(base.path());
    (base, listener, client)
}

/// Copies in both directions from a supervisor that does `serve` after it has accepted a copy.
async fn both(serve: impl AsyncFn(GuestEnd, &UnixListener)) -> [(Result<(), CopyError>, Duration); 2] {
    let mut copied = Vec::new();
    for is_receiving in [true, false] {
        let (_base, listener, client) = supervisor();
        let began = Instant::now();
        let copy = async {
            match is_receiving {
                true => receive_from(&client).await.map(drop),
                false => send_to(&client, 1).await,
            }
        };
        let serving = async {
            serve(guest_of(&listener).await, &listener).await;
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = copy => outcome,
            () = serving => unreachable!("it never returns"),
        };
        copied.push((outcome, began.elapsed()));
    }
    copied.try_into().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_copy_does_not_wait_for_a_supervisor_that_froze() {
    for (copied, after) in both(async |_guest, _| std::future::pending().await).await {
        assert!(matches!(copied, Err(CopyError::Lost)), "{copied:?}");
        assert!(after <= WATCH_PROBE_AFTER + ANSWER_LIMIT * 2, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_does_not_wait_without_limit_for_a_guest_that_says_nothing() {
    let silent = async |_guest, listener: &UnixListener| greet(listener).await;
    for (copied, after) in both(silent).await {
        assert!(matches!(copied, Err(CopyError::Stalled)), "{copied:?}");
        assert_eq!(after.as_secs(), COPY_STEP_LIMIT.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn empty_pieces_are_not_progress() {
    let (_base, listener, client) = supervisor();
    let began = Instant::now();
    let guest = async {
        let mut guest = guest_of(&listener).await;
        let idle = async {
            while guest.send(piece(0)).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::join!(idle, greet(&listener));
    };
    tokio::select! {
        copied = receive_from(&client) => assert!(matches!(copied, Err(CopyError::Stalled)), "{copied:?}"),
        () = guest => unreachable!("it never returns"),
    }
    assert_eq!(began.elapsed().as_secs(), COPY_STEP_LIMIT.as_secs());
}

/// It has sent the archive and not what became of it.
#[tokio::test(start_paused = true)]
async fn the_report_of_a_guest_is_not_awaited_without_limit() {
    let unfinished = async |mut guest: GuestEnd, listener: &UnixListener| {
        guest.send(piece(8)).await.unwrap();
        greet(listener).await;
    };
    let [(received, after), _] = both(unfinished).await;
    assert!(matches!(received, Err(CopyError::Stalled)), "{received:?}");
    assert_eq!(after.as_secs(), COPY_STEP_LIMIT.as_secs());
}

/// It answers greetings, but its guest reads nothing, and the archive does not fit into the buffers.
#[tokio::test(start_paused = true)]
async fn a_guest_that_takes_nothing_is_given_up() {
    let (_base, listener, client) = supervisor();
    let began = Instant::now();
    let serving = async {
        let _guest = guest_of(&listener).await;
        greet(&listener).await;
    };
    tokio::select! {
        copied = send_to(&client, 100) => assert!(matches!(copied, Err(CopyError::Stalled)), "{copied:?}"),
        () = serving => unreachable!("it never returns"),
    }
    assert_eq!(began.elapsed().as_secs(), COPY_STEP_LIMIT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_slow_guest_is_not_given_up() {
    let slow = async |mut guest: GuestEnd, listener: &UnixListener| {
        let work = async {
            for _ in 0..8 {
                tokio::time::sleep(COPY_STEP_LIMIT - Duration::from_secs(1)).await;
                // A guest that unpacks sends only its report.
                guest.send(piece(1)).await.unwrap();
            }
            guest.send(Frame::Control(ArchiveReply::Archived(ArchiveReport::default()))).await.unwrap();
        };
        tokio::join!(work, greet(listener));
    };
    let [(received, after), _] = both(slow).await;
    received.unwrap();
    assert!(after > COPY_STEP_LIMIT * 7, "{after:?}");
}

#[test]
fn names_that_the_guest_has_escaped_stay_as_they_are() {
    for escaped in [r"item/\u{1b}[2J\n: a fifo", r"don't: a socket"] {
        assert_eq!(printable(escaped), escaped);
    }
    assert_eq!(printable("a\u{1b}\n"), r"a\u{1b}\n");
}
