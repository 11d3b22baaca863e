//! Who may do what: every call there is, by every kind of caller.

use jobctl::{
    api::{CreateTokenRequest, RevokeCertificateRequest, RevokeTokenRequest, TokenKind},
    identity::{Role, rules},
    proto,
};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::Code;

use crate::{
    attacker::{Forged, JSON, Maker, Outcome, Shown, http, rpc},
    cluster::TestCluster,
    enrolled,
    support::{eventually, within},
};

/// The HTTP routes, and who may call each; nobody else may.
const HTTP: &[(&str, &str)] = &[
    ("GET /livez", "anyone"),
    ("POST /join", "anyone"),
    ("POST /renew", "viewer operator admin"),
    ("GET /readyz", "viewer operator admin"),
    ("GET /version", "viewer operator admin"),
    ("GET /workers", "viewer operator admin"),
    ("GET /jobs", "viewer operator admin"),
    ("POST /query", "viewer operator admin"),
    ("GET /logs", "viewer operator admin"),
    ("GET /events", "viewer operator admin"),
    ("POST /start", "operator admin"),
    ("POST /stop", "operator admin"),
    ("POST /workers/label", "admin"),
    ("POST /workers/drain", "admin"),
    ("POST /workers/resume", "admin"),
    ("POST /workers/remove", "admin"),
    ("GET /tokens", "admin"),
    ("POST /tokens", "admin"),
    ("POST /tokens/revoke", "admin"),
    ("GET /certs", "admin"),
    ("POST /certs/revoke", "admin"),
    ("POST /ca/rotate", "admin"),
    ("GET /audit", "admin"),
];

const EVERY_ROLE: &str = "viewer operator admin worker scheduler";

/// The same for the scheduler's gRPC API.
const SCHEDULER: &[(&str, &str)] = &[
    ("/jobscheduler.Scheduler/Join", "anyone"),
    ("/jobscheduler.Scheduler/RenewCertificate", "worker"),
    ("/jobscheduler.Scheduler/RegisterWorker", "worker"),
    ("/jobscheduler.Scheduler/DeregisterWorker", "worker"),
    ("/jobscheduler.Scheduler/Heartbeat", "worker"),
    ("/jobscheduler.Jobs/StartJob", "operator admin"),
    ("/jobscheduler.Jobs/StopJob", "operator admin"),
    ("/jobscheduler.Jobs/QueryJob", "viewer operator admin"),
    ("/jobscheduler.Jobs/ListJobs", "viewer operator admin"),
    ("/jobscheduler.Jobs/StreamJob", "viewer operator admin"),
    ("/jobscheduler.Jobs/ListWorkers", "viewer operator admin"),
    ("/jobscheduler.Jobs/WatchJobs", "viewer operator admin"),
    ("/grpc.health.v1.Health/Check", EVERY_ROLE),
    ("/grpc.health.v1.Health/Watch", EVERY_ROLE),
    ("/grpc.health.v1.Health/List", EVERY_ROLE),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        EVERY_ROLE,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        EVERY_ROLE,
    ),
    // There is no such thing.
    ("/jobscheduler.Scheduler/Nothing", ""),
    ("/jobscheduler.Jobs/Nothing", ""),
    ("/jobscheduler.Worker/StartJob", ""),
    ("/", ""),
];

/// And for a worker's.
const WORKER: &[(&str, &str)] = &[
    ("/jobscheduler.Worker/StartJob", "scheduler"),
    ("/jobscheduler.Worker/StopJob", "scheduler"),
    ("/jobscheduler.Worker/QueryJob", "scheduler"),
    ("/jobscheduler.Worker/StreamJob", "scheduler"),
    ("/grpc.health.v1.Health/Check", EVERY_ROLE),
    ("/grpc.health.v1.Health/Watch", EVERY_ROLE),
    ("/grpc.health.v1.Health/List", EVERY_ROLE),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        EVERY_ROLE,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        EVERY_ROLE,
    ),
    ("/jobscheduler.Worker/Nothing", ""),
    ("/jobscheduler.Scheduler/RegisterWorker", ""),
];

/// What a caller proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proven {
    /// This role.
    Role(Role),
    /// Nothing, which is not wrong.
    Nothing,
    /// Something that is not taken, over a connection that is.
    Bad,
    /// Something for which there is no connection.
    Forged,
}

struct Caller {
    what: String,
    shown: Option<Shown>,
    bearer: Option<String>,
    proven: Proven,
}

impl Caller {
    fn headers(&self) -> String {
        let bearer = self.bearer.as_ref();
        let bearer = bearer.map(|token| format!("authorization: Bearer {token}\r\n"));
        format!("{JSON}{}", bearer.unwrap_or_default())
    }

    fn is_among(&self, callers: &str) -> bool {
        match self.proven {
            Proven::Role(role) => {
                callers == "anyone" || callers.split(' ').any(|word| word == role.as_str())
            }
            Proven::Nothing => callers == "anyone",
            Proven::Bad | Proven::Forged => false,
        }
    }
}

