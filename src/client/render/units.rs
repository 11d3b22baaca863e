//! Lengths of time and amounts of bytes, in as few letters as say enough.

use jiff::{SignedDuration, Timestamp};

/// How long ago `then` was, in whole seconds or more.
pub(super) fn age(now: Timestamp, then: Timestamp) -> String {
    length(SignedDuration::from_secs(
        now.duration_since(then).as_secs(),
    ))
}

/// How far `then` is from now, in either direction.
pub(super) fn when(now: Timestamp, then: Timestamp) -> String {
    match then > now {
        true => format!("in {}", age(then, now)),
        false => format!("{} ago", age(now, then)),
    }
}

/// A length of time in one or two units: `3m`, `2h 5m`, `250ms`.
pub(super) fn length(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0 if duration.subsec_millis() > 0 => format!("{}ms", duration.subsec_millis()),
        0 => "0s".to_owned(),
        1..60 => format!("{seconds}s"),
        60..600 if seconds % 60 != 0 => format!("{minutes}m {}s", seconds % 60),
        60..3600 => format!("{minutes}m"),
        3600..86400 if minutes % 60 != 0 => format!("{hours}h {}m", minutes % 60),
        3600..86400 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// Bytes in binary units: `512B`, `1.5KiB`, `100MiB`.
pub(super) fn size(bytes: u64) -> String {
    let (mut unit, mut amount) = ("B", bytes as f64);
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if amount < 1024.0 {
            break;
        }
        (unit, amount) = (larger, amount / 1024.0);
    }
    let decimals = usize::from(unit != "B" && amount < 10.0);
    format!("{amount:.decimals$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (170, "2m 50s"),
            (1234, "20m"),
            (7200, "2h"),
            (7500, "2h 5m"),
            (200_000, "2d"),
            (-5, "0s"),
        ] {
            assert_eq!(length(SignedDuration::from_secs(seconds)), text);
        }
        assert_eq!(length(SignedDuration::from_millis(250)), "250ms");
        let now = Timestamp::UNIX_EPOCH;
        let hour = SignedDuration::from_hours(1);
        assert_eq!(when(now, now + hour), "in 1h");
        assert_eq!(when(now, now - hour), "1h ago");
        assert_eq!(when(now, now), "0s ago");
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (100 << 20, "100MiB"),
            (3 << 40, "3.0TiB"),
            (5000 << 40, "5000TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
