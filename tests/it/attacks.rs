//! Those who are not who they say they are, or want what is not theirs.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Output,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use data_encoding::BASE64;
use jobctl::{
    api::{
        AuditQuery, CreateTokenRequest, CreateTokenResponse, JobState, RevokeCertificateRequest,
        RevokeTokenRequest, RotateRequest, StartRequest, TokenKind, WorkerState,
    },
    client::{Client, Proof},
    identity::{Identity, Role, files, tls::Credentials},
    ids::JobId,
    proto::{self, scheduler_client::SchedulerClient},
    roles::{scheduler, worker},
};
use rcgen::{
    BasicConstraints, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate, X509CertificationRequest};

use crate::{
    attacker::{
        Answer, Forged, JSON, Maker, Outcome, Shown, channel, connect, dial, exchange, http,
        is_trusted, post, read_all, refusal, rpc, signing_request,
    },
    cluster::{Place, TestCluster, sh, start_scheduler_with},
    enrolled,
    support::{Folder, binary, eventually, within},
};

async fn token(cluster: &TestCluster, asked: CreateTokenRequest) -> CreateTokenResponse {
    within(cluster.client.create_token(&asked)).await.unwrap()
}

fn asked(kind: TokenKind, role: Role) -> CreateTokenRequest {
    CreateTokenRequest {
        kind,
        role,
        name: None,
        ttl_ms: None,
    }
}

/// `ID.SECRET` of a join token.
fn secret(token: &CreateTokenResponse) -> &str {
    token.token.split_once('.').unwrap().1
}

fn join_body(token: &str, request: &[u8]) -> Value {
    json!({ "token": token, "signing_request": BASE64.encode(request) })
}

async fn join(place: Place, token: &str, request: &[u8]) -> Answer {
    post(&place.http(), None, "/join", &join_body(token, request)).await
}

async fn join_worker(place: Place, token: &str) -> Result<proto::CertificateResponse, Status> {
    let mut client = SchedulerClient::new(channel(&place.grpc(), None));
    let request = proto::JoinRequest {
        token: token.to_owned(),
        signing_request: signing_request(|_| {}).1,
        name: "new".to_owned(),
    };
    Ok(within(client.join(request)).await?.into_inner())
}

async fn audit(cluster: &TestCluster) -> Vec<Value> {
    let answer = within(cluster.client.audit(&AuditQuery::default())).await;
    let text = within(answer.unwrap().text()).await.unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn of_fifty_who_show_a_token_at_once_one_gets_a_certificate() {
    let cluster = TestCluster::start(0).await;
    let token = token(&cluster, asked(TokenKind::Join, Role::Viewer)).await;
    let before = audit(&cluster).await.len();
    let place = cluster.place;
    let tries: Vec<_> = (0..50)
        .map(|_| {
            let token = secret(&token).to_owned();
            let (_, request) = signing_request(|_| {});
            tokio::spawn(async move { join(place, &token, &request).await })
        })
        .collect();
    let mut joined = 0;
    for one in tries {
        let answer = within(one).await.unwrap();
        match answer.outcome {
            Outcome::Answered(200) => joined += 1,
            Outcome::Answered(401) => assert_eq!(answer.code(), "token_spent"),
            _ => panic!("{answer:?}"),
        }
    }
    assert_eq!(joined, 1);
    // Lines have an order: with this one all before it are there.
    self::token(&cluster, asked(TokenKind::Join, Role::Viewer)).await;
    let lines = audit(&cluster).await.split_off(before);
    let count = |action: &str, result: &str| {
        let same = lines
            .iter()
            .filter(|line| line["action"] == action && line["result"] == result);
        same.count()
    };
    assert_eq!(count("join", "ok"), 1, "{lines:?}");
    assert_eq!(count("refuse", "token_spent"), 49, "{lines:?}");
    let certificates = within(cluster.client.certificates()).await.unwrap();
    assert_eq!(certificates.certificates.len(), 1);
    cluster.end().await;
}

#[tokio::test]
async fn a_token_is_good_for_what_it_was_made_for_and_no_longer() {
    let cluster = TestCluster::start(0).await;
    let place = cluster.place;
    let (_, request) = signing_request(|_| {});
    let refused = async |token: &str, code: &str| {
        let answer = join(place, token, &request).await;
        assert_eq!(answer.code(), code, "{answer:?}");
        assert!(!answer.text.contains("BEGIN CERTIFICATE"));
    };

    let viewer = token(&cluster, asked(TokenKind::Join, Role::Viewer)).await;
    // One character of the secret, or of the id.
    for at in [0, secret(&viewer).len() - 2] {
        let mut wrong = secret(&viewer).to_owned();
        let other = if &wrong[at..=at] == "a" { "b" } else { "a" };
        wrong.replace_range(at..=at, other);
        refused(&wrong, "bad_token").await;
    }
    // Not where workers join, and that does not spend it.
    let error = join_worker(place, secret(&viewer)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated, "{error:?}");
    let answer = join(place, secret(&viewer), &request).await;
    assert_eq!(answer.outcome, Outcome::Answered(200));
    refused(secret(&viewer), "token_spent").await;

    let worker = token(&cluster, asked(TokenKind::Join, Role::Worker)).await;
    refused(secret(&worker), "wrong_token").await;

    let revoked = token(&cluster, asked(TokenKind::Join, Role::Viewer)).await;
    let id = revoked.about.id;
    within(cluster.client.revoke_token(&RevokeTokenRequest { id }))
        .await
        .unwrap();
    refused(secret(&revoked), "revoked").await;

    let short = CreateTokenRequest {
        ttl_ms: Some(1),
        ..asked(TokenKind::Join, Role::Admin)
    };
    let expired = token(&cluster, short.clone()).await;
    eventually(|| jiff::Timestamp::now() > expired.about.expires_at).await;
    refused(secret(&expired), "token_expired").await;

    // Neither kind is the other.
    let bearer = token(&cluster, asked(TokenKind::Bearer, Role::Admin)).await;
    refused(&bearer.token, "wrong_token").await;
    let admin = token(&cluster, asked(TokenKind::Join, Role::Admin)).await;
    let shown = |token: &str| format!("authorization: Bearer {token}\r\n");
    let get = async |token: &str| {
        let headers = shown(token);
        http(&place.http(), None, "GET /jobs", &headers, "").await
    };
    assert_eq!(get(secret(&admin)).await.code(), "wrong_token");
    assert_eq!(get(&admin.token).await.code(), "bad_token");
    assert_eq!(
        get(&bearer.token).await.outcome,
        Outcome::Answered(200),
        "and one that is good is taken"
    );
    // A bearer token is no certificate: it gets none in its place.
    let body = json!({ "signing_request": BASE64.encode(&request) });
    let headers = format!("{JSON}{}", shown(&bearer.token));
    let answer = http(
        &place.http(),
        None,
        "POST /renew",
        &headers,
        &body.to_string(),
    )
    .await;
    assert_eq!(answer.code(), "no_certificate");
    let short = CreateTokenRequest {
        kind: TokenKind::Bearer,
        ..short
    };
    let expired = token(&cluster, short).await;
    eventually(|| jiff::Timestamp::now() > expired.about.expires_at).await;
    assert_eq!(get(&expired.token).await.code(), "token_expired");
    cluster.end().await;
}

/// Somebody who listens where a scheduler should, and keeps all they are told.
struct Fake {
    address: String,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    _listens: AbortOnDropHandle<()>,
}

impl Fake {
    async fn new(shown: Option<Shown>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let all = heard.clone();
        let listens = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let said = match &shown {
                    None => {
                        let mut said = vec![0; 4096];
                        let count = stream.read(&mut said).await.unwrap_or_default();
                        said.truncate(count);
                        said
                    }
                    Some(shown) => match TlsAcceptor::from(shown.server()).accept(stream).await {
                        Ok(mut stream) => read_all(&mut stream).await,
                        Err(_) => Vec::new(),
                    },
                };
                all.lock().unwrap().push(said);
            }
        });
        Self {
            address,
            heard,
            _listens: AbortOnDropHandle::new(listens),
        }
    }

    fn calls(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().concat()
    }
}

