//! What is missing of an output, on its way to a client.

use bytes::Bytes;

use super::wire;
use crate::{api, proto};

/// What is missing: how much of all that was sent, and since the last byte why.
#[derive(Default)]
pub(super) struct Gaps {
    /// A text says it in a line of its own.
    in_text: bool,
    missing: u64,
    pending: Option<(u64, Option<api::GapCause>)>,
    /// The text that was sent does not end with a whole line.
    is_in_line: bool,
}

impl Gaps {
    /// Nothing is missing yet.
    pub(super) fn new(in_text: bool) -> Self {
        Self {
            in_text,
            ..Self::default()
        }
    }

    /// How many bytes were missing.
    pub(super) fn missing(&self) -> u64 {
        self.missing
    }

    /// Takes note of a message that is sent.
    pub(super) fn sent(&mut self, message: &proto::StreamJobResponse) {
        if message.gap > 0 {
            let (bytes, cause) = self.pending.unwrap_or_default();
            let cause = cause.or(wire::gap_cause(message.gap_cause()));
            self.pending = Some((bytes.saturating_add(message.gap), cause));
            self.missing = self.missing.saturating_add(message.gap);
        }
        if let Some(last) = message.output.last() {
            self.pending = None;
            self.is_in_line = *last != b'\n';
        }
    }

    /// What a text says before what comes after a gap: once for all that is missing
    /// there, in a line of its own.
    pub(super) fn line(&mut self) -> Option<Bytes> {
        let (bytes, cause) = self.pending.take().filter(|_| self.in_text)?;
        let begin = if self.is_in_line { "\n" } else { "" };
        let note = api::GapCause::note(bytes, cause);
        self.is_in_line = false;
        Some(format!("{begin}[jobctl: {note}]\n").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_between_two_pieces_is_one_line() {
        let gap = |gap, cause: proto::GapCause| proto::StreamJobResponse {
            gap,
            gap_cause: cause.into(),
            ..Default::default()
        };
        let output = |output: &'static [u8]| proto::StreamJobResponse {
            output: Bytes::from_static(output),
            ..Default::default()
        };
        for (in_text, first, second) in [
            (false, None, None),
            (
                true,
                Some("\n[jobctl: 42 bytes of output are missing here: its files were removed]\n"),
                Some("[jobctl: 18446744073709551615 bytes of output are missing here]\n"),
            ),
        ] {
            let mut gaps = Gaps::new(in_text);
            gaps.sent(&output(b"ab"));
            assert_eq!(gaps.line(), None);
            gaps.sent(&gap(40, proto::GapCause::Unspecified));
            gaps.sent(&gap(2, proto::GapCause::Removed));
            assert_eq!(gaps.line(), first.map(Bytes::from));
            gaps.sent(&output(b"c\n"));
            assert_eq!(gaps.line(), None);
            gaps.sent(&gap(u64::MAX, proto::GapCause::Unspecified));
            gaps.sent(&gap(7, proto::GapCause::Unspecified));
            assert_eq!(gaps.line(), second.map(Bytes::from));
            assert_eq!(gaps.missing(), u64::MAX);
        }
    }
}
