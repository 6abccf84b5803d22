//! Errors of the guest: what was being done, and why it failed. They end up as text, on the console or in
//! a reply, so text is what they hold.

use std::fmt;

/// A failed step.
#[derive(Debug)]
pub(crate) struct Fault {
    /// What was being done, in words a user understands.
    pub(crate) step: String,
    /// The cause.
    pub(crate) cause: String,
    /// `errno`, 0 if there was none.
    pub(crate) errno: i32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.cause)
    }
}

/// Adds the step to a result.
pub(crate) trait During<T> {
    /// Names what was being done when the error happened.
    fn during(self, step: impl Into<String>) -> Result<T, Fault>;
}

impl<T> During<T> for Result<T, std::io::Error> {
    fn during(self, step: impl Into<String>) -> Result<T, Fault> {
        self.map_err(|error| Fault {
            step: step.into(),
            cause: error.to_string(),
            errno: error.raw_os_error().unwrap_or(0),
        })
    }
}

impl<T> During<T> for Result<T, rustix::io::Errno> {
    fn during(self, step: impl Into<String>) -> Result<T, Fault> {
        self.map_err(std::io::Error::from).during(step)
    }
}
