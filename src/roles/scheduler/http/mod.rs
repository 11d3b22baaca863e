//! The HTTP API: its routes and handlers. A handler decodes, finds, asks and
//! encodes; what it does in between, the gRPC API does as well (`jobs_rpc.rs`); how output is sent is in `logs.rs`, which status an error has in
//! `error.rs`.

mod access;
mod admit;
mod events;
mod items;
mod workers;

use self::items::StartBody;
pub(super) use self::{
    access::certificate,
    admit::{bearer, is_no_page, until_cut},
    workers::list_workers,
};

use std::{io, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{
        DefaultBodyLimit, FromRequest, FromRequestParts, Query, Request, State,
        rejection::JsonRejection,
    },
    http::{HeaderMap, HeaderName, Method, StatusCode, Uri, request::Parts},
    middleware::from_fn_with_state,
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, get, post},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{json, value::RawValue};
use sha2::{Digest as _, Sha256};
use tower_http::{
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    timeout::RequestBodyTimeoutLayer,
    trace::TraceLayer,
};

use super::{
    Scheduler,
    access::Caller,
    error::Error,
    jobs::{
        Awaited, Cut, Filter, Group, Kind, Named, Record, Spec, Start, StartGroup, Stop, Unplaced,
        Wait,
    },
    logs, signal,
    store::Key,
};
use crate::api;

/// Jobs on a page of `GET /jobs` that does not say how many.
const DEFAULT_LIMIT: usize = 50;

/// Before every route, for those who want to be sure of the version.
const V1: &str = "/v1";

/// Without a byte of a body for so long, a request is given up.
const BODY_SILENCE: Duration = Duration::from_secs(10);

/// Every route, at `/` and under `/v1/`.
pub(super) fn router(scheduler: Scheduler) -> Router {
    let routes: [(&str, MethodRouter<Scheduler>); 22] = [
        ("/join", post(access::join)),
        ("/renew", post(access::renew)),
        ("/tokens", get(access::tokens).post(access::create_token)),
        ("/tokens/revoke", post(access::revoke_token)),
        ("/certs", get(access::certificates)),
        ("/certs/revoke", post(access::revoke_certificate)),
        ("/ca/rotate", post(access::rotate)),
        ("/audit", get(access::audit)),
        ("/start", post(start)),
        ("/stop", post(stop)),
        ("/query", post(query)),
        ("/logs", get(logs)),
        ("/events", get(events::watch)),
        ("/workers", get(workers::list)),
        ("/workers/label", post(workers::label)),
        ("/workers/drain", post(workers::drain)),
        ("/workers/resume", post(workers::resume)),
        ("/workers/remove", post(workers::remove)),
        ("/jobs", get(jobs)),
        ("/version", get(version)),
        ("/livez", get(livez)),
        ("/readyz", get(readyz)),
    ];
    let mut router = Router::new();
    for (path, route) in routes {
        router = router
            .route(&format!("{V1}{path}"), route.clone())
            .route(path, route);
    }
    let request_id = HeaderName::from_static(api::REQUEST_ID);
    // The last layer is the outermost: the id is there before the span asks for it.
    router
        .fallback(route_not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(scheduler.body_bytes))
        .layer(RequestBodyTimeoutLayer::new(BODY_SILENCE))
        .layer(from_fn_with_state(scheduler.clone(), admit::admit))
        .layer(PropagateRequestIdLayer::new(request_id.clone()))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                .on_failure(()),
        )
        .layer(SetRequestIdLayer::new(request_id, MakeRequestUuid))
        .with_state(scheduler)
}

fn span<B>(request: &axum::http::Request<B>) -> tracing::Span {
    let id = request.headers().get(api::REQUEST_ID);
    tracing::info_span!(
        "request",
        method = %request.method(),
        path = request.uri().path(),
        request_id = id.and_then(|id| id.to_str().ok()),
    )
}

