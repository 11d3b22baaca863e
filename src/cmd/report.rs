//! What went wrong, said to whoever typed the command: the error with its causes,
//! what to type next, and the exit code.

use std::io;

use clap::{CommandFactory as _, error::ErrorKind};

use super::{
    Cli, Codes, DONE, FAILED, NOT_ALLOWED, NOT_FOUND, UNREACHABLE, USAGE,
    caller::{Caller, Effect, NoScheduler},
    names::Unmatched,
};
use crate::{
    api::{self, code, exit_code},
    client::{
        self,
        contexts::{self, Named},
        render,
    },
    config,
    identity::{self, Role, files, tls},
    roles::worker as worker_role,
};

/// Shows `error` with its causes and a hint; returns the exit code it stands for.
pub fn report(error: &anyhow::Error, codes: Codes) -> u8 {
    report_with(error, codes, hint(error))
}

pub(super) fn report_with(error: &anyhow::Error, codes: Codes, hint: Option<String>) -> u8 {
    let code = code_of(error, codes);
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        show_usage(usage);
    } else if code != DONE {
        let causes: Vec<_> = error.chain().skip(1).map(ToString::to_string).collect();
        render::failure(&error.to_string(), &causes, hint.as_deref());
    }
    code
}

fn code_of(error: &anyhow::Error, codes: Codes) -> u8 {
    let is_closed = |error: &render::OutputError| matches!(error, render::OutputError::Closed);
    let shown = error.downcast_ref::<render::Error>();
    if error.downcast_ref().is_some_and(is_closed)
        || matches!(shown, Some(render::Error::Output(error)) if is_closed(error))
    {
        return DONE;
    }
    if error.is::<clap::Error>()
        || error.is::<config::Error>()
        || error.is::<BadSetting>()
        || error.is::<NoScheduler>()
    {
        return USAGE;
    }
    if let Some(error) = error.downcast_ref::<contexts::Error>() {
        return match error {
            contexts::Error::NotFound { .. } | contexts::Error::NoneCurrent => NOT_FOUND,
            contexts::Error::File(_)
            | contexts::Error::BadName(_)
            | contexts::Error::TwoCredentials(_)
            | contexts::Error::Files(_)
            | contexts::Error::Identity { .. }
            | contexts::Error::Authorities(_) => USAGE,
            contexts::Error::Exists(_)
            | contexts::Error::FileOfAnother { .. }
            | contexts::Error::Failed { .. }
            | contexts::Error::Toml(_) => FAILED,
        };
    }
    if let (Some(unmatched), Codes::Jobctl) = (error.downcast_ref::<Unmatched>(), codes) {
        return match unmatched {
            Unmatched::NotFound { .. } => NOT_FOUND,
            Unmatched::Ambiguous { .. } => FAILED,
        };
    }
    if let Some(worker_role::Error::Revoked { .. }) = error.downcast_ref() {
        return NOT_ALLOWED;
    }
    match (error.downcast_ref::<client::Error>(), codes) {
        (Some(error), Codes::Job) => exit_code::of_start_error(error.code().unwrap_or_default()),
        (None, Codes::Job) => exit_code::CANNOT_TELL,
        (Some(client::Error::Refused { status, error }), Codes::Jobctl) => {
            match (status, error.code.as_str()) {
                (401 | 403, _) => NOT_ALLOWED,
                (
                    _,
                    code::JOB_NOT_FOUND
                    | code::WORKER_NOT_FOUND
                    | code::TOKEN_NOT_FOUND
                    | code::CERTIFICATE_NOT_FOUND,
                ) => NOT_FOUND,
                _ => FAILED,
            }
        }
        (
            Some(
                client::Error::Unreachable { .. }
                | client::Error::Interrupted { .. }
                | client::Error::ClocksDiffer { .. }
                | client::Error::Untrusted { .. }
                | client::Error::OtherScheme { .. },
            ),
            Codes::Jobctl,
        ) => UNREACHABLE,
        (Some(client::Error::NotAccepted { .. }), Codes::Jobctl) => NOT_ALLOWED,
        (
            Some(
                client::Error::Unreadable { .. }
                | client::Error::Proof(_)
                | client::Error::PlainToken(_),
            )
            | None,
            Codes::Jobctl,
        ) => FAILED,
    }
}

