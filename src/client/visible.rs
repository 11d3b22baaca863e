//! Makes visible what a terminal would act upon: controls, which move the cursor,
//! set the clipboard or answer as if somebody typed, and marks that reorder text.
//! Which stream is a terminal is not decided here.
//!
//! The notation is that of `less`: `^[` for a control below U+0020 and `^?` for
//! U+007F, `<U+202E>` for another character, `<9B>` for a byte that is no UTF-8.

use std::{borrow::Cow, fmt::Write as _};

/// Whether a terminal would act upon `c`, or show the text in another order or
/// not at all.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{206f}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// `text` as it may stand in one line.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::new();
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            c if is_unsafe(c) => push(&mut shown, c),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

fn push(shown: &mut String, c: char) {
    match c {
        '\0'..='\u{1f}' | '\u{7f}' => shown.extend(['^', char::from(c as u8 ^ 0x40)]),
        c => write!(shown, "<U+{:04X}>", u32::from(c)).unwrap_or_default(),
    }
}

/// A stream of bytes that comes in pieces, made visible. Lines and tabs stay what
/// they are; a carriage return does so only at the end of a line, because
/// elsewhere it lets text be written over.
#[derive(Debug, Default)]
pub struct Visible {
    /// What means one thing or another by what comes next: the beginning of a
    /// character, or a carriage return.
    held: Vec<u8>,
}

impl Visible {
    /// Appends to `shown` what there is to see of `bytes`.
    pub fn push(&mut self, bytes: &[u8], shown: &mut String) {
        if self.held.is_empty() {
            return self.push_whole(bytes, shown);
        }
        let mut whole = std::mem::take(&mut self.held);
        whole.extend_from_slice(bytes);
        self.push_whole(&whole, shown);
    }

    fn push_whole(&mut self, bytes: &[u8], shown: &mut String) {
        let begun = match bytes.utf8_chunks().last() {
            Some(last) if is_begun(last.invalid()) => last.invalid().len(),
            Some(last) => usize::from(last.invalid().is_empty() && last.valid().ends_with('\r')),
            None => 0,
        };
        let (bytes, held) = bytes.split_at(bytes.len() - begun);
        self.held.extend_from_slice(held);
        show(bytes, shown);
    }

    /// Appends what is still held back, of which there will be no more.
    pub fn finish(&mut self, shown: &mut String) {
        show(&std::mem::take(&mut self.held), shown);
    }
}

/// Whether more bytes can make a character of it.
fn is_begun(bytes: &[u8]) -> bool {
    let error = std::str::from_utf8(bytes).err();
    error.is_some_and(|error| error.error_len().is_none())
}

fn show(bytes: &[u8], shown: &mut String) {
    for chunk in bytes.utf8_chunks() {
        let text = chunk.valid();
        let mut safe = 0;
        for (at, c) in text.char_indices().filter(|(_, c)| is_unsafe(*c)) {
            let ends_line = c == '\r' && text[at + 1..].starts_with('\n');
            if matches!(c, '\n' | '\t') || ends_line {
                continue;
            }
            shown.push_str(&text[safe..at]);
            push(shown, c);
            safe = at + c.len_utf8();
        }
        shown.push_str(&text[safe..]);
        for byte in chunk.invalid() {
            write!(shown, "<{byte:02X}>").unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(pieces: &[&[u8]]) -> String {
        let (mut filter, mut shown) = (Visible::default(), String::new());
        for piece in pieces {
            filter.push(piece, &mut shown);
        }
        filter.finish(&mut shown);
        shown
    }

    #[test]
    fn what_a_terminal_would_act_upon_is_spelt_out() {
        for (bytes, text) in [
            // Sets the clipboard.
            (&b"\x1b]52;c;ZXZpbA==\x07"[..], "^[]52;c;ZXZpbA==^G"),
            (b"\x1b[2J\x1b[1;1H", "^[[2J^[[1;1H"),
            (b"a\0b\x08\x7f", "a^@b^H^?"),
            // The one-byte form of `ESC [`, raw and as U+009B.
            (b"\x9b2J", "<9B>2J"),
            ("\u{9b}2J\u{85}".as_bytes(), "<U+009B>2J<U+0085>"),
            ("\u{202e}txt\u{2066}".as_bytes(), "<U+202E>txt<U+2066>"),
            (
                "a\u{2028}\u{200f}\u{61c}".as_bytes(),
                "a<U+2028><U+200F><U+061C>",
            ),
            ("\u{e0041}".as_bytes(), "<U+E0041>"),
            (b"\xff\xc3(\xe2\x82", "<FF><C3>(<E2><82>"),
        ] {
            assert_eq!(shown(&[bytes]), text, "{bytes:?}");
        }
    }

    #[test]
    fn text_lines_and_tabs_pass() {
        for text in ["", "a\tb\n\nc", "naïve 日本 👩‍🚀", "one\r\ntwo\r\n"] {
            assert_eq!(shown(&[text.as_bytes()]), text);
        }
    }

    #[test]
    fn a_carriage_return_that_ends_no_line_is_spelt_out() {
        assert_eq!(shown(&[b"harmless\rrm -rf /\n"]), "harmless^Mrm -rf /\n");
        assert_eq!(
            shown(&[b"a\r", b"\nb\r", b"c\r\r\n\r"]),
            "a\r\nb^Mc^M\r\n^M"
        );
        assert_eq!(shown(&[b"\r\xff\n"]), "^M<FF>\n");
    }

    #[test]
    fn a_character_in_two_pieces_is_one() {
        assert_eq!(shown(&[b"\xe6\x97", b"", b"\xa5\xe6", b"\x9c\xac"]), "日本");
        assert_eq!(
            shown(&[b"\xc2", b"\x9b", b"\xe2\x80", b"\xae"]),
            "<U+009B><U+202E>"
        );
        assert_eq!(shown(&[b"\xe6\x97", b"\x1b\xe6"]), "<E6><97>^[<E6>");
    }

    #[test]
    fn in_one_line_a_new_line_is_spelt_out_too() {
        assert_eq!(
            visible("a\u{1b}[2J\tb\r\n\u{9b}"),
            "a^[[2J\\tb^M\\n<U+009B>"
        );
        assert_eq!(visible("\u{202e}txt"), "<U+202E>txt");
        assert!(matches!(visible("naïve 日本"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left_wherever_the_pieces_end(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..8),
                    "(\\PC|\r|\n|[\u{80}-\u{9f}]|\u{202e}){0,6}".prop_map(String::into_bytes),
                ],
                0..8,
            )
        ) {
            let parts: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let text = shown(&parts);
            prop_assert_eq!(&text, &shown(&[&pieces.concat()]));
            let rest = text.replace("\r\n", "\n");
            prop_assert!(!rest.chars().any(|c| is_unsafe(c) && !matches!(c, '\n' | '\t')));
        }

        #[test]
        fn safe_text_passes_in_any_pieces(text in "[ -~\n\té日👩]{0,40}", at in 0..40usize) {
            let (head, tail) = text.as_bytes().split_at(at.min(text.len()));
            prop_assert_eq!(shown(&[head, tail]), text);
        }
    }
}
