//! What is said on stderr beside the data: notes, errors and usage.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
};

use anstyle::AnsiColor;
use unicode_width::UnicodeWidthStr as _;

use super::progress::above;
use crate::client::visible::visible;

/// Whether stderr is looked at by a person.
pub fn is_attended() -> bool {
    io::stderr().is_terminal()
}

/// Writes one line to stderr. A closed stderr is no reason to stop.
pub fn note(text: &str) {
    above(|| writeln!(anstream::stderr().lock(), "{}", visible(text)).unwrap_or_default());
}

/// As [`note`], but only where a person looks on.
pub fn remark(text: &str) {
    if is_attended() {
        note(text);
    }
}

/// Asks a person; `None` where there is none, on both ends.
pub fn ask(question: &str) -> io::Result<Option<bool>> {
    if !io::stdin().is_terminal() || !is_attended() {
        return Ok(None);
    }
    let mut stderr = anstream::stderr().lock();
    write!(stderr, "{} [y/N] ", visible(question))?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    let answer = answer.trim().to_ascii_lowercase();
    Ok(Some(matches!(answer.as_str(), "y" | "yes")))
}

/// How wide errors are at most, in columns.
const WIDTH: usize = 80;

/// Begins a style, along with much else.
const STYLE: &str = "\u{1b}[";

/// `text` with its long lines broken between words; colour takes no room.
fn wrapped(text: &str) -> String {
    let width = |text: &str| anstream::adapter::strip_str(text).to_string().width();
    let mut all = String::new();
    for line in text.split_inclusive('\n') {
        if width(line.trim_end()) <= WIDTH {
            all.push_str(line);
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let mut used = 0;
        for word in line.split_inclusive(' ') {
            if used > indent && used + width(word.trim_end()) > WIDTH {
                all.truncate(all.trim_end_matches(' ').len());
                write!(all, "\n{:indent$}  ", "").unwrap_or_default();
                used = indent + 2;
            }
            all.push_str(word);
            used += width(word.trim_end_matches('\n'));
        }
    }
    all
}

/// `text` with nothing that acts but its styles: what is wrong with a command line
/// repeats the words of it, which may come from anywhere.
fn only_styled(text: &str) -> String {
    let mut safe = String::new();
    for (number, part) in text.split(STYLE).enumerate() {
        let is_code = |c: char| c.is_ascii_digit() || c == ';';
        let code = part.len() - part.trim_start_matches(is_code).len();
        let plain = match (number, part[code..].strip_prefix('m')) {
            (0, _) => part,
            (_, Some(plain)) => {
                safe.extend([STYLE, &part[..code], "m"]);
                plain
            }
            (_, None) => {
                safe.push_str(&visible(STYLE));
                part
            }
        };
        for (number, line) in plain.split('\n').enumerate() {
            if number > 0 {
                safe.push('\n');
            }
            safe.push_str(&visible(line));
        }
    }
    safe
}

/// Writes what is wrong with a command line, styled already.
pub fn usage(text: &str) {
    let mut stderr = anstream::stderr().lock();
    stderr
        .write_all(wrapped(&only_styled(text)).as_bytes())
        .unwrap_or_default();
}

/// Writes `error: what`, a line for each cause, and what to do about it.
pub fn failure(what: &str, causes: &[String], hint: Option<&str>) {
    let red = AnsiColor::Red.on_default().bold();
    let cyan = AnsiColor::Cyan.on_default().bold();
    let mut text = format!("{red}error:{red:#} {}\n", visible(what));
    for cause in causes {
        // A cause may be a picture of several lines, of a place in a file.
        let mut lines = cause.trim_end().lines();
        let first = lines.next().unwrap_or_default();
        writeln!(text, "  cause: {}", visible(first)).unwrap_or_default();
        for line in lines {
            writeln!(text, "         {}", visible(line)).unwrap_or_default();
        }
    }
    if let Some(hint) = hint {
        writeln!(text, "{cyan}hint:{cyan:#} {}", visible(hint)).unwrap_or_default();
    }
    // What reads a pipe wants each of them in one line.
    let text = if is_attended() { wrapped(&text) } else { text };
    anstream::stderr()
        .lock()
        .write_all(text.as_bytes())
        .unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_styled_text_only_the_styles_act() {
        let styled = "\u{1b}[1;31merror:\u{1b}[0m a\n\n  b\n";
        assert_eq!(only_styled(styled), styled);
        for (text, shown) in [
            ("\u{1b}]52;c;x\u{7}", "^[]52;c;x^G"),
            ("a\u{1b}[2Jb\rc", "a^[[2Jb^Mc"),
            ("\u{1b}[\u{1b}[1m", "^[[\u{1b}[1m"),
            ("\u{9b}2J\u{202e}", "<U+009B>2J<U+202E>"),
        ] {
            assert_eq!(only_styled(text), shown);
        }
    }

    #[test]
    fn errors_are_broken_between_words() {
        assert_eq!(wrapped("error: short\n"), "error: short\n");
        let long = format!(
            "\u{1b}[31merror:\u{1b}[0m {}\n\n  next\n",
            "word ".repeat(30)
        );
        let text = wrapped(&long);
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert!(plain.lines().all(|line| line.width() <= WIDTH), "{plain}");
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(words(&text), words(&long));
        assert!(text.ends_with("\n\n  next\n"), "{text:?}");
    }
}