async fn start(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    StartBody(asked): StartBody,
) -> Result<(StatusCode, Json<StartAnswer>), Error> {
    let key = decode_key(&headers, &asked)?;
    let answer = start_job(&scheduler, caller, asked, key).await?;
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Starts a job or a group.
pub(super) async fn start_job(
    scheduler: &Scheduler,
    caller: Caller,
    asked: api::StartRequest,
    key: Option<Key>,
) -> Result<StartAnswer, Error> {
    if asked.is_group() {
        let (group, passed_over) = start_group(scheduler, asked, key, caller).await?;
        let answer = api::StartGroupResponse {
            group_id: group.id,
            count: group.count,
            passed_over,
        };
        return Ok(StartAnswer::Group(answer));
    }
    for (field, given) in [
        ("at_once", asked.at_once.is_some()),
        ("stop_on_failure", asked.stop_on_failure),
    ] {
        if given {
            let message = format!("{field} is for groups: all, count or each");
            return Err(Error::BadRequest(message));
        }
    }
    let worker = asked.worker_id.clone();
    let unplaced = match asked.no_queue {
        true => Unplaced::Refused,
        false => Unplaced::Waits,
    };
    let after = Awaited::of(&asked).map_err(Error::BadRequest)?;
    let (spec, env) = Spec::new(asked, &scheduler.bounds).map_err(Error::BadRequest)?;
    let start = Start {
        spec,
        env,
        worker,
        after,
        unplaced,
        key,
        caller,
    };
    let record = scheduler.jobs.start(start).await?;
    let job = scheduler.jobs.shown(&record);
    let answer = api::StartResponse {
        job_id: job.id,
        state: job.state,
        // How one ended that ran meanwhile is another matter.
        reason: job
            .reason
            .filter(|_| !job.state.is_final() || record.place.is_none()),
    };
    Ok(StartAnswer::Job(answer))
}

/// What a start is answered with.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum StartAnswer {
    Job(api::StartResponse),
    Group(api::StartGroupResponse),
}

async fn start_group(
    scheduler: &Scheduler,
    mut asked: api::StartRequest,
    key: Option<Key>,
    caller: Caller,
) -> Result<(Arc<Group>, Vec<api::PassedOver>), Error> {
    let bad = |message: String| Err(Error::BadRequest(message));
    let most = api::MAX_GROUP;
    if asked.no_queue {
        return bad("no_queue is not for groups: their jobs wait for room".to_owned());
    }
    if asked.at_once == Some(0) {
        return bad("at_once is 0: no job would ever start".to_owned());
    }
    if asked.all && asked.worker_id.is_some() {
        return bad("all and worker_id exclude each other".to_owned());
    }
    let kind = match (asked.all, asked.count, asked.each.take()) {
        (true, None, None) => Kind::All,
        (false, Some(count), None) if (1..=most).contains(&(count as usize)) => Kind::Count(count),
        (false, Some(_), None) => return bad(format!("count is not between 1 and {most}")),
        (false, None, Some(items)) => Kind::Each(checked(items, scheduler.bounds.arg_bytes)?),
        _ => return bad("all, count and each exclude each other".to_owned()),
    };
    let after = Awaited::of(&asked).map_err(Error::BadRequest)?;
    let (worker, at_once) = (asked.worker_id.clone(), asked.at_once);
    let stop_on_failure = asked.stop_on_failure;
    let (spec, env) = Spec::new(asked, &scheduler.bounds).map_err(Error::BadRequest)?;
    let start = StartGroup {
        spec,
        env,
        kind,
        worker,
        at_once,
        stop_on_failure,
        after,
        key,
        caller,
    };
    scheduler.jobs.start_group(start).await
}

/// The items of a group, which end up in the environments of its jobs.
fn checked(items: Vec<String>, longest: usize) -> Result<Vec<String>, Error> {
    let most = api::MAX_GROUP;
    if items.is_empty() || items.len() > most {
        return Err(Error::BadRequest(format!("each has not 1 to {most} items")));
    }
    if items.iter().any(|item| item.len() > longest) {
        return Err(Error::BadRequest(format!(
            "each has an item of more than {longest} bytes"
        )));
    }
    match items.iter().any(|item| item.contains('\0')) {
        true => Err(Error::BadRequest("each contains a NUL byte".to_owned())),
        false => Ok(items),
    }
}

/// The key under which this may be asked for again.
fn decode_key(headers: &HeaderMap, asked: &api::StartRequest) -> Result<Option<Key>, Error> {
    let mut values = headers.get_all(api::IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(bad_key("there is more than one"));
    }
    key_of(value.as_bytes(), asked).map(Some)
}

fn bad_key(what: &str) -> Error {
    Error::BadRequest(format!("{}: {what}", api::IDEMPOTENCY_KEY))
}

/// With the digest of what is asked for: values of its environment may be secrets.
pub(super) fn key_of(key: &[u8], asked: &api::StartRequest) -> Result<Key, Error> {
    if key.is_empty() || key.len() > api::MAX_KEY || !key.iter().all(u8::is_ascii_graphic) {
        return Err(bad_key("not 1 to 255 visible ASCII characters"));
    }
    let mut body = Digesting(Sha256::new());
    serde_json::to_writer(&mut body, asked)
        .map_err(|error| Error::BadRequest(error.to_string()))?;
    Ok(Key {
        key: String::from_utf8_lossy(key).into_owned(),
        body: body.0.finalize().to_vec(),
    })
}

