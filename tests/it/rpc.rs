//! The gRPC API for programs, as a program finds it that has nothing of jobctl's:
//! the messages are those that the server describes by reflection, made of JSON
//! and read as JSON.

use jobctl::{
    api::{CreateTokenRequest, CreateTokenResponse, RevokeTokenRequest, TokenKind},
    identity::Role,
};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use prost_types::FileDescriptorProto;
use serde_json::{Value, json};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    attacker::{Shown, channel, http},
    cluster::TestCluster,
    support::within,
};

/// Knows what the server has said of itself, and nothing else.
struct Generic {
    channel: Channel,
    token: String,
    pool: DescriptorPool,
}

/// Of messages of this kind.
struct Any(MessageDescriptor);

impl Codec for Any {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for Any {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(to)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Any {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), from);
        message
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

fn as_json(message: &DynamicMessage) -> Value {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(false);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .unwrap()
}

fn code_of(status: &Status) -> (Code, &str) {
    let word = status.metadata().get("jobctl-code");
    (
        status.code(),
        word.map_or("", |word| word.to_str().unwrap()),
    )
}

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    request
}

impl Generic {
    async fn new(cluster: &TestCluster, token: &str) -> Self {
        let channel = channel(&cluster.place.grpc(), None);
        let mut generic = Self {
            channel,
            token: token.to_owned(),
            pool: DescriptorPool::new(),
        };
        let asked = MessageRequest::ListServices(String::new());
        let MessageResponse::ListServicesResponse(services) = generic.reflect(asked).await else {
            panic!("no list of services");
        };
        let names = services.service.into_iter().map(|service| service.name);
        for name in names.filter(|name| !name.starts_with("grpc.reflection")) {
            let asked = MessageRequest::FileContainingSymbol(name);
            let answer = generic.reflect(asked).await;
            let MessageResponse::FileDescriptorResponse(files) = answer else {
                panic!("{answer:?}");
            };
            let files = files.file_descriptor_proto.into_iter();
            let files = files.map(|file| FileDescriptorProto::decode(&file[..]).unwrap());
            generic.pool.add_file_descriptor_protos(files).unwrap();
        }
        generic
    }

    async fn reflect(&self, asked: MessageRequest) -> MessageResponse {
        let mut client = ServerReflectionClient::new(self.channel.clone());
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(asked),
        };
        let requests = tokio_stream::once(request);
        let call = client.server_reflection_info(with_token(&self.token, requests));
        let mut answers = within(call).await.unwrap().into_inner();
        let answer = within(answers.message()).await.unwrap().unwrap();
        answer.message_response.unwrap()
    }

    fn method(&self, service: &str, method: &str) -> MethodDescriptor {
        let service = self.pool.get_service_by_name(service).unwrap();
        let found = service.methods().find(|found| found.name() == method);
        found.unwrap_or_else(|| panic!("no method {method}"))
    }

    /// A call with one message, which every method here takes.
    async fn stream_of(
        &self,
        method: MethodDescriptor,
        message: Value,
        change: impl FnOnce(&mut Request<DynamicMessage>),
    ) -> Result<Streaming<DynamicMessage>, Status> {
        let message = DynamicMessage::deserialize(method.input(), message).unwrap();
        let mut client = Grpc::new(self.channel.clone());
        within(client.ready()).await.unwrap();
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let path: PathAndQuery = path.parse().unwrap();
        let mut request = with_token(&self.token, message);
        change(&mut request);
        let call = client.server_streaming(request, path, Any(method.output()));
        Ok(within(call).await?.into_inner())
    }

    async fn stream(
        &self,
        method: &str,
        message: Value,
    ) -> Result<Streaming<DynamicMessage>, Status> {
        let method = self.method("jobscheduler.Jobs", method);
        assert!(method.is_server_streaming());
        self.stream_of(method, message, |_| ()).await
    }

    async fn call(&self, method: &str, message: Value) -> Result<Value, Status> {
        let method = self.method("jobscheduler.Jobs", method);
        assert!(!method.is_server_streaming());
        let mut answers = self.stream_of(method, message, |_| ()).await?;
        Ok(as_json(&within(answers.message()).await?.unwrap()))
    }
}

