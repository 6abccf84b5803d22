//! Shows on stderr what takes long: an environment's installation as a bar for people and as lines for log files, and the
//! start of a VM as lines.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pyro_engine::PullEvent;

use crate::printer::Printer;
use crate::text::printable;

/// Time between two lines about the same step of a start.
const SAME_STEP_SECONDS: u64 = 15;

/// Shows the start of one VM.
#[derive(Default)]
pub(crate) struct StartProgress {
    /// The step of the last line, and when that was, in seconds since the start began.
    last: Option<(String, u64)>,
}

impl StartProgress {
    /// Returns the line about this step of the start, unless the last one says nearly the same.
    pub(crate) fn line(&mut self, step: String, seconds: u64) -> Option<String> {
        let is_known = |(last, then): &(String, u64)| {
            *last == step && (*then..*then + SAME_STEP_SECONDS).contains(&seconds)
        };
        if self.last.as_ref().is_some_and(is_known) {
            return None;
        }
        let line = format!("[vm] {step} ({seconds} s)");
        self.last = Some((step, seconds));
        Some(line)
    }
}

/// Shows one installation after another.
pub(crate) struct PullProgress<'a> {
    printer: &'a Printer,
    bar: Option<ProgressBar>,
    /// The last step shown and its completed tenths: a log file gets at most one line per tenth.
    last_line: Option<(String, u64)>,
}

impl<'a> PullProgress<'a> {
    pub(crate) fn new(printer: &'a Printer) -> Self {
        Self { printer, bar: None, last_line: None }
    }

    pub(crate) fn show(&mut self, event: PullEvent) {
        match event {
            PullEvent::Started { environment } => {
                self.clear();
                self.printer.note(&format!("[pull] phase=install environment={environment}"));
                if self.printer.stderr_is_terminal() {
                    self.bar = Some(new_bar());
                }
            }
            PullEvent::Step { text, done, total } => match &self.bar {
                Some(bar) => {
                    bar.set_length(total);
                    bar.set_position(done);
                    bar.set_message(printable(&text).into_owned());
                }
                None => {
                    if let Some(line) = next_line(&mut self.last_line, text, done, total) {
                        self.printer.note(&line);
                    }
                }
            },
            PullEvent::Ready { environment } => {
                self.clear();
                self.printer.note(&format!("[pull] phase=ready environment={environment}"));
            }
        }
    }

    /// Prints another line without breaking the bar.
    pub(crate) fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.printer.note(line)),
            None => self.printer.note(line),
        }
    }

    fn clear(&mut self) {
        self.last_line = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for PullProgress<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {wide_msg} [{bar:24}] {percent:>3}% {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style);
    // A step may take long without progress; the clock shows that pyro is alive.
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Returns the line for a step, if it differs enough from the last. A `total` of 0 means that it is unknown.
fn next_line(last: &mut Option<(String, u64)>, text: String, done: u64, total: u64) -> Option<String> {
    let tenths = (u128::from(done.min(total)) * 10).checked_div(u128::from(total)).map_or(0, |t| t as u64);
    if last.as_ref().is_some_and(|(last_text, last_tenths)| *last_text == text && tenths <= *last_tenths) {
        return None;
    }
    let line = if total == 0 { format!("[pull] {text}") } else { format!("[pull] {text} {}%", tenths * 10) };
    *last = Some((text, tenths));
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_start_is_shown_when_a_step_begins_and_now_and_then() {
        let mut progress = StartProgress::default();
        let steps =
            [("kernel", 5), ("kernel", 10), ("kernel", 19), ("kernel", 20), ("guest", 22), ("guest", 3)];
        let lines: Vec<_> =
            steps.into_iter().filter_map(|(step, seconds)| progress.line(step.to_owned(), seconds)).collect();
        assert_eq!(
            lines,
            ["[vm] kernel (5 s)", "[vm] kernel (20 s)", "[vm] guest (22 s)", "[vm] guest (3 s)"]
        );
    }

    #[test]
    fn a_log_file_gets_a_line_per_step_and_tenth() {
        let mut last = None;
        let mut lines = Vec::new();
        let steps =
            [("index", 0, 0), ("index", 5, 0), ("get", 0, 1000), ("get", 99, 1000), ("get", 100, 1000)];
        let more =
            [("get", 990, 1000), ("get", 1000, 1000), ("get", 2000, 1000), ("unpack", u64::MAX, u64::MAX)];
        for (text, done, total) in steps.into_iter().chain(more) {
            lines.extend(next_line(&mut last, text.to_owned(), done, total));
        }
        insta::assert_snapshot!(lines.join("\n"), @r"
        [pull] index
        [pull] get 0%
        [pull] get 10%
        [pull] get 90%
        [pull] get 100%
        [pull] unpack 100%
        ");
    }
}
