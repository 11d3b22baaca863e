//! What is known of a worker beside how it stands: what it told of itself, and
//! what admins have ordered. Pure; who the workers are is in `registry.rs`.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::labels::{self, Labels, Requirement};

/// What becomes of labels; None: taken off.
pub(super) type LabelChanges = BTreeMap<String, Option<String>>;

/// What is kept of words that a worker chooses freely, in characters.
const MAX_WORD: usize = 64;

/// What is kept of a worker's scripts: so many, and so many bytes of their paths.
const MAX_SCRIPTS: usize = 1000;
const MAX_SCRIPT_BYTES: usize = 256 * 1024;

/// What a worker told of itself when it registered. It is stored in this form: a
/// field may be added with a default, and none renamed or removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    pub(super) labels: Labels,
    /// None: it takes as many jobs at once as come.
    pub(super) slots: Option<u32>,
    /// 0, as every number here: it did not say.
    pub(super) cpus: u32,
    pub(super) memory_bytes: u64,
    pub(super) os: String,
    pub(super) arch: String,
}

impl Told {
    /// What may be kept of it.
    pub(super) fn checked(mut self) -> Result<Self, Error> {
        if self.labels.len() > labels::MAX {
            return Err(Error::TooManyLabels);
        }
        for (key, value) in &self.labels {
            check_label(key, Some(value))?;
        }
        for word in [&mut self.os, &mut self.arch] {
            *word = word.chars().take(MAX_WORD).collect();
        }
        Ok(self)
    }
}

fn check_label(key: &str, value: Option<&String>) -> Result<(), Error> {
    match labels::is_key(key) && value.is_none_or(|value| labels::is_value(value)) {
        true => Ok(()),
        false => Err(Error::BadLabel(match value {
            Some(value) => format!("{key}={value}"),
            None => key.to_owned(),
        })),
    }
}

/// Whether these could be changes at all.
pub(super) fn check_changes(changes: &LabelChanges) -> Result<(), Error> {
    let mut changes = changes.iter();
    changes.try_for_each(|(key, value)| check_label(key, value.as_ref()))
}

/// The scripts of a worker; not stored, for it tells of them again.
#[derive(Clone, Debug, Default)]
pub(super) struct ScriptFolder {
    pub(super) paths: Arc<[String]>,
    pub(super) more: bool,
}

impl ScriptFolder {
    /// As much of it as is kept.
    pub(super) fn new(mut paths: Vec<String>, more: bool) -> Self {
        let mut bytes = 0;
        let fits = paths.iter().take(MAX_SCRIPTS).take_while(|path| {
            bytes += path.len();
            bytes <= MAX_SCRIPT_BYTES
        });
        let kept = fits.count();
        let more = more || kept < paths.len();
        paths.truncate(kept);
        Self {
            paths: paths.into(),
            more,
        }
    }
}

/// What admins have ordered of a worker, whatever it tells of itself. Stored as
/// [`Told`] is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Orders {
    /// Over the labels of its settings; None: it is not to bear this one.
    pub(super) labels: LabelChanges,
    /// It is to take no more jobs.
    pub(super) drain: Option<Drain>,
}

/// How a worker is drained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Drain {
    /// What the wall clock is to show when what is left of its jobs is stopped; None:
    /// they end by themselves.
    pub(super) until: Option<Timestamp>,
    /// That moment by the time by which durations are counted, which decides; None: the
    /// same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) counted: Option<Timestamp>,
}

impl Orders {
    /// The labels that count.
    pub(super) fn labels_over(&self, told: &Labels) -> Labels {
        let mut labels = told.clone();
        for (key, ordered) in &self.labels {
            match ordered {
                Some(value) => labels.insert(key.clone(), value.clone()),
                None => labels.remove(key),
            };
        }
        labels
    }

    /// Sets these labels, and takes off those without a value.
    pub(super) fn relabel(&mut self, told: &Labels, changes: &LabelChanges) -> Result<(), Error> {
        check_changes(changes)?;
        let mut labels = self.labels.clone();
        for (key, value) in changes {
            match value {
                // Nothing to remember against settings that do not have it.
                None if !told.contains_key(key) => labels.remove(key),
                _ => labels.insert(key.clone(), value.clone()),
            };
        }
        // What is taken off counts as well, or there would be no end of it.
        let ordered = Self {
            labels,
            ..self.clone()
        };
        if ordered.labels.len() > labels::MAX || ordered.labels_over(told).len() > labels::MAX {
            return Err(Error::TooManyLabels);
        }
        *self = ordered;
        Ok(())
    }
}

