//! `jobctl ca`: the authority that signs for everybody in a cluster.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;

use super::{
    Asking, Caller, DONE, Document, Effect, FAILED, Reach, Shown, usage, whole_milliseconds,
};
use crate::{
    api::{MAX_OVERLAP_MS, RotateRequest, RotateResponse},
    client::{
        proof::{Authority, Who},
        render,
    },
    config,
    identity::{ca::LIFETIME, files},
};

/// The shortest time in which a fleet hears of another authority.
const SHORTEST: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  jobctl ca show
  jobctl ca rotate                     everybody goes on, and gets a new certificate
  jobctl ca rotate --overlap 0s        its key was stolen: everybody joins again";

/// See and change the authority that signs for everybody
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    Show(Asking<Show>),
    Rotate(Asking<Rotate>),
}

impl Args {
    pub(super) fn reach(&self) -> &Reach {
        match &self.action {
            Action::Show(Asking { reach, .. }) | Action::Rotate(Asking { reach, .. }) => reach,
        }
    }

    pub(super) fn effect(&self) -> Effect {
        match self.action {
            Action::Show(_) => Effect::None,
            Action::Rotate(_) => Effect::ChangesAccess,
        }
    }
}

/// Show the authorities that are trusted here
///
/// Those in the CA file of the context; no scheduler is asked.
#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    shown: Shown,
}

/// Have another authority sign from now on, and print its fingerprint
///
/// For the time of the overlap the one before is trusted as well: workers and
/// users go on, and get new certificates by themselves. Without one, nothing it
/// has signed is accepted any more, at once.
#[derive(Debug, clap::Args)]
struct Rotate {
    /// How long the one before is still trusted; 0s is for emergencies
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "7d",
        value_parser = config::duration
    )]
    overlap: Duration,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,

    /// How to show it
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        hide_possible_values = true,
        help = "How to show it: json, jsonl or yaml [default: the fingerprint]",
        help_heading = "Output"
    )]
    output: Option<Document>,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    match args.action {
        Action::Show(Asking { args, .. }) => show(&args, caller),
        Action::Rotate(Asking { args, .. }) => rotate(&args, caller).await,
    }
}

fn show(args: &Show, caller: &Caller) -> anyhow::Result<u8> {
    let authorities = match &caller.ca_file {
        Some(file) => Authority::of(file)?,
        None => {
            render::note("no CA file: those are trusted that this machine trusts");
            Vec::new()
        }
    };
    render::authorities(&authorities, args.shown.format())?;
    // Of no use to who reads the list, and the reason why other commands fail.
    let own = caller.context.as_ref();
    let own = own.and_then(|named| Who::of(&named.context).ok().flatten());
    let ended = own.and_then(|who| who.expires_at);
    if let Some(end) = ended.filter(|end| *end <= Timestamp::now()) {
        render::note(&format!("your own certificate expired at {end:.0}"));
    }
    Ok(DONE)
}

const EVERYBODY: &str = "every worker and every user has to join again, and so do you; the jobs \
                         go on, but nobody sees them until then";

async fn rotate(args: &Rotate, caller: &Caller) -> anyhow::Result<u8> {
    if !args.overlap.is_zero() && args.overlap < SHORTEST {
        // Workers hear of it with a heartbeat, and then have to get there.
        return Err(usage("ca rotate", "`--overlap` is 0s, or at least 1m"));
    }
    let overlap_ms = whole_milliseconds(args.overlap);
    if overlap_ms > MAX_OVERLAP_MS {
        return Err(usage("ca rotate", "`--overlap` is at most 365d"));
    }
    if !args.yes {
        let question = if args.overlap.is_zero() {
            format!("change the authority at once? {EVERYBODY}")
        } else if args.overlap < LIFETIME / 2 {
            "change the authority? certificates are replaced in the second half of their 7 days: \
             who does not get there within the overlap has to join again"
                .to_owned()
        } else {
            "change the authority? workers and users go on with new certificates".to_owned()
        };
        match render::ask(&question).context("cannot ask")? {
            Some(true) => {}
            Some(false) => {
                render::note("the authority stays");
                return Ok(FAILED);
            }
            None => return Err(usage("ca rotate", "without a terminal, `--yes` is needed")),
        }
    }
    let request = RotateRequest { overlap_ms };
    let answer = caller.patiently(caller.client.rotate(&request)).await?;
    // Before anything is written to a pipe, which may be closed.
    let kept = keep(&answer, caller);
    match args.output {
        Some(format) => render::value(&answer, format.into())?,
        None => render::data(&format!("{}\n", answer.fingerprint))?,
    }
    kept?;
    match answer.overlap_until {
        Some(until) => render::remark(&format!("the one before is trusted until {until:.0}")),
        None if caller.proof.identity().is_some() => render::note(&format!(
            "{EVERYBODY}: start the scheduler again, as who started it first, and you are an \
             admin; then `jobctl token create` for the others"
        )),
        None => render::note(
            "every worker and every user has to join again: `jobctl token create` for each",
        ),
    }
    Ok(DONE)
}

/// Trusts the new authority where the context says whom to trust: without, a
/// bearer of a token would trust nobody, and the scheduler would not know the
/// context for one of this cluster when it is started again.
fn keep(answer: &RotateResponse, caller: &Caller) -> anyhow::Result<()> {
    let context = caller.context.as_ref();
    let of_context = context.and_then(|named| named.context.ca_file.as_ref());
    match (&caller.ca_file, of_context) {
        (Some(used), Some(file)) if used == file => {
            let written = files::write(file, answer.authorities.as_bytes());
            written.context("the authority is changed, and the context does not say so")
        }
        (Some(used), _) => {
            render::note(&format!(
                "{} is left as it is, and does not hold the new authority",
                used.display()
            ));
            Ok(())
        }
        (None, _) => Ok(()),
    }
}