async fn next(stream: &mut Streaming<DynamicMessage>) -> Value {
    as_json(&within(stream.message()).await.unwrap().unwrap())
}

/// The next event of this job, with its id and how it stands.
async fn next_of(stream: &mut Streaming<DynamicMessage>, job: &Value) -> (Value, Value) {
    loop {
        let event = next(stream).await;
        if event["job"]["id"] == *job {
            return (event["id"].clone(), event["job"]["state"].clone());
        }
    }
}

async fn token(cluster: &TestCluster, role: Role) -> CreateTokenResponse {
    let asked = CreateTokenRequest {
        kind: TokenKind::Bearer,
        role,
        name: Some("ci".to_owned()),
        ttl_ms: None,
    };
    within(cluster.client.create_token(&asked)).await.unwrap()
}

#[tokio::test]
async fn a_program_that_knows_only_what_the_server_describes_runs_a_job() {
    let cluster = TestCluster::start(1).await;
    let operator = token(&cluster, Role::Operator).await;
    let jobs = Generic::new(&cluster, &operator.token).await;

    let workers = jobs.call("ListWorkers", json!({})).await.unwrap();
    let worker = &workers["workers"][0];
    assert_eq!(
        (&worker["name"], &worker["state"]),
        (&json!("w1"), &json!("WORKER_STATE_READY"))
    );
    let none = jobs.call("ListJobs", json!({})).await.unwrap();
    assert_eq!(none["jobs"], json!([]));

    let mut watching = jobs.stream("WatchJobs", json!({})).await.unwrap();
    let begin = next(&mut watching).await;
    assert_eq!(begin.as_object().unwrap().len(), 1, "{begin}");
    let script = "echo to $A; echo oops >&2; exec sleep 1000";
    let asked = json!({
        "command": "sh", "args": ["-c", script], "env": {"A": "you"}, "name": "generic",
        "idempotency_key": "only-once", "priority": 7,
    });
    let started = jobs.call("StartJob", asked.clone()).await.unwrap();
    assert_eq!(started["state"], "JOB_STATE_RUNNING", "{started}");
    let id = &started["job_id"];
    let again = jobs.call("StartJob", asked.clone()).await.unwrap();
    assert_eq!(again["job_id"], *id);
    let mut other = asked;
    other["priority"] = json!(8);
    let refused = jobs.call("StartJob", other).await.unwrap_err();
    assert_eq!(
        code_of(&refused),
        (Code::FailedPrecondition, "idempotency_key_reused")
    );

    let asked = json!({ "job_id": "generic" });
    let found = jobs.call("QueryJob", asked.clone()).await.unwrap();
    let job = &found["job"];
    assert_eq!((&found["done"], &job["id"]), (&json!(false), id));
    assert_eq!(
        (&job["worker"], &job["priority"]),
        (&json!("w1"), &json!(7))
    );
    assert!(job["pid"].is_u64() && job["started_us"].is_i64(), "{job}");

    let mut output = jobs.stream("StreamJob", asked.clone()).await.unwrap();
    let mut text = Vec::new();
    while text.len() < "to you\noops\n".len() {
        let message = within(output.message()).await.unwrap().unwrap();
        let bytes = message.get_field_by_name("output").unwrap();
        text.extend_from_slice(bytes.as_bytes().unwrap());
    }
    assert!(text.windows(7).any(|part| part == b"to you\n"));
    assert!(text.windows(5).any(|part| part == b"oops\n"));

    let stopped = json!({ "job_id": id, "signal": "TERM" });
    jobs.call("StopJob", stopped.clone()).await.unwrap();
    let end = next(&mut output).await;
    assert_eq!(end["end"]["state"], "JOB_STATE_STOPPED", "{end}");
    assert_eq!(end["offset"], text.len());
    assert!(within(output.message()).await.unwrap().is_none());
    let twice = jobs.call("StopJob", stopped).await.unwrap_err();
    assert_eq!(code_of(&twice), (Code::FailedPrecondition, "job_finished"));

    let mut told = Vec::new();
    while told
        .last()
        .is_none_or(|(_, state)| state != "JOB_STATE_STOPPED")
    {
        told.push(next_of(&mut watching, id).await);
    }
    assert_eq!(told[0].1, "JOB_STATE_PENDING", "{told:?}");
    assert!(told.iter().any(|(_, state)| state == "JOB_STATE_RUNNING"));
    let behind = json!({ "after": told[0].0, "job_id": id, "kinds": ["EVENT_KIND_JOB"] });
    let mut resumed = jobs.stream("WatchJobs", behind).await.unwrap();
    for expected in &told[1..] {
        assert_eq!(next_of(&mut resumed, id).await, *expected);
    }
    let mut lost = jobs
        .stream("WatchJobs", json!({ "after": "1-1" }))
        .await
        .unwrap();
    assert!(next(&mut lost).await["reset"].is_string());

    let asked = json!({ "states": ["JOB_STATE_STOPPED"], "limit": 1 });
    let listed = jobs.call("ListJobs", asked).await.unwrap();
    assert_eq!(
        (&listed["jobs"][0]["id"], &listed["next"]),
        (id, &json!(""))
    );

    // What was done has its lines, as over HTTP.
    let admin = Shown::new(Role::Admin, "admin");
    let log = http(&cluster.place.http(), Some(&admin), "GET /audit", "", "").await;
    for action in ["start", "stop"] {
        let line = log.text.lines().find(|line| {
            line.contains(&format!("\"action\":\"{action}\""))
                && line.contains(id.as_str().unwrap())
        });
        let line = line.unwrap_or_else(|| panic!("no line of {action}: {}", log.text));
        assert!(line.contains("operator ci"), "{line}");
    }
    cluster.end().await;
}

