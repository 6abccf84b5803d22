//! Copies from and to a guest that falls silent. In real time: the half of the work on this host has a thread of its own, for
//! which the paused clock of the other tests would wait.

use std::time::{Duration, Instant};

use pyro_wire::{ArchiveLimits, Pack, Unpack};
use tokio::task::LocalSet;

use super::fake::Conditions;
use super::races::started;
use crate::CopyError;

const LIMITS: ArchiveLimits = ArchiveLimits { max_entries: 10, max_bytes: 1 << 30 };
const SILENCE: Duration = Duration::from_millis(300);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn assert_silent<T: std::fmt::Debug>(copied: Result<T, CopyError>, began: Instant) {
    assert!(matches!(copied, Err(CopyError::Silent { limit: SILENCE })), "{copied:?}");
    assert!((SILENCE..SILENCE * 20).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[test]
fn a_guest_that_falls_silent_in_the_middle_of_a_copy_is_given_up() {
    run(async {
        let supervised = started(Conditions { copies_stall: true, ..Conditions::task() }).await;
        let client = supervised.client().with_silence_limit(SILENCE);
        let place = tempfile::tempdir().unwrap();
        let pack = || Pack { path: "file".to_owned(), limits: LIMITS };

        let began = Instant::now();
        let target = (place.path().to_owned(), "copy".into());
        assert_silent(client.copy_out(pack(), target, 0).await, began);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "nothing is left");

        let began = Instant::now();
        assert_silent(client.read_file(pack()).await, began);

        // Whether the guest takes too little or only does not answer.
        for size in [10, 64 << 20] {
            let unpack =
                Unpack { path: "file".to_owned(), name: "file".to_owned(), limits: LIMITS, exact: true };
            let began = Instant::now();
            assert_silent(client.write_file(vec![0; size], 0o644, unpack).await, began);
        }
        // The VM goes on.
        assert!(supervised.world.is_alive());
    });
}
