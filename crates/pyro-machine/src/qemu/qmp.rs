//! QEMU's control protocol, as far as snapshots need it: four commands, one JSON document a line.
//!
//! The crate that generates types for all of QMP would add a few hundred types to the build for these four.

use std::io;
use std::path::Path;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

use crate::platform::MachineError;

/// Longest line that QEMU may send: a guest may have taken it over.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// A control connection past its greeting.
#[derive(Debug)]
pub(crate) struct Qmp(Framed<UnixStream, LinesCodec>);

impl Qmp {
    /// Greets the VMM and prepares it for memory that lives in a file and is not part of the saved state.
    pub(crate) async fn connect(stream: UnixStream) -> Result<Self, MachineError> {
        let mut qmp = Self(Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE_BYTES)));
        qmp.receive().await?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        let capabilities = json!([
            { "capability": "x-ignore-shared", "state": true },
            { "capability": "events", "state": true },
        ]);
        qmp.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
        Ok(qmp)
    }

    /// Saves the state of the devices; the machine is stopped afterwards.
    pub(crate) async fn save(&mut self, file: &Path) -> Result<(), MachineError> {
        self.execute("migrate", channel_to(file)).await?;
        loop {
            let message = self.receive().await?;
            if message["event"] == "MIGRATION" {
                match message["data"]["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some(status @ ("failed" | "cancelled")) => {
                        return Err(MachineError::NotSaved { status: status.to_owned() });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Loads the state of the devices; the machine runs as soon as that is done.
    pub(crate) async fn load(&mut self, file: &Path) -> Result<(), MachineError> {
        self.execute("migrate-incoming", channel_to(file)).await
    }

    async fn execute(&mut self, command: &str, arguments: Value) -> Result<(), MachineError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.0.send(line).await.map_err(connection)?;
        loop {
            let message = self.receive().await?;
            if message.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = message.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(MachineError::Refused { command: command.to_owned(), reason });
            }
            // Anything else is an event.
        }
    }

    async fn receive(&mut self) -> Result<Value, MachineError> {
        let line = self.0.next().await.ok_or(MachineError::Closed)?.map_err(connection)?;
        serde_json::from_str(&line).map_err(MachineError::Malformed)
    }
}

fn connection(error: LinesCodecError) -> MachineError {
    MachineError::Connection(match error {
        LinesCodecError::Io(error) => error,
        other @ LinesCodecError::MaxLineLengthExceeded => io::Error::other(other),
    })
}

/// JSON, because a comma in a path would start another option in the short form.
fn channel_to(file: &Path) -> Value {
    json!({ "channels": [{
        "channel-type": "main",
        "addr": { "transport": "file", "filename": file, "offset": 0 },
    }] })
}

/// Saves and loads with a VMM that sends these bytes, whatever it is asked.
#[cfg(fuzzing)]
pub(crate) async fn converse(bytes: Vec<u8>) {
    use tokio::io::AsyncWriteExt as _;

    for loads in [false, true] {
        let Ok((ours, mut theirs)) = UnixStream::pair() else { return };
        let answer = async {
            let _ = theirs.write_all(&bytes).await;
            // Not dropped: the fuzzer does not ignore SIGPIPE.
            let _ = theirs.shutdown().await;
        };
        let ask = async {
            let Ok(mut qmp) = Qmp::connect(ours).await else { return };
            let _ = match loads {
                true => qmp.load(Path::new("state")).await,
                false => qmp.save(Path::new("state")).await,
            };
        };
        futures::join!(answer, ask);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    use super::*;

    const GREETING: &str = r#"{"QMP": {}}"#;
    const DONE: &str = r#"{"return": {}}"#;

    /// A QEMU that greets, confirms the preparation, and then answers the next command with these lines.
    async fn connect(answers: &[&str]) -> (Qmp, tokio::task::JoinHandle<Vec<Value>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let lines = [&[GREETING, DONE, DONE][..], answers].concat().join("\n") + "\n";
        let qemu = tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            writer.write_all(lines.as_bytes()).await.unwrap();
            let mut commands = Vec::new();
            let mut lines = BufReader::new(reader).lines();
            for _ in 0..3 {
                match lines.next_line().await {
                    Ok(Some(line)) => commands.push(serde_json::from_str(&line).unwrap()),
                    _ => break,
                }
            }
            commands
        });
        (Qmp::connect(ours).await.unwrap(), qemu)
    }

    #[tokio::test]
    async fn state_is_loaded_from_the_file() {
        // A comma would start another option in the short form.
        let (mut qmp, qemu) = connect(&[r#"{"event": "RESUME"}"#, DONE]).await;
        qmp.load(Path::new("/a,b/state")).await.unwrap();
        drop(qmp);
        let commands = qemu.await.unwrap();
        let names: Vec<_> = commands.iter().map(|command| command["execute"].as_str().unwrap()).collect();
        assert_eq!(names, ["qmp_capabilities", "migrate-set-capabilities", "migrate-incoming"]);
        assert_eq!(commands[2]["arguments"]["channels"][0]["addr"]["filename"], "/a,b/state");
    }

    #[tokio::test]
    async fn saving_ends_when_the_migration_does() {
        let status = |status: &str| format!(r#"{{"event": "MIGRATION", "data": {{"status": "{status}"}}}}"#);
        let (mut qmp, _qemu) = connect(&[DONE, &status("active"), &status("completed")]).await;
        qmp.save(Path::new("/state")).await.unwrap();
        let (mut qmp, _qemu) = connect(&[DONE, &status("setup"), &status("failed")]).await;
        let error = qmp.save(Path::new("/state")).await.unwrap_err();
        assert_eq!(error.to_string(), "the VMM could not save its state: failed");
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let load = async |answer: &str| {
            let (mut qmp, _qemu) = connect(&[answer]).await;
            qmp.load(Path::new("/state")).await.unwrap_err()
        };
        let refused = load(r#"{"error": {"class": "GenericError", "desc": "no such file"}}"#).await;
        assert_eq!(refused.to_string(), "the VMM refused migrate-incoming: no such file");
        let malformed = load("{").await;
        assert!(matches!(malformed, MachineError::Malformed(_)), "{malformed}");
        let too_long = load(&format!("\"{}\"", "x".repeat(MAX_LINE_BYTES))).await;
        assert!(matches!(too_long, MachineError::Connection(_)), "{too_long}");
    }

    #[tokio::test]
    async fn a_connection_that_closes_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = Qmp::connect(ours).await.unwrap_err();
        assert!(matches!(error, MachineError::Closed), "{error}");
    }
}
