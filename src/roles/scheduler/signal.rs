//! The names of signals, as people type them. Which signal ends a job, and when,
//! is the worker's business.

/// Number and name without SIG, from signal(7); the numbers are those of x86, ARM
/// and RISC-V.
const SIGNALS: [(i32, &str); 31] = [
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (4, "ILL"),
    (5, "TRAP"),
    (6, "ABRT"),
    (7, "BUS"),
    (8, "FPE"),
    (9, "KILL"),
    (10, "USR1"),
    (11, "SEGV"),
    (12, "USR2"),
    (13, "PIPE"),
    (14, "ALRM"),
    (15, "TERM"),
    (16, "STKFLT"),
    (17, "CHLD"),
    (18, "CONT"),
    (19, "STOP"),
    (20, "TSTP"),
    (21, "TTIN"),
    (22, "TTOU"),
    (23, "URG"),
    (24, "XCPU"),
    (25, "XFSZ"),
    (26, "VTALRM"),
    (27, "PROF"),
    (28, "WINCH"),
    (29, "IO"),
    (30, "PWR"),
    (31, "SYS"),
];

/// The last of the signals that have a name and a meaning.
const LAST: i32 = 31;

/// Reads `TERM`, `SIGTERM` (in any case) or `15`; any number from 1 to 31 is one.
pub(super) fn parse(text: &str) -> Option<i32> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|n| (1..=LAST).contains(n));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = SIGNALS.iter().find(|(_, known)| *known == name);
    named.map(|(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_by_name_or_number() {
        for text in ["TERM", "SIGTERM", "sigterm", "term", "15", "015"] {
            assert_eq!(parse(text), Some(15), "{text}");
        }
        assert_eq!(parse("31"), Some(31));
        for text in ["", "0", "32", "-9", "SIG", "TERMX", "15 ", "99999999999999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
