//! What a command line names: jobs, tokens, certificates; and which one is meant.

use std::{collections::BTreeSet, io::Read as _};

use anyhow::Context as _;
use clap::builder::NonEmptyStringValueParser;

use super::caller::Caller;
use crate::{
    api::{Group, QueryAnswer, QueryRequest},
    client::{self, render},
    ids::{JobId, is_name},
};

/// Jobs as arguments. Empty ones would only be refused by the scheduler.
#[derive(Debug, clap::Args)]
pub(super) struct Jobs {
    /// Jobs and groups, each by id, prefix, name or `last`, or GROUP/INDEX; `-`
    /// reads them from stdin
    #[arg(required = true, value_name = "JOB", value_parser = NonEmptyStringValueParser::new())]
    pub(super) jobs: Vec<String>,
}

/// Jobs named on the command line, with `-` for those on standard input; each
/// once, in this order.
pub(super) fn named_jobs(jobs: Vec<String>) -> anyhow::Result<Vec<String>> {
    listed(jobs, "jobs")
}

/// As [`named_jobs`], of other things.
pub(super) fn listed(words: Vec<String>, things: &str) -> anyhow::Result<Vec<String>> {
    let mut named = Vec::new();
    for word in words {
        if word == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .with_context(|| format!("cannot read the {things} from standard input"))?;
            named.extend(text.split_whitespace().map(str::to_owned));
        } else {
            named.push(word);
        }
    }
    if named.is_empty() {
        render::note(&format!("no {things} on standard input"));
    }
    let mut seen = BTreeSet::new();
    named.retain(|word| seen.insert(word.clone()));
    Ok(named)
}

/// What somebody means by an id or a name.
#[derive(Clone, Debug)]
pub(super) enum Named {
    Job(JobId),
    Group(Box<Group>),
}

/// What `reference` means, and what to call it: by its name too, if that was how
/// it was called.
pub(super) async fn named(
    caller: &Caller,
    reference: String,
) -> Result<(Named, String), client::Error> {
    let request = QueryRequest {
        job_id: reference.clone(),
        ..QueryRequest::default()
    };
    let label = |name: Option<String>, id: String| match name {
        Some(name) if name == reference => format!("{name} ({id})"),
        _ => id,
    };
    Ok(match caller.client.query(&request).await? {
        QueryAnswer::Job(answer) => {
            let (id, name) = (answer.job.id, answer.job.name);
            (Named::Job(id), label(name, id.short()))
        }
        QueryAnswer::Group(answer) => {
            let group = answer.group;
            let label = label(group.name.clone(), group.id.short());
            (Named::Group(Box::new(group)), label)
        }
    })
}

/// Nobody, or not one alone, is what was meant.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unmatched {
    #[error("{thing} {asked} not found")]
    NotFound { thing: &'static str, asked: String },
    #[error("{thing} {asked} is ambiguous: {}", candidates.join(", "))]
    Ambiguous {
        thing: &'static str,
        asked: String,
        candidates: Vec<String>,
    },
}

impl Unmatched {
    pub(super) fn unless_one<T>(
        thing: &'static str,
        asked: &str,
        mut matching: Vec<T>,
        label: impl Fn(&T) -> String,
    ) -> Result<T, Self> {
        let asked = asked.to_owned();
        match (matching.pop(), matching.is_empty()) {
            (None, _) => Err(Self::NotFound { thing, asked }),
            (Some(one), true) => Ok(one),
            (Some(last), false) => {
                matching.push(last);
                Err(Self::Ambiguous {
                    thing,
                    asked,
                    candidates: matching.iter().map(label).collect(),
                })
            }
        }
    }
}

/// A name that a job or worker may bear.
pub(super) fn name(text: &str) -> Result<String, String> {
    match text {
        "last" => Err("`last` means the job started last".to_owned()),
        name if is_name(name) => Ok(name.to_owned()),
        _ => {
            Err("use 1 to 64 letters, digits, `.`, `_` and `-`, a letter or digit first".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_named_twice_is_one_job() {
        let jobs = ["b", "a", "b"].map(str::to_owned).to_vec();
        assert_eq!(named_jobs(jobs).unwrap(), ["b", "a"]);
    }
}
