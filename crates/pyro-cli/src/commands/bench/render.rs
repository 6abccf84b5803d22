//! The measurements as text for people.

use super::Report;

/// In the order in which they are easiest to understand.
const ROWS: [(&str, &str); 6] = [
    ("run", "run `true`, from nothing to nothing left"),
    ("run_2_at_once", "two of them at once"),
    ("run_4_at_once", "four of them at once"),
    ("create_and_start", "create a VM and start it"),
    ("start_from_kernel", "start a VM from its kernel"),
    ("exec_and_remove", "run `true` in it and remove it"),
];

pub(super) fn report(report: &Report) -> String {
    let unknown = "unknown";
    let mut text = format!(
        "Environment: {}\nAccelerator: {}\nNew VMs start from: {}\nRuns: {}\n\n{:42}{:>10}{:>10}{:>10}\n",
        report.environment,
        report.accelerator.as_deref().unwrap_or(unknown),
        match report.start_mode.as_deref() {
            Some("cold") => "their kernel",
            Some("template") => "a template",
            _ => unknown,
        },
        report.runs,
        "ms",
        "median",
        "25 %",
        "75 %",
    );
    for (name, title) in ROWS {
        if let Some(times) = report.results.get(name) {
            text.push_str(&format!(
                "{title:42}{:10.0}{:10.0}{:10.0}\n",
                times.median_ms, times.p25_ms, times.p75_ms
            ));
        }
    }
    text
}
