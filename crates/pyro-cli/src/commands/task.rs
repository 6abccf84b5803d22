//! `pyro task`.

mod copy;
mod render;

use pyro_engine::operations::ExecTask;
use pyro_engine::{
    Command, Engine, EngineError, ErrorKind, Hint, Outcome, OutputMode, TaskLogEntry, TaskSpec, VmSpec,
};

use crate::args::{TaskCommand, TaskCreateArgs, TaskExecArgs, TaskLogsArgs};
use crate::error_report::CliError;
use crate::exit::Exit;
use crate::printer::Printer;
use crate::session;
use crate::words;

pub(crate) fn run(command: TaskCommand, printer: &Printer) -> Result<Exit, CliError> {
    let json = command.wants_json();
    let engine = super::engine()?;
    let show = |task: &pyro_engine::Task| match json {
        true => printer.json(task),
        false => printer.text(&render::task(task)),
    };
    match command {
        TaskCommand::Create(args) => return create(args, printer),
        TaskCommand::Exec(args) => return exec(args, printer),
        TaskCommand::Logs(args) => return logs(args, printer),
        TaskCommand::Cp(args) => return copy::run(args, printer),
        TaskCommand::Wait(args) => {
            let (id, sequence) = (args.command.task.task_id, args.command.sequence);
            let (entry, _) = session::block_on(session::watch(printer, json, |_, cancel| async move {
                engine.wait_task(&id, sequence, &cancel).await.map(|entry| (id, entry))
            }))?;
            return waited(&entry.0, &entry.1, json, printer);
        }
        TaskCommand::Kill(args) => {
            let id = args.command.task.task_id;
            let entry = session::block_on(async { Ok(engine.kill_task(&id, args.command.sequence).await?) })?;
            match json {
                true => printer.json(&entry)?,
                false => printer.text(&render::killed(&entry))?,
            }
        }
        TaskCommand::List(_) => {
            let list = session::block_on(async { Ok(engine.list_tasks().await?) })?;
            match json {
                true => printer.json(&list)?,
                false => printer.text(&render::list(&list, super::now()))?,
            }
        }
        TaskCommand::Start(args) => {
            let id = args.task.task_id;
            let (task, _) = session::block_on(session::watch(printer, json, |events, cancel| async move {
                engine.start_task(&id, &events, &cancel).await
            }))?;
            show(&task)?;
        }
        TaskCommand::Status(args) => {
            show(&session::block_on(async { Ok(engine.status_task(&args.task.task_id).await?) })?)?;
        }
        TaskCommand::Extend(args) => show(&session::block_on(async {
            Ok(engine.extend_task(&args.task.task_id, args.ttl_seconds).await?)
        })?)?,
        TaskCommand::Stop(args) => {
            show(&session::block_on(async { Ok(engine.stop_task(&args.task.task_id).await?) })?)?;
        }
        TaskCommand::Delete(args) => {
            let deleted = session::block_on(async { Ok(engine.delete_task(&args.task.task_id).await?) })?;
            match json {
                true => printer.json(&deleted)?,
                false => printer.text(&format!("Deleted task: {}\n", deleted.task_id))?,
            }
        }
    }
    Ok(Exit::Success)
}

fn create(args: TaskCreateArgs, printer: &Printer) -> Result<Exit, CliError> {
    super::warn_of_network(args.network, printer);
    let engine = super::engine()?;
    let spec = TaskSpec {
        vm: VmSpec {
            environment: args.environment,
            vcpu_count: args.vcpu_count,
            mem_mib: args.mem_mib,
            ttl_seconds: args.ttl_seconds,
            network: args.network,
            allow_host_compat: args.allow_host_compat,
        },
        disk_mib: args.disk_mib,
    };
    let (task, _) = session::block_on(session::watch(printer, args.json, |events, cancel| async move {
        engine.create_task(spec, &events, &cancel).await
    }))?;
    match args.json {
        true => printer.json(&task)?,
        false => printer.text(&render::task(&task))?,
    }
    Ok(Exit::Success)
}