async fn jobctl(args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(binary());
    command.args(args).stdin(std::process::Stdio::null());
    command.env_clear().kill_on_drop(true);
    within(command.output()).await.unwrap()
}

#[tokio::test]
async fn a_false_scheduler_is_told_no_secret() {
    let cluster = TestCluster::start(0).await;
    let genuine =
        CertificateDer::from_pem_slice(files::pem(&enrolled::authority().roots()).as_bytes())
            .unwrap();
    let own = Maker::own();
    let scheduler = enrolled::identity(Role::Scheduler, "");
    let forged = own.make(&Forged::of(&scheduler));
    let behind = |shown: &Shown, more: &[&CertificateDer<'static>]| Shown {
        chain: [
            &shown.chain[..],
            &more.iter().copied().cloned().collect::<Vec<_>>(),
        ]
        .concat(),
        key: shown.key.clone_key(),
    };
    let fakes = [
        ("an authority of its own", behind(&forged, &[&own.root])),
        (
            "and the genuine one, of which it has no key",
            behind(&forged, &[&own.root, &genuine]),
        ),
        (
            "a worker of the cluster",
            behind(&Shown::new(Role::Worker, "w1"), &[&genuine]),
        ),
        (
            "an admin of the cluster",
            behind(&Shown::new(Role::Admin, "alice"), &[&genuine]),
        ),
    ];
    let fakes = fakes.map(|(what, shown)| (what, Some(shown)));
    let dir = Folder::new();
    for (what, shown) in fakes.into_iter().chain([("plain text", None)]) {
        let fake = Fake::new(shown).await;
        let worker = token(&cluster, asked(TokenKind::Join, Role::Worker)).await;
        let invitation = format!("{}@{}", worker.token, fake.address);
        let data = dir.path().join("w");
        let data = data.to_str().unwrap();
        let output = jobctl(&[
            "worker",
            "--name",
            "w1",
            "--grpc-addr",
            "127.0.0.1:0",
            "--data-dir",
            data,
            "--join",
            &invitation,
        ])
        .await;
        assert!(!output.status.success(), "{what}: {output:?}");
        assert!(!dir.path().join("w/identity.pem").exists());

        let user = token(&cluster, asked(TokenKind::Join, Role::Admin)).await;
        let invitation = format!("{}@{}", user.token, fake.address);
        let folder = dir.path().join("client");
        let folder = folder.to_str().unwrap();
        let output = jobctl(&["login", "--client-dir", folder, &invitation]).await;
        assert!(!output.status.success(), "{what}: {output:?}");

        eventually(|| fake.calls() >= 2).await;
        let heard = String::from_utf8_lossy(&fake.heard()).into_owned();
        for token in [&worker, &user] {
            let secret = token.token.rsplit('.').next().unwrap();
            assert!(!heard.contains(secret), "{what}: {heard}");
        }
        assert!(!heard.contains("oin"), "{what}: it was called: {heard}");
    }
    // Nor is either of them spent.
    let tokens = within(cluster.client.tokens()).await.unwrap().tokens;
    assert!(tokens.iter().all(|token| token.used_at.is_none()));
    cluster.end().await;
}

/// Whom a certificate names, after a look at everything else in it.
fn only_what_was_decided(certificate: &CertificateDer<'_>, key: &KeyPair) -> Identity {
    let (rest, parsed) = X509Certificate::from_der(certificate).unwrap();
    assert!(rest.is_empty());
    assert!(!parsed.is_ca());
    assert_eq!(
        parsed.public_key().raw,
        rcgen::PublicKeyData::subject_public_key_info(key)
    );
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.flags.count_ones() == 1);
    let extended = parsed.extended_key_usage().unwrap().unwrap().value;
    let identity = Identity::of(certificate).unwrap();
    assert!(extended.client_auth && !extended.any && extended.other.is_empty());
    assert_eq!(extended.server_auth, identity.role == Role::Worker);
    assert!(!extended.code_signing && !extended.email_protection);
    let names = parsed.subject_alternative_name().unwrap().unwrap().value;
    assert!(matches!(names.general_names[..], [GeneralName::URI(_)]));
    assert_eq!(
        parsed.subject().iter().count(),
        1,
        "a common name, nothing else"
    );
    let known: HashSet<String> = parsed
        .extensions()
        .iter()
        .map(|e| e.oid.to_id_string())
        .collect();
    let decided = [
        "2.5.29.17",
        "2.5.29.15",
        "2.5.29.37",
        "2.5.29.19",
        "2.5.29.35",
        "2.5.29.14",
    ];
    assert_eq!(known, decided.map(str::to_owned).into());
    let lasts = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
    assert!(lasts <= 8 * 24 * 3600, "{lasts} s");
    identity
}

