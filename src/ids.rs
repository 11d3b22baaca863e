//! The names of things: ids as types of their own, so that a worker's can never
//! be passed where a job's belongs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($name:ident, $what:literal) => {
        #[doc = concat!("The id of a ", $what, ": a random (v4) UUID.")]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Mints an id.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// Its sixteen bytes, in the order in which ids sort.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The id of these bytes.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The first twelve hexadecimal digits, for tables: enough to tell
            /// ids apart, and a prefix that every command takes.
            pub fn short(&self) -> String {
                self.digits()[..12].to_owned()
            }

            /// Whether `prefix`, in digits with or without hyphens, begins this id.
            pub fn starts_with(&self, prefix: &str) -> bool {
                let digits = self.digits();
                digits.starts_with(&prefix.replace('-', "").to_ascii_lowercase())
            }

            fn digits(&self) -> String {
                self.0.simple().to_string()
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map(Self)
            }
        }
    };
}

id!(JobId, "job");
id!(WorkerId, "worker");
id!(GroupId, "group of jobs");

/// Whether `text` can be meant as the beginning of an id: at least four
/// hexadecimal digits, hyphens aside.
pub fn is_prefix(text: &str) -> bool {
    let digits = text.chars().filter(|c| *c != '-');
    digits.clone().count() >= 4 && digits.clone().all(|c| c.is_ascii_hexdigit())
}

/// Whether `text` is a name that a job or worker may bear: 1 to 64 letters,
/// digits, `.`, `_` or `-`, the first a letter or digit, and none of the words
/// that mean something else where a name stands (`last`, a whole id).
pub fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    text.len() <= 64
        && chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && text != "last"
        && Uuid::try_parse(text).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_found_with_and_without_hyphens() {
        let id: JobId = "3f2a8b1c-9d4e-4f00-8000-000000000000".parse().unwrap();
        assert_eq!(id.short(), "3f2a8b1c9d4e");
        for prefix in [
            "3f2a",
            "3F2A8B1C",
            "3f2a8b1c-9d4e",
            &id.short(),
            &id.to_string(),
        ] {
            assert!(is_prefix(prefix) && id.starts_with(prefix), "{prefix}");
        }
        assert!(!id.starts_with("3f2b"));
        assert!(!is_prefix("3f2") && !is_prefix("3f2-") && !is_prefix("web1"));
    }

    #[test]
    fn names_have_a_grammar() {
        for good in ["w1", "web-1.example", "0", "nightly_backup"] {
            assert!(is_name(good), "{good}");
        }
        let id = JobId::random().to_string();
        for bad in [
            "",
            "last",
            "-x",
            "a b",
            "ü",
            "a\n",
            id.as_str(),
            &"x".repeat(65),
        ] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
