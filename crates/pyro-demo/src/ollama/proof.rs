//! The proof: a command whose output the model cannot know without running it. Needs no network.

use pyro_api::RunResult;
use sha2::{Digest as _, Sha256};

use super::error::DemoError;
use crate::ENVIRONMENT;

/// Maximum length of a wrong output that is shown, in characters.
const SHOWN_CHARS: usize = 200;

/// A command with a random number, and its output.
pub(super) struct Proof {
    pub(super) command: String,
    expected: String,
}

impl Proof {
    /// Creates a proof with a new random number.
    ///
    /// # Errors
    /// The system provides no random numbers.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        Ok(Self::of(&format!("{:012x}", getrandom::u64()? >> 16)))
    }

    /// Short words, and nothing to quote: small models copy that without a mistake.
    fn of(nonce: &str) -> Self {
        let digest = Sha256::digest(format!("{nonce}\n"));
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { command: format!("echo {nonce} | sha256sum"), expected: format!("{hex}  -") }
    }

    /// The task for the model.
    pub(super) fn prompt(&self) -> String {
        format!(
            "Prove that you can run a command in a throw-away virtual machine. Use the tool vm_run: it makes a VM, runs one \
             command in it and removes the VM. Use environment {ENVIRONMENT}, vcpu_count 1, mem_mib 1024 and network false.\n\
             \n\
             Run exactly this command, unchanged:\n\
             {}\n\
             \n\
             It has succeeded when the result has exit_code 0 and stdout is the checksum that the command prints. Do not \
             guess the checksum; it is compared with the result of the tool. If a tool returns an error, read it, correct the \
             arguments and call the tool again. When the command has succeeded, say so and call no more tools.",
            self.command
        )
    }

    /// Checks the result of the last command.
    ///
    /// # Errors
    /// No command ran, it failed, or it printed something else.
    pub(super) fn judge(&self, last_run: Option<RunResult>) -> Result<RunResult, DemoError> {
        let ran = last_run.ok_or(DemoError::NothingRan)?;
        if ran.exit_code != 0 {
            return Err(DemoError::CommandFailed(format!("exit_code={}", ran.exit_code).into()));
        }
        match ran.stdout.to_text().trim() {
            text if text == self.expected => {}
            "" => return Err(self.not_by("<empty>")),
            text => return Err(self.not_by(text)),
        }
        Ok(ran)
    }

    fn not_by(&self, stdout: &str) -> DemoError {
        let stdout: String = stdout.chars().take(SHOWN_CHARS).collect();
        DemoError::WrongOutput(format!("expected stdout={}, not {stdout}", self.expected).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_and_expected_text_belong_together() {
        let proof = Proof::new().unwrap();
        let output = std::process::Command::new("/bin/sh").arg("-c").arg(&proof.command).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), proof.expected);
    }

    #[test]
    fn the_prompt_has_the_command_and_not_its_output() {
        let (proof, other) = (Proof::new().unwrap(), Proof::new().unwrap());
        assert_ne!(proof.command, other.command);
        assert!(proof.prompt().contains(&format!("\n{}\n", proof.command)));
        assert!(!proof.prompt().contains(&proof.expected[..8]));
    }
}