async fn callers(cluster: &TestCluster) -> Vec<Caller> {
    let certified = |what: &str, shown: Option<Shown>, proven| Caller {
        what: what.to_owned(),
        shown,
        bearer: None,
        proven,
    };
    let genuine = Maker::genuine();
    let admin = enrolled::identity(Role::Admin, "");
    let expired = Forged {
        valid: (-7200, -3600),
        ..Forged::of(&admin)
    };
    let revoked = Shown::new(Role::Admin, "revoked");
    let id = revoked.identity().id;
    // Nobody can revoke who was never heard of.
    let http = cluster.place.http();
    let heard = crate::attacker::http(&http, Some(&revoked), "GET /version", "", "").await;
    assert_eq!(heard.outcome, crate::attacker::Outcome::Answered(200));
    within(
        cluster
            .client
            .revoke_certificate(&RevokeCertificateRequest { id }),
    )
    .await
    .unwrap();
    let w1 = Shown::of(&cluster.data_dir(1).join("identity.pem"));
    let mut callers = vec![
        certified("nobody", None, Proven::Nothing),
        certified(
            "of another authority",
            Some(Maker::own().make(&Forged::of(&admin))),
            Proven::Forged,
        ),
        certified("expired", Some(genuine.make(&expired)), Proven::Forged),
        certified("revoked", Some(revoked), Proven::Bad),
        certified("this worker", Some(w1), Proven::Role(Role::Worker)),
    ];
    for role in Role::ALL {
        let shown = Shown::new(role, "somebody");
        let what = format!("another {role}");
        callers.push(certified(&what, Some(shown), Proven::Role(role)));
    }
    let token = async |kind, role, ttl_ms| {
        let asked = CreateTokenRequest {
            kind,
            role,
            name: None,
            ttl_ms,
        };
        within(cluster.client.create_token(&asked)).await.unwrap()
    };
    let with = |what: String, bearer: String, proven| Caller {
        bearer: Some(bearer),
        ..certified(&what, None, proven)
    };
    for role in [Role::Viewer, Role::Operator, Role::Admin] {
        let bearer = token(TokenKind::Bearer, role, None).await.token;
        callers.push(with(format!("token of {role}"), bearer, Proven::Role(role)));
    }
    let revoked = token(TokenKind::Bearer, Role::Admin, None).await;
    let id = revoked.about.id;
    within(cluster.client.revoke_token(&RevokeTokenRequest { id }))
        .await
        .unwrap();
    let expired = token(TokenKind::Bearer, Role::Admin, Some(1)).await;
    eventually(|| jiff::Timestamp::now() > expired.about.expires_at).await;
    let join = token(TokenKind::Join, Role::Admin, None).await.token;
    let (_, join) = join.split_once('.').unwrap();
    for (what, bearer) in [
        ("revoked token", revoked.token),
        ("expired token", expired.token),
        ("join token", join.to_owned()),
        ("no token", "x.y".to_owned()),
    ] {
        callers.push(with(what.to_owned(), bearer, Proven::Bad));
    }
    // A token counts for the request, whoever the connection is.
    let viewer = token(TokenKind::Bearer, Role::Viewer, None).await.token;
    callers.push(Caller {
        shown: Some(Shown::new(Role::Admin, "somebody")),
        ..with(
            "an admin with a viewer's token".to_owned(),
            viewer,
            Proven::Role(Role::Viewer),
        )
    });
    callers
}

#[tokio::test]
async fn every_http_route_takes_whom_the_table_says() {
    let cluster = TestCluster::start(1).await;
    let callers = callers(&cluster).await;
    let to = cluster.place.http();
    for (call, who) in HTTP {
        let (method, path) = call.split_once(' ').unwrap();
        let body = if method == "POST" { "{}" } else { "" };
        // Whoever may watch would do so for ever.
        let query = if path == "/events" { "?kind=none" } else { "" };
        for caller in &callers {
            for prefix in ["", "/v1"] {
                let call = format!("{method} {prefix}{path}{query}");
                let headers = caller.headers();
                let answer = http(&to, caller.shown.as_ref(), &call, &headers, body).await;
                let Caller { what, proven, .. } = caller;
                let found = answer.outcome;
                match (proven, caller.is_among(who)) {
                    (Proven::Forged, _) => assert_eq!(found, Outcome::Closed, "{what}: {call}"),
                    (_, true) => assert!(
                        matches!(found, Outcome::Answered(200 | 400 | 503)),
                        "{what}: {call}: {found:?}"
                    ),
                    (Proven::Role(_), false) => {
                        assert_eq!(found, Outcome::Answered(403), "{what}: {call}");
                    }
                    (Proven::Nothing | Proven::Bad, false) => {
                        assert_eq!(found, Outcome::Answered(401), "{what}: {call}");
                    }
                }
            }
        }
    }
    // What is nowhere is nobody's, in whichever way it is written.
    for call in [
        "GET /",
        "GET /secrets",
        "GET /start",
        "DELETE /jobs",
        "PUT /start",
        "PATCH /tokens",
        "POST //start",
        "POST /v1//start",
        "POST /v1/v1/start",
        "POST /start/",
        "POST /START",
        "POST /%73tart",
        "POST /livez/../start",
        "POST /join/../start",
        "CONNECT /start",
        "TRACE /jobs",
    ] {
        for caller in &callers {
            let headers = caller.headers();
            let answer = http(&to, caller.shown.as_ref(), call, &headers, "{}").await;
            let found = answer.outcome;
            let what = &caller.what;
            match caller.proven {
                Proven::Forged => assert_eq!(found, Outcome::Closed, "{what}: {call}"),
                Proven::Nothing | Proven::Bad => assert!(
                    matches!(found, Outcome::Answered(400 | 401 | 403)),
                    "{what}: {call}: {found:?}"
                ),
                Proven::Role(_) => assert!(
                    matches!(found, Outcome::Answered(400 | 403 | 404 | 405)),
                    "{what}: {call}: {found:?}"
                ),
            }
        }
    }
    cluster.end().await;
}