impl Caller {
    /// Shows `error` with its causes and a hint; returns the exit code it
    /// stands for.
    pub(super) fn report(&self, error: &anyhow::Error, codes: Codes) -> u8 {
        report_with(error, codes, self.hint(error))
    }

    /// What to type next.
    fn hint(&self, error: &anyhow::Error) -> Option<String> {
        let jobctl = &self.jobctl;
        if let Some(Unmatched::NotFound { thing, .. }) = error.downcast_ref() {
            let verb = match *thing {
                "token" => "token",
                _ => "cert",
            };
            return Some(format!("list them with `{jobctl} {verb} list`"));
        }
        let Some(error) = error.downcast_ref::<client::Error>() else {
            return hint(error);
        };
        match error {
            client::Error::Unreachable { .. } => Some(match &self.context {
                Some(Named { name, context, .. }) if context.server == *self.client.server() => {
                    let jobctl = &self.contexts;
                    format!(
                        "see how it is reached with `{jobctl} context show {name}`, or use \
                         another: `--context NAME`"
                    )
                }
                _ => {
                    "start one with `jobctl scheduler`, or name another: `--server URL`".to_owned()
                }
            }),
            client::Error::Interrupted { .. } => Some(match self.effect {
                Effect::Changes => format!("see what came of it with `{jobctl} jobs`"),
                Effect::ChangesWorkers => format!("see what came of it with `{jobctl} workers`"),
                Effect::ChangesAccess => {
                    format!("see what came of it with `{jobctl} audit -n 10`")
                }
                Effect::Reads | Effect::None => NOT_HTTP.to_owned(),
            }),
            client::Error::Unreadable { .. } => Some(NOT_HTTP.to_owned()),
            client::Error::ClocksDiffer { .. } => Some(SET_THE_CLOCK.to_owned()),
            client::Error::Proof(_) => None,
            client::Error::PlainToken(_) => Some("name the scheduler as `https://…`".to_owned()),
            client::Error::Untrusted { .. } => Some(match &self.ca_file {
                Some(_) => format!(
                    "see which authorities you trust with `{jobctl} ca show`; if the cluster was \
                     made anew, log in to it: `{}`",
                    self.login()
                ),
                None => format!(
                    "log in: `{} login TOKEN@HOST:PORT`, or name the authorities to trust: \
                     `--ca-file FILE`",
                    self.contexts
                ),
            }),
            client::Error::NotAccepted { .. } => Some(self.let_in_again()),
            client::Error::OtherScheme { server, speaks } => {
                let other = server.split_once("://").map_or("", |(_, place)| place);
                Some(format!("reach it as `--server {speaks}://{other}`"))
            }
            client::Error::Refused { error, .. } => self.hint_of_answer(error),
        }
    }

