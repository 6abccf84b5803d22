//! Tokens of clients, and the names that they stand for.

use std::collections::HashSet;

use pyro_api::OwnerName;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Minimum length of a token, in characters.
pub(super) const MIN_TOKEN_CHARS: usize = 16;
/// Maximum number of tokens.
const MAX_TOKENS: usize = 256;

/// The tokens that a server accepts. Each stands for one owner.
#[derive(Clone)]
pub struct Tokens(Vec<Token>);

#[derive(Clone)]
struct Token {
    secret: String,
    owner: OwnerName,
}

/// Why a list of tokens is invalid. No message repeats a token.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// There is no token.
    #[error("no token found")]
    Empty,
    /// There are too many tokens.
    #[error("too many tokens: the maximum is {MAX_TOKENS}")]
    TooMany,
    /// The token is too short, or cannot be sent in a header.
    #[error(
        "invalid token in line {line}: expected at least {MIN_TOKEN_CHARS} printable ASCII characters without spaces"
    )]
    Weak {
        /// Number of the line, from 1.
        line: usize,
    },
    /// A line is neither `TOKEN`, as the only one, nor `NAME TOKEN`.
    #[error("invalid line {line}: expected NAME TOKEN, or one token and nothing else in the file")]
    Malformed {
        /// Number of the line, from 1.
        line: usize,
    },
    /// A name is malformed.
    #[error("invalid name in line {line}: expected 1 to 64 letters, digits, `.`, `_` or `-`")]
    InvalidName {
        /// Number of the line, from 1.
        line: usize,
    },
    /// A name or a token is there twice.
    #[error("the name or the token in line {line} is already used")]
    Duplicate {
        /// Number of the line, from 1.
        line: usize,
    },
}

impl Tokens {
    /// Reads one token, or lines of `NAME TOKEN`. Empty lines and lines that begin with `#` are skipped. A named token owns
    /// what its clients create under its name, so that it can be replaced; a token without a name under its digest.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub fn parse(text: &str) -> Result<Self, TokensError> {
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let lines: Vec<_> = lines
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .take(MAX_TOKENS + 1)
            .collect();
        match lines.len() {
            0 => return Err(TokensError::Empty),
            count if count > MAX_TOKENS => return Err(TokensError::TooMany),
            _ => {}
        }
        let mut tokens = Vec::new();
        let (mut owners, mut secrets) = (HashSet::new(), HashSet::new());
        for (line, text) in &lines {
            let line = *line;
            let words: Vec<_> = text.split_ascii_whitespace().collect();
            let (name, secret) = match words[..] {
                [secret] if lines.len() == 1 => (None, secret),
                [name, secret] => (Some(name), secret),
                _ => return Err(TokensError::Malformed { line }),
            };
            if secret.len() < MIN_TOKEN_CHARS || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(TokensError::Weak { line });
            }
            let name = match name {
                Some(name) if name.len() > 64 || name.contains(':') => {
                    return Err(TokensError::InvalidName { line });
                }
                Some(name) => name.to_owned(),
                None => digest(secret),
            };
            let owner: OwnerName =
                format!("token:{name}").parse().map_err(|_| TokensError::InvalidName { line })?;
            if !owners.insert(owner.clone()) || !secrets.insert(secret) {
                return Err(TokensError::Duplicate { line });
            }
            tokens.push(Token { secret: secret.to_owned(), owner });
        }
        Ok(Self(tokens))
    }

    /// The owner that a client's token stands for. Takes the same time for every token of the same length.
    pub(super) fn owner(&self, given: &[u8]) -> Option<&OwnerName> {
        let mut found = None;
        for token in &self.0 {
            if given.ct_eq(token.secret.as_bytes()).into() {
                found = Some(&token.owner);
            }
        }
        found
    }
}

/// The first digits of a secret's digest, by which it can be named.
pub(super) fn digest(secret: &str) -> String {
    Sha256::digest(secret).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(tokens: &Tokens, given: &str) -> Option<String> {
        tokens.owner(given.as_bytes()).map(ToString::to_string)
    }

    #[test]
    fn a_token_stands_for_its_name_or_its_digest() {
        let named = "# for the build\nci  0123456789abcdef\n\nalice fedcba9876543210\n";
        let tokens = Tokens::parse(named).unwrap();
        assert_eq!(owner(&tokens, "0123456789abcdef").as_deref(), Some("token:ci"));
        assert_eq!(owner(&tokens, "fedcba9876543210").as_deref(), Some("token:alice"));
        for wrong in ["", "0123456789abcde", "0123456789abcdef0", "ci"] {
            assert_eq!(owner(&tokens, wrong), None, "{wrong}");
        }
        let single = Tokens::parse("0123456789abcdef\n").unwrap();
        let name = owner(&single, "0123456789abcdef").unwrap();
        assert_eq!(name, "token:9f9f5111f7b2");
    }

    #[test]
    fn what_is_no_list_of_tokens_is_refused_without_repeating_it() {
        for (text, expected) in [
            ("", "no token found"),
            ("# only a comment\n", "no token found"),
            ("short", "invalid token in line 1"),
            ("a 0123456789abcdef\nfedcba9876543210", "invalid line 2"),
            ("a b 0123456789abcdef", "invalid line 1"),
            ("a:b 0123456789abcdef", "invalid name in line 1"),
            ("ä 0123456789abcdef", "invalid name in line 1"),
            ("a 0123456789abcdef\na fedcba9876543210", "line 2 is already used"),
            ("a 0123456789abcdef\nb 0123456789abcdef", "line 2 is already used"),
            ("a 0123456789abcdé0", "invalid token in line 1"),
        ] {
            let error = Tokens::parse(text).err().unwrap().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert!(!error.contains("0123456789"), "{error}");
        }
        let many: String = (0..300).map(|n| format!("n{n} {n:016}\n")).collect();
        assert!(matches!(Tokens::parse(&many), Err(TokensError::TooMany)));
    }
}