#[tokio::test]
async fn a_group_of_jobs_is_one_thing_here_as_well() {
    let cluster = TestCluster::start(1).await;
    let operator = token(&cluster, Role::Operator).await;
    let jobs = Generic::new(&cluster, &operator.token).await;
    let asked = json!({
        "command": "sh", "args": ["-c", "test $JOBCTL_ITEM != b"], "each": ["a", "b", "c"],
        "at_once": 2,
    });
    let started = jobs.call("StartJob", asked).await.unwrap();
    let (id, count) = (&started["group_id"], &started["count"]);
    assert_eq!((count, &started["job_id"]), (&json!(3), &json!("")));
    let asked = json!({ "job_id": id, "wait_ms": 60_000 });
    let ended = jobs.call("QueryJob", asked).await.unwrap();
    assert_eq!(
        (&ended["done"], &ended["error"]),
        (&json!(true), &json!(true))
    );
    let states = json!([
        {"state": "JOB_STATE_SUCCEEDED", "count": 2}, {"state": "JOB_STATE_FAILED", "count": 1},
    ]);
    assert_eq!(ended["group"]["states"], states, "{ended}");
    let first = json!({ "group_id": id, "limit": 2 });
    let page = jobs.call("ListJobs", first).await.unwrap();
    let rest = json!({ "group_id": id, "limit": 2, "after": page["next"] });
    let rest = jobs.call("ListJobs", rest).await.unwrap();
    let all = [&page["jobs"][0], &page["jobs"][1], &rest["jobs"][0]];
    assert_eq!(
        all.map(|job| job["item"].as_str().unwrap()),
        ["a", "b", "c"]
    );
    assert_eq!(rest["next"], "");
    let several = json!({ "job_id": id });
    let refused = jobs.stream("StreamJob", several).await.unwrap_err();
    assert_eq!(code_of(&refused), (Code::FailedPrecondition, "not_one_job"));
    cluster.end().await;
}

