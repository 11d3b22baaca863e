//! The HTTP API from the caller's side: one method per endpoint. Names of jobs
//! and workers are passed on as they were typed; the scheduler resolves them.
//! What is shown, and how, is in [`render`]; what a failure means for the exit
//! code is in `cmd`.

use std::{
    fmt,
    net::IpAddr,
    str::FromStr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reqwest::{
    Method, RequestBuilder, Response, Url, header, header::HeaderValue, redirect::Policy,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

pub use self::proof::Proof;
use crate::{
    api::{
        self, AuditQuery, CertificateResponse, CertificatesResponse, CreateTokenRequest,
        CreateTokenResponse, DoneResponse, DrainWorkerRequest, JobsQuery, JobsResponse,
        JoinRequest, LabelWorkerRequest, LogsQuery, QueryAnswer, QueryRequest, RemoveWorkerRequest,
        RenewRequest, ResumeWorkerRequest, RevokeCertificateRequest, RevokeTokenRequest,
        RotateRequest, RotateResponse, StartGroupResponse, StartRequest, StartResponse,
        StopRequest, StopResponse, TokensResponse, VersionResponse, WorkersQuery, WorkersResponse,
        whole_milliseconds,
    },
    identity::{self, tls},
};

pub mod audit;
mod away;
pub mod contexts;
mod error;
pub mod logs;
pub mod proof;
pub mod render;
mod retry;
pub mod visible;

pub use away::{Away, Patience};
pub use error::Error;
pub use logs::{Ending, Logs};
pub use retry::Retry;

/// Where the scheduler is, unless told otherwise.
pub const DEFAULT_SERVER: &str = "https://127.0.0.1:3000";

const CONNECT: Duration = Duration::from_secs(5);
/// Longer than the scheduler's own deadline for a call to a worker, so that its
/// better message is the one that is read.
const ANSWER: Duration = Duration::from_secs(60);
/// For what the scheduler knows by itself.
const OWN_ANSWER: Duration = Duration::from_secs(10);
/// A peer that vanished without a word is noticed after a minute, even where
/// nothing is asked of it and a job is silent for days.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How long a start is repeated.
const START_AGAIN: Duration = Duration::from_secs(30);

/// Whether the same start may well get another answer a little later.
fn may_start_again(error: &Error) -> bool {
    match error {
        Error::Refused { status: 503, error } => error.code == api::code::SHUTTING_DOWN,
        // Without a job nothing was recorded: the worker was known to be away.
        Error::Refused { status: 504, error } => error.job_id.is_some(),
        error => error.is_passing(),
    }
}

/// The URL of a scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Server(Url);

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url: Url = text
            .parse()
            .map_err(|error| format!("not a URL ({error}); write it as `{DEFAULT_SERVER}`"))?;
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok(Self(url)),
            _ => Err(format!("not an HTTP URL; write it as `{DEFAULT_SERVER}`")),
        }
    }
}

