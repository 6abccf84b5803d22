use std::io;
use std::sync::{Arc, Mutex};

use pyro_engine::{ChangeKind, RunPhase};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::*;
use crate::exit::Exit;
use crate::printer::Sink;
use crate::report::Report;

/// Keeps what was written; may refuse stdout or never finish writing to it.
#[derive(Default)]
struct Recorder {
    written: Mutex<Vec<(OutputStream, Vec<u8>)>>,
    /// Notified after each write.
    more: Notify,
    stdout: Behaviour,
}

#[derive(Default)]
enum Behaviour {
    #[default]
    Takes,
    Fails(io::ErrorKind),
    FailsAs(i32),
    Hangs,
}

impl Sink for Recorder {
    fn write(&self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        if stream == OutputStream::Stdout {
            match self.stdout {
                Behaviour::Takes => {}
                Behaviour::Fails(kind) => return Err(kind.into()),
                Behaviour::FailsAs(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Behaviour::Hangs => loop {
                    std::thread::park();
                },
            }
        }
        self.written.lock().unwrap().push((stream, bytes.to_vec()));
        self.more.notify_one();
        Ok(())
    }
}

impl Recorder {
    fn with_stdout(stdout: Behaviour) -> Arc<Self> {
        Arc::new(Self { stdout, ..Self::default() })
    }

    fn all(&self, wanted: OutputStream) -> Vec<u8> {
        let written = self.written.lock().unwrap();
        written.iter().filter(|(stream, _)| *stream == wanted).flat_map(|(_, bytes)| bytes.clone()).collect()
    }

    /// Waits until stderr says so.
    async fn has_stderr(&self, text: &str) {
        let said = async {
            while !self.stderr().contains(text) {
                self.more.notified().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), said).await.unwrap();
    }

    fn stderr(&self) -> String {
        String::from_utf8(self.all(OutputStream::Stderr)).unwrap()
    }
}

/// Follows `call`, which also gets the way to send signals.
fn follow<T, F>(
    sink: &Arc<Recorder>,
    quiet: bool,
    call: impl FnOnce(Events, CancellationToken, mpsc::Sender<Signal>) -> F,
) -> Result<(T, Shown), CliError>
where
    F: Future<Output = Result<T, Error>>,
{
    follow_on_terminal(sink, quiet, false, call)
}

/// The same; `puts_back`: what the output changes of the terminal.
fn follow_on_terminal<T, F>(
    sink: &Arc<Recorder>,
    quiet: bool,
    puts_back: bool,
    call: impl FnOnce(Events, CancellationToken, mpsc::Sender<Signal>) -> F,
) -> Result<(T, Shown), CliError>
where
    F: Future<Output = Result<T, Error>>,
{
    let printer = Printer::to(Arc::clone(sink) as Arc<dyn Sink>);
    let changed = Some(ChangedTerminal::of(&printer, true)).filter(|_| puts_back);
    block_on(async {
        let (signals, requests) = mpsc::channel(8);
        let watch = Watch { quiet, changed, requests, ..Watch::of(&printer) };
        watch.follow(|events, cancel| call(events, cancel, signals)).await
    })
}

impl<'a> Watch<'a> {
    /// Without signals and input.
    fn of(printer: &'a Printer) -> Self {
        Self {
            printer,
            quiet: false,
            on_terminal: false,
            raw: None,
            changed: None,
            task: None,
            requests: mpsc::channel(1).1,
            hangup: CancellationToken::new(),
            input_failure: mpsc::channel(1).1,
            unread: None,
            stop: None,
        }
    }
}

fn output(stream: OutputStream, bytes: &'static [u8]) -> Event {
    Event::Output { stream, bytes: Bytes::from_static(bytes) }
}

#[test]
fn a_terminal_is_put_back_however_the_call_ends() {
    let shows = |is_ok: bool, shown: &'static [u8]| {
        let sink = Arc::new(Recorder::default());
        let result = follow_on_terminal(&sink, false, true, |events, _, _| async move {
            events.send(output(OutputStream::Stdout, shown)).await;
            match is_ok {
                true => Ok(()),
                false => Err(Error::new(ErrorKind::NotDelivered, "the machine is gone")),
            }
        });
        assert_eq!(result.is_ok(), is_ok);
        String::from_utf8(sink.all(OutputStream::Stdout)).unwrap()
    };
    for is_ok in [true, false] {
        assert_eq!(
            shows(is_ok, b"\x1b[?1049h\x1b[?25lvim"),
            "\x1b[?1049h\x1b[?25lvim\x1b[?1049l\x1b[?25h\r\n"
        );
    }
    let gone = Recorder::with_stdout(Behaviour::Fails(io::ErrorKind::BrokenPipe));
    let result = follow_on_terminal(&gone, false, true, |events, cancel, _| async move {
        events.send(output(OutputStream::Stdout, b"\x1b[?1049h")).await;
        cancel.cancelled().await;
        Err::<(), _>(Error::cancelled())
    });
    assert!(matches!(result, Err(CliError::Output(_))));
}