#[tokio::test]
async fn what_is_wrong_is_said_as_over_http() {
    let cluster = TestCluster::start(1).await;
    let operator = token(&cluster, Role::Operator).await;
    let viewer = token(&cluster, Role::Viewer).await;
    let jobs = Generic::new(&cluster, &operator.token).await;
    let many: Vec<&str> = vec!["x"; 1001];
    let long = "x".repeat(100_000);
    for (method, asked, code, word) in [
        ("StartJob", json!({}), Code::InvalidArgument, "bad_request"),
        (
            "StartJob",
            json!({"command": "true", "args": many}),
            Code::InvalidArgument,
            "bad_request",
        ),
        (
            "StartJob",
            json!({"command": "true", "args": [long, long, long]}),
            Code::InvalidArgument,
            "bad_request",
        ),
        (
            "StartJob",
            json!({"command": "true", "at_once": 1}),
            Code::InvalidArgument,
            "bad_request",
        ),
        (
            "StartJob",
            json!({"command": "true", "count": 0}),
            Code::InvalidArgument,
            "bad_request",
        ),
        (
            "StartJob",
            json!({"command": "true", "idempotency_key": "a b"}),
            Code::InvalidArgument,
            "bad_request",
        ),
        (
            "StartJob",
            json!({"command": "no-such-program"}),
            Code::FailedPrecondition,
            "program_not_found",
        ),
        (
            "StartJob",
            json!({"command": "true", "worker_id": "w9"}),
            Code::NotFound,
            "worker_not_found",
        ),
        (
            "StopJob",
            json!({"job_id": "nobody"}),
            Code::NotFound,
            "job_not_found",
        ),
        (
            "StopJob",
            json!({"job_id": "x", "signal": "NO"}),
            Code::InvalidArgument,
            "bad_request",
        ),
        (
            "QueryJob",
            json!({"job_id": "nobody"}),
            Code::NotFound,
            "job_not_found",
        ),
        (
            "ListJobs",
            json!({"limit": 0}),
            Code::InvalidArgument,
            "bad_request",
        ),
        (
            "ListJobs",
            json!({"limit": 1001}),
            Code::InvalidArgument,
            "bad_request",
        ),
        (
            "ListJobs",
            json!({"states": [77]}),
            Code::InvalidArgument,
            "bad_request",
        ),
        (
            "ListJobs",
            json!({"after": "x"}),
            Code::InvalidArgument,
            "bad_request",
        ),
        (
            "ListWorkers",
            json!({"worker_id": "w9"}),
            Code::NotFound,
            "worker_not_found",
        ),
    ] {
        let refused = jobs.call(method, asked.clone()).await.unwrap_err();
        assert_eq!(
            code_of(&refused),
            (code, word),
            "{method} {asked}: {refused}"
        );
    }
    for (asked, word) in [
        (json!({"after": "x"}), "bad_request"),
        (json!({"kinds": [9]}), "bad_request"),
        (json!({"worker_id": "w9"}), "worker_not_found"),
    ] {
        let refused = jobs.stream("WatchJobs", asked).await.unwrap_err();
        assert_eq!(code_of(&refused).1, word);
    }
    // More than a body may have.
    let big = json!({ "command": "true", "args": ["x".repeat(jobctl::api::MAX_BODY)] });
    let refused = jobs.call("StartJob", big).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");

    // A web page has no business here, whoever's browser shows it.
    let method = jobs.method("jobscheduler.Jobs", "ListJobs");
    let page = jobs.stream_of(method, json!({}), |request| {
        let origin = "https://evil.example".parse().unwrap();
        request.metadata_mut().insert("origin", origin);
    });
    let refused = page.await.unwrap_err();
    assert_eq!(code_of(&refused), (Code::PermissionDenied, "cross_site"));

    let health = jobs.method("grpc.health.v1.Health", "Check");
    let asked = json!({ "service": "jobscheduler.Jobs" });
    let mut answer = jobs.stream_of(health, asked, |_| ()).await.unwrap();
    assert_eq!(next(&mut answer).await["status"], "SERVING");

    // Who is revoked hears it, and no more.
    let viewing = Generic::new(&cluster, &viewer.token).await;
    let mut watching = viewing.stream("WatchJobs", json!({})).await.unwrap();
    next(&mut watching).await;
    let refused = viewing.call("StartJob", json!({"command": "true"})).await;
    assert_eq!(
        code_of(&refused.unwrap_err()),
        (Code::PermissionDenied, "forbidden")
    );
    let id = viewer.about.id;
    within(cluster.client.revoke_token(&RevokeTokenRequest { id }))
        .await
        .unwrap();
    let over = loop {
        match within(watching.message()).await {
            Ok(message) => assert!(message.is_some(), "it ended as if all were said"),
            Err(status) => break status,
        }
    };
    assert_eq!(code_of(&over), (Code::Unauthenticated, "revoked"));
    cluster.end().await;
}
