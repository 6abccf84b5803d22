//! Keeps what a guest was denied in a file, whose size is bounded.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use pyro_network::{Denial, Denials, MAX_EVENT_BYTES};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// Size from which the file is written again, with one line for each denial.
const MAX_FILE_BYTES: u64 = 256 << 10;

/// Reads events and writes them to a file, in a task of its own. Dropping it ends that.
#[derive(Debug)]
pub(super) struct DenialKeeper(JoinHandle<()>);

impl DenialKeeper {
    pub(super) fn start(events: OwnedFd, path: &Path) -> io::Result<Self> {
        let events = pipe::Receiver::from_owned_fd(events)?;
        let mut file = DenialFile { file: File::create(path)?, bytes: 0, denials: Denials::default() };
        Ok(Self(tokio::spawn(async move {
            let mut events = BufReader::new(events);
            let mut line = Vec::new();
            while let Ok(1..) = (&mut events).take(MAX_EVENT_BYTES).read_until(b'\n', &mut line).await {
                // The process that writes them has read bytes of the guest.
                if let Ok(denial) = serde_json::from_slice::<Denial>(&line)
                    && let Err(error) = file.add(denial)
                {
                    tracing::warn!(%error, "a denial could not be written");
                }
                line.clear();
            }
        })))
    }
}

impl Drop for DenialKeeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct DenialFile {
    file: File,
    bytes: u64,
    denials: Denials,
}

impl DenialFile {
    fn add(&mut self, denial: Denial) -> io::Result<()> {
        let mut text = line_of(&denial)?;
        self.denials.replace(denial);
        if self.bytes + text.len() as u64 > MAX_FILE_BYTES {
            self.file.set_len(0)?;
            self.file.seek(SeekFrom::Start(0))?;
            self.bytes = 0;
            let lines = self.denials.iter().map(line_of).collect::<io::Result<Vec<_>>>()?;
            text = lines.concat();
        }
        self.file.write_all(&text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }
}

fn line_of(denial: &Denial) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(denial)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_does_not_grow_without_bound() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut denials = DenialFile { file: file.reopen().unwrap(), bytes: 0, denials: Denials::default() };
        for count in 0..20_000_u64 {
            let line = format!(
                r#"{{"time":1,"protocol":"tcp","address":"10.0.0.1","port":{},"rule":"private","count":{count}}}"#,
                count % 1000
            );
            denials.add(serde_json::from_str(&line).unwrap()).unwrap();
            assert!(file.as_file().metadata().unwrap().len() <= MAX_FILE_BYTES);
        }
        let read = Denials::read(file.reopen().unwrap()).unwrap();
        let latest = read.iter().next_back().unwrap();
        assert_eq!((latest.port, latest.count), (Some(999), 19_999));
    }
}
