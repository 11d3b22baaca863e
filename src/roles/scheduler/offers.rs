//! What workers have to offer, on its way from the registry, which knows them,
//! to placement, which gives them jobs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::registry::WorkerHandle;
use crate::{ids::WorkerId, labels::Labels};

/// How many jobs a worker takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slots {
    Limited(u32),
    Unlimited,
}

/// Whether a worker takes jobs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Openness {
    Ready,
    Joining,
    Draining,
    Unreachable { since: Timestamp },
    Left,
}

/// What a worker has to offer, as placement sees it.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) worker: WorkerHandle,
    pub(super) slots: Slots,
    /// At least 1.
    pub(super) cpus: u32,
    pub(super) labels: Arc<Labels>,
    pub(super) openness: Openness,
}

/// Changes of offers that placement has not taken in yet. Its lock is held for a
/// moment, and nothing is called under it.
#[derive(Clone, Debug, Default)]
pub(super) struct Offers(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// None: the worker is known no more.
    changes: Mutex<HashMap<WorkerId, Option<Offer>>>,
    changed: Notify,
}

impl Offers {
    pub(super) fn put(&self, id: WorkerId, offer: Option<Offer>) {
        self.changes().insert(id, offer);
        self.0.changed.notify_one();
    }

    pub(super) fn take(&self) -> HashMap<WorkerId, Option<Offer>> {
        std::mem::take(&mut *self.changes())
    }

    /// Returns when something was put since this returned last. Cancel-safe; for
    /// one waiter.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn changes(&self) -> MutexGuard<'_, HashMap<WorkerId, Option<Offer>>> {
        self.0
            .changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
