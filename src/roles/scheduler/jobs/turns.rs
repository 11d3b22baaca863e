//! Turns: who bears the same key goes one after the other.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::OwnedMutexGuard;

/// From so many keys on, those nobody bears any more are thrown out.
const MANY: usize = 1024;

/// The keys that somebody bears now.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

/// Somebody's turn, until dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Turns {
    /// Waits until nobody else who bears `key` is before this one.
    pub(super) async fn take(&self, key: &str) -> Turn {
        let turn = self.line(key);
        turn.lock_owned().await
    }

    fn line(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(key).and_then(Weak::upgrade) {
            return line;
        }
        if lines.len() >= MANY {
            lines.retain(|_, line| line.strong_count() > 0);
        }
        let line = Arc::default();
        lines.insert(key.to_owned(), Arc::downgrade(&line));
        line
    }
}
