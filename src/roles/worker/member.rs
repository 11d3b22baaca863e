//! Who this worker is to its cluster: how it joined, the certificate that says
//! so, and how that is replaced in time. Without TLS it is whoever the file
//! `worker-id` says.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use uuid::Uuid;

use super::{
    error::RunError,
    session::{is_revoked, word},
};
use crate::{
    identity::{
        Role,
        ca::{self, Request},
        files::{self, Pem},
        tls::{self, ClientCertificates, Credentials, Distrust, Peer, Tls, Trust},
        token::Invitation,
    },
    ids::WorkerId,
    net::dial::{self, innermost},
    proto::{self, scheduler_client::SchedulerClient},
};

/// How long joining may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Between two attempts to replace a certificate.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// The files in the data folder that say who a worker is.
#[derive(Clone, Debug)]
pub(super) struct Files {
    data: PathBuf,
}

impl Files {
    pub(super) fn new(data: &Path) -> Self {
        Self {
            data: data.to_owned(),
        }
    }

    /// Certificate and key.
    fn identity(&self) -> PathBuf {
        self.data.join("identity.pem")
    }

    fn authorities(&self) -> PathBuf {
        self.data.join("ca.pem")
    }

    /// Where the scheduler was when the worker joined.
    fn scheduler(&self) -> PathBuf {
        self.data.join("scheduler")
    }

    /// Joins with `invitation` if this worker has not joined yet, or is not accepted
    /// any more. Returns what it shows of itself, and where its scheduler is.
    pub(super) async fn member(
        &self,
        name: &str,
        invitation: Option<Invitation>,
    ) -> Result<(Tls, String), RunError> {
        let tls = |held| Tls::new(held, ClientCertificates::Required);
        let tls = match (self.load(), invitation) {
            (Ok(Some(held)), None) => tls(held)?,
            (Ok(Some(held)), Some(invitation)) => {
                let held = tls(held)?;
                match self.is_over(&held, &invitation).await? {
                    true => {
                        let cluster = held.credentials().identity.cluster.clone();
                        tls(self.join(name, &invitation, Some(cluster)).await?)?
                    }
                    // A service that starts again brings the token of the first time.
                    false => {
                        tracing::info!("has joined before: the token is not used");
                        held
                    }
                }
            }
            (Err(RunError::Certificate(tls::Error::Expired { who, .. })), Some(invitation)) => {
                tls(self.join(name, &invitation, Some(who.cluster)).await?)?
            }
            (Ok(None), Some(invitation)) => tls(self.join(name, &invitation, None).await?)?,
            (Ok(None), None) => return Err(RunError::NotJoined),
            (Err(error), _) => return Err(error),
        };
        let address = fs::read_to_string(self.scheduler()).map_err(|source| RunError::Path {
            path: self.scheduler(),
            source,
        })?;
        Ok((tls, address.trim().to_owned()))
    }

    fn load(&self) -> Result<Option<Credentials>, RunError> {
        let Some(own) = Pem::read_secret(&self.identity())? else {
            return Ok(None);
        };
        let Some(authorities) = Pem::read(&self.authorities())? else {
            return Ok(None);
        };
        let missing = |what| files::Error::Missing {
            file: self.identity(),
            what,
        };
        let key = own.key.ok_or_else(|| missing("key"))?;
        let held = Credentials::new(own.certificates, key, authorities.certificates)?;
        Ok(Some(held.expect(Role::Worker)?))
    }

    /// Whether the scheduler that invites does not accept what is held, or is not
    /// trusted: the certificate was revoked, or another authority took over.
    async fn is_over(&self, held: &Tls, invitation: &Invitation) -> Result<bool, RunError> {
        let channel = channel(invitation, dial::Security::Tls(held.clone()))?;
        let mut client = HealthClient::new(channel);
        let answer = client.check(HealthCheckRequest::default());
        let unheard = match tokio::time::timeout(DEADLINE, answer).await {
            Ok(Ok(_)) => return Ok(false),
            Ok(Err(status)) if is_revoked(&status) || Distrust::of(&status).is_some() => {
                return Ok(true);
            }
            Ok(Err(status)) => refused(invitation, &status),
            Err(_) => not_taken(invitation, "no answer in time".to_owned(), None),
        };
        // It is not there now, and need not be.
        let credentials = held.credentials();
        let mut roots = credentials.roots.iter().filter_map(ca::fingerprint);
        match roots.any(|root| root == invitation.authority) {
            true => Ok(false),
            false => Err(unheard),
        }
    }

    /// Buys a certificate with the token; of the scheduler of this cluster, where
    /// the worker was in one.
    async fn join(
        &self,
        name: &str,
        invitation: &Invitation,
        cluster: Option<String>,
    ) -> Result<Credentials, RunError> {
        let trust = Trust::Fingerprint(invitation.authority);
        let config = tls::client(trust, Peer::Scheduler, cluster, None)?;
        let channel = channel(invitation, dial::Security::Joining(config.into()))?;
        let asked = Request::new()?;
        let request = proto::JoinRequest {
            token: invitation.token.reveal(),
            signing_request: asked.request.to_vec(),
            name: name.to_owned(),
        };
        let mut client = SchedulerClient::new(channel);
        let answer = match tokio::time::timeout(DEADLINE, client.join(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) if Distrust::of(&status).is_some_and(|why| why.is_of_other_cluster) => {
                return Err(RunError::OtherCluster {
                    data: self.data.clone(),
                    message: innermost(&status),
                });
            }
            Ok(Err(status)) => return Err(refused(invitation, &status)),
            Err(_) => return Err(not_taken(invitation, "no answer in time".to_owned(), None)),
        };
        files::write(
            &self.scheduler(),
            format!("{}\n", invitation.address).as_bytes(),
        )?;
        let held = self.keep(answer, &asked)?;
        tracing::info!(worker = %held.identity, cluster = held.identity.cluster, "joined");
        Ok(held)
    }

