//! Who somebody is, and how that is proven: certificates and the authority that
//! signs them, join tokens, the TLS configurations of both ends, and the table
//! of what each role may call. What a scheduler remembers of tokens and
//! certificates is in `roles/scheduler/access/`.

pub mod ca;
pub mod clock;
pub mod files;
pub mod rules;
pub mod tls;
pub mod token;

use std::{fmt, str::FromStr};

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

/// What somebody is in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The one that keeps the cluster.
    Scheduler,
    /// Runs jobs.
    Worker,
    /// A client that reads.
    Viewer,
    /// A client that also starts and stops jobs.
    Operator,
    /// A client that also manages tokens, certificates and workers.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [
        Self::Scheduler,
        Self::Worker,
        Self::Viewer,
        Self::Operator,
        Self::Admin,
    ];

    /// As it is written everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Worker => "worker",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| format!("`{text}` is not a role"))
    }
}

/// Somebody, as a certificate names them: `spiffe://CLUSTER/ROLE/ID` as its one
/// URI name (the form is that of SPIFFE), and beside it what people call them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The trust domain: letters, digits, `.`, `-` and `_`.
    pub cluster: String,
    /// What they are in it.
    pub role: Role,
    /// Which of all; of a worker its id.
    pub id: Uuid,
    /// For people; of a worker the one under which it registers.
    pub name: String,
}

/// Why a certificate names nobody.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotAnIdentity {
    /// It is no certificate.
    #[error("it cannot be read")]
    Unreadable,
    /// It must have exactly one URI name.
    #[error("it has {0} URI names where there must be one")]
    Names(usize),
    /// The URI is none of ours.
    #[error("its name `{0}` is not spiffe://CLUSTER/ROLE/ID")]
    Foreign(String),
}

impl Identity {
    /// What stands in the certificate.
    pub fn uri(&self) -> String {
        format!("spiffe://{}/{}/{}", self.cluster, self.role, self.id)
    }

    /// Reads the certificate, and checks nothing but that it names somebody:
    /// that it is genuine has been checked before.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, NotAnIdentity> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| NotAnIdentity::Unreadable)?;
        let names = parsed.subject_alternative_name();
        let names = names.map_err(|_| NotAnIdentity::Unreadable)?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        let uris: Vec<&str> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let [uri] = uris[..] else {
            return Err(NotAnIdentity::Names(uris.len()));
        };
        let mut common_names = parsed.subject().iter_common_name();
        let name = common_names.next().and_then(|name| name.as_str().ok());
        Self::parse(uri, name.unwrap_or_default())
            .ok_or_else(|| NotAnIdentity::Foreign(uri.to_owned()))
    }

    fn parse(uri: &str, name: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix("spiffe://")?.split('/');
        let (cluster, role, id) = (parts.next()?, parts.next()?, parts.next()?);
        let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_cluster = !cluster.is_empty() && cluster.chars().all(sane);
        let id = Uuid::try_parse(id).ok()?;
        let identity = Self {
            cluster: cluster.to_owned(),
            role: role.parse().ok()?,
            id,
            name: name.to_owned(),
        };
        // There is one way to write it.
        (is_cluster && parts.next().is_none() && identity.uri() == uri).then_some(identity)
    }
}

/// For people: the role, and the name or else the id.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "{} {}", self.role, self.id),
            name => write!(f, "{} {name}", self.role),
        }
    }
}

/// Has rustls use aws-lc-rs, in this process. Call it first; more calls do
/// nothing.
pub fn install_crypto() {
    // An error says that it was done before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6c0b6f0e-3b0b-4b0e-9b0e-1b0e2b0e3b0e";

    #[test]
    fn a_uri_names_somebody_in_one_way_only() {
        let good = format!("spiffe://c-1/worker/{ID}");
        let identity = Identity::parse(&good, "w1").unwrap();
        assert_eq!(identity.uri(), good);
        assert_eq!(identity.to_string(), "worker w1");
        for bad in [
            String::new(),
            format!("https://c-1/worker/{ID}"),
            format!("spiffe:///worker/{ID}"),
            format!("spiffe://c 1/worker/{ID}"),
            format!("spiffe://c-1/root/{ID}"),
            format!("spiffe://c-1/Worker/{ID}"),
            format!("spiffe://c-1/worker/{}", ID.to_uppercase()),
            format!("spiffe://c-1/worker/{}", ID.replace('-', "")),
            format!("spiffe://c-1/worker/{ID}/"),
            format!("spiffe://c-1/worker/{ID}/admin"),
            "spiffe://c-1/worker/7".to_owned(),
        ] {
            assert_eq!(Identity::parse(&bad, ""), None, "{bad}");
        }
    }

    #[test]
    fn a_role_is_written_as_it_is_read() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            let json = serde_json::to_string(&role).unwrap();
            assert_eq!(json, format!("\"{role}\""));
        }
        assert!("root".parse::<Role>().is_err());
    }
}