/// Digests what is written, which may be long and is needed for nothing else.
struct Digesting(Sha256);

impl io::Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn stop(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::StopRequest>,
) -> Result<Json<api::StopResponse>, Error> {
    stop_job(&scheduler, caller, asked).await?;
    Ok(Json(api::StopResponse { success: true }))
}

/// Ends a job or a group.
pub(super) async fn stop_job(
    scheduler: &Scheduler,
    caller: Caller,
    asked: api::StopRequest,
) -> Result<(), Error> {
    let stop = decode_stop(&asked)?;
    let named = find(scheduler, &asked.job_id, asked.worker_id.as_deref()).await?;
    let details = json!({ "signal": asked.signal, "grace_ms": asked.grace_ms });
    let audit = match &named {
        Named::Job(record) => caller.did("stop", record.id, details),
        Named::Group(group) => caller.did("stop", group.id, details),
    };
    match scheduler.access.record(audit.clone()).await {
        // A stop needs no room, and may be what makes some.
        Err(Error::DiskFull(_) | Error::StoreBusy) => {
            scheduler.store.audit_later(audit);
        }
        recorded => recorded?,
    }
    match named {
        Named::Job(record) => scheduler.jobs.stop(record.id, stop).await,
        Named::Group(group) => scheduler.jobs.stop_group(group.id, stop).await,
    }
}

fn decode_stop(asked: &api::StopRequest) -> Result<Stop, Error> {
    let signal = asked.signal.as_deref().map(|text| {
        signal::parse(text).ok_or_else(|| Error::BadRequest(format!("no such signal: '{text}'")))
    });
    if asked.grace_ms.is_some_and(|ms| ms > api::MAX_DURATION_MS) {
        let message = format!("grace_ms is more than {}", api::MAX_DURATION_MS);
        return Err(Error::BadRequest(message));
    }
    Ok(Stop {
        signal: signal.transpose()?,
        grace: asked.grace_ms.map(Duration::from_millis),
        wait: match asked.no_wait {
            true => Wait::Sent,
            false => Wait::Gone,
        },
    })
}

async fn query(
    State(scheduler): State<Scheduler>,
    Body(asked): Body<api::QueryRequest>,
) -> Result<Json<api::QueryAnswer>, Error> {
    query_job(&scheduler, asked).await.map(Json)
}

/// How a job or a group stands, or has ended.
pub(super) async fn query_job(
    scheduler: &Scheduler,
    asked: api::QueryRequest,
) -> Result<api::QueryAnswer, Error> {
    let named = find(scheduler, &asked.job_id, asked.worker_id.as_deref()).await?;
    let mut record = match named {
        Named::Job(record) => record,
        Named::Group(group) => return query_group(scheduler, group, asked.wait_ms).await,
    };
    if let Some(wait) = asked.wait_ms.filter(|_| !record.is_final()) {
        record = wait_for_end(scheduler, &record, wait).await?;
    }
    let error_text = record.error_text();
    Ok(api::QueryAnswer::Job(Box::new(api::QueryResponse {
        done: record.is_final(),
        error: !error_text.is_empty(),
        error_text,
        job: scheduler.jobs.shown(&record),
    })))
}

async fn query_group(
    scheduler: &Scheduler,
    mut group: Arc<Group>,
    wait_ms: Option<u64>,
) -> Result<api::QueryAnswer, Error> {
    if let Some(wait) = wait_ms.filter(|_| !group.is_final()) {
        let limit = Duration::from_millis(wait.min(api::MAX_WAIT_MS));
        let changes = scheduler.jobs.watch_group(group.id).await?;
        let end = scheduler.jobs.wait_for_group(group.id);
        group = match tokio::time::timeout(limit, end).await {
            Ok(group) => group?,
            Err(_) => changes.borrow().clone(),
        };
    }
    let error_text = group.error_text();
    let answer = api::QueryGroupResponse {
        done: group.is_final(),
        error: !error_text.is_empty(),
        error_text,
        group: group.shown(),
    };
    Ok(api::QueryAnswer::Group(Box::new(answer)))
}

/// The record when it is final, or as it is when the time is up.
async fn wait_for_end(
    scheduler: &Scheduler,
    record: &Record,
    wait_ms: u64,
) -> Result<Arc<Record>, Error> {
    let limit = Duration::from_millis(wait_ms.min(api::MAX_WAIT_MS));
    let changes = scheduler.jobs.watch(record.id).await?;
    let end = scheduler.jobs.wait(record.id, Record::is_final);
    match tokio::time::timeout(limit, end).await {
        Ok(record) => record,
        Err(_) => Ok(changes.borrow().clone()),
    }
}