fn exec(args: TaskExecArgs, printer: &Printer) -> Result<Exit, CliError> {
    let engine = super::engine()?;
    let command = Command {
        command: words::join(&args.words)?,
        timeout_seconds: args.timeout_seconds,
        cwd: args.cwd,
        env: args.env.into_iter().collect(),
    };
    let id = args.task_id;
    if args.detach {
        let detached = session::block_on(async { Ok(engine.detach_task(&id, command).await?) })?;
        match args.json {
            true => printer.json(&detached)?,
            false => printer.text(&format!("Sequence: {}\n", detached.sequence))?,
        }
        return Ok(Exit::Success);
    }
    // People see the output as it comes; a program gets it in the document, after the end.
    let output = if args.json { OutputMode::Capture } else { OutputMode::Stream };
    let request = ExecTask { task: id.as_str().into(), command, output: output.into() };
    let (result, shown) =
        session::block_on(session::watch(printer, args.json, |events, cancel| async move {
            engine.exec_task(request, &events, &cancel).await
        }))?;
    if args.json {
        printer.json(&result)?;
    } else {
        shown.end_line(printer);
        printer.note(&render::ran(&result));
    }
    Ok(Exit::of_run(result.exit_code, result.timed_out))
}

fn logs(args: TaskLogsArgs, printer: &Printer) -> Result<Exit, CliError> {
    let engine = super::engine()?;
    let (id, json) = (args.task.task_id, args.task.json);
    if !args.follow {
        match json {
            true => printer
                .json(&session::block_on(async { Ok(engine.logs_task(&id, args.sequence).await?) })?)?,
            false => session::block_on(journal(&engine, &id, args.sequence, printer))?,
        }
        return Ok(Exit::Success);
    }
    let (followed, shown) = session::block_on(session::watch(printer, json, |events, cancel| async move {
        let sequence = match args.sequence {
            Some(sequence) => sequence,
            None => match engine.status_task(&id).await?.command_count {
                0 => return Err(no_commands(&id)),
                latest => latest,
            },
        };
        let entry = match json {
            true => engine.wait_task(&id, sequence, &cancel).await?,
            false => engine.follow_task(&id, sequence, &events, &cancel).await?,
        };
        Ok((id, entry))
    }))?;
    let (id, entry) = followed;
    match json {
        true => printer.json(&entry)?,
        false => {
            shown.end_line(printer);
            printer.note(&render::ended(&id, &entry));
        }
    }
    Ok(Exit::Success)
}

fn no_commands(id: &str) -> EngineError {
    EngineError::new(ErrorKind::InvalidInput, format!("task {id} has not run any command"))
        .hint(Hint::RunFirst)
}

/// The journal for people, one entry after another: altogether it may be large. What went to stderr goes there again.
async fn journal(
    engine: &Engine,
    id: &str,
    sequence: Option<u64>,
    printer: &Printer,
) -> Result<(), CliError> {
    let wanted = match sequence {
        Some(sequence) => sequence..=sequence,
        None => 1..=engine.status_task(id).await?.command_count,
    };
    if wanted.is_empty() {
        printer.text("No task logs found.\n")?;
    }
    for number in wanted {
        let logs = match engine.logs_task(id, Some(number)).await {
            Ok(logs) => logs,
            Err(error) if sequence.is_some() || error.kind == ErrorKind::NotFound => return Err(error.into()),
            Err(error) => {
                printer.note(&format!("[warning] #{number} cannot be shown: {error}"));
                continue;
            }
        };
        for entry in &logs.entries {
            printer.text(&render::entry(entry))?;
            let stderr = entry.stderr.as_bytes();
            if !stderr.is_empty() {
                printer.recorded_stderr(stderr)?;
            }
        }
    }
    Ok(())
}

/// Says how a command ended, and ends the way it did.
fn waited(id: &str, entry: &TaskLogEntry, json: bool, printer: &Printer) -> Result<Exit, CliError> {
    match json {
        true => printer.json(entry)?,
        false => printer.note(&render::ended(id, entry)),
    }
    Ok(match (entry.exit_code, entry.outcome) {
        (Some(code), Outcome::Exited | Outcome::Killed) => Exit::of_run(code, entry.timed_out),
        _ => Exit::Failure,
    })
}
