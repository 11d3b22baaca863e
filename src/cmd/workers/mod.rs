//! `jobctl workers`: who is in the cluster, and what admins order of them.

mod drain;
mod label;
mod remove;

use std::collections::HashSet;

use futures_util::{StreamExt as _, stream};

use super::{AT_ONCE, Asking, Caller, Codes, DONE, Effect, Reach, Shown, listed, usage};
use crate::{
    api::{Worker, WorkersQuery},
    client::{
        self,
        render::{self, Format, Many},
    },
};

const EXAMPLES: &str = "\
Examples:
  jobctl workers
  jobctl workers --label zone=eu -o json
  jobctl workers show w1
  jobctl workers label w1 zone=eu gpu-     set one label, take another off
  jobctl workers drain w1 --wait --deadline 1h
  jobctl workers resume w1
  jobctl workers remove w1                 forget one that will not come back";

/// List the workers and how they stand; label, drain and remove them
///
/// SLOTS are the jobs that run there, of how many at once; `-` is no limit.
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,

    /// Only workers with this label, as KEY=VALUE or KEY; may be repeated
    #[arg(
        short,
        long = "label",
        value_name = "LABEL",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    labels: Vec<String>,

    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    Show(Asking<Show>),
    Label(Asking<label::Args>),
    Drain(Asking<drain::Drain>),
    Resume(Asking<drain::Resume>),
    Remove(Asking<remove::Args>),
}

impl Args {
    pub(super) fn reach(&self) -> Option<&Reach> {
        Some(match self.action.as_ref()? {
            Action::Show(Asking { reach, .. }) => reach,
            Action::Label(Asking { reach, .. }) => reach,
            Action::Drain(Asking { reach, .. }) => reach,
            Action::Resume(Asking { reach, .. }) => reach,
            Action::Remove(Asking { reach, .. }) => reach,
        })
    }

    pub(super) fn effect(&self) -> Effect {
        match self.action {
            None | Some(Action::Show(_)) => Effect::Reads,
            Some(Action::Label(_) | Action::Drain(_) | Action::Resume(_) | Action::Remove(_)) => {
                Effect::ChangesWorkers
            }
        }
    }
}

/// Workers as arguments.
#[derive(Debug, clap::Args)]
struct Workers {
    /// Workers, each by id, prefix or name; `-` reads them from stdin
    #[arg(required = true, value_name = "WORKER", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    workers: Vec<String>,
}

/// Show all that is known of workers
#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    workers: Workers,

    #[command(flatten)]
    shown: Shown,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    if args.action.is_some() && (!args.labels.is_empty() || args.shown.is_said()) {
        let message = "options of the list mean nothing to a subcommand; its own stand behind it";
        return Err(usage("workers", message));
    }
    match args.action {
        None => list(args.labels, &args.shown, caller).await,
        Some(Action::Show(Asking { args, .. })) => show(args, caller).await,
        Some(Action::Label(Asking { args, .. })) => label::run(args, caller).await,
        Some(Action::Drain(Asking { args, .. })) => drain::run(args, caller).await,
        Some(Action::Resume(Asking { args, .. })) => drain::resume(args, caller).await,
        Some(Action::Remove(Asking { args, .. })) => remove::run(args, caller).await,
    }
}

async fn list(labels: Vec<String>, shown: &Shown, caller: &Caller) -> anyhow::Result<u8> {
    let query = WorkersQuery {
        worker_id: None,
        label: (!labels.is_empty()).then(|| labels.join(",")),
    };
    let answer = caller.patiently(caller.client.workers_like(&query)).await?;
    render::workers(&answer.workers, shown.format(), Many::List)?;
    for worker in &answer.workers {
        // A table has no room for it.
        if let (Some(reason), Format::Table { wide: false, .. }) = (&worker.reason, shown.format())
        {
            render::note(&format!("worker {} {reason}", worker.name));
        }
    }
    if let Some(notice) = &answer.notice {
        render::note(&format!("warning: {notice}"));
    }
    if answer.workers.is_empty() {
        render::note(match query.label {
            None => "no workers; start one with `jobctl worker`",
            Some(_) => "no worker has such labels",
        });
    }
    Ok(DONE)
}

async fn show(args: Show, caller: &Caller) -> anyhow::Result<u8> {
    let named = listed(args.workers.workers, "workers")?;
    let many = match named.len() {
        1 => Many::Named,
        _ => Many::Several,
    };
    let (workers, highest) = found(named, caller).await;
    if highest == DONE || !workers.is_empty() {
        render::workers(&workers, args.shown.format(), many)?;
    }
    Ok(highest)
}

/// The workers that are meant, and the exit code for those that are not there.
async fn found(named: Vec<String>, caller: &Caller) -> (Vec<Worker>, u8) {
    let calls = named.into_iter().map(|worker| async move {
        let query = WorkersQuery {
            worker_id: Some(worker),
            label: None,
        };
        caller.client.workers_like(&query).await
    });
    let answers = stream::iter(calls).buffered(AT_ONCE).collect::<Vec<_>>();
    let (mut workers, mut highest) = (Vec::<Worker>::new(), DONE);
    for answer in caller.patiently(answers).await {
        match answer {
            Ok(answer) => workers.extend(answer.workers),
            Err(error) => highest = highest.max(caller.report(&error.into(), Codes::Jobctl)),
        }
    }
    let mut seen = HashSet::new();
    workers.retain(|worker| seen.insert(worker.id));
    (workers, highest)
}

/// Has each order given, and says what came of it; returns those that took it,
/// and the exit code.
async fn order(
    named: Vec<String>,
    caller: &Caller,
    order: impl AsyncFn(String) -> Result<(), client::Error>,
    what: &str,
) -> (Vec<String>, u8) {
    let (mut taken, mut highest) = (Vec::new(), DONE);
    for worker in named {
        match caller.patiently(order(worker.clone())).await {
            Ok(()) => {
                render::remark(&format!("{worker} {what}"));
                taken.push(worker);
            }
            Err(error) => highest = highest.max(caller.report(&error.into(), Codes::Jobctl)),
        }
    }
    (taken, highest)
}
