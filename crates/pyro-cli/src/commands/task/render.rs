//! Tasks as text for people.

use pyro_engine::{Outcome, Task, TaskExec, TaskList, TaskLogEntry};

/// `create`, `status` and whatever else gives a task back. The contract's lines come first.
pub(super) fn task(task: &Task) -> String {
    let mut lines = vec![
        format!("Task ID: {}", task.task_id),
        format!("Environment: {}", task.environment),
        format!("State: {}", task.state),
        format!("Workspace: {}", task.workspace_path),
        format!("Execution mode: {}", task.execution_mode),
        format!("Resources: {} vCPU / {} MiB", task.vcpu_count, task.mem_mib),
        format!("Command count: {}", task.command_count),
    ];
    if let Some(last) = &task.last_command {
        lines.push(format!("Last command: {} (exit_code={})", one_line(&last.command), last.exit_code));
    }
    if let Some(disk_mib) = task.disk_mib {
        lines.push(format!("Disk: {} MiB used of {disk_mib} MiB", mib(task.disk_used_bytes)));
    }
    if let Some(reason) = task.stop_reason {
        lines.push(format!("Stop reason: {reason}"));
    }
    if let Some(error) = &task.last_error {
        lines.push(format!("Last error: {}", error.trim_end().replace('\n', "\n    ")));
    }
    lines.join("\n") + "\n"
}

/// One line per task: id, state, environment, age, time left.
pub(super) fn list(list: &TaskList, now: f64) -> String {
    if list.count == 0 {
        return "No tasks found.\n".to_owned();
    }
    let row = |task: &Task| {
        let left = if task.stop_reason.is_some() { "-".to_owned() } else { duration(task.expires_at - now) };
        format!(
            "{} {:<8} {:<16} age={} left={left} commands={}\n",
            task.task_id,
            task.state,
            task.environment,
            duration(now - task.created_at),
            task.command_count
        )
    };
    let mut text: String = list.tasks.iter().map(row).collect();
    for id in &list.damaged_task_ids {
        text.push_str(&format!("{id} damaged\n"));
    }
    text
}

/// The summary of `exec`.
pub(super) fn ran(result: &TaskExec) -> String {
    format!(
        "[task-exec] task_id={} sequence={} cwd={} execution_mode={} exit_code={} duration_ms={}",
        result.task_id,
        result.sequence,
        result.cwd,
        result.execution_mode,
        result.exit_code,
        result.duration_ms
    )
}

/// The same for a command that was waited for.
pub(super) fn ended(id: &str, entry: &TaskLogEntry) -> String {
    format!(
        "[task-exec] task_id={id} sequence={} cwd={} execution_mode={} {}",
        entry.sequence,
        entry.cwd,
        entry.execution_mode,
        end(entry)
    )
}

/// The answer of `kill`.
pub(super) fn killed(entry: &TaskLogEntry) -> String {
    let did = if entry.outcome == Outcome::Killed { "Killed" } else { "Not running" };
    format!("{did}: #{} {}\n", entry.sequence, end(entry))
}

/// One entry of the journal and its standard output.
pub(super) fn entry(entry: &TaskLogEntry) -> String {
    let stdout = entry.stdout.to_text();
    let mut text = format!(
        "#{} {} cwd={}{}\n$ {}\n{stdout}",
        entry.sequence,
        end(entry),
        entry.cwd,
        kept_part(entry),
        entry.command
    );
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// How a command ended, or what else became of it.
fn end(entry: &TaskLogEntry) -> String {
    let mut text = match (entry.exit_code, entry.duration_ms) {
        (Some(code), Some(duration)) => format!("exit_code={code} duration_ms={duration}"),
        _ => format!("outcome={}", entry.outcome),
    };
    if entry.outcome == Outcome::Killed {
        text.push_str(" outcome=killed");
    }
    if let Some(error) = &entry.error {
        text.push_str(&format!(" error={error:?}"));
    }
    text
}

/// What is missing from the kept output, if something is.
fn kept_part(entry: &TaskLogEntry) -> String {
    let missing = [("stdout", entry.stdout_truncated), ("stderr", entry.stderr_truncated)];
    missing
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(stream, bytes)| format!(" {stream}_truncated={bytes}"))
        .collect()
}

fn one_line(text: &str) -> String {
    text.replace('\n', "\\n")
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// `1h 2m`, `3m 4s`, `5s`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, _) => format!("{h}h{m}m"),
    }
}

#[cfg(test)]
mod tests;
