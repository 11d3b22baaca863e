//! Whom a command asks: where the scheduler is and what is shown to it, found from
//! flags, variables and contexts.

use std::{env, ffi::OsString, path::PathBuf, time::Duration};

use super::{Reach, context, report::BadSetting};
use crate::{
    client::{
        self, Client, Patience, Server,
        contexts::{Context, Named},
        proof::{Asked, Proof},
        render,
    },
    config,
};

/// How long a scheduler that is restarted is waited for, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an answer that never came may have left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// No scheduler is asked.
    None,
    Reads,
    /// Of jobs.
    Changes,
    /// Of workers.
    ChangesWorkers,
    /// Of who is let in.
    ChangesAccess,
}

/// A client, and how the same scheduler is reached by whoever types a command.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) client: Client,
    /// What the server, if not set apart, and the credentials come from.
    pub(super) context: Option<Named>,
    /// The authorities it trusts: the context's, unless set apart.
    pub(super) ca_file: Option<PathBuf>,
    pub(super) proof: Proof,
    /// `jobctl`, with what was given as a flag to find the contexts.
    pub(super) contexts: String,
    /// `jobctl`, with what was given as a flag to reach this scheduler.
    pub(super) jobctl: String,
    pub(super) effect: Effect,
}

impl Caller {
    pub(super) fn new(reach: Reach, effect: Effect) -> anyhow::Result<Self> {
        Self::among(reach, effect, variable)
    }

    /// The flag wins over the variable, that over the context, and that over the
    /// default.
    pub(super) fn among(
        reach: Reach,
        effect: Effect,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> anyhow::Result<Self> {
        let mut jobctl = "jobctl".to_owned();
        if let Some(folder) = &reach.client_dir {
            context::push_flag(&mut jobctl, "--client-dir", &folder.to_string_lossy());
        }
        let contexts = jobctl.clone();
        if let Some(name) = &reach.context {
            context::push_flag(&mut jobctl, "--context", name);
        }
        if let Some(server) = &reach.server {
            context::push_flag(&mut jobctl, "--server", &server.to_string());
        }
        for (flag, file) in [
            ("--ca-file", &reach.ca_file),
            ("--token-file", &reach.token_file),
        ] {
            if let Some(file) = file {
                context::push_flag(&mut jobctl, flag, &file.to_string_lossy());
            }
        }
        let set = match &reach.server {
            Some(server) => Some(server.clone()),
            None => variable("JOBCTL_SERVER")
                .map(server_of_variable)
                .transpose()?,
        };
        let is_named = reach.context.is_some() || variable("JOBCTL_CONTEXT").is_some();
        let context = match &set {
            // The credentials of a context are for its own server alone.
            Some(server) if !is_named => context::reaching(server, &reach, &variable),
            _ => context::chosen(&reach, &contexts, &variable)?,
        };
        let of_context = context.as_ref().map(|named| named.context.server.clone());
        let server = match set.or(of_context) {
            Some(server) => server,
            None => {
                return Err(NoScheduler { jobctl: contexts }.into());
            }
        };
        let of = |file: fn(&Context) -> &Option<PathBuf>| {
            let context = context.as_ref().map(|named| &named.context);
            context.and_then(|context| file(context).clone())
        };
        let set =
            |flag: &Option<PathBuf>, key| flag.clone().or_else(|| variable(key).map(PathBuf::from));
        let ca_file = set(&reach.ca_file, "JOBCTL_CA_FILE");
        let ca_file = ca_file.or_else(|| of(|context| &context.ca_file));
        let token_file = set(&reach.token_file, "JOBCTL_TOKEN_FILE");
        let proof = Proof::of(&Context {
            server: server.clone(),
            ca_file: ca_file.clone(),
            // Nobody is two at a time.
            identity_file: match token_file {
                None if effect != Effect::None => of(|context| &context.identity_file),
                Some(_) | None => None,
            },
            token_file: match effect {
                Effect::None => None,
                _ => token_file.or_else(|| of(|context| &context.token_file)),
            },
        })?;
        let patience = match reach.patience {
            Some(patience) => Some(patience),
            None => variable("JOBCTL_PATIENCE")
                .map(patience_of_variable)
                .transpose()?,
        };
        let patience = Patience::new(patience.unwrap_or(PATIENCE), |away| {
            render::note(&away.to_string());
        });
        Ok(Self {
            client: Client::new(server, &proof)?.with_patience(patience),
            proof,
            context,
            ca_file,
            contexts,
            jobctl,
            effect,
        })
    }

    /// Has the client's certificate replaced once half of its life is over. One
    /// that cannot be replaced now is good for as long again.
    pub(super) async fn renew(&self) {
        let files = self.context.as_ref().and_then(|named| {
            let context = &named.context;
            Some((context.identity_file.as_ref()?, context.ca_file.as_ref()?))
        });
        // What another authority vouches for is none of the context's business.
        let files = files.filter(|(_, ca_file)| self.ca_file.as_ref() == Some(*ca_file));
        let Some((identity_file, ca_file)) = files.filter(|_| self.proof.is_old()) else {
            return;
        };
        let renewed = async {
            let asked = Asked::new()?;
            // If the scheduler is away, the command itself waits for it.
            let client = self.client.without_patience();
            let signed = client.renew(&asked.renew()).await?;
            asked.keep(&signed, identity_file, ca_file)?;
            anyhow::Ok(())
        };
        if let Err(error) = renewed.await {
            tracing::debug!("the certificate is not replaced: {error:#}");
        }
    }

    /// Waits for an answer, and says so on a terminal if it takes its time.
    pub(super) async fn patiently<T>(&self, answer: impl Future<Output = T>) -> T {
        let text = format!("waiting for the scheduler at {}", self.client.server());
        render::patiently(&text, answer).await
    }
}

/// What a variable is set to; one that is set to nothing counts as not set.
pub(super) fn variable(key: &str) -> Option<OsString> {
    env::var_os(key).filter(|value| !value.is_empty())
}

fn server_of_variable(text: OsString) -> anyhow::Result<Server> {
    let text = text.to_string_lossy();
    text.parse().map_err(|why: String| {
        BadSetting {
            message: format!("`JOBCTL_SERVER` is `{text}`, which is {why}"),
            hint: format!("write it as `{}`, or unset it", client::DEFAULT_SERVER),
        }
        .into()
    })
}

fn patience_of_variable(text: OsString) -> anyhow::Result<Duration> {
    let text = text.to_string_lossy();
    config::duration(&text).map_err(|why| {
        BadSetting {
            message: format!("`JOBCTL_PATIENCE` cannot be used: {why}"),
            hint: "write it as `10s`, or unset it".to_owned(),
        }
        .into()
    })
}

/// Nothing says where a scheduler is.
#[derive(Debug, thiserror::Error)]
#[error("no scheduler is known here")]
pub(super) struct NoScheduler {
    /// `jobctl`, with what was given as a flag to find the contexts.
    pub(super) jobctl: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::contexts::FILE,
        identity::{files, token::Bearer},
    };