async fn logs(
    State(scheduler): State<Scheduler>,
    headers: HeaderMap,
    Params(asked): Params<api::LogsQuery>,
) -> Result<Response, Error> {
    if logs::has_seen_the_end(&headers) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let format = logs::Format::accepted(&headers);
    let follower = follow(&scheduler, asked, &headers).await?;
    Ok(follower.into_response(format))
}

/// The output of a job.
pub(super) async fn follow(
    scheduler: &Scheduler,
    asked: api::LogsQuery,
    headers: &HeaderMap,
) -> Result<logs::Follower, Error> {
    let named = find(scheduler, &asked.job_id, asked.worker_id.as_deref()).await?;
    let Named::Job(record) = named else {
        return Err(Error::NotOneJob(asked.job_id));
    };
    logs::open(scheduler, record.id, &asked, headers).await
}

async fn jobs(
    State(scheduler): State<Scheduler>,
    Params(asked): Params<api::JobsQuery>,
) -> Result<Json<api::JobsResponse>, Error> {
    list_jobs(&scheduler, asked).await.map(Json)
}

/// A page of jobs.
pub(super) async fn list_jobs(
    scheduler: &Scheduler,
    asked: api::JobsQuery,
) -> Result<api::JobsResponse, Error> {
    let limit = asked.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=api::MAX_PAGE).contains(&limit) {
        let message = format!("limit {limit} is not between 1 and {}", api::MAX_PAGE);
        return Err(Error::BadRequest(message));
    }
    if let Some(group) = &asked.group_id {
        return group_jobs(scheduler, group, &asked, limit).await;
    }
    let filter = Filter {
        states: asked.state.as_deref().map(decode_states).transpose()?,
        worker: match asked.worker_id {
            None => None,
            Some(worker) => Some(scheduler.registry.find(&worker)?.id),
        },
        name: asked.name,
    };
    let page = scheduler.jobs.page(filter, limit, asked.after).await?;
    Ok(shown(scheduler, &page))
}

async fn group_jobs(
    scheduler: &Scheduler,
    group: &str,
    asked: &api::JobsQuery,
    limit: usize,
) -> Result<api::JobsResponse, Error> {
    if asked.state.is_some() || asked.worker_id.is_some() || asked.name.is_some() {
        let message = "group_id goes with limit and after alone".to_owned();
        return Err(Error::BadRequest(message));
    }
    let Named::Group(group) = scheduler.jobs.find(group).await? else {
        return Err(Error::NotAGroup(group.to_owned()));
    };
    let page = scheduler.jobs.members(group.id, limit, asked.after).await?;
    Ok(shown(scheduler, &page))
}

fn shown(scheduler: &Scheduler, page: &Cut<Arc<Record>>) -> api::JobsResponse {
    api::JobsResponse {
        next: page.edge(|record| record.id),
        jobs: page
            .jobs
            .iter()
            .map(|record| api::Job {
                attempts: Vec::new(),
                ..scheduler.jobs.shown(record)
            })
            .collect(),
    }
}

fn decode_states(text: &str) -> Result<Vec<api::JobState>, Error> {
    let states = text.split(',').map(|word| {
        let known = api::JobState::ALL
            .into_iter()
            .find(|state| state.as_str() == word.trim());
        known.ok_or_else(|| {
            let all = api::JobState::ALL.map(api::JobState::as_str).join(", ");
            Error::BadRequest(format!("no such state: '{word}'; there are {all}"))
        })
    });
    states.collect()
}

async fn version() -> Json<api::VersionResponse> {
    Json(api::VersionResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

async fn livez() -> &'static str {
    "ok"
}

/// Parameters of `GET /readyz`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Readiness {
    /// So many workers must be ready.
    #[serde(default)]
    workers: usize,
    /// How long to wait for them.
    #[serde(default)]
    wait_ms: u64,
}

async fn readyz(
    State(scheduler): State<Scheduler>,
    Params(asked): Params<Readiness>,
) -> Result<&'static str, Error> {
    let wanted = asked.workers;
    let limit = Duration::from_millis(asked.wait_ms.min(api::MAX_WAIT_MS));
    let mut count = scheduler.registry.ready_count();
    let enough = tokio::select! {
        enough = tokio::time::timeout(limit, count.wait_for(|ready| *ready >= wanted)) => {
            enough.is_ok()
        }
        () = scheduler.closing.cancelled() => return Err(Error::ShuttingDown),
    };
    match enough {
        true => Ok("ok"),
        false => Err(Error::NotReady {
            ready: *count.borrow(),
            wanted,
        }),
    }
}