impl Server {
    /// Whether it is reached by TLS.
    pub fn is_secure(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Whether it is on this machine, as far as its name tells.
    pub fn is_loopback(&self) -> bool {
        let host = self.host().trim_matches(['[', ']']);
        let address = host.parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// Where it is, without the port: a name, or an address.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// Host and port.
    pub fn authority(&self) -> &str {
        self.0.authority()
    }
}

impl TryFrom<String> for Server {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Server> for String {
    fn from(server: Server) -> Self {
        server.to_string()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

/// Which failures a request may be sent again after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// The scheduler has not even heard it.
    Unheard,
    /// Also where it may have been heard: sent twice it does the same as sent once.
    Always,
}

/// Whether its items may be too long for a body of the usual size.
fn has_many_items(body: &StartRequest) -> bool {
    let items = body.each.iter().flatten();
    items.map(String::len).sum::<usize>() > api::MAX_BODY / 8
}

/// A scheduler's HTTP API. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    server: Server,
    patience: Patience,
}

impl Client {
    /// Connects to nothing yet. Proxies of the environment are not used.
    pub fn new(server: Server, proof: &Proof) -> Result<Self, Error> {
        // Even for plain text, reqwest wants to know who would do it.
        identity::install_crypto();
        let mut http = reqwest::Client::builder();
        if server.is_secure()
            && let Some(config) = proof.config()?
        {
            http = http.tls_backend_preconfigured(config);
        }
        if let Some(token) = proof.token() {
            if !server.is_secure() && !server.is_loopback() {
                return Err(Error::PlainToken(server.to_string()));
            }
            let bearer = HeaderValue::try_from(format!("Bearer {token}"));
            let mut bearer = bearer.map_err(|_| tls::Error::Missing)?;
            bearer.set_sensitive(true);
            http = http.default_headers([(header::AUTHORIZATION, bearer)].into_iter().collect());
        }
        let http = http
            .user_agent(concat!("jobctl/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            // What proves who one is goes to nobody else.
            .redirect(Policy::none())
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(3)
            .build()
            .map_err(|error| Error::unanswered(server.to_string(), &error))?;
        Ok(Self {
            http,
            server,
            patience: Patience::none(),
        })
    }

    /// The same, which waits for a scheduler that is away: what is safe to send again
    /// is sent again for as long.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The same, which waits for nothing: for what need not be done now.
    #[must_use]
    pub fn without_patience(&self) -> Self {
        self.clone().with_patience(Patience::none())
    }

    /// Says once that they are waited for, as the patience has it.
    pub fn say(&self, away: &Away) {
        self.patience.say(away);
    }

    /// They are there again.
    pub fn is_back(&self, away: &Away) {
        self.patience.is_back(away);
    }

    /// Who is away, if that is why; the same request may succeed once they are back.
    pub fn away(&self, error: &Error) -> Option<Away> {
        let scheduler = || Away::Scheduler(self.server.to_string());
        match error {
            Error::Refused { error, .. } if error.worker.is_some() => {
                error.worker.clone().map(Away::Worker)
            }
            Error::Refused { error, .. } if error.code == api::code::SHUTTING_DOWN => {
                Some(scheduler())
            }
            Error::Refused { error: refusal, .. } => error
                .is_passing()
                .then(|| Away::Other(refusal.error.clone())),
            error => error.is_passing().then(scheduler),
        }
    }

    /// Whether a scheduler that is restarted would fail so. Others who do not answer
    /// (an unknown host, what does not speak TLS) are not waited for.
    fn is_restarting(&self, error: &Error) -> bool {
        match error {
            Error::Unreachable { hung_up, .. } | Error::Interrupted { hung_up, .. } => *hung_up,
            Error::Refused { error, .. } => error.code == api::code::SHUTTING_DOWN,
            Error::Unreadable { .. } => error.is_passing(),
            Error::ClocksDiffer { .. }
            | Error::Untrusted { .. }
            | Error::NotAccepted { .. }
            | Error::OtherScheme { .. }
            | Error::PlainToken(_)
            | Error::Proof(_) => false,
        }
    }

    /// The scheduler that is asked.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// `POST /start`: returns once the process runs. Repeated for up to half a
    /// minute where the connection broke or the scheduler is being restarted,
    /// always under one key, so that there is never a second job.
    pub async fn start(&self, body: &StartRequest) -> Result<StartResponse, Error> {
        let key = Uuid::new_v4().to_string();
        self.start_with_key(body, &key).await
    }

    /// As [`Client::start`], under the key `key`: another start under the same
    /// key is the same job.
    pub async fn start_with_key(
        &self,
        body: &StartRequest,
        key: &str,
    ) -> Result<StartResponse, Error> {
        self.start_once(body, key).await
    }

    /// As [`Client::start_with_key`], of a group: returns once all its jobs are
    /// recorded.
    pub async fn start_group(
        &self,
        body: &StartRequest,
        key: &str,
    ) -> Result<StartGroupResponse, Error> {
        self.start_once(body, key).await
    }

    async fn start_once<T: DeserializeOwned>(
        &self,
        body: &StartRequest,
        key: &str,
    ) -> Result<T, Error> {
        let began = Instant::now();
        let mut retry = Retry::new(began);
        let mut reached = None;
        let lines = has_many_items(body).then(|| Bytes::from(body.lines()));
        loop {
            let request = match &lines {
                Some(lines) => self
                    .request(Method::POST, "/start")
                    .header(header::CONTENT_TYPE, api::NDJSON)
                    .body(lines.clone()),
                None => self.post("/start", body),
            };
            let request = request.header(api::IDEMPOTENCY_KEY, key).timeout(ANSWER);
            let error = match self.ask_again(request).await {
                Ok(started) => return Ok(started),
                Err(error) => error,
            };
            let now = Instant::now();
            let pause = match may_start_again(&error) && now.duration_since(began) < START_AGAIN {
                true => retry.pause(&error, now),
                false => None,
            };
            match (&error, pause) {
                // Where nobody was ever there, nothing was asked of anybody. Else
                // what was said before tells more: it may have been done.
                (Error::Unreachable { .. }, None) => return Err(reached.unwrap_or(error)),
                (Error::Unreachable { .. }, Some(_)) if reached.is_none() => return Err(error),
                (_, None) => return Err(error),
                (Error::Unreachable { .. }, Some(pause)) => tokio::time::sleep(pause).await,
                (_, Some(pause)) => {
                    if let (Some(away), true) = (self.away(&error), reached.is_some()) {
                        self.say(&away);
                    }
                    reached = Some(error);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// `POST /stop`: returns once the job is gone, however long its grace is.
    pub async fn stop(&self, body: &StopRequest) -> Result<StopResponse, Error> {
        self.ask_again(self.post("/stop", body)).await
    }

    /// `POST /query`: how a job or a group stands; with `wait_ms` not before it has ended
    /// or that time is over.
    pub async fn query(&self, body: &QueryRequest) -> Result<QueryAnswer, Error> {
        let held = Duration::from_millis(body.wait_ms.unwrap_or_default());
        self.ask_again(self.post("/query", body).timeout(held + OWN_ANSWER))
            .await
    }

    /// `GET /jobs`: one page.
    pub async fn jobs(&self, query: &JobsQuery) -> Result<JobsResponse, Error> {
        self.ask_again(self.get("/jobs").query(query).timeout(OWN_ANSWER))
            .await
    }

    /// `GET /workers`: all of them.
    pub async fn workers(&self) -> Result<WorkersResponse, Error> {
        self.workers_like(&WorkersQuery::default()).await
    }

    /// `GET /workers`: those that are meant.
    pub async fn workers_like(&self, query: &WorkersQuery) -> Result<WorkersResponse, Error> {
        let request = self.get("/workers").query(query).timeout(OWN_ANSWER);
        self.ask_again(request).await
    }

    /// `POST /workers/label`
    pub async fn label_worker(&self, body: &LabelWorkerRequest) -> Result<DoneResponse, Error> {
        let request = self.post("/workers/label", body).timeout(OWN_ANSWER);
        self.ask(request).await
    }

    /// `POST /workers/drain`: returns at once, whatever jobs are left.
    pub async fn drain_worker(&self, body: &DrainWorkerRequest) -> Result<DoneResponse, Error> {
        let request = self.post("/workers/drain", body).timeout(OWN_ANSWER);
        self.ask(request).await
    }

    /// `POST /workers/resume`
    pub async fn resume_worker(&self, body: &ResumeWorkerRequest) -> Result<DoneResponse, Error> {
        let request = self.post("/workers/resume", body).timeout(OWN_ANSWER);
        self.ask(request).await
    }

    /// `POST /workers/remove`
    pub async fn remove_worker(&self, body: &RemoveWorkerRequest) -> Result<DoneResponse, Error> {
        let request = self.post("/workers/remove", body).timeout(OWN_ANSWER);
        self.ask(request).await
    }

    /// `GET /version`
    pub async fn version(&self) -> Result<VersionResponse, Error> {
        self.ask_again(self.get("/version").timeout(OWN_ANSWER))
            .await
    }

    /// `POST /join`: a token buys a certificate.
    pub async fn join(&self, body: &JoinRequest) -> Result<CertificateResponse, Error> {
        self.ask(self.post("/join", body).timeout(OWN_ANSWER)).await
    }

    /// `POST /renew`: a new certificate for the one that is shown.
    pub async fn renew(&self, body: &RenewRequest) -> Result<CertificateResponse, Error> {
        self.ask(self.post("/renew", body).timeout(OWN_ANSWER))
            .await
    }

    /// `GET /tokens`
    pub async fn tokens(&self) -> Result<TokensResponse, Error> {
        self.ask_again(self.get("/tokens").timeout(OWN_ANSWER))
            .await
    }

    /// `POST /tokens`: the answer has the secret, which is shown this once.
    pub async fn create_token(
        &self,
        body: &CreateTokenRequest,
    ) -> Result<CreateTokenResponse, Error> {
        self.ask(self.post("/tokens", body).timeout(OWN_ANSWER))
            .await
    }

    /// `POST /tokens/revoke`
    pub async fn revoke_token(&self, body: &RevokeTokenRequest) -> Result<DoneResponse, Error> {
        let request = self.post("/tokens/revoke", body).timeout(OWN_ANSWER);
        self.ask(request).await
    }

    /// `GET /certs`
    pub async fn certificates(&self) -> Result<CertificatesResponse, Error> {
        self.ask_again(self.get("/certs").timeout(OWN_ANSWER)).await
    }

    /// `POST /certs/revoke`: nothing of this id is accepted afterwards.
    pub async fn revoke_certificate(
        &self,
        body: &RevokeCertificateRequest,
    ) -> Result<DoneResponse, Error> {
        let request = self.post("/certs/revoke", body).timeout(OWN_ANSWER);
        self.ask(request).await
    }

    /// `POST /ca/rotate`
    pub async fn rotate(&self, body: &RotateRequest) -> Result<RotateResponse, Error> {
        self.ask(self.post("/ca/rotate", body).timeout(OWN_ANSWER))
            .await
    }

    /// `GET /audit`: the answer is lines of JSON.
    pub async fn audit(&self, query: &AuditQuery) -> Result<Response, Error> {
        self.patiently(self.get("/audit").query(query), Again::Always)
            .await
    }

    /// `GET /readyz`: returns once so many workers are ready; after `wait` it is
    /// refused instead.
    pub async fn ready(&self, workers: usize, wait: Duration) -> Result<(), Error> {
        let wait_ms = whole_milliseconds(wait);
        let request = self
            .get("/readyz")
            .query(&[("workers", workers as u64), ("wait_ms", wait_ms)])
            .timeout(wait + ANSWER);
        self.send(request).await?;
        Ok(())
    }

    /// `GET /logs`: returns once the scheduler has answered, or with the reason
    /// why not. From then on a broken connection is taken up again. Where the output
    /// is followed, a worker that is away is no reason: it is waited for.
    pub async fn logs(&self, query: LogsQuery) -> Result<Logs, Error> {
        Logs::open(self.clone(), query).await
    }

    async fn open_logs(&self, query: &LogsQuery) -> Result<Response, Error> {
        let request = self
            .get("/logs")
            .query(query)
            .header(header::ACCEPT, api::PROTOBUF_STREAM);
        self.send(request).await
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    fn post(&self, path: &str, body: &impl Serialize) -> RequestBuilder {
        self.request(Method::POST, path).json(body)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.server))
            .header(api::REQUEST_ID, Uuid::new_v4().to_string())
    }

    /// What changes something, and would do so twice.
    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        let response = self.patiently(request, Again::Unheard).await?;
        self.read(response).await
    }

    /// What does the same when it is sent twice.
    async fn ask_again<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        let response = self.patiently(request, Again::Always).await?;
        self.read(response).await
    }

    /// Sends a request again for as long as the patience lasts, while the scheduler
    /// is being restarted.
    async fn patiently(&self, request: RequestBuilder, again: Again) -> Result<Response, Error> {
        let mut retry = Retry::within(self.patience.limit, Instant::now());
        let mut failures = 0;
        loop {
            // The bodies are all in memory, so that there always is a copy.
            let Some(copy) = request.try_clone() else {
                return self.send(request).await;
            };
            let error = match self.send(copy).await {
                Ok(response) => {
                    let scheduler = Away::Scheduler(self.server.to_string());
                    self.patience.is_back(&scheduler);
                    return Ok(response);
                }
                Err(error) => error,
            };
            let may_be_sent = again == Again::Always || error.is_unheard();
            if !may_be_sent || !self.is_restarting(&error) {
                return Err(error);
            }
            let Some(pause) = retry.pause(&error, Instant::now()) else {
                return Err(error);
            };
            failures += 1;
            // What is over at once is not worth a word.
            if failures == 2 {
                self.patience.say(&Away::Scheduler(self.server.to_string()));
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let status = response.status().as_u16();
        let body = response
            .bytes()
            .await
            .map_err(|error| Error::interrupted(self.server.to_string(), &error))?;
        serde_json::from_slice(&body).map_err(|error| Error::Unreadable {
            server: self.server.to_string(),
            status,
            reason: error.to_string(),
        })
    }

    /// The answer with its body still to come, if it is a success.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let unanswered = |error| Error::unanswered(self.server.to_string(), &error);
        let request = request.build().map_err(unanswered)?;
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let request_id = request.headers().get(api::REQUEST_ID).cloned();
        let request_id = request_id.as_ref().and_then(|id| id.to_str().ok());
        let begun = Instant::now();
        let answer = self.http.execute(request).await;
        let took = begun.elapsed();
        match &answer {
            Ok(response) => {
                let status = response.status().as_u16();
                tracing::debug!(request_id, "{method} {path} {status} in {took:.1?}");
            }
            Err(_) => tracing::debug!(request_id, "{method} {path} unanswered in {took:.1?}"),
        }
        let response = answer.map_err(unanswered)?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    async fn refusal(&self, mut response: Response) -> Error {
        let status = response.status();
        let mut body = Vec::new();
        // Whatever listens there may not be a scheduler and send without end.
        while body.len() < api::MAX_BODY {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(error) => return Error::interrupted(self.server.to_string(), &error),
            }
        }
        match serde_json::from_slice(&body) {
            Ok(error) => Error::Refused {
                status: status.as_u16(),
                error,
            },
            Err(_) => Error::Unreadable {
                server: self.server.to_string(),
                status: status.as_u16(),
                reason: format!("{status} without the error every scheduler sends with it"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::IntoFuture as _,
        sync::{Arc, Mutex},
    };

    use axum::{
        Json, Router,
        http::{HeaderMap, StatusCode},
        routing::{get, post},
    };
    use tokio::net::TcpListener;

    use super::*;

    async fn serve(router: Router) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router).into_future());
        Client::new(server.parse().unwrap(), &Proof::default()).unwrap()
    }

    #[test]
    fn a_server_is_an_http_url() {
        for (good, shown) in [
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("http://host:1/", "http://host:1"),
            ("http://host/jobs/", "http://host/jobs"),
            ("https://10.0.0.1:3000", "https://10.0.0.1:3000"),
        ] {
            assert_eq!(good.parse::<Server>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "127.0.0.1:3000",
            "localhost:3000",
            "ftp://x",
            "https://",
            "http://",
        ] {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
    }

    fn started(job_id: crate::ids::JobId) -> StartResponse {
        StartResponse {
            job_id,
            state: api::JobState::Running,
            reason: None,
        }
    }

    #[tokio::test]
    async fn a_request_is_json_and_bears_an_id() {
        let seen = Arc::new(Mutex::new(None));
        let keep = Arc::clone(&seen);
        let client = serve(Router::new().route(
            "/start",
            post(move |headers: HeaderMap, body: String| async move {
                *keep.lock().unwrap() = Some((headers, body));
                let job_id = "3f2a8b1c-9d4e-4f00-8000-000000000000".parse().unwrap();
                (StatusCode::CREATED, Json(started(job_id)))
            }),
        ))
        .await;
        let body = StartRequest {
            command: Some("bash".into()),
            ..StartRequest::default()
        };
        let answer = client.start(&body).await.unwrap();
        assert_eq!(answer.job_id.short(), "3f2a8b1c9d4e");
        let (headers, body) = seen.lock().unwrap().take().unwrap();
        assert_eq!(headers[header::CONTENT_TYPE], "application/json");
        let id = headers[api::REQUEST_ID].to_str().unwrap();
        assert!(Uuid::try_parse(id).is_ok(), "{id}");
        assert_eq!(body, r#"{"command":"bash"}"#);
    }

    #[tokio::test]
    async fn a_start_is_repeated_under_its_key() {
        let keys = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&keys);
        let client = serve(Router::new().route(
            "/start",
            post(move |headers: HeaderMap| async move {
                let key = headers[api::IDEMPOTENCY_KEY].to_str().unwrap().to_owned();
                let id = "3f2a8b1c-9d4e-4f00-8000-000000000000".parse().unwrap();
                let job_id = Some(id);
                let mut keys = keep.lock().unwrap();
                keys.push(key);
                let (status, code, job_id) = match keys.len() {
                    1 => (503, "shutting_down", None),
                    2 => (504, "worker_unreachable", job_id),
                    3 => (502, "worker_failed", job_id),
                    4 => return Ok((StatusCode::CREATED, Json(started(id)))),
                    5 => (504, "worker_unreachable", None),
                    _ => (503, "no_free_slot", None),
                };
                let error = api::Error {
                    error: "no".into(),
                    code: code.into(),
                    job_id,
                    worker: None,
                };
                Err((StatusCode::from_u16(status).unwrap(), Json(error)))
            }),
        ))
        .await;
        let body = StartRequest::default();
        client.start(&body).await.unwrap();
        for code in ["worker_unreachable", "no_free_slot"] {
            let error = client.start_with_key(&body, "mine").await.unwrap_err();
            assert_eq!(error.code(), Some(code));
        }
        let keys = keys.lock().unwrap();
        assert!(Uuid::try_parse(&keys[0]).is_ok());
        assert!(keys[..4].iter().all(|key| *key == keys[0]), "{keys:?}");
        assert_eq!(keys[4..], ["mine", "mine"]);
    }

    fn resume() -> ResumeWorkerRequest {
        ResumeWorkerRequest {
            worker_id: "w1".to_owned(),
        }
    }

    /// A scheduler that ends each connection, so many times, and then answers.
    async fn restarting(mut times: usize) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while times > 0 {
                times -= 1;
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut some = [0; 1];
                tokio::io::AsyncReadExt::read_exact(&mut socket, &mut some)
                    .await
                    .unwrap();
            }
            let ok = || async { Json(serde_json::json!({"version": "1", "success": true})) };
            let router = Router::new()
                .route("/version", get(ok))
                .route("/stop", post(ok))
                .route("/workers/resume", post(ok));
            axum::serve(listener, router).await.unwrap();
        });
        let client = Client::new(server.parse().unwrap(), &Proof::default()).unwrap();
        client.with_patience(Patience::new(Duration::from_secs(60), |away| {
            assert!(away.to_string().starts_with("the scheduler at http://127."));
        }))
    }

    #[tokio::test]
    async fn what_does_the_same_twice_is_sent_again_while_the_scheduler_is_restarted() {
        restarting(3).await.version().await.unwrap();
        let stopped = restarting(3).await.stop(&StopRequest::default()).await;
        assert!(stopped.unwrap().success);
        // Whether it was done is not known, and doing it twice may be another thing.
        let resume = resume();
        let error = restarting(1)
            .await
            .resume_worker(&resume)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_was_not_heard_is_sent_again_whatever_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let server = format!("http://{address}").parse().unwrap();
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        static SAID: Mutex<Option<tokio::sync::mpsc::UnboundedSender<String>>> = Mutex::new(None);
        *SAID.lock().unwrap() = Some(said);
        let client = Client::new(server, &Proof::default()).unwrap();
        let client = client.with_patience(Patience::new(Duration::from_secs(60), |away| {
            let said = SAID.lock().unwrap();
            said.as_ref().unwrap().send(away.to_string()).unwrap();
        }));
        let resume = tokio::spawn(async move { client.resume_worker(&resume()).await });
        let words = format!("the scheduler at http://{address} is away, waiting");
        assert_eq!(heard.recv().await.unwrap(), words);
        let listener = TcpListener::bind(address).await.unwrap();
        let ok = || async { Json(serde_json::json!({"success": true})) };
        let router = Router::new().route("/workers/resume", post(ok));
        tokio::spawn(axum::serve(listener, router).into_future());
        resume.await.unwrap().unwrap();
        assert!(heard.try_recv().is_err(), "said twice");
    }

    #[tokio::test]
    async fn each_failure_is_told_apart() {
        let refuse = || async {
            let error = api::Error {
                error: "worker not found".into(),
                code: "worker_not_found".into(),
                job_id: None,
                worker: None,
            };
            (StatusCode::NOT_FOUND, Json(error))
        };
        let client = serve(
            Router::new()
                .route("/workers", get(refuse))
                .route("/version", get(|| async { "hello" })),
        )
        .await;
        let refused = client.workers().await.unwrap_err();
        assert_eq!(refused.to_string(), "worker not found");
        assert_eq!(refused.code(), Some("worker_not_found"));
        let unreadable = client.version().await.unwrap_err();
        assert!(matches!(unreadable, Error::Unreadable { status: 200, .. }));
        let nowhere = client.jobs(&JobsQuery::default()).await.unwrap_err();
        assert!(matches!(nowhere, Error::Unreadable { status: 404, .. }));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = Client::new(server.parse().unwrap(), &Proof::default()).unwrap();
        let unreachable = client.workers().await.unwrap_err();
        assert!(matches!(unreachable, Error::Unreachable { .. }));
        let text = unreachable.to_string();
        assert!(text.contains(&server) && text.contains("refused"), "{text}");
    }

    #[test]
    fn a_token_does_not_leave_the_machine_in_plain_text() {
        let proof = Proof::of_token("a.b");
        let client = |server: &str| Client::new(server.parse().unwrap(), &proof);
        for good in [
            "https://10.0.0.1:3000",
            "http://127.0.0.1:3000",
            "http://localhost",
            "http://[::1]:1",
        ] {
            assert!(client(good).is_ok(), "{good}");
        }
        for bad in [
            "http://10.0.0.1:3000",
            "http://host",
            "http://[2001:db8::1]",
        ] {
            let refused = client(bad).unwrap_err();
            assert!(matches!(refused, Error::PlainToken(_)), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_proves_who_one_is_follows_no_redirect() {
        let asked = Arc::new(Mutex::new(0));
        let count = Arc::clone(&asked);
        let other = serve(Router::new().route(
            "/version",
            get(move || async move { *count.lock().unwrap() += 1 }),
        ))
        .await;
        let to = format!("{}/version", other.server());
        let client = serve(Router::new().route(
            "/version",
            get(move || async move { axum::response::Redirect::temporary(&to) }),
        ))
        .await;
        assert!(client.version().await.is_err());
        assert_eq!(*asked.lock().unwrap(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_closes_without_an_answer_is_an_interruption() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut some = [0; 1];
            tokio::io::AsyncReadExt::read_exact(&mut socket, &mut some)
                .await
                .unwrap();
        });
        let client = Client::new(server.parse().unwrap(), &Proof::default()).unwrap();
        let error = client.version().await.unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
    }
}
