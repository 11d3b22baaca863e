//! Who calls, and whether they may: who is known, and what of theirs is accepted.
//! What each role may call is in `identity/rules.rs`.
//!
//! | file | what is in it |
//! |---|---|
//! | `callers.rs` | who makes a call, how long they are accepted, and who is cut off |
//! | `tokens.rs` | tokens: made, shown, revoked |
//! | `certificates.rs` | certificates: bought with a token, renewed, revoked |
//! | `authority.rs` | the cluster's own authority, and the one after it |
//! | `refusals.rs` | which refusals have a line in the audit log |

mod authority;
mod callers;
mod certificates;
mod refusals;
mod tokens;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    authority::Authority,
    callers::{CutOff, Subject},
    refusals::Refusals,
};
pub(super) use self::{authority::Signing, callers::Caller, certificates::Signed};
use super::{
    error::Error,
    store::{AccessChange, AuditEntry, Certificate, Store, Token},
    time::Now,
};
use crate::identity::{Role, token::TokenId};

/// A handle to who is who; clones share it.
#[derive(Clone)]
pub(super) struct Access(Arc<Inner>);

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

struct Inner {
    store: Store,
    known: Mutex<Known>,
    /// None: somebody else signs the certificates, or there are none.
    authority: Option<Authority>,
    /// Whether workers must show who they are.
    plain: bool,
}

#[derive(Default)]
struct Known {
    tokens: HashMap<TokenId, Token>,
    certificates: HashMap<Uuid, Certificate>,
    /// Of those who have called since the start, until what they showed is
    /// forgotten.
    cuts: HashMap<Subject, CancellationToken>,
    refusals: Refusals,
}

impl Access {
    pub(super) fn new(
        store: Store,
        tokens: Vec<Token>,
        certificates: Vec<Certificate>,
        plain: bool,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            known: Mutex::new(Known::new(tokens, certificates)),
            authority: None,
            plain,
        }))
    }

    /// Has a line of the audit log on the disk before it returns.
    pub(super) async fn record(&self, entry: AuditEntry) -> Result<(), Error> {
        self.0
            .store
            .access(AccessChange::Nothing, Some(entry))
            .await?;
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn new(tokens: Vec<Token>, certificates: Vec<Certificate>) -> Self {
        Self {
            tokens: tokens.into_iter().map(|token| (token.id, token)).collect(),
            certificates: certificates
                .into_iter()
                .map(|certificate| (certificate.id, certificate))
                .collect(),
            ..Self::default()
        }
    }

    /// Drops what ended long ago, of which no call is accepted any more; the store
    /// does the same. By both times: no step of the clock forgets what is good.
    fn forget(&mut self, now: Now) {
        let now = now.wall.min(now.counted);
        let long_ago = now.checked_sub(jiff::SignedDuration::from_hours(30 * 24));
        let long_ago = long_ago.unwrap_or(Timestamp::UNIX_EPOCH);
        let cuts = &mut self.cuts;
        for (id, _) in self
            .tokens
            .extract_if(|_, token| token.expires_at <= long_ago)
        {
            cuts.remove(&Subject::Token(id));
        }
        for (id, _) in self.certificates.extract_if(|_, certificate| {
            certificate.expires_at <= long_ago
                && certificate.revoked_at.is_none()
                && certificate.role != Some(Role::Worker)
        }) {
            cuts.remove(&Subject::Certificate(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_worker_is_its_own_however_long_it_was_off() {
        let of = |role, name: &str| Certificate {
            id: Uuid::new_v4(),
            role: Some(role),
            name: name.to_owned(),
            serial: String::new(),
            issued_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH,
            revoked_at: None,
        };
        let worker = of(Role::Worker, "w1");
        let viewer = of(Role::Viewer, "vera");
        let certificates = vec![worker.clone(), viewer.clone()];
        let store = super::super::store::scratch();
        let access = Access::new(store, Vec::new(), certificates, false);
        // And one that was signed elsewhere.
        let called = [worker.id, viewer.id, Uuid::new_v4()].map(Subject::Certificate);
        for subject in called {
            access.known().cut_of(subject);
        }
        let now = access.0.store.time().now();
        access.known().forget(now);
        assert_eq!(access.worker_called("w1"), Some(worker.id));
        assert_eq!(access.certificates().len(), 1);
        let cuts = &access.known().cuts;
        assert_eq!(called.map(|of| cuts.contains_key(&of)), [true, false, true]);
    }
}