    /// About a refusal, where what helps depends on whom it comes from.
    fn hint_of_answer(&self, error: &api::Error) -> Option<String> {
        let jobctl = &self.jobctl;
        match (error.code.as_str(), error.job_id) {
            (_, Some(job)) => Some(format!(
                "see its record with `{jobctl} query {}`",
                job.short()
            )),
            (code::JOB_NOT_FOUND, None) => Some(format!("list the jobs with `{jobctl} jobs`")),
            (code::WORKER_NOT_FOUND | code::WORKER_UNREACHABLE, None) => {
                Some(format!("list the workers with `{jobctl} workers`"))
            }
            (code::WORKER_NOT_GONE, None) => Some(format!(
                "have its jobs end with `{jobctl} workers drain --wait WORKER`, then stop it on \
                 its machine"
            )),
            (code::NO_FREE_SLOT, None) => Some("start a worker with `jobctl worker`".to_owned()),
            (code::ROUTE_NOT_FOUND, None) => {
                Some(format!("compare the versions with `{jobctl} version`"))
            }
            (code::UNIDENTIFIED, None) => Some(format!(
                "log in, with a token that an admin makes: `{} login TOKEN@HOST:PORT`",
                self.contexts
            )),
            (code::BAD_TOKEN | code::TOKEN_EXPIRED | code::REVOKED, None) => {
                Some(self.let_in_again())
            }
            // Contexts do not say who a token is.
            (code::FORBIDDEN, None) if self.proof.token().is_some() => Some(
                "have an admin make a token of that role: `jobctl token create --bearer --role \
                 ROLE --out FILE`"
                    .to_owned(),
            ),
            (code::FORBIDDEN, None) => Some(format!(
                "see who you are with `{} context show`, and have an admin make a token of \
                 that role: `jobctl token create --role ROLE`",
                self.contexts
            )),
            (code::AUTHORITIES_OVERLAP, None) => Some(format!(
                "wait until then, or have everybody join again: `{jobctl} ca rotate \
                 --overlap 0s`"
            )),
            (code::TOKEN_NOT_FOUND, None) => {
                Some(format!("list the tokens with `{jobctl} token list`"))
            }
            (code::CERTIFICATE_NOT_FOUND, None) => {
                Some(format!("list them with `{jobctl} cert list`"))
            }
            (code::NO_AUTHORITY, None) => Some(format!(
                "make certificates where the cluster's come from; for programs there are \
                 tokens: `{jobctl} token create --bearer --role ROLE`"
            )),
            (word, None) => hint_of_refusal(word),
        }
    }

    /// With which a token takes the place of what the context has.
    fn login(&self) -> String {
        let replace = self.context.as_ref().map(|named| {
            let name = render::quoted(&named.name);
            format!(" --replace --name {name}")
        });
        format!(
            "{} login{} TOKEN@HOST:PORT",
            self.contexts,
            replace.unwrap_or_default()
        )
    }

    /// For whoever was let in once, and is not any more.
    fn let_in_again(&self) -> String {
        if self.proof.token().is_some() {
            return "have an admin make another token: `jobctl token create --bearer --role ROLE \
                    --out FILE`"
                .to_owned();
        }
        let (role, name) = match self.proof.identity() {
            Some(who) => (who.role.as_str(), who.name.as_str()),
            None => ("ROLE", ""),
        };
        let name = match name {
            "" => String::new(),
            name => format!(" --name {}", render::quoted(name)),
        };
        format!(
            "have an admin type `jobctl token create --role {role}{name}`, and log in with it: \
             `{}`{}",
            self.login(),
            match role {
                "admin" => {
                    "; if no admin is left, start the scheduler again: who starts it is one"
                }
                _ => "",
            }
        )
    }
}

/// About a refusal that means the same to whoever hears it.
pub(super) fn hint_of_refusal(word: &str) -> Option<String> {
    Some(match word {
        code::TOKEN_SPENT | code::BAD_TOKEN | code::TOKEN_EXPIRED | code::REVOKED => {
            "have an admin make another: `jobctl token create --role ROLE`".to_owned()
        }
        code::WRONG_TOKEN => "of a person `jobctl login` takes the token, of a worker `jobctl \
                              worker --join`, and a bearer token is for `--token-file FILE`"
            .to_owned(),
        code::NOT_ITSELF => {
            "give each worker a folder of its own: `jobctl worker --data-dir DIR`".to_owned()
        }
        code::FOREIGN_HOST => {
            "start the scheduler with that name, `jobctl scheduler --name HOST`, \
                               or reach it by its address: `--server URL`"
                .to_owned()
        }
        code::CROSS_SITE => "ask from a command line: `jobctl jobs`".to_owned(),
        _ => return None,
    })
}

/// Where a certificate is not valid at the time of this machine.
pub(super) const SET_THE_CLOCK: &str =
    "compare the clocks of both machines with `date -u`, and set the one that is wrong";

const NOT_HTTP: &str = "if that is not the scheduler's HTTP address, pass it: `--server URL`";

/// A setting that was understood and is not taken.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct BadSetting {
    pub(super) message: String,
    pub(super) hint: String,
}