/// What workers must be like that are meant: `gpu,zone=eu` are those that have
/// both.
pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, Error> {
    let asked = text.split(',').map(str::parse);
    asked.collect::<Result<_, _>>().map_err(Error::BadRequest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn changes(pairs: &[(&str, Option<&str>)]) -> LabelChanges {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)))
            .collect()
    }

    #[test]
    fn what_is_ordered_wins_over_what_is_told() {
        let told = labels(&[("zone", "eu"), ("gpu", "a100")]);
        let mut orders = Orders::default();
        let asked = changes(&[
            ("zone", Some("us")),
            ("gpu", None),
            ("disk", Some("ssd")),
            ("x", None),
        ]);
        orders.relabel(&told, &asked).unwrap();
        let counts = orders.labels_over(&told);
        assert_eq!(counts, labels(&[("disk", "ssd"), ("zone", "us")]));
        assert!(!orders.labels.contains_key("x"), "nobody has it");
        orders
            .relabel(&told, &changes(&[("disk", None), ("gpu", Some(""))]))
            .unwrap();
        let counts = orders.labels_over(&told);
        assert_eq!(counts, labels(&[("gpu", ""), ("zone", "us")]));
    }

    #[test]
    fn bad_labels_and_too_many_change_nothing() {
        let told = labels(&[("zone", "eu")]);
        let mut orders = Orders::default();
        for (key, value) in [("-a", Some("b")), ("a", Some("b c")), ("a b", None)] {
            let asked = changes(&[("good", Some("x")), (key, value)]);
            let error = orders.relabel(&told, &asked).unwrap_err();
            assert_eq!(error.code(), "bad_label", "{key}");
        }
        let many: Vec<String> = (0..labels::MAX).map(|n| format!("l{n}")).collect();
        let many: Vec<_> = many.iter().map(|key| (key.as_str(), Some("x"))).collect();
        let error = orders.relabel(&told, &changes(&many)).unwrap_err();
        assert_eq!(error.code(), "too_many_labels");
        assert_eq!(orders, Orders::default());
        orders.relabel(&told, &changes(&many[1..])).unwrap();

        let told = Told {
            labels: labels(&[("a b", "c")]),
            ..Told::default()
        };
        assert_eq!(told.checked().unwrap_err().code(), "bad_label");
        let told = Told {
            labels: (0..=labels::MAX)
                .map(|n| (format!("l{n}"), String::new()))
                .collect(),
            ..Told::default()
        };
        assert_eq!(told.checked().unwrap_err().code(), "too_many_labels");
    }

    #[test]
    fn no_worker_fills_the_memory_with_the_paths_of_its_scripts() {
        let folder = ScriptFolder::new(vec!["a".to_owned(), "b".to_owned()], false);
        assert_eq!((folder.paths.len(), folder.more), (2, false));
        let folder = ScriptFolder::new(vec!["x".to_owned(); MAX_SCRIPTS + 1], false);
        assert_eq!((folder.paths.len(), folder.more), (MAX_SCRIPTS, true));
        let folder = ScriptFolder::new(vec!["x".repeat(MAX_SCRIPT_BYTES); 2], false);
        assert_eq!((folder.paths.len(), folder.more), (1, true));
    }

    /// What is on people's disks must be read by every later version.
    #[test]
    fn what_is_stored_is_read_again() {
        assert_eq!(serde_json::from_str::<Told>("{}").unwrap(), Told::default());
        let told = r#"{"labels":{"zone":"eu"},"slots":4,"cpus":2,"memory_bytes":7,
            "os":"linux","arch":"x86_64"}"#;
        let told: Told = serde_json::from_str(told).unwrap();
        assert_eq!((told.slots, &*told.labels["zone"]), (Some(4), "eu"));
        let orders = r#"{"labels":{"a":"b","c":null},"drain":{"until":"2026-01-02T03:04:05Z"}}"#;
        let orders: Orders = serde_json::from_str(orders).unwrap();
        assert_eq!(orders.labels["c"], None);
        assert!(orders.drain.unwrap().until.is_some());
    }
}
