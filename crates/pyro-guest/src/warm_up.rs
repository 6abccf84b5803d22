//! Runs programs that nearly every command needs, so that a template holds their pages.

use std::sync::Arc;
use std::time::Duration;

use pyro_wire::Exec;

use crate::exec::{Commands, run_silently};

/// Programs that only read. Nothing that makes keys, random numbers or temporary files may be here: every
/// machine restored from the template would share them.
const PROGRAMS: [&str; 3] = ["true", "git --version", "python3 -S -c pass"];
/// The home directory, so that they and the login shell read no files of a user.
const NO_HOME: &str = "/nonexistent";
/// How long a program may take. An emulated machine on a busy host is slow.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs each program in the way commands are run, which also reads the profile of the login shell. Then writes everything
/// to disk: the layer's image is saved together with the memory.
pub(crate) async fn run(commands: &Arc<Commands>) {
    run_programs(&PROGRAMS, commands).await;
    rustix::fs::sync();
}

/// Runs each program. One that is not in the image is skipped.
async fn run_programs(programs: &[&str], commands: &Arc<Commands>) {
    for program in programs {
        let env = [("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned())].into();
        let exec = Exec { cwd: "/".to_owned(), env, kill_grace_ms: 0, ..Exec::new(*program, LIMIT) };
        run_silently(exec, NO_HOME, commands).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CommandSettings;

    #[tokio::test]
    async fn a_program_that_fails_or_is_missing_does_not_keep_the_next_from_running() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let last = format!("pwd > {0}; echo $HOME >> {0}; cat >> {0}", mark.display());
        let commands =
            Arc::new(Commands::new(CommandSettings::new(std::fs::File::open("/dev/null").unwrap())));
        run_programs(&["no-such-program-here", "exit 3", &last], &commands).await;
        assert_eq!(std::fs::read_to_string(mark).unwrap(), "/\n/nonexistent\n");
    }
}