/// A failure of this machine that a person can do something about.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Hinted {
    pub(super) message: String,
    pub(super) hint: String,
    pub(super) source: io::Error,
}

/// What to type next where no scheduler is asked.
pub(super) fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(error) = error.downcast_ref::<BadSetting>() {
        return Some(error.hint.clone());
    }
    if let Some(NoScheduler { jobctl }) = error.downcast_ref() {
        return Some(format!(
            "start one with `jobctl scheduler`, or join one: `{jobctl} login TOKEN@HOST:PORT`"
        ));
    }
    if let Some(error) = error.downcast_ref::<Hinted>() {
        return Some(error.hint.clone());
    }
    if let Some(config::Error::UnknownKey { nearest, .. }) = error.downcast_ref() {
        return Some(format!("did you mean `{nearest}`?"));
    }
    if let Some(config::Error::NotASection { section, .. }) = error.downcast_ref() {
        return Some(format!("begin it with a line `[{section}]`"));
    }
    if let Some(hint) = hint_of_files(error) {
        return Some(hint);
    }
    match error.downcast_ref()? {
        worker_role::Error::DataDirInUse(_) => {
            Some("give each worker a folder of its own: `--data-dir DIR`".to_owned())
        }
        worker_role::Error::RunsAlready(_) => Some(
            "remove all of this data folder but `scripts`, and have it join: `--join TOKEN`"
                .to_owned(),
        ),
        worker_role::Error::Refused(_) => {
            Some("see who is there with `jobctl workers`, or pass another `--name`".to_owned())
        }
        worker_role::Error::ForeignProc => Some(
            "mount the one of this namespace: `mount -t proc proc /proc`, or \
             `unshare --mount-proc`"
                .to_owned(),
        ),
        worker_role::Error::StillThere(_) => {
            Some("start the worker again and stop them with `jobctl stop --grace 0s`".to_owned())
        }
        worker_role::Error::NotJoined => Some(
            "take the line that `jobctl scheduler` printed, or have an admin type \
             `jobctl token create --role worker`: `jobctl worker --join TOKEN@HOST:PORT`"
                .to_owned(),
        ),
        worker_role::Error::OtherCluster { .. } => {
            Some("give the worker of this cluster a folder of its own: `--data-dir DIR`".to_owned())
        }
        worker_role::Error::Revoked { name, .. } => Some(format!(
            "have an admin type `jobctl token create --role worker --name {name}`, and join with \
             it here: `jobctl worker --join TOKEN@HOST:PORT`"
        )),
        worker_role::Error::NotTaken { word, .. } => Some(match word.as_deref() {
            Some(code::WRONG_TOKEN) => "have an admin type `jobctl token create --role worker`; \
                                        of a person `jobctl login` takes the token"
                .to_owned(),
            Some(code::WORKER_NAME_TAKEN) => {
                "pass another `--name`; if it is that worker, have an admin say so: \
                 `jobctl token create --role worker --name NAME`"
                    .to_owned()
            }
            None => "workers join at the scheduler's gRPC address, as TOKEN@HOST:50000".to_owned(),
            Some(tls::CLOCKS_DIFFER) => SET_THE_CLOCK.to_owned(),
            Some(_) => "a token buys one certificate and is good for an hour; for another: \
                  `jobctl token create --role worker`"
                .to_owned(),
        }),
        worker_role::Error::Program { .. } => {
            Some("give its whole path, or take it from `jobs.allow_commands`".to_owned())
        }
        worker_role::Error::User { .. } => {
            Some("see `jobs.user` and `jobs.allow_users`, or run the worker as root".to_owned())
        }
        worker_role::Error::Limit { setting, source } => {
            let or = match source {
                worker_role::Unenforceable::NoCpuController => "",
                worker_role::Unenforceable::RootIsNotCounted => {
                    "have jobs run as another user (`jobs.user`), "
                }
            };
            Some(format!(
                "leave `jobs.{setting}` out, {or}or have systemd pass the controller on: \
                 `Delegate=yes` and `DelegateSubgroup=worker` in the worker's service"
            ))
        }
        worker_role::Error::Removed(_) => Some(
            "its jobs go on: put the folder back and start the worker again, \
             which takes them over"
                .to_owned(),
        ),
        worker_role::Error::Certificate(_)
        | worker_role::Error::Files(_)
        | worker_role::Error::Key(_)
        | worker_role::Error::Path { .. }
        | worker_role::Error::Journal(_)
        | worker_role::Error::JournalBroken(_)
        | worker_role::Error::Server(_)
        | worker_role::Error::Listener(_) => None,
    }
}

