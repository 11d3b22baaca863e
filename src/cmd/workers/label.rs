//! `jobctl workers label`

use std::collections::BTreeMap;

use crate::{
    api::LabelWorkerRequest,
    client::render,
    cmd::{Caller, DONE, usage},
    labels,
};

const EXAMPLES: &str = "\
Examples:
  jobctl workers label w1 zone=eu gpu=a100
  jobctl workers label w1 gpu-";

/// Set labels of a worker, or take them off
///
/// They count over what the worker's own settings say, from now on and whatever
/// is restarted. A job chooses its worker by them.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    /// The worker, by id, prefix or name
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    worker: String,

    /// A label to set, or the key of one to take off with a `-` behind it
    #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = change)]
    labels: Vec<(String, Option<String>)>,
}

/// Reads `key=value` or `key-`.
fn change(text: &str) -> Result<(String, Option<String>), String> {
    let (key, value) = match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => (key, Some(value.to_owned())),
        (None, Some(key)) => (key, None),
        (None, None) => return Err("write it as KEY=VALUE, or as KEY- to take it off".to_owned()),
    };
    if !labels::is_key(key) {
        return Err(
            "a key is 1 to 63 letters, digits, `.`, `_`, `-` and `/`, a letter or digit first"
                .to_owned(),
        );
    }
    if !value.as_deref().is_none_or(labels::is_value) {
        return Err("a value is up to 63 letters, digits, `.`, `_` and `-`".to_owned());
    }
    Ok((key.to_owned(), value))
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    let count = args.labels.len();
    let labels: BTreeMap<_, _> = args.labels.into_iter().collect();
    if labels.len() < count {
        return Err(usage("workers", "a label is named twice"));
    }
    let request = LabelWorkerRequest {
        worker_id: args.worker,
        labels,
    };
    caller
        .patiently(caller.client.label_worker(&request))
        .await?;
    render::remark(&format!("{} is labelled", request.worker_id));
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_set_or_taken_off() {
        let set = |key: &str, value: &str| Ok((key.to_owned(), Some(value.to_owned())));
        assert_eq!(change("zone=eu"), set("zone", "eu"));
        assert_eq!(change("zone="), set("zone", ""));
        assert_eq!(change("zone=eu-"), set("zone", "eu-"));
        assert_eq!(change("zone-"), Ok(("zone".to_owned(), None)));
        assert_eq!(change("a-b-"), Ok(("a-b".to_owned(), None)));
        for bad in ["", "zone", "-", "=x", "a b=c", "a=b/c", "a=b=c"] {
            assert!(change(bad).is_err(), "{bad}");
        }
    }
}
