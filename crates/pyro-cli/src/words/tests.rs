use std::os::unix::ffi::OsStringExt as _;
use std::process::Command;

use proptest::prelude::*;

use super::*;

fn joined(words: &[&str]) -> Result<String, WordsError> {
    join(&words.iter().map(OsString::from).collect::<Vec<_>>())
}

#[test]
fn one_word_is_a_shell_line() {
    assert_eq!(joined(&["cd /tmp && ls | wc -l"]).unwrap(), "cd /tmp && ls | wc -l");
}

#[test]
fn several_words_are_quoted_where_needed() {
    assert_eq!(joined(&["sh", "-c", "echo a; exit 3"]).unwrap(), "sh -c 'echo a; exit 3'");
    assert_eq!(joined(&["git", "--version"]).unwrap(), "git --version");
    assert_eq!(joined(&["a", "--", "b"]).unwrap(), "a -- b");
}

#[test]
fn an_empty_word_is_quoted() {
    assert_eq!(joined(&["echo", ""]).unwrap(), "echo ''");
    assert_eq!(joined(&[""]).unwrap(), "''");
}

#[test]
fn no_words_are_refused() {
    assert_eq!(joined(&[]), Err(WordsError::Missing));
    assert_eq!(WordsError::Missing.to_string(), "command is required after `--`");
}

#[test]
fn a_word_that_is_not_text_is_refused() {
    for words in
        [vec![OsString::from_vec(vec![b'a', 0xff])], vec!["echo".into(), OsString::from_vec(vec![0xff])]]
    {
        let error = join(&words).unwrap_err();
        assert!(error.to_string().contains("not valid UTF-8"), "{error}");
    }
}

#[test]
fn a_nul_byte_is_refused() {
    assert_eq!(joined(&["a", "b\0c"]), Err(WordsError::Nul));
}

proptest! {
    // Every case starts a shell.
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_shell_gives_the_words_back(words in proptest::collection::vec("[^\\x00]{0,12}", 2..6)) {
        let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        let line = format!("printf '%s\\0' {}", join(&words).unwrap());
        let output = Command::new("/bin/sh").arg("-c").arg(line).output().unwrap();
        let expected: Vec<u8> =
            words.into_iter().flat_map(|word| word.into_vec().into_iter().chain([0])).collect();
        prop_assert_eq!(output.stdout, expected);
        prop_assert!(output.status.success());
    }
}
