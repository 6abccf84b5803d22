//! Finds the id of a message that cannot be decoded, so that its sender learns of it.

use rmcp::model::RequestId;

/// Maximum length of an id, and of the text between two commas that is looked at, in bytes.
const TOKEN_BYTES: usize = 256;

/// Looks for the member `id` of the outermost object, in pieces of the text. Holds a few hundred bytes, however long the text is.
#[derive(Debug, Default)]
pub(super) struct IdFinder {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// A name or a value of the outermost object, as far as it is not nested.
    token: Vec<u8>,
    /// The name before the value was `id`.
    after_id: bool,
    found: Option<RequestId>,
}

impl IdFinder {
    /// Takes the next piece of the text.
    pub(super) fn feed(&mut self, piece: &[u8]) {
        for &byte in piece {
            self.take(byte);
        }
    }

    /// Returns the id, if there is one.
    pub(super) fn id(self) -> Option<RequestId> {
        self.found
    }

    fn take(&mut self, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return self.keep(byte);
        }
        match byte {
            b'"' => {
                self.in_string = true;
                self.keep(byte);
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                if self.depth == 1 {
                    self.end_value();
                }
                self.depth = self.depth.saturating_sub(1);
            }
            b':' if self.depth == 1 => {
                self.after_id = self.token.trim_ascii() == b"\"id\"";
                self.token.clear();
            }
            b',' if self.depth == 1 => self.end_value(),
            _ => self.keep(byte),
        }
    }

    fn keep(&mut self, byte: u8) {
        if self.depth == 1 && self.token.len() <= TOKEN_BYTES {
            self.token.push(byte);
        }
    }

    fn end_value(&mut self) {
        if self.after_id && self.found.is_none() && self.token.len() <= TOKEN_BYTES {
            self.found = serde_json::from_slice(&self.token).ok();
        }
        self.after_id = false;
        self.token.clear();
    }
}

/// Returns the id in a whole text, if there is one.
pub(super) fn find(text: &[u8]) -> Option<RequestId> {
    let mut finder = IdFinder::default();
    finder.feed(text);
    finder.id()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_found_wherever_it_stands() {
        for text in [
            r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#,
            r#"{ "params" : {"id": 1, "x": ["}", "\"", {"id": 2}]} , "id" : 7 }"#,
            r#"{"text":"\ud800","id":7}"#,
            r#"{"id":7,"params":[[[[[["#,
            r#"{"id":"x","id":7"#,
        ] {
            let expected = if text.contains("\"x\",\"id\"") {
                RequestId::String("x".into())
            } else {
                RequestId::Number(7)
            };
            assert_eq!(find(text.as_bytes()), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_id_is_not_taken_for_one() {
        for text in [
            "",
            "7",
            "[7]",
            r#"["id",7]"#,
            r#"{"id":null}"#,
            r#"{"id":{"id":7}}"#,
            r#"{"id":1.5}"#,
            r#"{"id" 7}"#,
            r#"{"x":"\"id\":7,"}"#,
            r#"{"params":{"id":7}}"#,
            r#"{"id":7"#,
        ] {
            assert_eq!(find(text.as_bytes()), None, "{text}");
        }
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(1000));
        assert_eq!(find(long.as_bytes()), None);
    }
}
