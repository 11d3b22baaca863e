//! The routes about workers: who is there, and what admins order of them.

use std::time::Duration;

use axum::{Extension, Json, extract::State};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    super::{
        Scheduler,
        about::{Drain, check_changes, requirements},
        access::Caller,
        error::Error,
        registry::WorkerHandle,
    },
    Body, Params,
};
use crate::api;

pub(super) async fn list(
    State(scheduler): State<Scheduler>,
    Params(asked): Params<api::WorkersQuery>,
) -> Result<Json<api::WorkersResponse>, Error> {
    list_workers(&scheduler, asked).map(Json)
}

/// Who is there.
pub(in super::super) fn list_workers(
    scheduler: &Scheduler,
    asked: api::WorkersQuery,
) -> Result<api::WorkersResponse, Error> {
    let label = asked.label.as_deref();
    let wanted = label.map(requirements).transpose()?.unwrap_or_default();
    let only = match asked.worker_id {
        None => None,
        Some(asked) => Some(scheduler.registry.find(&asked)?.id),
    };
    let workers = scheduler.registry.list(only, &wanted);
    let notice = scheduler.registry.notice();
    Ok(api::WorkersResponse { workers, notice })
}

pub(super) async fn label(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::LabelWorkerRequest>,
) -> Result<Json<api::DoneResponse>, Error> {
    let worker = scheduler.registry.find(&asked.worker_id)?;
    check_changes(&asked.labels)?;
    let details = json!({ "labels": asked.labels });
    note(&scheduler, &caller, "label worker", &worker, details).await?;
    scheduler.registry.relabel(worker.id, &asked.labels)?;
    done(&scheduler).await
}

pub(super) async fn drain(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::DrainWorkerRequest>,
) -> Result<Json<api::DoneResponse>, Error> {
    let worker = scheduler.registry.find(&asked.worker_id)?;
    if asked
        .deadline_ms
        .is_some_and(|ms| ms > api::MAX_DURATION_MS)
    {
        let message = format!("deadline_ms is more than {}", api::MAX_DURATION_MS);
        return Err(Error::BadRequest(message));
    }
    let deadline = asked.deadline_ms.map(Duration::from_millis);
    let now = scheduler.store.time().now();
    // No calendar ends within what is taken.
    let after = |time: Timestamp| time.checked_add(deadline?).ok();
    let drain = Drain {
        until: after(now.wall),
        counted: after(now.counted),
    };
    let details = json!({ "until": drain.until });
    note(&scheduler, &caller, "drain worker", &worker, details).await?;
    scheduler.registry.drain(worker.id, drain)?;
    done(&scheduler).await
}

pub(super) async fn resume(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::ResumeWorkerRequest>,
) -> Result<Json<api::DoneResponse>, Error> {
    let worker = scheduler.registry.find(&asked.worker_id)?;
    note(&scheduler, &caller, "resume worker", &worker, json!({})).await?;
    scheduler.registry.resume(worker.id)?;
    done(&scheduler).await
}

pub(super) async fn remove(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::RemoveWorkerRequest>,
) -> Result<Json<api::DoneResponse>, Error> {
    let Scheduler { registry, jobs, .. } = &scheduler;
    let worker = registry.find(&asked.worker_id)?;
    registry.is_gone(worker.id)?;
    note(&scheduler, &caller, "remove worker", &worker, json!({})).await?;
    registry.remove(worker.id, |name| jobs.removed(worker.id, name))?;
    done(&scheduler).await
}

/// The line of the audit log, before anything is done.
async fn note(
    scheduler: &Scheduler,
    caller: &Caller,
    action: &str,
    worker: &WorkerHandle,
    mut details: Value,
) -> Result<(), Error> {
    details["id"] = json!(worker.id);
    let entry = caller.did(action, format_args!("worker {}", worker.name), details);
    scheduler.access.record(entry).await
}

/// The answer, once what was done is on the disk.
async fn done(scheduler: &Scheduler) -> Result<Json<api::DoneResponse>, Error> {
    let store = &scheduler.store;
    store.committed_now(store.now()).await?;
    Ok(Json(api::DoneResponse { success: true }))
}