    #[test]
    fn the_server_is_the_flags_else_the_variables_else_the_contexts() {
        let folder = tempfile::tempdir().unwrap();
        let text = "current = \"a\"\n\
            [contexts.a]\nserver = \"http://a\"\n[contexts.b]\nserver = \"http://b\"\n";
        std::fs::write(folder.path().join(FILE), text).unwrap();
        let reached = |server: Option<&str>, context: Option<&str>, set: &[(&str, &str)]| {
            let reach = Reach {
                server: server.map(|server| server.parse().unwrap()),
                context: context.map(str::to_owned),
                ..Reach::default()
            };
            let caller = Caller::among(reach, Effect::Reads, |key| match key {
                "JOBCTL_CLIENT_DIR" => Some(folder.path().into()),
                key => set.iter().find(|(k, _)| *k == key).map(|(_, v)| v.into()),
            })
            .unwrap();
            let context = caller.context.map(|named| named.name).unwrap_or_default();
            format!("{} {context}", caller.client.server())
        };
        let server = ("JOBCTL_SERVER", "http://v");
        let context = ("JOBCTL_CONTEXT", "b");
        assert_eq!(reached(Some("http://f"), None, &[server]), "http://f ");
        assert_eq!(reached(None, None, &[server]), "http://v ");
        assert_eq!(reached(None, None, &[]), "http://a a");
        assert_eq!(reached(None, None, &[context]), "http://b b");
        assert_eq!(reached(None, Some("a"), &[context]), "http://a a");
        assert_eq!(reached(Some("http://f"), Some("b"), &[]), "http://f b");
        assert_eq!(reached(None, None, &[server, context]), "http://v b");
        let error = Caller::among(Reach::default(), Effect::Reads, |_| None).unwrap_err();
        assert!(error.is::<NoScheduler>());
    }

    #[test]
    fn files_that_were_named_win_over_the_contexts() {
        let folder = tempfile::tempdir().unwrap();
        let token = |name: &str| {
            let file = folder.path().join(name);
            let token = Bearer::random().reveal();
            files::write(&file, token.as_bytes()).unwrap();
            (file, token)
        };
        let (own, own_token) = token("own");
        let (flag, flag_token) = token("flag");
        let (set, set_token) = token("set");
        let text = format!(
            "current = \"a\"\n[contexts.a]\nserver = \"https://a\"\ntoken_file = {own:?}\n"
        );
        std::fs::write(folder.path().join(FILE), text).unwrap();
        let shown = |token_file: Option<&PathBuf>, variable: Option<&PathBuf>| {
            let reach = Reach {
                token_file: token_file.cloned(),
                ..Reach::default()
            };
            let caller = Caller::among(reach, Effect::Reads, |key| match key {
                "JOBCTL_CLIENT_DIR" => Some(folder.path().into()),
                "JOBCTL_TOKEN_FILE" => variable.map(|file| file.clone().into_os_string()),
                _ => None,
            })
            .unwrap();
            (caller.proof.token().unwrap().to_owned(), caller.jobctl)
        };
        assert_eq!(shown(None, None), (own_token, "jobctl".to_owned()));
        assert_eq!(shown(None, Some(&set)), (set_token, "jobctl".to_owned()));
        let jobctl = format!("jobctl --token-file {}", flag.display());
        assert_eq!(shown(Some(&flag), Some(&set)), (flag_token, jobctl));
    }
}