#[tokio::test]
async fn of_a_signing_request_the_key_alone_is_used() {
    let cluster = TestCluster::start(1).await;
    let w1 = cluster.worker("w1").await.id;
    let greedy = [
        enrolled::identity(Role::Scheduler, "").uri(),
        enrolled::identity(Role::Admin, "").uri(),
        format!("spiffe://test/worker/{w1}"),
    ];
    for uris in [&greedy[..1], &greedy[1..2], &greedy[2..], &greedy[..]] {
        let (key, request) = signing_request(|asked| {
            asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            asked.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            asked.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::Any,
                ExtendedKeyUsagePurpose::ServerAuth,
            ];
            asked.distinguished_name.push(DnType::CommonName, "root");
            asked
                .distinguished_name
                .push(DnType::OrganizationName, "admin");
            let names = uris
                .iter()
                .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()));
            asked.subject_alt_names = names.collect();
            asked
                .subject_alt_names
                .push(SanType::DnsName("localhost".try_into().unwrap()));
            asked.custom_extensions = vec![CustomExtension::from_oid_content(
                &[1, 3, 6, 1, 4, 1, 99999, 1],
                vec![5, 0],
            )];
        });
        let named = CreateTokenRequest {
            name: Some("alice".to_owned()),
            ..asked(TokenKind::Join, Role::Viewer)
        };
        let bought = token(&cluster, named).await;
        let answer = join(cluster.place, secret(&bought), &request).await;
        assert_eq!(answer.outcome, Outcome::Answered(200), "{answer:?}");
        let pem = answer.json()["certificate"].as_str().unwrap().to_owned();
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let identity = only_what_was_decided(&certificate, &key);
        assert_eq!(
            (identity.role, identity.name.as_str()),
            (Role::Viewer, "alice")
        );
        assert!(greedy.iter().all(|uri| *uri != identity.uri()));

        // Renewing is no other way to it.
        let shown = Shown {
            chain: vec![certificate],
            key: rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        };
        let body = json!({ "signing_request": BASE64.encode(&request) });
        let answer = post(&cluster.place.http(), Some(&shown), "/renew", &body).await;
        let pem = answer.json()["certificate"].as_str().unwrap().to_owned();
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(only_what_was_decided(&certificate, &key), identity);

        let bought = token(&cluster, asked(TokenKind::Join, Role::Worker)).await;
        let mut client = SchedulerClient::new(channel(&cluster.place.grpc(), None));
        let joining = proto::JoinRequest {
            token: secret(&bought).to_owned(),
            signing_request: request,
            // A name is one worker's.
            name: format!("w-{}", JobId::random()),
        };
        let answer = within(client.join(joining)).await.unwrap().into_inner();
        let identity = only_what_was_decided(&answer.certificate.into(), &key);
        assert_eq!(identity.role, Role::Worker);
        assert_ne!(identity.id.to_string(), w1.to_string());
    }
    cluster.end().await;
}

#[tokio::test]
async fn the_name_of_a_worker_is_its_own_until_it_is_revoked() {
    let cluster = TestCluster::start(0).await;
    let place = cluster.place;
    let who =
        |joined: proto::CertificateResponse| Identity::of(&joined.certificate.into()).unwrap();
    let unnamed = token(&cluster, asked(TokenKind::Join, Role::Worker)).await;
    let first = who(join_worker(place, secret(&unnamed)).await.unwrap());
    assert_eq!(first.name, "new");

    let unnamed = token(&cluster, asked(TokenKind::Join, Role::Worker)).await;
    let taken = join_worker(place, secret(&unnamed)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    // An admin may say that it is that worker.
    let named = CreateTokenRequest {
        name: Some("new".to_owned()),
        ..asked(TokenKind::Join, Role::Worker)
    };
    let named = token(&cluster, named).await;
    let again = who(join_worker(place, secret(&named)).await.unwrap());
    assert_eq!(again, first);

    let revoked = RevokeCertificateRequest { id: first.id };
    within(cluster.client.revoke_certificate(&revoked))
        .await
        .unwrap();
    // The token was not spent on the name that was taken.
    let other = who(join_worker(place, secret(&unnamed)).await.unwrap());
    assert_eq!(other.name, "new");
    assert_ne!(other.id, first.id);
    cluster.end().await;
}

/// A DER SEQUENCE.
fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[0x30, 0x82], &length[..], &content].concat()
}

#[tokio::test]
async fn a_signing_request_that_its_key_has_not_signed_buys_nothing() {
    let cluster = TestCluster::start(0).await;
    let bought = token(&cluster, asked(TokenKind::Join, Role::Viewer)).await;
    let (_, good) = signing_request(|_| {});
    let (_, other) = signing_request(|_| {});
    let (_, parsed) = X509CertificationRequest::from_der(&good).unwrap();
    let (_, stolen) = X509CertificationRequest::from_der(&other).unwrap();
    let algorithm = [0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let signature = |of: &X509CertificationRequest<'_>| {
        let bits = &of.signature_value.data;
        let length = u8::try_from(bits.len() + 1).unwrap();
        [&[3, length, 0], &bits[..]].concat()
    };
    let info = parsed.certification_request_info.raw;
    let rebuilt = sequence(&[info, &algorithm, &signature(&parsed)]);
    let mut broken = good.clone();
    *broken.last_mut().unwrap() ^= 1;
    for (what, request) in [
        ("a broken signature", broken),
        (
            "the key of somebody else",
            sequence(&[info, &algorithm, &signature(&stolen)]),
        ),
        ("something behind it", [&good[..], b"x"].concat()),
        ("half of it", good[..good.len() / 2].to_vec()),
        ("nothing", Vec::new()),
        ("junk", vec![0x30; 4096]),
    ] {
        let answer = join(cluster.place, secret(&bought), &request).await;
        assert_eq!(answer.code(), "bad_signing_request", "{what}");
    }
    // It was the signature, and none of them has spent the token.
    let answer = join(cluster.place, secret(&bought), &rebuilt).await;
    assert_eq!(answer.outcome, Outcome::Answered(200), "{answer:?}");
    cluster.end().await;
}

/// A worker's heartbeat, which begins with `first`; the first answer.
async fn heartbeat(
    client: &mut SchedulerClient<tonic::transport::Channel>,
    first: proto::HeartbeatRequest,
) -> Result<
    (
        tokio::sync::mpsc::Sender<proto::HeartbeatRequest>,
        tonic::Streaming<proto::HeartbeatResponse>,
    ),
    Status,
> {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    sender.send(first).await.unwrap();
    let mut answers = within(client.heartbeat(ReceiverStream::new(receiver)))
        .await?
        .into_inner();
    within(answers.message()).await?;
    Ok((sender, answers))
}

