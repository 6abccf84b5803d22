//! What was denied, counted, and written as JSON lines for the process that started this one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::policy::{DnsName, Protocol, Rule};

/// Maximum length of one event in bytes, including the final newline.
pub const MAX_EVENT_BYTES: u64 = 1024;
/// Events that may be written at once, and the time in which another one may be.
const BURST: u32 = 20;
/// A denial that is repeated after as many seconds is reported again, because it may concern another command.
const PAUSE_SECONDS: f64 = 1.0;
const INTERVAL: Duration = Duration::from_millis(200);

/// Something that was denied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    /// When it was denied last, in seconds since the epoch.
    pub time: f64,
    /// Protocol.
    pub protocol: Protocol,
    /// Where to. Absent for a question to the resolver.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<IpAddr>,
    /// Port. Absent for a question to the resolver.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// The name, where one is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<DnsName>,
    /// Why.
    pub rule: Rule,
    /// How often.
    pub count: u64,
}

impl Denial {
    fn is_same(&self, other: &Self) -> bool {
        let of = |denial: &Self| (denial.protocol, denial.address, denial.port, denial.rule);
        of(self) == of(other) && self.name == other.name
    }
}

/// The latest different denials, oldest first. Bounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Denials(VecDeque<Denial>);

impl Denials {
    /// Reads them from JSON lines. Of events about the same, the last one counts; lines that are not events are ignored.
    ///
    /// # Errors
    /// `source` cannot be read.
    pub fn read(source: impl Read) -> io::Result<Self> {
        let mut denials = Self::default();
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while (&mut source).take(MAX_EVENT_BYTES).read_until(b'\n', &mut line)? > 0 {
            if let Ok(denial) = serde_json::from_slice::<Denial>(&line) {
                denials.replace(denial);
            }
            line.clear();
        }
        Ok(denials)
    }

    /// Adds a denial, in place of an earlier one about the same.
    pub fn replace(&mut self, denial: Denial) {
        self.0.retain(|other| !other.is_same(&denial));
        if self.0.len() == limits::DENIALS {
            self.0.pop_front();
        }
        self.0.push_back(denial);
    }

    /// Returns them, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Denial> {
        self.0.iter()
    }

    /// Counts one more of these, and returns it with its new count, and the seconds since the one before.
    fn count(&mut self, denial: Denial) -> (Denial, f64) {
        let earlier = self.0.iter().find(|other| other.is_same(&denial));
        let (count, time) = earlier.map_or((0, denial.time), |other| (other.count, other.time));
        let pause = denial.time - time;
        let denial = Denial { count: count.saturating_add(1), ..denial };
        self.replace(denial.clone());
        (denial, pause)
    }
}

/// Counts denials and writes them. Never waits for a reader: what cannot be written is lost, but counted.
#[derive(Debug)]
pub(crate) struct DenialLog {
    denials: Denials,
    events: Option<File>,
    allowance: u32,
    refilled: Instant,
}

impl DenialLog {
    /// Writes to `events`, which must not block.
    pub(crate) fn new(events: Option<OwnedFd>) -> Self {
        let events = events.map(File::from);
        Self { denials: Denials::default(), events, allowance: BURST, refilled: Instant::now() }
    }

    /// Counts a connection or flow.
    pub(crate) fn connection(
        &mut self,
        protocol: Protocol,
        (address, port): (IpAddr, u16),
        name: Option<&DnsName>,
        rule: Rule,
    ) {
        self.add(Denial {
            time: now(),
            protocol,
            address: Some(address),
            port: Some(port),
            name: name.cloned(),
            rule,
            count: 0,
        });
    }

    /// Counts a question, or an address in its answer.
    pub(crate) fn name(&mut self, name: &DnsName, address: Option<IpAddr>, rule: Rule) {
        let name = Some(name.clone());
        self.add(Denial { time: now(), protocol: Protocol::Dns, address, port: None, name, rule, count: 0 });
    }

    fn add(&mut self, denial: Denial) {
        let (denial, pause) = self.denials.count(denial);
        // A guest that repeats itself at once is reported at counts of 1, 2, 4, 8 and so on.
        if (denial.count.is_power_of_two() || pause >= PAUSE_SECONDS) && self.is_permitted() {
            self.write(&denial);
        }
    }