/// The signal may be ignored, or come later.
#[test]
fn a_terminal_that_is_gone_leaves_a_command_of_a_task_and_ends_a_run() {
    let follow = |task: Option<&'static str>, by_reading: bool| {
        let fails = Behaviour::FailsAs(Errno::IO.raw_os_error());
        let sink = Recorder::with_stdout(if by_reading { Behaviour::Takes } else { fails });
        let printer = Printer::to_terminal(sink);
        let mut was_cancelled = false;
        let result = block_on(async {
            let (unread, input_failure) = mpsc::channel(1);
            // Until the end, as the thread that reads does.
            let reading = unread.clone();
            if by_reading {
                unread.send(Unread::Hangup).await.unwrap();
            }
            let watch = Watch { task, input_failure, ..Watch::of(&printer) };
            let result = watch.follow(|events, cancel| {
                let was_cancelled = &mut was_cancelled;
                async move {
                    events.send(output(OutputStream::Stdout, b"shown")).await;
                    cancel.cancelled().await;
                    *was_cancelled = true;
                    Err::<(), _>(Error::cancelled())
                }
            });
            let result = result.await;
            drop(reading);
            result
        });
        (result.map(|_| ()).unwrap_err(), was_cancelled)
    };
    for by_reading in [false, true] {
        let (error, was_cancelled) = follow(Some("9775b3af1eeb"), by_reading);
        assert!(matches!(&error, CliError::Left(task) if task == "9775b3af1eeb"), "{error:?}");
        assert_eq!((error.exit().code(), was_cancelled), (129, false));
        let (error, was_cancelled) = follow(None, by_reading);
        assert!(matches!(error, CliError::Stopped(Signal::Hangup, _)), "{error:?}");
        assert!(was_cancelled);
    }
}

#[test]
fn a_hangup_that_is_reported_often_is_not_impatience() {
    let sink = Arc::new(Recorder::default());
    let shown = Arc::clone(&sink);
    let error = follow::<(), _>(&sink, false, |_, _, signals| async move {
        for _ in 0..4 {
            signals.send(Signal::Hangup).await.unwrap();
        }
        signals.send(Signal::Terminate).await.unwrap();
        shown.has_stderr("once more").await;
        Err(Error::cancelled())
    })
    .unwrap_err();
    assert!(matches!(error, CliError::Stopped(Signal::Hangup, _)), "{error:?}");
}