#[tokio::test]
async fn every_rpc_takes_whom_the_table_says() {
    let cluster = TestCluster::start(1).await;
    let callers = callers(&cluster).await;
    let servers = [
        (cluster.place.grpc(), SCHEDULER),
        (cluster.place.worker(1), WORKER),
    ];
    for (number, (to, calls)) in servers.iter().enumerate() {
        for (call, who) in *calls {
            // To a worker nobody shows a token.
            let is_taken = |caller: &&Caller| number == 0 || caller.bearer.is_none();
            for caller in callers.iter().filter(is_taken) {
                let bearer = caller.bearer.as_deref();
                let found = rpc(to, caller.shown.clone(), bearer, call).await;
                let Caller { what, proven, .. } = caller;
                // The scheduler says whom it revoked; workers are reached by nobody
                // but the scheduler, and know of none.
                let proven = match (proven, number) {
                    (Proven::Nothing, 1) => Proven::Forged,
                    (Proven::Bad, 1) => Proven::Role(Role::Admin),
                    (proven, _) => *proven,
                };
                let caller = Caller {
                    proven,
                    what: what.clone(),
                    shown: None,
                    bearer: None,
                };
                let denied = [
                    Outcome::Closed,
                    Outcome::Called(Code::PermissionDenied),
                    Outcome::Called(Code::Unauthenticated),
                ];
                match (proven, caller.is_among(who)) {
                    (Proven::Forged, _) => assert_eq!(found, denied[0], "{what}: {call}"),
                    (_, true) => assert!(!denied.contains(&found), "{what}: {call}: {found:?}"),
                    (Proven::Role(_), false) => assert_eq!(found, denied[1], "{what}: {call}"),
                    (_, false) => assert_eq!(found, denied[2], "{what}: {call}"),
                }
            }
        }
    }
    cluster.end().await;
}

#[test]
fn what_is_expected_here_is_the_table() {
    for (expected, table) in [
        (HTTP, rules::HTTP),
        (SCHEDULER, rules::SCHEDULER_RPC),
        (WORKER, rules::WORKER_RPC),
    ] {
        let known = expected.iter().filter(|(_, who)| !who.is_empty());
        let known: Vec<&str> = known.map(|(call, _)| *call).collect();
        let calls: Vec<&str> = table.iter().map(|rule| rule.call).collect();
        assert_eq!(known, calls);
    }
}

#[test]
fn every_route_and_every_method_is_in_the_table() {
    // As the router is written: a route that is added there needs a rule.
    let router = include_str!("../../src/roles/scheduler/http/mod.rs");
    let mut routes = 0;
    for line in router.lines().map(str::trim) {
        let Some((path, handlers)) = line.strip_prefix("(\"/").and_then(|l| l.split_once("\", "))
        else {
            continue;
        };
        for (word, method) in [("get(", "GET"), ("post(", "POST")] {
            if handlers.contains(word) {
                let call = format!("{method} /{path}");
                assert!(rules::HTTP.iter().any(|rule| rule.call == call), "{call}");
                routes += 1;
            }
        }
    }
    assert_eq!(routes, rules::HTTP.len());

    let mut methods = 0;
    for descriptors in [proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET] {
        let files = FileDescriptorSet::decode(descriptors).unwrap().file;
        for file in files {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}", file.package(), service.name());
                    let call = format!("/{name}/{}", method.name());
                    let tables = match name.as_str() {
                        "jobscheduler.Scheduler" | "jobscheduler.Jobs" => {
                            vec![rules::SCHEDULER_RPC]
                        }
                        "jobscheduler.Worker" => vec![rules::WORKER_RPC],
                        _ => vec![rules::SCHEDULER_RPC, rules::WORKER_RPC],
                    };
                    for table in tables {
                        assert!(table.iter().any(|rule| rule.call == call), "{call}");
                        methods += 1;
                    }
                }
            }
        }
    }
    assert!(methods >= 20, "{methods}");
}