    fn is_permitted(&mut self) -> bool {
        let due = self.refilled.elapsed().as_nanos() / INTERVAL.as_nanos();
        if due > 0 {
            self.allowance = self.allowance.saturating_add(u32::try_from(due).unwrap_or(BURST)).min(BURST);
            self.refilled = Instant::now();
        }
        self.allowance.checked_sub(1).map(|left| self.allowance = left).is_some()
    }

    fn write(&mut self, denial: &Denial) {
        let Some(events) = &mut self.events else { return };
        let Ok(mut line) = serde_json::to_vec(denial) else { return };
        line.push(b'\n');
        // Shorter than what a pipe takes at once.
        if let Err(error) = events.write(&line)
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            self.events = None;
        }
    }

    #[cfg(test)]
    pub(crate) fn denials(&self) -> &Denials {
        &self.denials
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (std::io::PipeReader, OwnedFd) {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        (reader, writer.into())
    }

    #[test]
    fn repetitions_are_counted_and_reported_at_powers_of_two() {
        let (reader, writer) = pipe();
        let mut log = DenialLog::new(Some(writer));
        for _ in 0..9 {
            log.connection(Protocol::Tcp, ([10, 0, 0, 1].into(), 22), None, Rule::Private);
        }
        let counted: Vec<_> = log.denials().iter().map(|denial| denial.count).collect();
        assert_eq!(counted, [9]);
        drop(log);
        let text = io::read_to_string(reader).unwrap();
        assert_eq!(text.lines().count(), 4, "{text}");
        let read = Denials::read(text.as_bytes()).unwrap();
        let [denial] = read.iter().collect::<Vec<_>>()[..] else { panic!("{read:?}") };
        assert_eq!((denial.count, denial.port, denial.rule), (8, Some(22), Rule::Private));
    }

    #[test]
    fn a_repetition_after_a_pause_is_reported() {
        let (reader, writer) = pipe();
        let mut log = DenialLog::new(Some(writer));
        let denial = |time| Denial {
            time,
            protocol: Protocol::Tcp,
            address: Some([10, 0, 0, 1].into()),
            port: Some(22),
            name: None,
            rule: Rule::Private,
            count: 0,
        };
        // The third is neither a power of two nor late.
        for time in [1.0, 1.1, 1.2, 2.5] {
            log.add(denial(time));
        }
        log.add(denial(4.0));
        drop(log);
        let text = io::read_to_string(reader).unwrap();
        let times: Vec<f64> =
            text.lines().map(|line| serde_json::from_str::<Denial>(line).unwrap().time).collect();
        assert_eq!(times, [1.0, 1.1, 2.5, 4.0]);
    }

    #[test]
    fn neither_the_table_nor_the_rate_grows_with_a_flood() {
        let (reader, writer) = pipe();
        let mut log = DenialLog::new(Some(writer));
        let name = DnsName::new(&["a".repeat(60).as_str(); 4].join(".")).unwrap();
        for port in 0..10_000 {
            log.connection(Protocol::Udp, ("fd00::1".parse().unwrap(), port), Some(&name), Rule::Private);
        }
        assert_eq!(log.denials().iter().count(), limits::DENIALS);
        drop(log);
        let text = io::read_to_string(reader).unwrap();
        assert!((20..60).contains(&text.lines().count()), "{}", text.lines().count());
        assert!(text.lines().all(|line| (line.len() as u64) < MAX_EVENT_BYTES));
    }

    #[test]
    fn a_reader_that_is_gone_or_does_not_read_is_not_waited_for() {
        let (reader, writer) = pipe();
        let mut log = DenialLog::new(Some(writer));
        drop(reader);
        for port in 0..100 {
            log.connection(Protocol::Tcp, ([10, 0, 0, 1].into(), port), None, Rule::Private);
        }
    }

    #[test]
    fn lines_that_are_not_events_are_ignored() {
        let text = format!(
            "{}\nnot json\n{{\"time\":1,\"protocol\":\"dns\",\"name\":\"a\\u202eb\",\"rule\":\"private\",\"count\":1}}\n",
            "x".repeat(5000)
        );
        assert_eq!(Denials::read(text.as_bytes()).unwrap(), Denials::default());
    }
}