fn registration(id: &str, name: &str, address: &str) -> proto::RegisterWorkerRequest {
    proto::RegisterWorkerRequest {
        address: address.to_owned(),
        name: name.to_owned(),
        worker_id: id.to_owned(),
        version: "1".to_owned(),
        boot_id: "boot".to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_worker_speaks_for_no_other() {
    let cluster = TestCluster::start(1).await;
    let before = cluster.worker("w1").await;
    let w1 = before.id.to_string();
    let running = cluster.sh("sleep 600").await;
    let evil = Shown::new(Role::Worker, "evil");
    let own = evil.identity().id.to_string();
    let mut client = SchedulerClient::new(channel(&cluster.place.grpc(), Some(evil)));
    let denied = |status: Status| assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");

    for name in ["evil", "w1", ""] {
        let asked = registration(&w1, name, "127.0.0.1:9");
        denied(within(client.register_worker(asked)).await.unwrap_err());
    }
    let goodbye = proto::DeregisterWorkerRequest {
        worker_id: w1.clone(),
        ..Default::default()
    };
    denied(within(client.deregister_worker(goodbye)).await.unwrap_err());
    // Not under another name than its own either, whosever that is.
    for name in ["w1", "free"] {
        let asked = registration(&own, name, "127.0.0.1:9");
        denied(within(client.register_worker(asked)).await.unwrap_err());
    }
    let namesake = Shown::new(Role::Worker, "w1");
    let asked = registration(&namesake.identity().id.to_string(), "w1", "127.0.0.1:9");
    let mut other = SchedulerClient::new(channel(&cluster.place.grpc(), Some(namesake)));
    let taken = within(other.register_worker(asked)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);

    let registered = within(client.register_worker(registration(&own, "evil", "127.0.0.1:9")));
    let registered = registered.await.unwrap().into_inner();
    assert_eq!(registered.worker_id, own);
    let beat = proto::HeartbeatRequest {
        worker_id: w1.clone(),
        session: registered.session.clone(),
        snapshot_complete: true,
        ..Default::default()
    };
    denied(
        heartbeat(&mut client, beat.clone())
            .await
            .map(drop)
            .unwrap_err(),
    );

    // What it says of the job of another is not heard.
    let lie = proto::JobReport {
        job_id: running.to_string(),
        status: Some(proto::JobStatus {
            state: proto::JobState::Succeeded.into(),
            started_us: Some(1),
            ended_us: Some(2),
            exit_code: Some(0),
            ..Default::default()
        }),
        spec: None,
    };
    let with_spec = proto::JobReport {
        spec: Some(proto::StartJobRequest {
            command: "evil".to_owned(),
            job_id: running.to_string(),
            ..Default::default()
        }),
        ..lie.clone()
    };
    let beat = proto::HeartbeatRequest {
        worker_id: own.clone(),
        sequence: 1,
        jobs: vec![lie.clone(), with_spec],
        forgotten: vec![running.to_string()],
        ..beat
    };
    let (sender, mut answers) = heartbeat(&mut client, beat.clone()).await.unwrap();
    let later = proto::HeartbeatRequest {
        sequence: 2,
        jobs: vec![lie],
        ..beat
    };
    sender.send(later).await.unwrap();
    while within(answers.message())
        .await
        .unwrap()
        .unwrap()
        .acknowledged
        < 2
    {}

    let after = cluster.worker("w1").await;
    assert_eq!(
        (after.id, after.address, after.state),
        (before.id, before.address, WorkerState::Ready)
    );
    let job = cluster.job(running).await;
    assert_eq!(job.state, JobState::Running, "{job:?}");
    assert_eq!(job.worker.as_deref(), Some("w1"));
    assert_eq!(
        cluster.end_of(cluster_job(&cluster).await).await.state,
        JobState::Succeeded
    );
    drop((sender, answers));
    cluster.end().await;
}

async fn cluster_job(cluster: &TestCluster) -> jobctl::ids::JobId {
    let on_w1 = StartRequest {
        worker_id: Some("w1".to_owned()),
        ..sh("true")
    };
    cluster.start_job(&on_w1).await.unwrap()
}

#[tokio::test]
async fn nobody_but_the_worker_that_is_meant_is_given_a_job() {
    let cluster = TestCluster::start(1).await;
    let listener = Fake::new(Some(Shown::new(Role::Worker, "other"))).await;
    let user = Fake::new(Some(Shown::new(Role::Admin, "alice"))).await;
    let scheduler = Fake::new(Some(Shown::new(Role::Scheduler, ""))).await;
    let plain = Fake::new(None).await;
    let stranger = Fake::new(Some(
        Maker::own().make(&Forged::of(&enrolled::identity(Role::Worker, "x"))),
    ))
    .await;
    let addresses = [
        // Where another worker listens, which would run it.
        cluster.place.worker(1),
        listener.address.clone(),
        user.address.clone(),
        scheduler.address.clone(),
        stranger.address.clone(),
        plain.address.clone(),
    ];
    let running = &cluster;
    let tries = addresses
        .iter()
        .enumerate()
        .map(|(number, address)| async move {
            let name = format!("evil{number}");
            let evil = Shown::new(Role::Worker, &name);
            let own = evil.identity().id.to_string();
            let mut client = SchedulerClient::new(channel(&running.place.grpc(), Some(evil)));
            let asked = registration(&own, &name, address);
            let registered = within(client.register_worker(asked))
                .await
                .unwrap()
                .into_inner();
            let beat = proto::HeartbeatRequest {
                worker_id: own,
                session: registered.session,
                snapshot_complete: true,
                ..Default::default()
            };
            let stream = heartbeat(&mut client, beat).await.unwrap();
            let shown = running.worker_is(&name, WorkerState::Unreachable).await;
            let reason = shown.reason.unwrap();
            assert!(reason.contains(address), "{reason}");
            let request = StartRequest {
                worker_id: Some(name),
                env: [("SECRET".to_owned(), "xyzzy".to_owned())].into(),
                ..sh("sleep 600")
            };
            let waiting = within(running.client.start(&request)).await.unwrap();
            assert_eq!(waiting.state, JobState::Pending);
            drop(stream);
        });
    futures_util::future::join_all(tries).await;
    for fake in [&listener, &user, &scheduler, &stranger] {
        eventually(|| fake.calls() > 0).await;
        assert!(fake.heard().is_empty(), "{:?}", fake.heard());
    }
    eventually(|| plain.calls() > 0).await;
    let heard = String::from_utf8_lossy(&plain.heard()).into_owned();
    assert!(!heard.contains("xyzzy") && !heard.contains("StartJob"));
    assert_eq!(cluster.worker("w1").await.running, 0);
    cluster.end().await;
}

/// A hello of TLS 1.2 (RFC 5246, 7.4.1.2) with what that needs.
fn hello_of_tls12() -> Vec<u8> {
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 6, 0, 4, 4, 3, 8, 4],
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0],
        &[0, u8::try_from(extensions.len()).unwrap()],
        &extensions,
    ]
    .concat();
    let length = u8::try_from(body.len()).unwrap();
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat()
}

