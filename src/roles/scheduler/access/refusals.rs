//! Which refusals have a line in the audit log: whoever is refused has no disk to
//! fill.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    super::{
        error::Error,
        store::{AccessChange, AuditEntry},
    },
    Access, Caller,
};

/// So many refusals have a line each in the audit log within [`WINDOW`], of people
/// nobody knows and of all; of the rest it says how many there were.
const MAX_REFUSALS: u32 = 100;
const MAX_KNOWN_REFUSALS: u32 = 1000;
const WINDOW: Duration = Duration::from_secs(60);

/// What is told of a call that was refused, in characters: a stranger chose it.
const MAX_TARGET: usize = 200;

/// How many refusals were written since a time, and how many were not.
pub(super) struct Refusals {
    since: tokio::time::Instant,
    written: u32,
    passed_over: u32,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            since: tokio::time::Instant::now(),
            written: 0,
            passed_over: 0,
        }
    }
}

impl Access {
    /// Has a refusal in the audit log.
    pub(in super::super) fn refused(&self, caller: &Caller, call: &str, error: &Error) {
        let call: String = call.chars().take(MAX_TARGET).collect();
        let mut details = Value::Null;
        {
            let known = &mut *self.known();
            let refusals = &mut known.refusals;
            if refusals.since.elapsed() > WINDOW {
                if refusals.passed_over > 0 {
                    details = json!({ "refusals_before_without_a_line": refusals.passed_over });
                }
                *refusals = Refusals::default();
            }
            // Whoever is known has a name to answer with, but no disk to fill.
            let most = match caller.role {
                None => MAX_REFUSALS,
                Some(_) => MAX_KNOWN_REFUSALS,
            };
            if refusals.written >= most {
                refusals.passed_over += 1;
                return;
            }
            refusals.written += 1;
        }
        tracing::info!(who = %caller, address = ?caller.address, call, %error, "refused");
        let entry = AuditEntry {
            result: error.code().to_owned(),
            ..caller.did("refuse", call, details)
        };
        // Whether there is room for it is nobody's business who is refused.
        drop(self.0.store.access(AccessChange::Nothing, Some(entry)));
    }
}
