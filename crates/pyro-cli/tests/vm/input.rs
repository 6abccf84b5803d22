//! Input, terminals, users and argument lists of commands, from the command line to the guest and back.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use crate::harness::{ENVIRONMENT, Sandbox};

/// Bytes without a period that fits into a buffer.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// `pyro` with these words, to be started by the test.
fn pyro<const N: usize>(sandbox: &Sandbox, words: [&str; N]) -> Command {
    let mut command = sandbox.program(env!("CARGO_BIN_EXE_pyro"));
    command.args(words);
    command
}

#[test]
fn input_reaches_a_run_and_its_output_comes_back_byte_for_byte() {
    let sandbox = Sandbox::new();
    let sent = bytes(3_000_000);
    let mut child = pyro(&sandbox, ["run", "-i", ENVIRONMENT, "--timeout-seconds", "100", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let mut received = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
}

/// In `make test-full` only, because it takes minutes.
#[test]
fn gigabytes_of_input_arrive_unchanged() {
    let sandbox = Sandbox::new();
    let mut host = Command::new("cksum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let words = ["run", "-i", ENVIRONMENT, "--timeout-seconds", "3000", "--", "cksum"];
    let mut child = pyro(&sandbox, words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let block = bytes(1 << 20);
    let mut pipes = [&mut host, &mut child].map(|program| program.stdin.take().unwrap());
    // One byte more than 2 GiB, and no two blocks are the same.
    for number in 0..2048_u32 {
        for pipe in &mut pipes {
            pipe.write_all(&number.to_le_bytes()).unwrap();
            pipe.write_all(&block[4..]).unwrap();
        }
    }
    for mut pipe in pipes {
        pipe.write_all(b"x").unwrap();
    }
    let sums = [host, child].map(|program| program.wait_with_output().unwrap());
    assert!(sums[1].status.success(), "{sums:?}");
    assert!(String::from_utf8_lossy(&sums[0].stdout).ends_with(" 2147483649\n"), "{sums:?}");
    assert_eq!(sums[0].stdout, sums[1].stdout);
}

#[test]
fn a_command_that_ends_is_not_kept_by_an_input_that_is_open() {
    let sandbox = Sandbox::new();
    let words = ["run", "-i", ENVIRONMENT, "--", "head -n 1; exit 4"];
    let mut child = pyro(&sandbox, words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"first\nsecond\n").unwrap();
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
    assert_eq!(output, "first\n");
    drop(stdin);
}

#[test]
fn a_task_takes_input_later_users_directories_shells_and_words() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let sequence = {
        let words = ["task", "exec", &*task.id, "--detach", "-i", "--json", "--", "cat > got"];
        sandbox.pyro(words).json()["sequence"].to_string()
    };
    let send = |text: &str| {
        let words = ["task", "stdin", &*task.id, "--sequence", &*sequence];
        let mut child = pyro(&sandbox, words).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait().unwrap()
    };
    assert!(send("sent later").success());
    sandbox.pyro(["task", "wait", &*task.id, "--sequence", &*sequence]).success();
    assert_eq!(task.exec([], "cat got").success(), "sent later");

    // A person who pipes something in learns that it was not sent, and how to send it.
    let words = ["task", "exec", &*task.id, "--detach", "-i", "--", "cat"];
    let detached = pyro(&sandbox, words).stdin(Stdio::piped()).output().unwrap();
    let number = String::from_utf8_lossy(&detached.stdout).replace("Sequence:", "");
    let expected = format!(
        "[pyro] standard input is not passed on to a detached command; send it with pyro task stdin {} --sequence {}\n",
        task.id,
        number.trim()
    );
    assert_eq!(String::from_utf8_lossy(&detached.stderr), expected);

    let flags = ["-u", "nobody", "-w", "/tmp", "-e", "PATH=/bin:/usr/bin:/mine", "--shell", "bash"];
    let line = "set -o pipefail; [[ x == x ]] && id -un && pwd && echo $PATH";
    assert_eq!(task.exec(flags, line).success(), "nobody\n/tmp\n/bin:/usr/bin:/mine\n");
    let words = ["task", "exec", &*task.id, "--argv", "--", "printf", "%s|", "a b", "$HOME", "*"];
    assert_eq!(sandbox.pyro(words).success(), "a b|$HOME|*|");
    let unknown = task.exec(["-u", "no-such-user"], "true");
    assert_eq!(unknown.code(), 1, "{unknown:?}");
    assert_eq!(task.logs().last().unwrap()["outcome"], "not_run");
    task.delete();
}