#[tokio::test]
async fn only_genuine_certificates_are_let_in() {
    let cluster = TestCluster::start(1).await;
    let place = cluster.place;
    let genuine = Maker::genuine();
    let admin = enrolled::identity(Role::Admin, "eve");
    let good = || Forged::of(&admin);
    let two = |first: &Identity, second: &Identity| Forged {
        uris: vec![first.uri(), second.uri()],
        ..good()
    };
    let scheduler = enrolled::identity(Role::Scheduler, "");
    let by_leaf = |leaf: Shown| {
        let made = Maker::with(&leaf).make(&Forged::of(&scheduler));
        Shown {
            chain: [made.chain, leaf.chain].concat(),
            key: made.key,
        }
    };
    let named = |uri: String| {
        genuine.make(&Forged {
            uris: vec![uri],
            ..good()
        })
    };
    let elsewhere = Identity {
        cluster: "other".to_owned(),
        ..admin.clone()
    };
    let refused = [
        ("of another authority", Maker::own().make(&good())),
        (
            "expired",
            genuine.make(&Forged {
                valid: (-7200, -1),
                ..good()
            }),
        ),
        (
            "from the future",
            genuine.make(&Forged {
                valid: (86400, 172_800),
                ..good()
            }),
        ),
        ("two names", genuine.make(&two(&admin, &scheduler))),
        ("the same name twice", genuine.make(&two(&admin, &admin))),
        (
            "no name",
            genuine.make(&Forged {
                uris: Vec::new(),
                ..good()
            }),
        ),
        ("of another cluster", genuine.make(&Forged::of(&elsewhere))),
        ("no role", named(format!("spiffe://test/root/{}", admin.id))),
        (
            "another scheme",
            named(format!("https://test/admin/{}", admin.id)),
        ),
        (
            "an authority",
            genuine.make(&Forged {
                is_ca: true,
                ..good()
            }),
        ),
        ("signed by a worker", by_leaf(Shown::new(Role::Worker, "w"))),
        ("signed by a viewer", by_leaf(Shown::new(Role::Viewer, "v"))),
    ];
    let calls = async |shown: Option<&Shown>| {
        (
            http(&place.http(), shown, "GET /jobs", "", "")
                .await
                .outcome,
            rpc(
                &place.grpc(),
                shown.cloned(),
                None,
                "/jobscheduler.Scheduler/DeregisterWorker",
            )
            .await,
            rpc(
                &place.worker(1),
                shown.cloned(),
                None,
                "/jobscheduler.Worker/QueryJob",
            )
            .await,
        )
    };
    for (what, shown) in &refused {
        let (http, scheduler, worker) = calls(Some(shown)).await;
        assert_eq!(http, Outcome::Closed, "{what}");
        assert_eq!(scheduler, Outcome::Closed, "{what}");
        assert_eq!(worker, Outcome::Closed, "{what}");
    }
    use Outcome::{Answered, Called};
    let denied = Called(Code::PermissionDenied);
    let let_through = Called(Code::InvalidArgument);
    for (role, http, scheduler, worker) in [
        (Role::Viewer, Answered(200), &denied, &denied),
        (Role::Admin, Answered(200), &denied, &denied),
        (Role::Worker, Answered(403), &let_through, &denied),
        (Role::Scheduler, Answered(403), &denied, &let_through),
    ] {
        let shown = genuine.make(&Forged::of(&enrolled::identity(role, "")));
        let found = calls(Some(&shown)).await;
        assert_eq!(found, (http, scheduler.clone(), worker.clone()), "{role}");
    }
    let nobody = (
        Answered(401),
        Called(Code::Unauthenticated),
        Outcome::Closed,
    );
    assert_eq!(calls(None).await, nobody);

    for to in [place.http(), place.grpc(), place.worker(1)] {
        let mut stream = dial(&to, None).await.unwrap();
        let answer = exchange(&mut stream, &hello_of_tls12()).await;
        assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70], "a protocol_version alert");
        let mut stream = dial(&to, None).await.unwrap();
        let plain = exchange(
            &mut stream,
            b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        )
        .await;
        assert!(!plain.starts_with(b"HTTP"), "{plain:?}");
    }
    cluster.end().await;
}

/// A cluster of one worker without TLS.
struct Plain {
    place: Place,
    scheduler: crate::cluster::Running<scheduler::Error>,
    worker: crate::cluster::Running<worker::Error>,
    dir: Folder,
}

impl Plain {
    async fn start() -> Self {
        let (place, dir) = (Place::new(), Folder::new());
        let scheduler = start_scheduler_with(place, &dir.path().join("scheduler"), |config| {
            config.security = scheduler::Security::Insecure;
        })
        .await;
        let worker =
            crate::cluster::start_worker_with(place, 1, &dir.path().join("w1"), |config| {
                config.security = worker::Security::Insecure;
            })
            .await;
        Self {
            place,
            scheduler,
            worker,
            dir,
        }
    }
}

#[tokio::test]
async fn a_page_in_a_browser_reaches_no_plain_server() {
    let plain = Plain::start().await;
    let mark = plain.dir.path().join("mark");
    let start = proto::StartJobRequest {
        command: "touch".to_owned(),
        args: vec![mark.to_str().unwrap().to_owned()],
        ..Default::default()
    };
    let register = registration("", "evil", "127.0.0.1:9");
    let framed = |message: Vec<u8>| {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0], &length[..], &message].concat()
    };
    let start = framed(prost::Message::encode_to_vec(&start));
    let register = framed(prost::Message::encode_to_vec(&register));
    let worker = plain.place.worker(1);
    let grpc = plain.place.grpc();
    for (to, path, message) in [
        (&worker, "/jobscheduler.Worker/StartJob", &start),
        (&grpc, "/jobscheduler.Scheduler/RegisterWorker", &register),
    ] {
        // What a page may send without asking, and what it may send to a name of
        // its own that means this address by now.
        for headers in [
            "content-type: text/plain\r\norigin: https://evil.example\r\nsec-fetch-site: cross-site",
            "content-type: application/grpc\r\nte: trailers",
        ] {
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n{headers}\r\n\
                 content-length: {}\r\n\r\n",
                message.len()
            );
            let mut stream = dial(to, None).await.unwrap();
            let request = [head.as_bytes(), message].concat();
            let answer = Answer::of(exchange(&mut stream, &request).await);
            assert_ne!(answer.outcome, Outcome::Answered(200), "{path}: {answer:?}");
            assert!(!mark.exists());
        }
    }
    // The HTTP API asks for a token all the same, whoever is on this machine.
    let mut stream = dial(&plain.place.http(), None).await.unwrap();
    let request = b"GET /workers HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
    let answer = Answer::of(exchange(&mut stream, request).await);
    assert_eq!(answer.outcome, Outcome::Answered(401));
    // TLS is not spoken here.
    for to in [&plain.place.http(), &grpc, &worker] {
        assert!(within(connect(to, None, "h2")).await.is_err());
    }
    plain.worker.end().await;
    plain.scheduler.end().await;
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn a_key_that_others_may_read_is_refused() {
    let dir = Folder::new();
    let place = Place::new();
    let at = |name: &str| dir.path().join(name);
    let loosen = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let addresses = [
        "--http-addr".to_owned(),
        place.http(),
        "--grpc-addr".to_owned(),
        place.grpc(),
    ];
    let scheduler = enrolled::scheduler(&at("s"));
    let worker = enrolled::worker(&at("w"), "w1");
    let run = async |role: &str, more: &[&str]| {
        let client = at("client").to_str().unwrap().to_owned();
        let mut args = vec![role];
        match role {
            "scheduler" => {
                args.extend(addresses.iter().map(String::as_str));
                args.extend(["--client-dir", &client]);
            }
            _ => args.extend(["--name", "w1", "--grpc-addr", "127.0.0.1:0"]),
        }
        args.extend(more);
        jobctl(&args).await
    };
    for mode in [0o644, 0o640, 0o604, 0o620] {
        for (role, folder, file) in [
            ("scheduler", &scheduler, "ca.pem"),
            ("worker", &worker, "identity.pem"),
        ] {
            loosen(&folder.join(file), mode);
            let output = run(role, &["--data-dir", folder.to_str().unwrap()]).await;
            let said = text(&output.stderr);
            assert!(!output.status.success(), "{role}");
            assert!(
                said.contains(file) && said.contains("not private"),
                "{said}"
            );
            assert!(said.contains(&format!("{mode:04o}")), "{said}");
        }
    }

    // Certificates of somebody else, named in the file of settings.
    let shown = Maker::genuine().make(&Forged::of(&enrolled::identity(Role::Scheduler, "")));
    let key = KeyPair::try_from(&shown.key).unwrap();
    files::write_secret(&at("key.pem"), &[], Some(&key)).unwrap();
    files::write(&at("crt.pem"), files::pem(&shown.chain).as_bytes()).unwrap();
    let roots = files::pem(&enrolled::authority().roots());
    files::write(&at("roots.pem"), roots.as_bytes()).unwrap();
    loosen(&at("key.pem"), 0o644);
    let settings = format!(
        "[grpc_server]\ncrt_file = {0:?}\nkey_file = {1:?}\nca_file = {2:?}\n",
        at("crt.pem"),
        at("key.pem"),
        at("roots.pem"),
    );
    fs::write(at("config.toml"), settings).unwrap();
    let config = at("config.toml").to_str().unwrap().to_owned();
    let data = at("given").to_str().unwrap().to_owned();
    for role in ["scheduler", "worker"] {
        let output = run(role, &["--config", &config, "--data-dir", &data]).await;
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{role}");
        assert!(
            said.contains("key.pem") && said.contains("not private"),
            "{said}"
        );
    }
    // And one that is private, but the scheduler's, makes nobody a worker.
    loosen(&at("key.pem"), 0o600);
    let output = run("worker", &["--config", &config, "--data-dir", &data]).await;
    let said = text(&output.stderr);
    assert!(
        !output.status.success() && said.contains("scheduler"),
        "{said}"
    );
}