/// About keys and certificates, wherever they are read.
fn hint_of_files(error: &anyhow::Error) -> Option<String> {
    // Errors that only pass on what another says do not show it as their cause.
    let file_error = error.chain().find_map(|error| {
        let direct = error.downcast_ref::<files::Error>();
        let of_context = || match error.downcast_ref() {
            Some(contexts::Error::Files(error)) => Some(error),
            _ => None,
        };
        let of_worker = || match error.downcast_ref() {
            Some(worker_role::Error::Files(error)) => Some(error),
            _ => None,
        };
        let of_authority = || match error.downcast_ref() {
            Some(identity::ca::Error::Files(error)) => Some(error),
            _ => None,
        };
        let passed_on = direct.or_else(of_context).or_else(of_worker);
        passed_on.or_else(of_authority)
    });
    if let Some(files::Error::Loose { file, .. }) = file_error {
        let file = file.to_string_lossy();
        return Some(format!(
            "take it from others: `chmod 600 {}`",
            render::quoted(&file)
        ));
    }
    if let Some(files::Error::Foreign { file, .. }) = file_error {
        let file = file.to_string_lossy();
        return Some(format!(
            "make it yours, if nobody has changed it: `chown $(id -u) {}`",
            render::quoted(&file)
        ));
    }
    let expired = error.chain().find_map(|error| match error.downcast_ref() {
        Some(tls::Error::Expired { who, .. }) => Some(who),
        _ => None,
    })?;
    let name = match expired.name.as_str() {
        "" => String::new(),
        name => format!(" --name {name}"),
    };
    let role = expired.role;
    let join = match role {
        Role::Worker => "jobctl worker --join",
        _ => "jobctl login --replace --name CONTEXT",
    };
    Some(format!(
        "have an admin type `jobctl token create --role {role}{name}`, then \
         `{join} TOKEN@HOST:PORT`"
    ))
}

/// Shows what clap has to say: help on stdout, and what is wrong on stderr.
pub fn show_usage(message: &clap::Error) {
    match message.use_stderr() {
        true => render::usage(&message.render().ansi().to_string()),
        // Fails only where nobody reads it.
        false => message.print().unwrap_or_default(),
    }
}