#[test]
fn guest_bytes_come_out_as_they_are_and_in_order() {
    let sink = Arc::new(Recorder::default());
    let (value, shown) = follow(&sink, false, |events, _, _| async move {
        events.send(Event::Phase(RunPhase::Create { environment: "debian:12".to_owned() })).await;
        for _ in 0..500 {
            events.send(output(OutputStream::Stdout, b"\xff\x1b[2J\0")).await;
            events.send(output(OutputStream::Stderr, b"e")).await;
        }
        Ok(7)
    })
    .unwrap();
    assert_eq!(value, 7);
    assert!(shown.inside_line && !shown.pull_started);
    assert_eq!(sink.all(OutputStream::Stdout), b"\xff\x1b[2J\0".repeat(500));
    assert_eq!(sink.stderr(), format!("[run] phase=create environment=debian:12\n{}", "e".repeat(500)));
}

#[test]
fn quiet_shows_warnings_only() {
    let sink = Arc::new(Recorder::default());
    follow(&sink, true, |events, _, _| async move {
        events.send(Event::Phase(RunPhase::Create { environment: "e".to_owned() })).await;
        events.send(Event::Pull(PullEvent::Started { environment: "e".to_owned() })).await;
        events.send(Event::Warning("KVM is slow\u{1b}".to_owned())).await;
        Ok(())
    })
    .unwrap();
    assert_eq!(sink.stderr(), "[warning] KVM is slow\\u{1b}\n");
}