async fn route_not_found(uri: Uri) -> Error {
    Error::RouteNotFound(uri.path().to_owned())
}

async fn method_not_allowed(method: Method, uri: Uri) -> Error {
    Error::MethodNotAllowed {
        method: method.to_string(),
        path: uri.path().to_owned(),
    }
}

/// What is meant; a worker that is named along with a job must be its own.
async fn find(scheduler: &Scheduler, job: &str, worker: Option<&str>) -> Result<Named, Error> {
    let named = scheduler.jobs.find(job).await?;
    let (Named::Job(record), Some(asked)) = (&named, worker) else {
        return Ok(named);
    };
    let Some(place) = &record.place else {
        return match record.wanted == Some(scheduler.registry.find(asked)?.id) {
            true => Ok(named),
            false => Err(Error::JobOnNoWorker(record.id)),
        };
    };
    // Its worker may be forgotten, and the job not.
    if asked == place.worker.to_string() || asked == &*place.worker_name {
        return Ok(named);
    }
    match scheduler.registry.find(asked)?.id == place.worker {
        true => Ok(named),
        false => Err(Error::JobOnOtherWorker {
            job: record.id,
            worker: place.worker_name.to_string(),
            id: place.worker,
        }),
    }
}

/// A JSON body; what is wrong with it is said as every other error is.
struct Body<T>(T);

impl<T: DeserializeOwned> FromRequest<Scheduler> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, scheduler: &Scheduler) -> Result<Self, Error> {
        let bad_body = |rejection| bad_body(&rejection, scheduler.body_bytes);
        let read = Json::from_request(request, scheduler).await;
        let Json(body): Json<Box<RawValue>> = read.map_err(bad_body)?;
        // Or an array would do, with the fields in the order of their definition.
        if !body.get().starts_with('{') {
            return Err(Error::BadRequest(
                "the body is not a JSON object".to_owned(),
            ));
        }
        let Json(body) = Json::from_bytes(body.get().as_bytes()).map_err(bad_body)?;
        Ok(Self(body))
    }
}

fn bad_body(rejection: &JsonRejection, limit: usize) -> Error {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::BodyTooLarge(limit),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Error::UnsupportedMediaType,
        _ => Error::BadRequest(format!("bad body: {}", cause(rejection))),
    }
}

/// The parameters behind the `?`, likewise.
struct Params<T>(T);

impl<T, S> FromRequestParts<S> for Params<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Query(params) = Query::from_request_parts(parts, state)
            .await
            .map_err(|error| Error::BadRequest(format!("bad parameters: {}", cause(&error))))?;
        Ok(Self(params))
    }
}

/// The innermost words: the outer ones only say that something is wrong.
fn cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

/// A body or the parameters of a request, in which the first byte says for what: they
/// are taken or refused with words. What is taken reads the same when it is written
/// again, so that a repeated start has the digest of the first. See [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub fn fuzz(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    let params = |text: &str| format!("/?{text}").parse::<axum::http::Uri>().ok();
    let text = std::str::from_utf8(rest).unwrap_or_default();
    match kind {
        b'1' => {
            let Ok(asked) = serde_json::from_slice::<api::StopRequest>(rest) else {
                return;
            };
            let _ = decode_stop(&asked);
        }
        b'2' => drop(serde_json::from_slice::<api::QueryRequest>(rest)),
        b'3' => drop(params(text).map(|uri| Query::<api::LogsQuery>::try_from_uri(&uri))),
        b'4' => drop(params(text).map(|uri| Query::<api::JobsQuery>::try_from_uri(&uri))),
        _ => {
            let Ok(asked) = serde_json::from_slice::<api::StartRequest>(rest) else {
                return;
            };
            let written = serde_json::to_vec(&asked).expect("a request is always valid JSON");
            let again: api::StartRequest =
                serde_json::from_slice(&written).expect("what was written can be read");
            let digest = |asked| key_of(b"key", asked).map(|key| key.body).ok();
            assert_eq!(digest(&asked), digest(&again));
            let _ = Awaited::of(&asked);
            if let Ok((spec, env)) = Spec::new(asked, &crate::net::bounds::Bounds::default()) {
                assert!(spec.command.is_some() || spec.path.is_some());
                assert!(spec.env.iter().eq(env.keys()));
            }
        }
    }
}