#[tokio::test]
async fn plain_text_leaves_the_machine_nowhere() {
    let dir = Folder::new();
    let data = dir.path().join("data").to_str().unwrap().to_owned();
    for (role, flag) in [
        ("scheduler", "--http-addr"),
        ("scheduler", "--grpc-addr"),
        ("worker", "--grpc-addr"),
    ] {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let output = jobctl(&[role, "--insecure", flag, address, "--data-dir", &data]).await;
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains("loopback"), "{said}");
        }
    }
}

#[tokio::test]
async fn a_page_of_another_site_is_refused_whoever_its_reader_is() {
    let cluster = TestCluster::start(1).await;
    let to = cluster.place.http();
    let admin = Shown::new(Role::Admin, "alice");
    let body = serde_json::to_string(&sh("sleep 600")).unwrap();
    let start = async |headers: &str| {
        let answer = http(&to, Some(&admin), "POST /start", headers, &body).await;
        (answer.outcome.clone(), answer.code())
    };
    let own = format!("host: {to}\r\n");
    for (headers, status, code) in [
        (format!("host: evil.example\r\n{JSON}"), 403, "foreign_host"),
        (
            format!("host: localhost.evil.example\r\n{JSON}"),
            403,
            "foreign_host",
        ),
        (
            format!("host: evil.example:3000\r\norigin: http://evil.example:3000\r\n{JSON}"),
            403,
            "foreign_host",
        ),
        (
            format!("{own}origin: https://evil.example\r\n{JSON}"),
            403,
            "cross_site",
        ),
        (format!("{own}origin: null\r\n{JSON}"), 403, "cross_site"),
        (
            format!("{own}sec-fetch-site: cross-site\r\n{JSON}"),
            403,
            "cross_site",
        ),
        (
            format!("{own}sec-fetch-site: same-site\r\n{JSON}"),
            403,
            "cross_site",
        ),
        (
            format!("{own}content-type: text/plain\r\n"),
            415,
            "unsupported_media_type",
        ),
        (
            format!("{own}content-type: application/x-www-form-urlencoded\r\n"),
            415,
            "unsupported_media_type",
        ),
        (own.clone(), 415, "unsupported_media_type"),
    ] {
        let found = start(&headers).await;
        assert_eq!(
            found,
            (Outcome::Answered(status), code.to_owned()),
            "{headers}"
        );
    }
    // What a browser asks before it sends something of its own kind.
    let asks =
        format!("{own}origin: https://evil.example\r\naccess-control-request-method: POST\r\n");
    let answer = http(&to, Some(&admin), "OPTIONS /start", &asks, "").await;
    assert_eq!(answer.outcome, Outcome::Answered(403));
    assert!(!answer.text.to_lowercase().contains("access-control-allow"));
    assert_eq!(cluster.worker("w1").await.running, 0);
    cluster.end().await;
}

