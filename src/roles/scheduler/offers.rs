//! What the workers have to offer, as placement sees it, and how placement hears
//! of every change.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::registry::WorkerHandle;
use crate::{ids::WorkerId, labels::Labels};

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

/// How many jobs a worker takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slots {
    /// 0: none.
    Limited(u32),
    Unlimited,
}

/// Whether a worker takes jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Openness {
    Ready,
    /// Not before it has told of its jobs, and has answered a call.
    Joining,
    /// It lacks something that every job needs: this, as it is said behind "the worker
    /// cannot start jobs now:".
    Short(Arc<str>),
    /// It keeps those it has.
    Draining,
    /// With why, as it is said behind the worker's name.
    Unreachable(Arc<str>),
    Left,
}

/// Changes of offers that placement has not taken in yet. A leaf: its lock is
/// held for a moment and nothing is called under it.
#[derive(Clone, Debug, Default)]
pub(super) struct Offers(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    changes: Mutex<HashMap<WorkerId, Option<Offer>>>,
    put: Notify,
}

impl Offers {
    /// None: the worker is known no more.
    pub(super) fn put(&self, id: WorkerId, offer: Option<Offer>) {
        self.changes().insert(id, offer);
        self.0.put.notify_waiters();
    }

    /// The newest of each worker that was put since this was asked last.
    pub(super) fn take(&self) -> HashMap<WorkerId, Option<Offer>> {
        std::mem::take(&mut *self.changes())
    }

    /// Returns when something was put that was not taken. Cancel-safe.
    pub(super) async fn changed(&self) {
        loop {
            let mut put = pin!(self.0.put.notified());
            // From here on no put is missed.
            put.as_mut().enable();
            if !self.changes().is_empty() {
                return;
            }
            put.await;
        }
    }

    fn changes(&self) -> MutexGuard<'_, HashMap<WorkerId, Option<Offer>>> {
        let changes = self.0.changes.lock();
        changes.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, poll};

    use super::*;

    #[tokio::test]
    async fn a_put_is_heard_whether_before_or_after_one_began_to_listen() {
        let offers = Offers::default();
        let id = WorkerId::random();
        assert!(offers.changed().now_or_never().is_none());
        offers.put(id, None);
        assert!(offers.changed().now_or_never().is_some());
        // Nothing is lost with a listener that gave up.
        assert!(offers.changed().now_or_never().is_some());
        let taken = offers.take();
        assert!(taken.len() == 1 && taken[&id].is_none());
        assert!(offers.take().is_empty());

        let mut listening = pin!(offers.changed());
        assert!(poll!(listening.as_mut()).is_pending());
        offers.clone().put(id, None);
        assert!(poll!(listening.as_mut()).is_ready());
    }
}