    /// Writes what the scheduler has signed. The certificate last: with it the
    /// worker has joined.
    fn keep(
        &self,
        answer: proto::CertificateResponse,
        asked: &Request,
    ) -> Result<Credentials, RunError> {
        let certificate = CertificateDer::from(answer.certificate);
        let authorities: Vec<_> = answer
            .authorities
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        let held = Credentials::signed(
            certificate.clone(),
            Vec::new(),
            &asked.key,
            authorities.clone(),
        )?;
        let held = held.expect(Role::Worker)?;
        files::write(&self.authorities(), files::pem(&authorities).as_bytes())?;
        files::write_secret(&self.identity(), &[certificate], Some(&asked.key))?;
        Ok(held)
    }

    /// Has the certificate replaced in the middle of its life, or when `asked`, by
    /// whoever `client` calls. Never returns.
    pub(super) async fn keep_current(
        &self,
        tls: Tls,
        mut client: SchedulerClient<tonic::transport::Channel>,
        asked: Arc<Notify>,
    ) {
        loop {
            tokio::select! {
                () = tls.replace_due() => {}
                () = asked.notified() => {}
            }
            while let Err(error) = self.renew(&tls, &mut client).await {
                tracing::warn!(error, "the certificate is not replaced yet");
                tokio::time::sleep(TRY_AGAIN).await;
            }
            tracing::info!("certificate replaced");
        }
    }

    async fn renew(
        &self,
        tls: &Tls,
        client: &mut SchedulerClient<tonic::transport::Channel>,
    ) -> Result<(), String> {
        let asked = Request::new().map_err(|error| error.to_string())?;
        let request = proto::RenewCertificateRequest {
            signing_request: asked.request.to_vec(),
        };
        let answer = tokio::time::timeout(DEADLINE, client.renew_certificate(request)).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())?;
        let answer = answer.map_err(|status| innermost(&status))?;
        let held = self.keep(answer.into_inner(), &asked);
        let held = held.map_err(|error| error.to_string())?;
        tls.replace(held).map_err(|error| error.to_string())
    }
}

/// To the scheduler that invites.
fn channel(invitation: &Invitation, security: dial::Security) -> Result<Channel, RunError> {
    let endpoint = Endpoint::from_shared(format!("http://{}", invitation.address))
        .map_err(|error| not_taken(invitation, error.to_string(), None))?
        .connect_timeout(DEADLINE);
    Ok(dial::channel(&endpoint, security, Peer::Scheduler))
}

fn refused(invitation: &Invitation, status: &Status) -> RunError {
    let is_of_clocks = Distrust::of(status).is_some_and(|why| why.is_of_clocks);
    let word = match is_of_clocks {
        true => Some(tls::CLOCKS_DIFFER),
        false => word(status),
    };
    let word = word.map(str::to_owned);
    let message = match is_grpc(status) {
        true => innermost(status),
        false => "what answers there does not speak gRPC".to_owned(),
    };
    not_taken(invitation, message, word)
}

/// Whether this came from a gRPC server, or the way to one. What is said in HTTP
/// alone has headers of its own, of which tonic makes no sense.
fn is_grpc(status: &Status) -> bool {
    let kind = status.metadata().get("content-type");
    kind.is_none_or(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn not_taken(invitation: &Invitation, message: String, word: Option<String>) -> RunError {
    RunError::NotTaken {
        scheduler: invitation.address.clone(),
        message,
        word,
    }
}

/// Who a worker is.
#[derive(Clone, Debug)]
pub(super) enum Id {
    /// Whom its certificate names.
    Certified(Uuid),
    /// Whom the scheduler called it the first time, in this file.
    Told(PathBuf),
}

impl Id {
    /// Empty at its first time.
    pub(super) fn known(&self) -> Result<String, RunError> {
        match self {
            Self::Certified(id) => Ok(id.to_string()),
            Self::Told(file) => known_id(file),
        }
    }

    /// Keeps what the scheduler calls it.
    pub(super) fn keep(&self, id: &str) -> Result<(), RunError> {
        match self {
            Self::Certified(_) => Ok(()),
            Self::Told(file) => keep_id(file, id),
        }
    }
}

/// The id the scheduler gave to this worker before; empty at its first time.
fn known_id(path: &Path) -> Result<String, RunError> {
    let at = |source| RunError::Path {
        path: path.to_owned(),
        source,
    };
    match fs::read_to_string(path) {
        Ok(text) => match text.trim().parse::<WorkerId>() {
            Ok(id) => Ok(id.to_string()),
            Err(_) => Err(at(io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not hold a worker's id; remove it and the worker gets a new one",
            ))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(at(error)),
    }
}

fn keep_id(path: &Path, id: &str) -> Result<(), RunError> {
    if known_id(path)? != id {
        files::write(path, format!("{id}\n").as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker-id");
        assert_eq!(known_id(&path).unwrap(), "");
        let id = WorkerId::random().to_string();
        keep_id(&path, &id).unwrap();
        keep_id(&path, &id).unwrap();
        assert_eq!(known_id(&path).unwrap(), id);
        fs::write(&path, "junk").unwrap();
        assert!(known_id(&path).is_err());
    }
}
