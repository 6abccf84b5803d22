//! Which characters of a guest's text must not reach a person as they are.

/// Returns whether a character controls a terminal, changes the order of the text around it, or is invisible.
///
/// Zero width joiners and non-joiners are not among them: several scripts, and emoji, need them.
pub fn steers(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Soft hyphen, Arabic letter mark, Mongolian vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            // Zero width space; left-to-right and right-to-left marks.
            | '\u{200b}' | '\u{200e}' | '\u{200f}'
            // Line and paragraph separators; embeddings and overrides.
            | '\u{2028}'..='\u{202e}'
            // Word joiner and invisible operators; isolates and deprecated format characters.
            | '\u{2060}'..='\u{206f}'
            // Byte order mark; interlinear annotations; tags.
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_of_any_script_does_not_steer() {
        for text in ["plain text", "Grüße", "שלום", "نمی‌خواهم", "👩‍💻", "हिन्दी", "日本語", "e\u{301}"]
        {
            assert!(!text.chars().any(steers), "{text}");
        }
        for character in
            ['\0', '\u{1b}', '\u{7f}', '\u{9b}', '\u{202e}', '\u{2066}', '\u{200f}', '\u{200b}', '\u{feff}']
        {
            assert!(steers(character), "{character:?}");
        }
    }
}
