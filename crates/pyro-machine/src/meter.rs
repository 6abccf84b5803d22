//! What a machine's process has used, to tell a slow one from one that hangs.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// What a machine has used since it was launched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on the host's processors, of all its threads.
    pub computed: Duration,
    /// Time in which the thread that waited longest was ready to run and the host had no processor for it.
    pub waited: Duration,
    /// A thread waits for the host's disk right now.
    pub is_blocked: bool,
}

/// Reads what one machine uses, for as long as it lives.
#[derive(Clone)]
pub struct Meter(Rc<dyn Fn() -> Option<Usage>>);

impl Meter {
    /// Creates a meter that reads with this function; `None` means that nothing is known.
    pub fn new(read: impl Fn() -> Option<Usage> + 'static) -> Self {
        Self(Rc::new(read))
    }

    /// Returns the meter of a process. If the process is gone, the figures may be those of another one.
    pub(crate) fn of_process(id: u32) -> Self {
        let tasks = PathBuf::from(format!("/proc/{id}/task"));
        Self::new(move || {
            let mut usage = Usage::default();
            for entry in fs::read_dir(&tasks).ok()? {
                let task = entry.ok()?.path();
                // A thread may end at any time.
                let Ok(times) = fs::read_to_string(task.join("schedstat")) else { continue };
                let (computed, waited) = times_of(&times)?;
                usage.computed += computed;
                usage.waited = usage.waited.max(waited);
                usage.is_blocked |= fs::read_to_string(task.join("stat"))
                    .is_ok_and(|stat| is_in_uninterruptible_sleep(&stat));
            }
            // A kernel without these figures has zeros.
            (usage.computed > Duration::ZERO).then_some(usage)
        })
    }

    /// Returns what the machine has used. `None`: it is not known.
    pub fn read(&self) -> Option<Usage> {
        (self.0)()
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Meter").field(&self.read()).finish()
    }
}

/// Reads a `schedstat`: nanoseconds on a processor, nanoseconds of waiting for one, and the number of turns.
fn times_of(schedstat: &str) -> Option<(Duration, Duration)> {
    let mut times = schedstat.split_ascii_whitespace().map(|field| field.parse().map(Duration::from_nanos));
    Some((times.next()?.ok()?, times.next()?.ok()?))
}

/// The state follows the name, which is in parentheses and may contain some.
fn is_in_uninterruptible_sleep(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_process_grow_with_its_work() {
        let meter = Meter::of_process(std::process::id());
        let before = meter.read().expect("this kernel has the figures");
        let mut sum = 0_u64;
        for number in 0..20_000_000_u64 {
            sum = std::hint::black_box(sum.wrapping_add(number));
        }
        // The kernel adds to them at a tick of its clock, or when the thread stops.
        std::thread::yield_now();
        std::thread::sleep(Duration::from_millis(1));
        let after = meter.read().unwrap();
        assert!(after.computed > before.computed, "{before:?} {after:?}");
        assert!(after.waited >= before.waited);
    }

    #[test]
    fn a_process_that_is_gone_has_no_figures() {
        assert_eq!(Meter::of_process(u32::MAX).read(), None);
    }

    #[test]
    fn the_files_of_the_kernel_are_read() {
        let expected = (Duration::from_nanos(123), Duration::from_nanos(45));
        assert_eq!(times_of("123 45 6\n"), Some(expected));
        assert_eq!(times_of("123"), None);
        assert_eq!(times_of("x y z"), None);
        assert!(is_in_uninterruptible_sleep("7 (a) R) D 1 2"));
        assert!(!is_in_uninterruptible_sleep("7 (a) D) R 1 2"));
        assert!(!is_in_uninterruptible_sleep(""));
    }
}