/// Somebody's open `GET /logs` of a job, which has begun to come.
async fn follow(
    place: Place,
    shown: Option<&Shown>,
    headers: &str,
    job: jobctl::ids::JobId,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let to = place.http();
    let mut stream = connect(&to, shown, "http/1.1").await.unwrap();
    let request =
        format!("GET /logs?job_id={job}&follow=true HTTP/1.1\r\nhost: {to}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("begun") {
        let mut buffer = [0; 1024];
        let count = within(stream.read(&mut buffer)).await.unwrap();
        assert!(count > 0, "{}", text(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
    stream
}

#[tokio::test]
async fn whoever_is_revoked_is_cut_off_and_stays_out() {
    let mut cluster = TestCluster::start(1).await;
    let place = cluster.place;
    let job = cluster.sh("echo begun; sleep 600").await;
    let user = Shown::new(Role::Operator, "alice");
    let id = user.identity().id;
    let bearer = token(&cluster, asked(TokenKind::Bearer, Role::Operator)).await;
    let header = format!("authorization: Bearer {}\r\n", bearer.token);
    let by_certificate = follow(place, Some(&user), "", job).await;
    let by_token = follow(place, None, &header, job).await;
    // A worker with its heartbeat.
    let evil = Shown::new(Role::Worker, "evil");
    let own = evil.identity().id;
    let mut client = SchedulerClient::new(channel(&place.grpc(), Some(evil.clone())));
    let register = registration(&own.to_string(), "evil", "127.0.0.1:9");
    let registered = within(client.register_worker(register.clone()))
        .await
        .unwrap();
    let beat = proto::HeartbeatRequest {
        worker_id: own.to_string(),
        session: registered.into_inner().session,
        snapshot_complete: true,
        ..Default::default()
    };
    let (_beats, mut answers) = heartbeat(&mut client, beat).await.unwrap();

    let begun = std::time::Instant::now();
    for id in [id, own] {
        let asked = RevokeCertificateRequest { id };
        within(cluster.client.revoke_certificate(&asked))
            .await
            .unwrap();
    }
    let revoked = RevokeTokenRequest {
        id: bearer.about.id,
    };
    within(cluster.client.revoke_token(&revoked)).await.unwrap();
    for mut stream in [by_certificate, by_token] {
        let rest = text(&read_all(&mut stream).await);
        assert!(
            !rest.contains("\r\n0\r\n\r\n"),
            "it did not end, it was cut: {rest}"
        );
    }
    while within(answers.message())
        .await
        .is_ok_and(|answer| answer.is_some())
    {}
    println!("cut within {:?}", begun.elapsed());

    for restarted in [false, true] {
        if restarted {
            cluster.restart_scheduler().await;
            cluster.ready(1).await;
        }
        for (shown, headers) in [(Some(&user), ""), (None, &*header)] {
            for call in ["GET /jobs", "GET /livez", "POST /renew"] {
                let headers = format!("{JSON}{headers}");
                let body = if call == "POST /renew" { "{}" } else { "" };
                let answer = http(&place.http(), shown, call, &headers, body).await;
                assert_eq!(answer.outcome, Outcome::Answered(401), "{call}");
                assert_eq!(answer.code(), "revoked");
            }
        }
        let mut client = SchedulerClient::new(channel(&place.grpc(), Some(evil.clone())));
        let refused =
            |status: Status| assert_eq!(refusal(&status), Outcome::Called(Code::Unauthenticated));
        refused(
            within(client.register_worker(register.clone()))
                .await
                .unwrap_err(),
        );
        let renew = proto::RenewCertificateRequest {
            signing_request: signing_request(|_| {}).1,
        };
        refused(within(client.renew_certificate(renew)).await.unwrap_err());
        let beat = proto::HeartbeatRequest::default();
        refused(heartbeat(&mut client, beat).await.map(drop).unwrap_err());
    }
    cluster.end().await;
}

#[tokio::test]
async fn what_has_expired_is_not_accepted_on_open_connections_either() {
    let cluster = TestCluster::start(1).await;
    let place = cluster.place;
    let job = cluster.sh("echo begun; sleep 600").await;
    let genuine = Maker::genuine();
    let ends = 4;
    let make = |role| {
        genuine.make(&Forged {
            valid: (-60, ends),
            ..Forged::of(&enrolled::identity(role, "short"))
        })
    };
    let (viewer, worker) = (make(Role::Viewer), make(Role::Worker));
    let end = SystemTime::now() + Duration::from_secs(u64::try_from(ends).unwrap() + 1);
    let short = CreateTokenRequest {
        ttl_ms: Some(3000),
        ..asked(TokenKind::Bearer, Role::Viewer)
    };
    let bearer = token(&cluster, short).await;
    let header = format!("authorization: Bearer {}\r\n", bearer.token);
    let mut by_certificate = follow(place, Some(&viewer), "", job).await;
    let mut by_token = follow(place, None, &header, job).await;
    let own = worker.identity().id.to_string();
    let mut client = SchedulerClient::new(channel(&place.grpc(), Some(worker)));
    let register = registration(&own, "short", "127.0.0.1:9");
    let registered = within(client.register_worker(register)).await.unwrap();
    let beat = proto::HeartbeatRequest {
        worker_id: own,
        session: registered.into_inner().session,
        snapshot_complete: true,
        ..Default::default()
    };
    let (beats, mut answers) = heartbeat(&mut client, beat.clone()).await.unwrap();
    // One connection that is kept open, with a request every now and then.
    let to = place.http();
    let mut kept = connect(&to, Some(&viewer), "http/1.1").await.unwrap();
    let get = format!("GET /version HTTP/1.1\r\nhost: {to}\r\n\r\n");
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(200));
        let mut buffer = [0; 4096];
        loop {
            pause.tick().await;
            let _ = kept.write_all(get.as_bytes()).await;
            let count = kept.read(&mut buffer).await.unwrap_or_default();
            let is_answered = buffer[..count].starts_with(b"HTTP/1.1 200");
            if !is_answered {
                break;
            }
            assert!(SystemTime::now() < end, "it is still served");
        }
    })
    .await;
    read_all(&mut by_token).await;
    assert!(jiff::Timestamp::now() >= bearer.about.expires_at);
    read_all(&mut by_certificate).await;
    // Heartbeats go on being sent, and are not taken any more.
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(200));
        loop {
            pause.tick().await;
            let _ = beats.send(beat.clone()).await;
            if !answers.message().await.is_ok_and(|answer| answer.is_some()) {
                break;
            }
            assert!(SystemTime::now() < end, "it is still heard");
        }
    })
    .await;
    cluster.end().await;
}

/// The serial number of the certificate in a file; empty while it is not there.
fn serial(file: &Path) -> String {
    let Ok(Some(pem)) = files::Pem::read_secret(file) else {
        return String::new();
    };
    let (_, parsed) = X509Certificate::from_der(&pem.certificates[0]).unwrap();
    parsed.raw_serial_as_string()
}

async fn scheduler_certificate(to: &str) -> CertificateDer<'static> {
    let stream = connect(to, None, "h2").await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap();
    shown[0].clone().into_owned()
}

#[tokio::test]
async fn certificates_are_replaced_while_everything_goes_on() {
    let mut cluster = TestCluster::start_with(0, |config| {
        config.certificate_lifetime = Duration::from_secs(6);
    })
    .await;
    // A worker whose first certificate does not live longer either.
    let dir = enrolled::worker(&cluster.data_dir(1), "w1");
    let file = dir.join("identity.pem");
    let identity = Shown::of(&file).identity();
    let short = Maker::genuine().make(&Forged {
        valid: (-1, 6),
        ..Forged::of(&identity)
    });
    let key = KeyPair::try_from(&short.key).unwrap();
    files::write_secret(&file, &short.chain, Some(&key)).unwrap();
    let first = SystemTime::now() + Duration::from_secs(6);
    let worker = cluster.start_worker(1).await;
    cluster.workers.push(worker);
    cluster.ready(1).await;
    let registered = cluster.worker("w1").await.registered_at;
    let stop = cluster.data_dir(1).join("stop");
    let script = format!(
        "i=0; while [ ! -e {} ]; do echo $i; i=$((i+1)); sleep 0.05; done",
        stop.display()
    );
    let job = cluster.sh(&script).await;
    let mut logs = within(cluster.client.logs(crate::cluster::everything(job)))
        .await
        .unwrap();
    let follower = tokio::spawn(async move {
        let mut bytes = Vec::new();
        loop {
            match within(logs.next()).await.unwrap() {
                jobctl::client::logs::Event::Output(piece) => {
                    bytes.extend_from_slice(&piece.output)
                }
                jobctl::client::logs::Event::End(_) => return Ok(bytes),
                other => return Err(format!("{other:?}")),
            }
        }
    });
    let mut serials = HashSet::new();
    let mut own = HashSet::new();
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        while serials.len() < 4 || own.len() < 3 || SystemTime::now() < first {
            pause.tick().await;
            serials.insert(serial(&file));
            own.insert(scheduler_certificate(&cluster.place.grpc()).await);
        }
    })
    .await;
    assert_eq!(
        cluster.end_of(cluster_job(&cluster).await).await.state,
        JobState::Succeeded
    );
    fs::write(&stop, "").unwrap();
    let output = within(follower).await.unwrap().unwrap();
    let lines: Vec<usize> = text(&output)
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(lines, (0..lines.len()).collect::<Vec<_>>());
    let after = cluster.worker("w1").await;
    assert_eq!(
        after.registered_at, registered,
        "one session through all of it"
    );
    cluster.end().await;
}

