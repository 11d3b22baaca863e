//! What can go wrong between this client and the scheduler. Which exit code that
//! becomes is decided in `cmd`.

use std::{error::Error as StdError, io};

use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage, OtherError};

use crate::{api, identity::tls};

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection came about, so the scheduler knows nothing of the request.
    #[error("cannot reach the scheduler at {server}: {reason}")]
    Unreachable {
        /// The URL that was tried.
        server: String,
        /// What the system said.
        reason: String,
        /// The connection was refused or closed, as while a scheduler is restarted.
        hung_up: bool,
    },
    /// The connection ended, or time was up, before the answer was whole. What
    /// was asked for may have been done.
    #[error("lost the connection to the scheduler at {server}: {reason}")]
    Interrupted {
        /// The URL of the scheduler.
        server: String,
        /// What the system said.
        reason: String,
        /// The connection was closed, as while a scheduler is restarted.
        hung_up: bool,
    },
    /// The certificate of the scheduler is not valid at the time that it is here.
    #[error("cannot trust what answers at {server}: {reason}")]
    ClocksDiffer {
        /// The URL that was tried.
        server: String,
        /// What the clock here says, and what the certificate says.
        reason: String,
    },
    /// Whoever answers does not prove to be the scheduler.
    #[error("cannot trust what answers at {server}: {reason}")]
    Untrusted {
        /// The URL that was tried.
        server: String,
        /// What is wrong with its certificate.
        reason: String,
    },
    /// The scheduler does not accept the client's certificate.
    #[error("the scheduler at {server} does not accept the client's certificate: {reason}")]
    NotAccepted {
        /// The URL of the scheduler.
        server: String,
        /// Why not.
        reason: String,
    },
    /// TLS was spoken to who does not, or the other way round.
    #[error(
        "{server} speaks {}",
        if *speaks == "https" { "TLS, and was called without" } else { "no TLS" }
    )]
    OtherScheme {
        /// The URL that was tried.
        server: String,
        /// The scheme with which it may be reached.
        speaks: &'static str,
    },
    /// The scheduler said no.
    #[error("{}", error.error)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The whole answer.
        error: api::Error,
    },
    /// Whoever listens on the way would have the token.
    #[error("a token is not sent in plain text to {0}")]
    PlainToken(String),
    /// What the client would show of itself cannot be used.
    #[error("cannot use the client's certificate")]
    Proof(#[from] tls::Error),
    /// An answer that no scheduler gives.
    #[error("unreadable answer of the scheduler at {server}: {reason}")]
    Unreadable {
        /// The URL that was asked.
        server: String,
        /// The HTTP status.
        status: u16,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl Error {
    /// The code word of a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { error, .. } => Some(&error.code),
            Self::Unreachable { .. }
            | Self::Interrupted { .. }
            | Self::Unreadable { .. }
            | Self::ClocksDiffer { .. }
            | Self::Untrusted { .. }
            | Self::NotAccepted { .. }
            | Self::OtherScheme { .. }
            | Self::PlainToken(_)
            | Self::Proof(_) => None,
        }
    }

    /// Whether the same request may well succeed a little later: the scheduler
    /// is being restarted, or what stands between does not reach it.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Interrupted { .. } => true,
            Self::Refused { status, .. } | Self::Unreadable { status, .. } => {
                matches!(status, 502..=504)
            }
            Self::ClocksDiffer { .. }
            | Self::Untrusted { .. }
            | Self::NotAccepted { .. }
            | Self::OtherScheme { .. }
            | Self::PlainToken(_)
            | Self::Proof(_) => false,
        }
    }

    /// Whether the scheduler has answered that the worker does not.
    pub(super) fn is_of_worker_away(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.worker.is_some())
    }

    /// Whether the request was not even heard, so that any may be sent again.
    pub(super) fn is_unheard(&self) -> bool {
        matches!(self, Self::Unreachable { hung_up: true, .. })
    }

    /// From what reqwest says before the head of an answer has arrived.
    pub(super) fn unanswered(server: String, error: &reqwest::Error) -> Self {
        if let Some(error) = distrust(&server, error) {
            return error;
        }
        let reason = innermost(error);
        // Whatever is neither a failed connection nor a failed request (a URL
        // that cannot be dialled, say) never left this machine either.
        if error.is_connect() || !(error.is_request() || error.is_timeout()) {
            let hung_up = hung_up(error);
            Self::Unreachable {
                server,
                reason,
                hung_up,
            }
        } else {
            Self::broken(server, error)
        }
    }

    /// From what reqwest says in the middle of a body.
    pub(super) fn interrupted(server: String, error: &reqwest::Error) -> Self {
        if let Some(error) = distrust(&server, error) {
            return error;
        }
        Self::broken(server, error)
    }

    fn broken(server: String, error: &reqwest::Error) -> Self {
        Self::Interrupted {
            server,
            reason: innermost(error),
            // What is left besides is a connection that ended before its time.
            hung_up: !error.is_timeout(),
        }
    }
}

/// Whether the other side refused or closed a connection that came about no further.
fn hung_up(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| {
            matches!(
                io.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            )
        }) {
            return true;
        }
        cause = match io.and_then(io::Error::get_ref) {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    false
}

/// What went wrong in the name of security, if that was it.
fn distrust(server: &str, error: &reqwest::Error) -> Option<Error> {
    let server = server.to_owned();
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref() {
            return of_tls(server, error);
        }
        let is_parse = error
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_parse);
        // An alert of TLS is no HTTP.
        if is_parse && server.starts_with("http://") {
            let speaks = "https";
            return Some(Error::OtherScheme { server, speaks });
        }
        // An I/O error does not count what is in it among its sources.
        let within = error.downcast_ref::<io::Error>();
        cause = match within.and_then(io::Error::get_ref) {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    None
}

fn of_tls(server: String, error: &TlsError) -> Option<Error> {
    if let TlsError::InvalidCertificate(error) = error
        && let Some(reason) = tls::clocks_differ(error)
    {
        return Some(Error::ClocksDiffer { server, reason });
    }
    let reason = match error {
        TlsError::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is of another authority than those that are trusted here"
                    .to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another host".to_owned()
            }
            // Ours, which says more than that it is another.
            CertificateError::Other(OtherError(error)) => error.to_string(),
            _ => "its certificate cannot be used".to_owned(),
        },
        TlsError::AlertReceived(alert) => {
            let reason = match alert {
                AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                    "it is of an authority that is not trusted there any more"
                }
                AlertDescription::CertificateExpired => "it has expired, or the clocks differ",
                AlertDescription::CertificateRevoked => "it was revoked",
                AlertDescription::CertificateRequired => "there is none",
                AlertDescription::CertificateUnknown
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::AccessDenied => "it is of another cluster",
                _ => return None,
            };
            let reason = reason.to_owned();
            return Some(Error::NotAccepted { server, reason });
        }
        TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => {
            let speaks = "http";
            return Some(Error::OtherScheme { server, speaks });
        }
        _ => return None,
    };
    Some(Error::Untrusted { server, reason })
}

/// reqwest and hyper wrap a plain "connection refused" three times over.
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it does not answer in time".to_owned();
    }
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(|error| error.source()) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| error.to_string(), ToString::to_string)
}
