//! What can go wrong between this client and the scheduler. Which exit code that
//! becomes is decided in `cmd`.

use std::error::Error as _;

use crate::api;

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
    },
    /// The connection ended, or time was up, before the answer was whole. What
    /// was asked for may have been done.
    #[error("lost the connection to the scheduler at {server}: {reason}")]
    Interrupted {
        /// The URL of the scheduler.
        server: String,
        /// What the system said.
        reason: String,
    },
    /// The scheduler said no.
    #[error("{}", error.error)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The whole answer.
        error: api::Error,
    },
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
            Self::Unreachable { .. } | Self::Interrupted { .. } | Self::Unreadable { .. } => None,
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
        }
    }

    /// From what reqwest says before the head of an answer has arrived.
    pub(super) fn unanswered(server: String, error: &reqwest::Error) -> Self {
        let reason = innermost(error);
        // Whatever is neither a failed connection nor a failed request (a URL
        // that cannot be dialled, say) never left this machine either.
        if error.is_connect() || !(error.is_request() || error.is_timeout()) {
            Self::Unreachable { server, reason }
        } else {
            Self::Interrupted { server, reason }
        }
    }

    /// From what reqwest says in the middle of a body.
    pub(super) fn cut(server: String, error: &reqwest::Error) -> Self {
        Self::Interrupted {
            server,
            reason: innermost(error),
        }
    }
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
