//! The routes about workers: who is there, and what admins order of them.

use std::{sync::Arc, time::Duration};

use axum::{Extension, Json, extract::State};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    super::{
        Scheduler,
        about::{Drain, check_changes, requirements},
        access::Caller,
        error::Error,
        registry::{Order, WorkerHandle},
        store::AuditEntry,
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
    let audit = about(&caller, "label worker", &worker, details);
    order(scheduler, worker, Order::Labels(asked.labels), audit).await
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
    let audit = about(&caller, "drain worker", &worker, details);
    order(scheduler, worker, Order::Drain(drain), audit).await
}

pub(super) async fn resume(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::ResumeWorkerRequest>,
) -> Result<Json<api::DoneResponse>, Error> {
    let worker = scheduler.registry.find(&asked.worker_id)?;
    let audit = about(&caller, "resume worker", &worker, json!({}));
    order(scheduler, worker, Order::Resume, audit).await
}

pub(super) async fn remove(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::RemoveWorkerRequest>,
) -> Result<Json<api::DoneResponse>, Error> {
    let worker = scheduler.registry.find(&asked.worker_id)?;
    let audit = about(&caller, "remove worker", &worker, json!({}));
    let whole = scheduler.clone();
    let removed = async move {
        let Scheduler { registry, jobs, .. } = &scheduler;
        let settle = |name: &Arc<str>| jobs.removed(worker.id, name);
        registry.remove(worker.id, audit, settle).await
    };
    whole.jobs.to_its_end(removed).await?;
    Ok(Json(api::DoneResponse { success: true }))
}

/// Recorded and done, or neither.
async fn order(
    scheduler: Scheduler,
    worker: WorkerHandle,
    order: Order,
    audit: AuditEntry,
) -> Result<Json<api::DoneResponse>, Error> {
    let registry = scheduler.registry.clone();
    let ordered = async move { registry.order(worker.id, order, audit).await };
    scheduler.jobs.to_its_end(ordered).await?;
    Ok(Json(api::DoneResponse { success: true }))
}

/// The line of the audit log.
fn about(caller: &Caller, action: &str, worker: &WorkerHandle, mut details: Value) -> AuditEntry {
    details["id"] = json!(worker.id);
    caller.did(action, format_args!("worker {}", worker.name), details)
}
