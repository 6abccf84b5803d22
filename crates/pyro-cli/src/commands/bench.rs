//! `pyro bench`.

use std::collections::BTreeMap;
use std::time::Instant;

use clap::Args;
use pyro_engine::operations::{ExecVm, RunInVm};
use pyro_engine::{CallContext, Command, Engine, Error, Events, VmSpec};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::error::CliError;
use crate::printer::Printer;
use crate::reply::Reply;
use crate::{config, session};

const BENCH_EXAMPLES: &str = "\
Examples:
  pyro bench
  pyro bench --runs 20
  pyro bench --json | jq .results.run.median_ms";

/// Measure how fast VMs start and run a command on this machine
///
/// Starts VMs of debian:12, up to four at once, which takes a minute under emulation. Installs the
/// environment first if it is missing. All VMs are removed again.
#[derive(Debug, Args)]
#[command(after_help = BENCH_EXAMPLES)]
pub(crate) struct BenchArgs {
    /// Number of measurements of each operation, 1 to 1000
    #[arg(long, value_name = "COUNT", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    /// Print one JSON document on stdout instead of text [default: off]
    #[arg(long)]
    pub(crate) json: bool,
}

const ENVIRONMENT: &str = "debian:12";

/// The results, and on what they were measured.
#[derive(Debug, Serialize)]
struct Report {
    environment: &'static str,
    /// Accelerator of the measured VMs; absent if it is unknown.
    accelerator: Option<String>,
    /// How a new VM starts on this host: `template` or `cold`.
    start_mode: Option<String>,
    runs: u32,
    results: BTreeMap<&'static str, Times>,
}

/// Median and quartiles of one operation.
#[derive(Debug, Serialize)]
struct Times {
    median_ms: f64,
    p25_ms: f64,
    p75_ms: f64,
}

impl Times {
    /// Returns `None` if there are no samples.
    fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let last = samples.len().checked_sub(1)?;
        // Between two neighbours where the quantile falls between them.
        let quantile = |fourths: usize| {
            let (below, rest) = (last * fourths / 4, (last * fourths % 4) as f64 / 4.0);
            let exact = samples[below] + rest * (samples[last.min(below + 1)] - samples[below]);
            // Round to microseconds: the measurement is not more precise.
            (exact * 1e3).round() / 1e3
        };
        Some(Self { median_ms: quantile(2), p25_ms: quantile(1), p75_ms: quantile(3) })
    }
}

pub(crate) fn run(args: &BenchArgs, printer: &Printer) -> Result<Reply, CliError> {
    let engine = config::engine()?;
    let (report, _) = session::watch(printer, true, |events, cancel| async move {
        Bench { engine, events, cancel, report: Report::new(args.runs), samples: BTreeMap::new() }.run().await
    })?;
    Ok(Reply::of(args.json, &report, text)?)
}

/// The rows of the table, in order.
const ROWS: [(&str, &str); 6] = [
    ("run", "run `true` in a new VM, and remove it"),
    ("run_2_at_once", "two runs at once"),
    ("run_4_at_once", "four runs at once"),
    ("create_and_start", "create a VM and start it"),
    ("start_from_kernel", "start a VM from its kernel"),
    ("exec_and_remove", "run `true` in it and remove it"),
];

fn text(report: &Report) -> String {
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

impl Report {
    fn new(runs: u32) -> Self {
        Self { environment: ENVIRONMENT, accelerator: None, start_mode: None, runs, results: BTreeMap::new() }
    }
}

struct Bench {
    engine: Engine,
    events: Events,
    cancel: CancellationToken,
    report: Report,
    samples: BTreeMap<&'static str, Vec<f64>>,
}

impl Bench {
    async fn run(mut self) -> Result<Report, Error> {
        // The first VM of each kind also makes its template; do not count that.
        self.turn().await?;
        self.samples.clear();
        for _ in 0..self.report.runs {
            self.turn().await?;
        }
        for (name, samples) in self.samples {
            self.report.results.extend(Times::of(samples).map(|times| (name, times)));
        }
        Ok(self.report)
    }

    /// Measures everything once, in turn, so that a change in the host's load affects all results alike.
    async fn turn(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        self.one_shot().await?;
        self.took("run", started);
        let started = Instant::now();
        self.two_at_once().await?;
        self.took("run_2_at_once", started);
        let started = Instant::now();
        let (first, second) = tokio::join!(self.two_at_once(), self.two_at_once());
        first.and(second)?;
        self.took("run_4_at_once", started);

        let started = Instant::now();
        let vm = self.engine.create_vm(VmSpec::new(ENVIRONMENT), &self.events, &self.cancel).await?;
        let lived = self.life(vm.vm_id.as_str(), started).await;
        if lived.is_err() {
            // The first error says more than a failure to delete it.
            let _ = self.engine.delete_vm(vm.vm_id.as_str()).await;
        }
        lived
    }

    /// Measures the life of a persistent VM, from its creation to its removal.
    async fn life(&mut self, id: &str, started: Instant) -> Result<(), Error> {
        let vm = self.engine.start_vm(id, &Events::none(), &self.cancel).await?;
        self.took("create_and_start", started);
        self.report.accelerator = vm.accelerator;
        self.report.start_mode = vm.metadata.get("start_mode").cloned();
        self.engine.stop_vm(id).await?;
        // It cannot start from a template again, because its disk has changed.
        let started = Instant::now();
        self.engine.start_vm(id, &Events::none(), &self.cancel).await?;
        self.took("start_from_kernel", started);
        let started = Instant::now();
        let request = ExecVm { vm: id.into(), command: Command::new("true"), output: Default::default() };
        self.engine.exec_vm(request, &CallContext::new(self.events.clone(), self.cancel.clone())).await?;
        self.took("exec_and_remove", started);
        Ok(())
    }

    async fn one_shot(&self) -> Result<(), Error> {
        let spec = VmSpec::new(ENVIRONMENT);
        let request = RunInVm { spec, command: Command::new("true"), output: Default::default() };
        self.engine.run(request, &CallContext::new(self.events.clone(), self.cancel.clone())).await.map(drop)
    }

    async fn two_at_once(&self) -> Result<(), Error> {
        let (first, second) = tokio::join!(self.one_shot(), self.one_shot());
        first.and(second)
    }

    fn took(&mut self, name: &'static str, started: Instant) {
        self.samples.entry(name).or_default().push(started.elapsed().as_secs_f64() * 1e3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantiles(samples: &[f64]) -> Option<[f64; 3]> {
        Times::of(samples.to_vec()).map(|times| [times.p25_ms, times.median_ms, times.p75_ms])
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantiles(&[]), None);
        assert_eq!(quantiles(&[7.0]), Some([7.0, 7.0, 7.0]));
        assert_eq!(quantiles(&[3.0, 1.0]), Some([1.5, 2.0, 2.5]));
        assert_eq!(quantiles(&[5.0, 1.0, 4.0, 2.0, 3.0]), Some([2.0, 3.0, 4.0]));
    }
}
