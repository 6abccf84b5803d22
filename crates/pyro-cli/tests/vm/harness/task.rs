//! Tasks, used through the command line by independent processes.

use serde_json::Value;

use super::{ENVIRONMENT, Ended, Running, Sandbox};

/// A task of a sandbox. It is deleted by the test, not by its drop.
pub(crate) struct Task<'a> {
    sandbox: &'a Sandbox,
    pub(crate) id: String,
}

impl Sandbox {
    /// A task whose creating process has ended.
    pub(crate) fn task<'a>(&'a self, flags: impl IntoIterator<Item = &'a str>) -> Task<'a> {
        let created = self.pyro(["task", "create", ENVIRONMENT, "--json"].into_iter().chain(flags));
        assert_eq!(created.code(), 0, "{created:?}");
        Task { sandbox: self, id: created.json()["task_id"].as_str().unwrap().to_owned() }
    }
}

impl Task<'_> {
    /// `pyro task WORD ID` with more words, started.
    pub(crate) fn start<'a>(&'a self, word: &'a str, more: impl IntoIterator<Item = &'a str>) -> Running {
        self.sandbox.start(["task", word, &self.id].into_iter().chain(more))
    }

    /// The same, run to its end.
    pub(crate) fn call<'a>(&'a self, word: &'a str, more: impl IntoIterator<Item = &'a str>) -> Ended {
        self.start(word, more).finish()
    }

    /// `pyro task exec` of one shell line, started.
    pub(crate) fn start_exec<'a>(
        &'a self,
        flags: impl IntoIterator<Item = &'a str>,
        line: &'a str,
    ) -> Running {
        self.start("exec", flags.into_iter().chain(["--", line]))
    }

    /// `pyro task exec` of one shell line, run to its end.
    pub(crate) fn exec<'a>(&'a self, flags: impl IntoIterator<Item = &'a str>, line: &'a str) -> Ended {
        self.start_exec(flags, line).finish()
    }

    /// Begins a command without waiting for it, and returns its number.
    pub(crate) fn detach(&self, line: &str) -> u64 {
        let flags = ["--detach", "--json", "--timeout-seconds", "500"];
        self.exec(flags, line).json()["sequence"].as_u64().unwrap()
    }

    /// `pyro task status`.
    pub(crate) fn status(&self) -> Value {
        self.call("status", ["--json"]).json()
    }

    /// The entries of the journal.
    pub(crate) fn logs(&self) -> Vec<Value> {
        let logs = self.call("logs", ["--json"]).json();
        let entries = logs["entries"].as_array().unwrap().clone();
        assert_eq!(logs["count"], entries.len());
        entries
    }

    pub(crate) fn delete(self) {
        assert_eq!(self.call("delete", []).success(), format!("Deleted task: {}\n", self.id));
    }
}
