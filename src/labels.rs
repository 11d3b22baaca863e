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
        check(key, value)?;
        Ok(requirement)
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

/// Checks a label against the grammar.
///
/// # Errors
///
/// In one line, what is wrong with it.
pub fn check(key: &str, value: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_key = (1..=63).contains(&key.len())
        && key.starts_with(|c: char| c.is_ascii_alphanumeric())
        && key.chars().all(|c| plain(c) || c == '/');
    if !is_key {
        return Err(format!(
            "label key '{key}' is not 1 to 63 letters, digits, '.', '_', '-' or '/', \
             the first a letter or digit"
        ));
    }
    if value.len() > 63 || !value.chars().all(plain) {
        return Err(format!(
            "label value '{value}' is not at most 63 letters, digits, '.', '_' or '-'"
        ));
    }
    Ok(())
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
        assert!(check(&"k".repeat(64), "").is_err());
        assert!(check("k", &"v".repeat(64)).is_err());
        assert!(check("example.org/zone", "eu-1").is_ok());
    }
}