/// An error like those clap finds by itself, about the command `words`.
pub(super) fn usage(words: &str, message: impl std::fmt::Display) -> anyhow::Error {
    let mut cli = Cli::command();
    cli.build();
    let command = words
        .split(' ')
        .try_fold(&mut cli, |command, word| command.find_subcommand_mut(word));
    match command {
        Some(command) => command.error(ErrorKind::ValueValidation, message),
        None => Cli::command().error(ErrorKind::ValueValidation, message),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::{super::Reach, *};

    fn refused(status: u16, word: &str) -> anyhow::Error {
        client::Error::Refused {
            status,
            error: api::Error {
                error: "no".into(),
                code: word.into(),
                job_id: None,
                worker: None,
            },
        }
        .into()
    }

    #[test]
    fn each_error_has_its_exit_code() {
        let unreachable = || -> anyhow::Error {
            client::Error::Unreachable {
                server: "s".into(),
                reason: "r".into(),
                hung_up: true,
            }
            .into()
        };
        for (error, own, of_a_job) in [
            (refused(404, "job_not_found"), 3, 125),
            (refused(404, "worker_not_found"), 3, 125),
            (refused(401, "unauthenticated"), 4, 125),
            (refused(403, "forbidden"), 4, 125),
            (refused(409, "job_finished"), 1, 125),
            (refused(422, "program_not_found"), 1, 127),
            (refused(422, "script_not_found"), 1, 127),
            (refused(422, "interpreter_not_found"), 1, 127),
            (refused(422, "not_executable"), 1, 126),
            (refused(422, "bad_cwd"), 1, 126),
            (refused(422, "not_a_file"), 1, 126),
            (refused(422, "outside_script_folder"), 1, 126),
            (refused(422, "command_not_allowed"), 1, 126),
            (refused(422, "variable_not_allowed"), 1, 126),
            (refused(422, "user_not_allowed"), 1, 126),
            (refused(422, "not_started"), 1, 126),
            (refused(503, "worker_short"), 1, 125),
            (refused(507, "disk_full"), 1, 125),
            (refused(503, "no_free_slot"), 1, 125),
            (refused(404, "token_not_found"), 3, 125),
            (untrusted(), 5, 125),
            (clocks_differ(), 5, 125),
            (not_accepted(), 4, 125),
            (unreachable(), 5, 125),
            (unreachable().context("of something else"), 5, 125),
            (anyhow::anyhow!("something else"), 1, 125),
            (usage("start", "wrong"), 2, 2),
            (no_scheduler(), 2, 2),
            (render::OutputError::Closed.into(), 0, 0),
            (
                render::Error::Output(render::OutputError::Closed).into(),
                0,
                0,
            ),
        ] {
            assert_eq!(code_of(&error, Codes::Jobctl), own, "{error:?}");
            assert_eq!(code_of(&error, Codes::Job), of_a_job, "{error:?}");
        }
    }

    fn no_scheduler() -> anyhow::Error {
        let jobctl = "jobctl --client-dir d".into();
        NoScheduler { jobctl }.into()
    }

    fn untrusted() -> anyhow::Error {
        let (server, reason) = ("https://s".into(), "r".into());
        client::Error::Untrusted { server, reason }.into()
    }

    fn clocks_differ() -> anyhow::Error {
        let (server, reason) = ("https://s".into(), "r".into());
        client::Error::ClocksDiffer { server, reason }.into()
    }

    fn not_accepted() -> anyhow::Error {
        let (server, reason) = ("https://s".into(), "r".into());
        client::Error::NotAccepted { server, reason }.into()
    }

    #[test]
    fn whoever_is_not_let_in_is_told_what_to_type() {
        let caller = caller("http://a:3000", Effect::Reads);
        for (status, word, command) in [
            (401, "unidentified", "`jobctl login TOKEN@HOST:PORT`"),
            (401, "bad_token", "`jobctl token create --role ROLE`"),
            (401, "token_expired", "`jobctl token create --role ROLE`"),
            (401, "token_spent", "`jobctl token create --role ROLE`"),
            (401, "wrong_token", "`jobctl login`"),
            (401, "revoked", "`jobctl token create --role ROLE`"),
            (403, "forbidden", "`jobctl context show`"),
            (403, "not_itself", "`jobctl worker --data-dir DIR`"),
            (403, "foreign_host", "`jobctl scheduler --name HOST`"),
            (403, "cross_site", "`jobctl jobs`"),
            (409, "no_authority", "token create --bearer --role ROLE`"),
            (409, "worker_not_gone", "workers drain --wait WORKER`"),
            (409, "authorities_overlap", "ca rotate --overlap 0s`"),
            (404, "token_not_found", "token list`"),
        ] {
            let hint = caller.hint(&refused(status, word)).unwrap();
            assert!(hint.contains(command), "{word}: {hint}");
        }
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        let token = identity::token::Bearer::random().reveal();
        files::write(&token_file, token.as_bytes()).unwrap();
        let reach = Reach {
            server: Some("https://a:3000".parse().unwrap()),
            token_file: Some(token_file),
            ..Reach::default()
        };
        let program = Caller::among(reach, Effect::Reads, |_| None).unwrap();
        let hint = program.hint(&refused(403, "forbidden")).unwrap();
        assert!(
            hint.contains("--bearer") && !hint.contains("context"),
            "{hint}"
        );
        let hint = caller.hint(&untrusted()).unwrap();
        assert!(hint.contains("`jobctl login TOKEN@HOST:PORT`"), "{hint}");
        assert_eq!(caller.hint(&clocks_differ()).unwrap(), SET_THE_CLOCK);
        let hint = caller.hint(&not_accepted()).unwrap();
        assert!(hint.contains("`jobctl token create --role ROLE`"), "{hint}");
        let other = client::Error::OtherScheme {
            server: "http://a:3000".into(),
            speaks: "https",
        };
        let hint = caller.hint(&other.into()).unwrap();
        assert_eq!(hint, "reach it as `--server https://a:3000`");
    }

    #[test]
    fn hints_can_be_typed() {
        for (error, command) in [
            (
                refused(404, "job_not_found"),
                "jobctl --server http://a jobs",
            ),
            (
                refused(404, "route_not_found"),
                "jobctl --server http://a version",
            ),
            (
                refused(504, "worker_unreachable"),
                "jobctl --server http://a workers",
            ),
            (refused(503, "no_free_slot"), "jobctl worker"),
        ] {
            let hint = caller("http://a", Effect::Reads).hint(&error).unwrap();
            assert!(hint.contains(&format!("`{command}`")), "{hint}");
        }
        let none = caller("http://a", Effect::Reads).hint(&refused(409, "job_finished"));
        assert_eq!(none, None);
    }

    fn caller(server: &str, effect: Effect) -> Caller {
        let reach = Reach {
            server: Some(server.parse().unwrap()),
            ..Reach::default()
        };
        Caller::among(reach, effect, |_| None).unwrap()
    }

    #[test]
    fn a_hint_has_each_flag_by_which_the_scheduler_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a b");
        let prod = contexts::Context {
            server: "http://prod".parse().unwrap(),
            ca_file: None,
            identity_file: None,
            token_file: None,
        };
        contexts::Contexts::change(&dir, |contexts| contexts.add("prod", prod)).unwrap();
        let reach = Reach {
            context: Some("prod".to_owned()),
            client_dir: Some(dir.clone()),
            ..Reach::default()
        };
        let caller = Caller::among(reach, Effect::Reads, |_| None).unwrap();
        let jobctl = format!("jobctl --client-dir '{}' --context prod", dir.display());
        assert_eq!(
            caller.hint(&refused(404, "job_not_found")).unwrap(),
            format!("list the jobs with `{jobctl} jobs`")
        );
    }

    #[test]
    fn a_hint_reaches_the_same_scheduler_and_fits_what_was_done() {
        let elsewhere = caller("http://127.0.0.1:4000", Effect::Changes);
        let hint = |caller: &Caller, error| caller.hint(&error).unwrap();
        assert_eq!(
            hint(&elsewhere, refused(404, "job_not_found")),
            "list the jobs with `jobctl --server http://127.0.0.1:4000 jobs`"
        );
        let interrupted = || -> anyhow::Error {
            client::Error::Interrupted {
                server: "s".into(),
                reason: "r".into(),
                hung_up: true,
            }
            .into()
        };
        assert!(hint(&elsewhere, interrupted()).contains(":4000 jobs`"));
        let reads = caller("http://a", Effect::Reads);
        assert_eq!(hint(&reads, interrupted()), NOT_HTTP);
    }

    #[test]
    fn a_role_that_cannot_begin_says_what_to_change() {
        for (error, word) in [
            (
                worker_role::Error::DataDirInUse("/x".into()),
                "`--data-dir DIR`",
            ),
            (worker_role::Error::Refused("no".into()), "`--name`"),
            (
                worker_role::Error::NotTaken {
                    scheduler: "s:1".into(),
                    message: "no".into(),
                    word: Some(tls::CLOCKS_DIFFER.into()),
                },
                "`date -u`",
            ),
        ] {
            let hint = hint(&error.into()).unwrap();
            assert!(hint.contains(word), "{hint}");
        }
        let hint_without = hint(&no_scheduler()).unwrap();
        assert!(hint_without.contains("`jobctl --client-dir d login TOKEN@HOST:PORT`"));
        // A cluster that has ended cannot be asked.
        assert_eq!(hint(&refused(404, "job_not_found")), None);
    }
}
