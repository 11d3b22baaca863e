//! Labels, which tell workers apart, and what a job may ask of them. Written
//! down as `key=value`, `key!=value`, `key` and `!key`.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The labels of a worker.
pub type Labels = BTreeMap<String, String>;

/// The most labels that a worker has, and that a job asks for.
pub const MAX: usize = 64;

/// What a job asks of its worker's labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Requirement {
    /// `key`: it is there, whatever its value.
    Has(String),
    /// `!key`: it is not there.
    Lacks(String),
    /// `key=value`.
    Is(String, String),
    /// `key!=value`: it has another value, or is not there.
    IsNot(String, String),
}

impl Requirement {
    /// Whether a worker with these labels will do.
    pub fn is_met_by(&self, labels: &Labels) -> bool {
        match self {
            Self::Has(key) => labels.contains_key(key),
            Self::Lacks(key) => !labels.contains_key(key),
            Self::Is(key, value) => labels.get(key) == Some(value),
            Self::IsNot(key, value) => labels.get(key) != Some(value),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Has(key) => write!(f, "{key}"),
            Self::Lacks(key) => write!(f, "!{key}"),
            Self::Is(key, value) => write!(f, "{key}={value}"),
            Self::IsNot(key, value) => write!(f, "{key}!={value}"),
        }
    }
}

impl FromStr for Requirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (requirement, key, value) = match (text.split_once("!="), text.split_once('=')) {
            (Some((key, value)), _) => (Self::IsNot(key.to_owned(), value.to_owned()), key, value),
            (None, Some((key, value))) => (Self::Is(key.to_owned(), value.to_owned()), key, value),
            (None, None) => match text.strip_prefix('!') {
                Some(key) => (Self::Lacks(key.to_owned()), key, ""),
                None => (Self::Has(text.to_owned()), text, ""),
            },
        };
        match is_key(key) && is_value(value) {
            true => Ok(requirement),
            false => Err(format!(
                "`{text}` is not `key=value`, `key!=value`, `key` or `!key`, with at most \
                 {LONGEST} letters, digits, `.`, `_` and `-` in each"
            )),
        }
    }
}

impl TryFrom<String> for Requirement {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Requirement> for String {
    fn from(requirement: Requirement) -> Self {
        requirement.to_string()
    }
}

/// The longest key and the longest value, in bytes.
const LONGEST: usize = 63;

/// Whether `text` can be the key of a label: 1 to 63 letters, digits, `.`, `_`,
/// `-` or `/`, the first a letter or digit.
pub fn is_key(text: &str) -> bool {
    let mut chars = text.chars();
    text.len() <= LONGEST
        && chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && chars.all(|c| is_plain(c) || c == '/')
}

/// Whether `text` can be the value of a label: 0 to 63 letters, digits, `.`, `_`
/// or `-`.
pub fn is_value(text: &str) -> bool {
    text.len() <= LONGEST && text.chars().all(is_plain)
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_written_as_they_are_read() {
        let labels = Labels::from([("role".to_owned(), "web".to_owned())]);
        for (text, met) in [
            ("role", true),
            ("!role", false),
            ("role=web", true),
            ("role=", false),
            ("role!=web", false),
            ("role!=db", true),
            ("gpu", false),
            ("!gpu", true),
            ("gpu!=a100", true),
            ("gpu=a100", false),
        ] {
            let requirement: Requirement = text.parse().unwrap();
            assert_eq!(requirement.to_string(), text);
            assert_eq!(requirement.is_met_by(&labels), met, "{text}");
        }
    }

    #[test]
    fn what_is_no_label_is_refused() {
        for bad in [
            "",
            "!",
            "=web",
            "!=web",
            "a b",
            "role=a b",
            "role==web",
            "!role=web",
            "ü",
            "-a",
        ] {
            assert!(bad.parse::<Requirement>().is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_have_a_grammar() {
        for good in ["a", "9", "gpu", "topology/zone", "a.b_c-d", &"x".repeat(63)] {
            assert!(is_key(good), "{good}");
        }
        for bad in [
            "",
            "-a",
            ".a",
            "/a",
            "a b",
            "a=b",
            "a,b",
            "ü",
            &"x".repeat(64),
        ] {
            assert!(!is_key(bad), "{bad:?}");
        }
        for good in ["", "-", "a100", "eu-1.b_2", &"x".repeat(63)] {
            assert!(is_value(good), "{good}");
        }
        for bad in ["a/b", "a b", "a=b", "a,b", "\n", "ü", &"x".repeat(64)] {
            assert!(!is_value(bad), "{bad:?}");
        }
    }
}
