//! Files and directories that the guest has open.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

/// An open file or directory.
#[derive(Debug)]
pub(crate) struct Handle {
    /// Its node.
    pub(crate) node: u64,
    pub(crate) file: File,
    /// Held while the position of a directory is used.
    pub(crate) position: Mutex<()>,
}

/// Those of a guest, by number.
#[derive(Debug)]
pub(crate) struct Handles {
    table: Mutex<Table>,
    maximum: usize,
}

#[derive(Debug, Default)]
struct Table {
    handles: HashMap<u64, Arc<Handle>>,
    last: u64,
}

impl Handles {
    /// There are at most `maximum`.
    pub(crate) fn new(maximum: usize) -> Self {
        Self { table: Mutex::default(), maximum }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of a new one.
    ///
    /// # Errors
    /// `ENFILE` if there are too many.
    pub(crate) fn add(&self, node: u64, file: File) -> io::Result<u64> {
        let mut table = self.table();
        if table.handles.len() >= self.maximum {
            return Err(Errno::NFILE.into());
        }
        table.last += 1;
        let number = table.last;
        table.handles.insert(number, Arc::new(Handle { node, file, position: Mutex::default() }));
        Ok(number)
    }

    /// Returns the one with this number, if it is of this node.
    ///
    /// # Errors
    /// `EBADF`.
    pub(crate) fn get(&self, number: u64, node: u64) -> io::Result<Arc<Handle>> {
        let handle = self.table().handles.get(&number).cloned();
        handle.filter(|handle| handle.node == node).ok_or_else(|| Errno::BADF.into())
    }

    /// Returns one of a node, if there is any.
    pub(crate) fn of(&self, node: u64) -> Option<Arc<Handle>> {
        self.table().handles.values().find(|handle| handle.node == node).cloned()
    }

    /// Closes one.
    pub(crate) fn remove(&self, number: u64, node: u64) -> io::Result<()> {
        self.get(number, node)?;
        self.table().handles.remove(&number);
        Ok(())
    }
}
