//! Text from outside, made safe for a person who reads it.

use std::borrow::Cow;

/// Returns whether a character controls a terminal, changes the order of the text around it, or is invisible. A test of the
/// engine checks that this is the rule that `pyro-wire` has for the text of guests.
pub fn steers(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// The zero width joiner and non-joiner. They belong in text of several scripts, and deceive next to ASCII.
fn joins(character: char) -> bool {
    matches!(character, '\u{200c}' | '\u{200d}')
}

/// Escapes everything with which text could control a terminal or deceive its reader, except newlines and tabs.
pub fn printable(text: &str) -> Cow<'_, str> {
    let steers_here = |character| steers(character) && character != '\n' && character != '\t';
    if !text.contains(|character| steers_here(character) || joins(character)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    let mut previous = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_among_letters =
            |neighbour: Option<char>| neighbour.is_some_and(|neighbour| !neighbour.is_ascii());
        let deceives =
            joins(character) && !(is_among_letters(previous) && is_among_letters(characters.peek().copied()));
        if steers_here(character) || deceives {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
        previous = Some(character);
    }
    Cow::Owned(shown)
}

/// As [`printable`] for one line of at most `most` characters; what is cut is marked.
pub fn printable_line(text: &str, most: usize) -> String {
    let kept: String = text.chars().take(most).collect();
    let mut line = String::with_capacity(kept.len());
    for character in printable(&kept).chars() {
        match character {
            '\n' | '\t' => line.extend(character.escape_default()),
            character => line.push(character),
        }
    }
    if text.chars().nth(most).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_made_visible() {
        assert_eq!(printable("plain ü\n\ttext"), "plain ü\n\ttext");
        assert_eq!(printable("a\u{1b}[2Jb\rc\u{9b}d"), "a\\u{1b}[2Jb\\rc\\u{9b}d");
        assert_eq!(printable("a\u{202e}b\u{2066}c\u{200f}"), "a\\u{202e}b\\u{2066}c\\u{200f}");
        assert_eq!(printable("pay\u{200b}pal\u{feff}\u{e0041}"), "pay\\u{200b}pal\\u{feff}\\u{e0041}");
    }

    #[test]
    fn joiners_stay_where_a_script_needs_them() {
        for text in ["نمی\u{200c}خواهم", "👩\u{200d}💻"] {
            assert_eq!(printable(text), text);
        }
        assert_eq!(printable("pay\u{200d}pal"), "pay\\u{200d}pal");
        assert_eq!(printable("\u{200c}x"), "\\u{200c}x");
    }

    #[test]
    fn a_line_is_one_line_and_cut() {
        assert_eq!(printable_line("a\nb\tc", 10), "a\\nb\\tc");
        assert_eq!(printable_line("abcdef", 3), "abc…");
        assert_eq!(printable_line("\u{1b}\u{202e}", 5), "\\u{1b}\\u{202e}");
    }
}