#[tokio::test]
async fn an_authority_gives_way_to_the_next() {
    let mut cluster = TestCluster::start(2).await;
    let place = cluster.place;
    let old = Shown::new(Role::Viewer, "alice");
    let old_roots = enrolled::authority().roots();
    let before = token(&cluster, asked(TokenKind::Join, Role::Admin)).await;
    let worker_token = token(&cluster, asked(TokenKind::Join, Role::Worker)).await;
    let asked = RotateRequest { overlap_ms: 15_000 };
    cluster.workers.pop().unwrap().end().await;
    let folders = [1, 2].map(|number| cluster.data_dir(number));
    let identity = |number: usize| folders[number - 1].join("identity.pem");
    let (first, second) = (serial(&identity(1)), serial(&identity(2)));

    let rotated = within(cluster.client.rotate(&asked)).await.unwrap();
    let until = SystemTime::from(rotated.overlap_until.unwrap());
    let again = within(cluster.client.rotate(&asked)).await.unwrap_err();
    assert_eq!(again.code(), Some("authorities_overlap"));
    // Both are accepted, and so is the scheduler trusted by who knows the old one alone.
    let jobs = async |shown: &Shown| {
        http(&place.http(), Some(shown), "GET /jobs", "", "")
            .await
            .outcome
    };
    assert_eq!(jobs(&old).await, Outcome::Answered(200));
    let new_roots = files::Pem::parse(rotated.authorities.as_bytes(), Path::new("")).unwrap();
    for to in [place.http(), place.grpc()] {
        assert!(is_trusted(&to, &old_roots).await);
        assert!(is_trusted(&to, &new_roots.certificates[..1]).await);
        assert!(!is_trusted(&to, &[Maker::own().root]).await);
    }
    // A token from before still joins.
    let (key, request) = signing_request(|_| {});
    let joined = join(place, secret(&before), &request).await;
    assert_eq!(joined.outcome, Outcome::Answered(200), "{joined:?}");
    let pem = joined.json()["certificate"].as_str().unwrap().to_owned();
    let new = Shown {
        chain: vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()],
        key: rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
    };
    assert_eq!(jobs(&new).await, Outcome::Answered(200));
    let dir = Folder::new();
    let invitation = format!("{}@{}", worker_token.token, place.grpc());
    let joined = crate::cluster::start_worker_with(place, 3, &dir.path().join("none"), |config| {
        config.data_dir = dir.path().join("w3");
        config.security = worker::Security::Joined(Some(invitation.parse().unwrap()));
    })
    .await;
    cluster.worker_is("w3", WorkerState::Ready).await;
    // The one that was away comes back.
    let back = cluster.start_worker(2).await;
    cluster.workers.push(back);
    cluster.worker_is("w2", WorkerState::Ready).await;
    // Each replaces its certificate without having waited for the middle of its
    // life, which is days away.
    eventually(|| serial(&identity(1)) != first && serial(&identity(2)) != second).await;

    eventually(|| SystemTime::now() > until).await;
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        while jobs(&old).await != Outcome::Closed {
            pause.tick().await;
        }
    })
    .await;
    assert_eq!(jobs(&new).await, Outcome::Answered(200));
    assert!(!is_trusted(&place.http(), &old_roots).await);
    // The workers have the new one alone, and go on.
    let roots = |number: usize| {
        let pem = files::Pem::read(&folders[number - 1].join("ca.pem"));
        pem.unwrap().unwrap().certificates
    };
    eventually(|| {
        [1, 2]
            .iter()
            .all(|number| roots(*number) == new_roots.certificates[..1])
    })
    .await;
    let credentials = Credentials::new(new.chain, new.key, new_roots.certificates).unwrap();
    let proof = Proof::with(credentials).unwrap();
    let admin = Client::new(place.server().parse().unwrap(), &proof).unwrap();
    within(admin.ready(3, Duration::from_secs(30)))
        .await
        .unwrap();
    for number in 1..=3 {
        let request = StartRequest {
            worker_id: Some(format!("w{number}")),
            ..sh("true")
        };
        let job = within(admin.start(&request)).await.unwrap().job_id;
        crate::cluster::end_of(&admin, job).await;
    }
    // Who has only the old key is the scheduler of nobody.
    let old_scheduler =
        Maker::genuine().make(&Forged::of(&enrolled::identity(Role::Scheduler, "")));
    let call = "/jobscheduler.Worker/QueryJob";
    assert_eq!(
        rpc(&place.worker(1), Some(old_scheduler), None, call).await,
        Outcome::Closed
    );
    joined.end().await;
    cluster.end().await;
}

#[tokio::test]
async fn an_authority_that_is_given_up_at_once_is_not_trusted_any_more() {
    let cluster = TestCluster::start(1).await;
    let place = cluster.place;
    let job = cluster.sh("echo begun; sleep 600").await;
    let old = Shown::new(Role::Viewer, "alice");
    let bearer = token(&cluster, asked(TokenKind::Bearer, Role::Viewer)).await;
    let mut stream = follow(place, Some(&old), "", job).await;
    // Handshakes that began before, and end after.
    let mut begun = Vec::new();
    for _ in 0..10 {
        begun.push(dial(&place.http(), None).await.unwrap());
    }
    let asked = RotateRequest { overlap_ms: 0 };
    // Its own connection is among those that are cut.
    let _ = within(cluster.client.rotate(&asked)).await;
    read_all(&mut stream).await;
    let request = format!("GET /jobs HTTP/1.1\r\nhost: {}\r\n\r\n", place.http());
    for stream in begun {
        if let Ok(mut stream) =
            within(crate::attacker::secure(stream, Some(&old), "http/1.1")).await
        {
            let answer = Answer::of(exchange(&mut stream, request.as_bytes()).await);
            assert_eq!(answer.outcome, Outcome::Closed);
        }
    }
    let answer = http(&place.http(), Some(&old), "GET /jobs", "", "").await;
    assert_eq!(answer.outcome, Outcome::Closed);
    let register = "/jobscheduler.Scheduler/RegisterWorker";
    let worker = Shown::of(&cluster.data_dir(1).join("identity.pem"));
    assert_eq!(
        rpc(&place.grpc(), Some(worker), None, register).await,
        Outcome::Closed
    );
    assert!(!is_trusted(&place.http(), &enrolled::authority().roots()).await);
    // What proves itself in another way does so still.
    let headers = format!("authorization: Bearer {}\r\n", bearer.token);
    let answer = http(&place.http(), None, "GET /jobs", &headers, "").await;
    assert_eq!(answer.outcome, Outcome::Answered(200));
    cluster.end().await;
}