#[test]
fn an_installation_is_shown_in_lines() {
    let sink = Arc::new(Recorder::default());
    let ((), shown) = follow(&sink, false, |events, _, _| async move {
        let environment = || "debian:12".to_owned();
        events.send(Event::Pull(PullEvent::Started { environment: environment() })).await;
        events.send(Event::Pull(PullEvent::Step { text: "unpack".to_owned(), done: 1, total: 2 })).await;
        events.send(Event::Pull(PullEvent::Ready { environment: environment() })).await;
        Ok(())
    })
    .unwrap();
    assert!(shown.pull_started);
    insta::assert_snapshot!(sink.stderr(), @r"
    [pull] phase=install environment=debian:12
    [pull] unpack 50%
    [pull] phase=ready environment=debian:12
    ");
}

#[test]
fn a_call_that_leaks_its_events_still_ends() {
    let sink = Arc::new(Recorder::default());
    let mut leaked = None;
    follow(&sink, false, |events, _, _| {
        leaked = Some(events.clone());
        async move {
            events.send(output(OutputStream::Stdout, b"last words")).await;
            Ok(())
        }
    })
    .unwrap();
    assert_eq!(sink.all(OutputStream::Stdout), b"last words");
}

#[test]
fn a_signal_cancels_and_the_clean_up_is_waited_for() {
    for (signal, code) in
        [(Signal::Interrupt, 130), (Signal::Terminate, 143), (Signal::Hangup, 129), (Signal::Quit, 131)]
    {
        let sink = Arc::new(Recorder::default());
        let shown = Arc::clone(&sink);
        let mut cleaned = false;
        let error = follow::<(), _>(&sink, false, |_, cancel, signals| {
            let cleaned = &mut cleaned;
            async move {
                signals.send(signal).await.unwrap();
                cancel.cancelled().await;
                shown.has_stderr("cleaning up").await;
                *cleaned = true;
                Err(Error::cancelled())
            }
        })
        .unwrap_err();
        assert!(cleaned);
        assert_eq!(error.exit().code(), code);
        assert_eq!(sink.stderr(), format!("[pyro] {signal}: stopping and cleaning up\n"));
    }
}

#[test]
fn a_second_signal_is_answered_and_a_third_gives_up() {
    for quiet in [false, true] {
        let sink = Arc::new(Recorder::default());
        let shown = Arc::clone(&sink);
        let error = follow::<(), _>(&sink, quiet, |_, _, signals| async move {
            signals.send(Signal::Interrupt).await.unwrap();
            signals.send(Signal::Terminate).await.unwrap();
            if !quiet {
                shown.has_stderr("SIGINT").await;
            }
            shown.has_stderr("once more").await;
            signals.send(Signal::Terminate).await.unwrap();
            std::future::pending().await
        })
        .unwrap_err();
        assert!(matches!(error, CliError::Abandoned(Signal::Interrupt)), "{error:?}");
        assert!(sink.stderr().contains("still cleaning up; interrupt once more"), "{}", sink.stderr());
        assert_eq!(sink.stderr().contains("SIGINT"), !quiet);
    }
}

#[test]
fn a_result_that_beat_the_signal_counts() {
    let sink = Arc::new(Recorder::default());
    let (value, _) = follow(&sink, false, |_, cancel, signals| async move {
        signals.send(Signal::Interrupt).await.unwrap();
        cancel.cancelled().await;
        Ok(3)
    })
    .unwrap();
    assert_eq!(value, 3);
}

/// A guest that writes without end until it is cancelled.
async fn endless(events: Events, cancel: CancellationToken) -> Result<(), Error> {
    while !cancel.is_cancelled() {
        events.send(output(OutputStream::Stdout, b"y\n")).await;
    }
    Err(Error::cancelled())
}

#[test]
fn a_reader_that_goes_away_stops_the_run_in_silence() {
    let sink = Recorder::with_stdout(Behaviour::Fails(io::ErrorKind::BrokenPipe));
    let error = follow(&sink, false, |events, cancel, _| endless(events, cancel)).unwrap_err();
    assert_eq!(error.exit(), Exit::BrokenPipe);
    assert!(Report::of(&error).is_none());
    assert_eq!(sink.stderr(), "");
}

#[test]
fn a_full_disk_behind_stdout_stops_the_run_with_a_message() {
    let sink = Recorder::with_stdout(Behaviour::Fails(io::ErrorKind::StorageFull));
    let error = follow(&sink, false, |events, cancel, _| endless(events, cancel)).unwrap_err();
    assert_eq!(error.exit(), Exit::Failure);
    assert!(Report::of(&error).unwrap().human().contains("cannot write to standard output"));
}

#[test]
fn lost_output_is_an_error_even_if_the_command_succeeded() {
    let sink = Recorder::with_stdout(Behaviour::Fails(io::ErrorKind::StorageFull));
    let error = follow(&sink, false, |events, _, _| async move {
        events.send(output(OutputStream::Stdout, b"lost")).await;
        Ok(())
    })
    .unwrap_err();
    assert!(matches!(error, CliError::Output(_)), "{error:?}");
}

#[test]
fn a_pipe_that_nobody_empties_does_not_hold_up_a_signal() {
    let sink = Recorder::with_stdout(Behaviour::Hangs);
    let error = follow(&sink, false, |events, cancel, signals| async move {
        signals.send(Signal::Terminate).await.unwrap();
        endless(events, cancel).await
    })
    .unwrap_err();
    assert_eq!(error.exit().code(), 143);
    assert!(Report::of(&error).is_none());
}

#[test]
fn a_failure_of_the_engine_is_passed_on() {
    let sink = Arc::new(Recorder::default());
    let error = follow::<(), _>(&sink, false, |_, _, _| async {
        Err(Error::new(ErrorKind::BootFailed, "no kernel"))
    })
    .unwrap_err();
    assert!(matches!(error, CliError::Engine(_)));
    assert_eq!(error.exit(), Exit::Failure);
}

#[test]
fn a_name_in_a_change_does_not_control_the_terminal() {
    let change = FileChange {
        change: ChangeKind::Moved,
        path: "b\u{9b}2J\n".to_owned(),
        old_path: Some("a\u{202e}\u{1b}".to_owned()),
    };
    for as_json in [true, false] {
        let line = String::from_utf8(change_line(&change, as_json)).unwrap();
        let shown = line.strip_suffix('\n').unwrap();
        assert!(shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
    }
    let line = change_line(&change, true);
    assert_eq!(serde_json::from_slice::<FileChange>(&line).unwrap(), change);
}
