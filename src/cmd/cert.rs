//! `jobctl cert`: who has a certificate, and who is not accepted any more.

use anyhow::Context as _;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Asking, Caller, Codes, DONE, Effect, FAILED, PREFIX, Reach, Shown, Unmatched, listed, usage,
};
use crate::{
    api::{Certificate, RevokeCertificateRequest},
    client::render,
    identity::Role,
};

const EXAMPLES: &str = "\
Examples:
  jobctl cert list
  jobctl cert revoke alice
  jobctl cert revoke --yes 3f2a8b1c";

/// See who has a certificate, and revoke what somebody has
#[derive(Debug, clap::Args)]
#[command(before_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    List(Asking<List>),
    Revoke(Asking<Revoke>),
}

impl Args {
    pub(super) fn reach(&self) -> &Reach {
        match &self.action {
            Action::List(Asking { reach, .. }) | Action::Revoke(Asking { reach, .. }) => reach,
        }
    }

    pub(super) fn effect(&self) -> Effect {
        match self.action {
            Action::List(_) => Effect::Reads,
            Action::Revoke(_) => Effect::ChangesAccess,
        }
    }
}

/// List who has a certificate, the newest first
#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    shown: Shown,
}

/// Revoke what somebody has: from now on they are refused
///
/// With the certificate every other of the same id, and their connections are
/// closed. A name stands for everybody who bears it: who has joined twice has two
/// ids. It cannot be taken back; they have to join again.
#[derive(Debug, clap::Args)]
struct Revoke {
    /// Whose, each by id, a prefix of at least 4 digits, or name; `-` reads them
    /// from stdin
    #[arg(
        required = true,
        value_name = "WHO",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    who: Vec<String>,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(super) async fn run(args: Args, caller: &Caller) -> anyhow::Result<u8> {
    match args.action {
        Action::List(Asking { args, .. }) => list(&args, caller).await,
        Action::Revoke(Asking { args, .. }) => revoke(args, caller).await,
    }
}

async fn list(args: &List, caller: &Caller) -> anyhow::Result<u8> {
    let answer = caller.patiently(caller.client.certificates()).await?;
    render::certificates(&answer.certificates, args.shown.format())?;
    if answer.certificates.is_empty() {
        render::note("nobody has a certificate that was signed here");
    }
    Ok(DONE)
}

async fn revoke(args: Revoke, caller: &Caller) -> anyhow::Result<u8> {
    let all = caller.patiently(caller.client.certificates()).await?;
    let all = all.certificates;
    let own = caller.proof.identity().map(|who| who.id);
    let (mut chosen, mut highest) = (Vec::new(), DONE);
    for asked in listed(args.who, "ids")? {
        match found(&all, &asked) {
            Ok(meant) => {
                for (id, label) in meant {
                    if !chosen.iter().any(|(known, _)| *known == id) {
                        chosen.push((id, label));
                    }
                }
            }
            Err(error) => highest = highest.max(caller.report(&error.into(), Codes::Jobctl)),
        }
    }
    if chosen.is_empty() {
        return Ok(highest);
    }
    // Whoever revokes their own first cannot revoke the others.
    chosen.sort_by_key(|(id, _)| Some(*id) == own);
    if chosen.iter().any(|(id, _)| Some(*id) == own) {
        render::note("warning: that is what this command shows of itself");
    }
    let ids: Vec<Uuid> = chosen.iter().map(|(id, _)| *id).collect();
    if is_last_admin(&all, &ids, Timestamp::now()) {
        render::note(
            "warning: no admin is left then; whoever starts the scheduler again becomes one",
        );
    }
    if !args.yes {
        let labels: Vec<&str> = chosen.iter().map(|(_, label)| label.as_str()).collect();
        let labels = labels.join(", ");
        let question = match chosen.len() {
            1 => format!("revoke {labels} for good?"),
            count => format!("revoke {count} certificates for good: {labels}?"),
        };
        match render::ask(&question).context("cannot ask")? {
            Some(true) => {}
            Some(false) => {
                render::note("nothing is revoked");
                return Ok(highest.max(FAILED));
            }
            None => {
                return Err(usage(
                    "cert revoke",
                    "without a terminal, `--yes` is needed",
                ));
            }
        }
    }
    for (id, label) in chosen {
        let request = RevokeCertificateRequest { id };
        let revoked = caller.client.revoke_certificate(&request);
        match caller.patiently(revoked).await {
            Ok(_) => render::remark(&format!("{label} is revoked")),
            Err(error) => highest = highest.max(caller.report(&error.into(), Codes::Jobctl)),
        }
    }
    Ok(highest)
}

/// Whose certificates are meant, and what to call them: everybody's who bears the
/// name, or else the one of an id or prefix.
fn found(all: &[Certificate], asked: &str) -> Result<Vec<(Uuid, String)>, Unmatched> {
    let digits = asked.replace('-', "").to_ascii_lowercase();
    let is_prefix = digits.len() >= PREFIX && digits.chars().all(|c| c.is_ascii_hexdigit());
    let of_id = |certificate: &&Certificate| {
        is_prefix && certificate.id.simple().to_string().starts_with(&digits)
    };
    let label = |certificate: &&Certificate| {
        let id = render::short(certificate.id);
        match (certificate.role, certificate.name.as_str()) {
            (None, _) => certificate.id.to_string(),
            (Some(role), "") => format!("{role} {id}"),
            (Some(role), name) => format!("{role} {name} ({id})"),
        }
    };
    let mut matching: Vec<_> = all.iter().filter(|known| known.name == asked).collect();
    // The same name may have been given again.
    if matching.iter().any(|known| known.revoked_at.is_none()) {
        matching.retain(|known| known.revoked_at.is_none());
    }
    // Workers choose their names: one that is also the beginning of an id is not
    // taken for either.
    let of_others = all
        .iter()
        .filter(|known| known.name != asked && of_id(known));
    let of_others: Vec<_> = of_others.collect();
    if !matching.is_empty() && of_others.is_empty() {
        let meant = matching.iter().map(|known| (known.id, label(known)));
        return Ok(meant.collect());
    }
    matching.extend(of_others);
    match asked.parse::<Uuid>() {
        // One that was signed elsewhere can be revoked all the same.
        Ok(id) if matching.is_empty() => Ok(vec![(id, id.to_string())]),
        _ => {
            let one = Unmatched::unless_one("certificate", asked, matching, label)?;
            Ok(vec![(one.id, label(&one))])
        }
    }
}

/// Whether there is an admin now, and none without these.
fn is_last_admin(all: &[Certificate], without: &[Uuid], now: Timestamp) -> bool {
    let mut admins = all.iter().filter(|certificate| {
        certificate.role == Some(Role::Admin)
            && certificate.revoked_at.is_none()
            && certificate.expires_at.is_some_and(|end| end > now)
    });
    let mut left = admins.clone().filter(|admin| !without.contains(&admin.id));
    admins.next().is_some() && left.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(id: u128, role: Role, name: &str) -> Certificate {
        Certificate {
            id: Uuid::from_u128(id << 96),
            role: Some(role),
            name: name.into(),
            serial: String::new(),
            issued_at: Some(Timestamp::UNIX_EPOCH),
            expires_at: Some(Timestamp::MAX),
            revoked_at: None,
        }
    }

    #[test]
    fn somebody_is_found_by_id_prefix_or_name() {
        let mut all = vec![
            certificate(0xabcd_0001, Role::Operator, "alice"),
            certificate(0xabcd_0002, Role::Viewer, "alice"),
            certificate(0xbbbb_0003, Role::Worker, "w1"),
        ];
        let ids = |all: &[Certificate], asked: &str| {
            let meant = found(all, asked)?.into_iter();
            Ok::<Vec<Uuid>, Unmatched>(meant.map(|(id, _)| id).collect())
        };
        let id = |all: &[Certificate], asked: &str| {
            let meant = ids(all, asked)?;
            assert_eq!(meant.len(), 1, "{asked}");
            Ok::<Uuid, Unmatched>(meant[0])
        };
        assert_eq!(id(&all, "bbbb").unwrap(), all[2].id);
        assert_eq!(id(&all, "w1").unwrap(), all[2].id);
        assert_eq!(id(&all, &all[1].id.to_string()).unwrap(), all[1].id);
        for asked in ["bbb", "nobody"] {
            assert!(matches!(id(&all, asked), Err(Unmatched::NotFound { .. })));
        }
        let words = "operator alice (abcd00010000), viewer alice (abcd00020000)";
        let error = found(&all, "abcd").unwrap_err().to_string();
        assert!(error.ends_with(words), "{error}");
        assert_eq!(ids(&all, "alice").unwrap(), [all[0].id, all[1].id]);
        all[0].revoked_at = Some(Timestamp::UNIX_EPOCH);
        assert_eq!(id(&all, "alice").unwrap(), all[1].id);
        all.push(certificate(0xdddd_0004, Role::Worker, "bbbb"));
        let error = found(&all, "bbbb").unwrap_err().to_string();
        let words = "worker bbbb (dddd00040000), worker w1 (bbbb00030000)";
        assert!(error.ends_with(words), "{error}");
        assert_eq!(id(&all, "dddd").unwrap(), all[3].id);
        let elsewhere = Uuid::from_u128(7);
        assert_eq!(id(&all, &elsewhere.to_string()).unwrap(), elsewhere);
    }

    #[test]
    fn the_last_admin_is_known() {
        let now = Timestamp::now();
        let mut all = vec![
            certificate(1, Role::Admin, "a"),
            certificate(2, Role::Admin, "b"),
            certificate(3, Role::Worker, "w"),
        ];
        let ids: Vec<Uuid> = all.iter().map(|certificate| certificate.id).collect();
        assert!(!is_last_admin(&all, &ids[..1], now));
        assert!(is_last_admin(&all, &ids[..2], now));
        assert!(!is_last_admin(&all, &ids[2..], now));
        all[1].expires_at = Some(now);
        assert!(is_last_admin(&all, &ids[..1], now));
        all[0].revoked_at = Some(now);
        assert!(!is_last_admin(&all, &ids, now));
    }
}
