//! Contents of single files of a task: small files that a person or a model reads and writes.

use pyro_api::NewFile;
use pyro_supervisor::{ArchiveLimits, Pack, Unpack};
use tokio_util::sync::CancellationToken;

use super::files::{check_path, copy_error};
use crate::engine::{Engine, unless_cancelled};
use crate::limits::MAX_FILE_BYTES;
use crate::operations::WriteTaskFile;
use crate::{Error, FileContent, FileEncoding, FileRange, Hint, TaskFile, TaskFileWritten};

const LIMITS: ArchiveLimits = ArchiveLimits { max_entries: 1, max_bytes: MAX_FILE_BYTES };

impl Engine {
    /// Returns part of a file of a task, as text if it is UTF-8. `path` is relative to `/workspace` unless it is
    /// absolute.
    ///
    /// # Errors
    /// `FileFailed` if the file does not exist or is larger than 16 MiB; otherwise as [`Engine::copy_from_task`].
    pub async fn read_task_file(
        &self,
        task_id: &str,
        path: &str,
        range: FileRange,
        cancel: &CancellationToken,
    ) -> Result<TaskFile, Error> {
        let (id, guest) = self.guest_of_task(task_id).await?;
        check_path(path)?;
        let pack = Pack { path: path.to_owned(), limits: LIMITS };
        let read = async {
            guest
                .read_file(pack)
                .await
                .map_err(|error| copy_error(&id, error).hint(Hint::UseCommandsForFiles))
        };
        let bytes = unless_cancelled(cancel, read).await?;
        let (content, next_offset) = part(&bytes, range);
        Ok(TaskFile {
            task_id: id,
            path: path.to_owned(),
            size_bytes: bytes.len() as u64,
            offset: range.offset,
            content: content.text,
            encoding: content.encoding,
            next_offset,
        })
    }

    /// Creates or replaces a file of a task, and creates its missing parent directories. An existing file is replaced
    /// atomically or not at all. The file has mode 0644, or 0755 with `executable`.
    ///
    /// # Errors
    /// `InvalidInput` if `content` does not have the encoding that it names or is larger than 16 MiB; otherwise as
    /// [`Engine::copy_to_task`].
    pub async fn write_task_file(
        &self,
        request: WriteTaskFile,
        cancel: &CancellationToken,
    ) -> Result<TaskFileWritten, Error> {
        let NewFile { path, content, encoding, executable } = request.file;
        let bytes = FileContent { text: content, encoding }.decode()?;
        let (id, guest) = self.guest_of_task(&request.task.task_id).await?;
        check_path(&path)?;
        let (mode, size) = (if executable { 0o755 } else { 0o644 }, bytes.len() as u64);
        let unpack = Unpack { path: path.clone(), name: String::new(), limits: LIMITS, exact: true };
        let write =
            async { guest.write_file(bytes, mode, unpack).await.map_err(|error| copy_error(&id, error)) };
        unless_cancelled(cancel, write).await?;
        Ok(TaskFileWritten { task_id: id, path, bytes: size })
    }
}

/// Returns the part of a file in `range`, and the offset of the rest.
fn part(bytes: &[u8], range: FileRange) -> (FileContent, Option<u64>) {
    let index = |position: u64| usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
    let (start, mut end) = (index(range.offset), index(range.offset.saturating_add(range.max_bytes)));
    let text = match std::str::from_utf8(&bytes[start..end]) {
        Ok(text) => Some(text),
        // The last character is cut in two; return it with the rest.
        Err(cut) if cut.error_len().is_none() && end < bytes.len() && cut.valid_up_to() > 0 => {
            end = start + cut.valid_up_to();
            std::str::from_utf8(&bytes[start..end]).ok()
        }
        Err(_) => None,
    };
    let content = match text {
        Some(text) => FileContent { text: text.to_owned(), encoding: FileEncoding::Utf8 },
        None => FileContent::base64(&bytes[start..end]),
    };
    (content, (end < bytes.len()).then_some(end as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_is_text_and_anything_else_base64() {
        let all = FileRange { offset: 0, max_bytes: 100 };
        let (content, next) = part("käse".as_bytes(), all);
        assert_eq!((content.text.as_str(), content.encoding, next), ("käse", FileEncoding::Utf8, None));
        let (content, next) = part(&[0xff, 0], all);
        assert_eq!((content.text.as_str(), content.encoding, next), ("/wA=", FileEncoding::Base64, None));
        // The range ends within a character.
        let (content, next) = part("käse".as_bytes(), FileRange { offset: 0, max_bytes: 2 });
        assert_eq!((content.text.as_str(), next), ("k", Some(1)));
        let (content, next) = part(b"x", FileRange { offset: u64::MAX, max_bytes: u64::MAX });
        assert_eq!((content.text.as_str(), next), ("", None));
    }

    proptest! {
        #[test]
        fn the_parts_are_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..200), max_bytes in 1u64..50) {
            let (mut whole, mut offset) = (Vec::new(), Some(0));
            while let Some(start) = offset {
                let (content, next) = part(&bytes, FileRange { offset: start, max_bytes });
                whole.extend(content.decode().unwrap());
                prop_assert!(next.is_none_or(|next| next > start));
                offset = next;
            }
            prop_assert_eq!(whole, bytes);
        }
    }
}
