//! `pyro run`.

use pyro_engine::operations::RunInVm;
use pyro_engine::{Command, Engine, OutputMode, RunResult, VmSpec};

use crate::args::RunArgs;
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::session;
use crate::words;

pub(crate) fn run(args: RunArgs, printer: &Printer) -> Result<Exit, CliError> {
    let command = words::join(&args.words)?;
    let mut config = super::config()?;
    if args.warm {
        config.warm_spares = config.warm_spares.max(1);
    }
    super::warn_of_network(args.network, printer);
    let engine = Engine::new(config);
    let request = request(&args, command);
    let (mut result, shown) =
        session::block_on(session::watch(printer, args.json, |events, cancel| async move {
            engine.run(request, &events, &cancel).await
        }))?;
    if !args.timings {
        result.timings.clear();
    }
    if args.json {
        printer.json(&result)?;
    } else {
        shown.end_line(printer);
        for phase in &result.timings {
            printer.note(&format!("[timing] {:<12}{:9.1} ms", phase.name, phase.ms));
        }
        printer.note(&summary(&result));
    }
    Ok(Exit::of_run(result.exit_code, result.timed_out))
}

/// The arguments in the engine's terms.
fn request(args: &RunArgs, command: String) -> RunInVm {
    let spec = VmSpec {
        environment: args.environment.clone(),
        vcpu_count: args.vcpu_count,
        mem_mib: args.mem_mib,
        ttl_seconds: args.ttl_seconds,
        network: args.network,
        allow_host_compat: args.allow_host_compat,
    };
    // People see the output as it comes; a program gets it in the document, after the end.
    let output = if args.json { OutputMode::Capture } else { OutputMode::Stream };
    let command = Command { timeout_seconds: args.timeout_seconds, ..Command::new(command) };
    RunInVm { spec, command, output: output.into() }
}

fn summary(result: &RunResult) -> String {
    format!(
        "[run] environment={} execution_mode={} exit_code={} duration_ms={}",
        result.environment, result.execution_mode, result.exit_code, result.duration_ms
    )
}
