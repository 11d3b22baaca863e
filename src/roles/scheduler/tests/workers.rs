//! Workers: who is let in, who is given up, and what becomes of their jobs.

use super::*;
use crate::ids::JobId;
use crate::proto::scheduler_server::Scheduler as SchedulerService;

#[tokio::test]
async fn registrations_are_checked() {
    let scheduler = TestScheduler::new().await;
    let worker = Joined::new(&scheduler, "w1").await;
    let asked = RegisterWorkerRequest {
        address: "127.0.0.1:1".to_owned(),
        name: "w1".to_owned(),
        ..Default::default()
    };
    let taken = scheduler.register(asked.clone()).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert_eq!(
        taken.metadata().get(proto::CODE).unwrap(),
        "worker_name_taken"
    );
    assert!(taken.message().contains(&worker.id));
    for bad in [
        RegisterWorkerRequest {
            name: "a b".to_owned(),
            ..asked.clone()
        },
        RegisterWorkerRequest {
            address: "nowhere".to_owned(),
            name: "w2".to_owned(),
            ..asked.clone()
        },
        RegisterWorkerRequest {
            worker_id: "x".to_owned(),
            ..asked.clone()
        },
    ] {
        let status = scheduler.register(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    let mut stranger = Beats::open(&scheduler, &nobody(), "").await;
    assert_eq!(stranger.over().await.code(), Code::NotFound);
    let mut stale = Beats::open(&scheduler, &worker.id, &nobody()).await;
    let status = stale.over().await;
    assert_eq!(status.metadata().get(proto::CODE).unwrap(), "session_over");
    scheduler.end().await;
}

/// As when its request was let in just before, and nothing of it was there yet.
#[tokio::test]
async fn whoever_was_revoked_while_it_registered_has_left() {
    let closing = CancellationToken::new();
    let store = store::scratch();
    let calls = Calls {
        deadline: LIMIT,
        epoch: crate::roles::scheduler::lineage::Epoch::new(1),
        followers: 1,
        job_followers: 1,
        security: dial::Security::Insecure,
    };
    let registry = Registry::new(LIMIT, calls, store.clone(), Vec::new());
    let needs = Needs {
        store: store.clone(),
        clock: Clock::new().unwrap(),
        registry: registry.clone(),
        keep_for: LIMIT,
        call_deadline: LIMIT,
        tracker: TaskTracker::new(),
        closing: closing.clone(),
    };
    let access = Access::new(store.clone(), Vec::new(), Vec::new(), false);
    let scheduler = Scheduler {
        store,
        jobs: Jobs::new(needs, Vec::new(), Vec::new()),
        registry: registry.clone(),
        access: access.clone(),
        names: Arc::new([]),
        bounds: Bounds::default(),
        body_bytes: api::MAX_BODY,
        long_bodies: Arc::new(Semaphore::new(1)),
        grpc_address: ([127, 0, 0, 1], 1).into(),
        closing,
    };
    let identity = crate::identity::Identity {
        cluster: "c".to_owned(),
        role: Role::Worker,
        id: Uuid::new_v4(),
        name: "w1".to_owned(),
    };
    let connection = accept::Connection {
        address: ([127, 0, 0, 1], 2).into(),
        identity: Some(Arc::new(identity.clone())),
        expires_at: None,
    };
    let mut caller = Caller::nobody(None);
    let accepted = access.identify(&mut caller, Some(&connection), None);
    accepted.unwrap();
    let revoked = access.revoke(&Caller::itself(), identity.id).await;
    drop(revoked.unwrap());
    let service = Service {
        scheduler,
        heartbeat_interval: LIMIT,
    };
    let mut request = Request::new(RegisterWorkerRequest {
        address: "127.0.0.1:1".to_owned(),
        name: "w1".to_owned(),
        ..Default::default()
    });
    request.extensions_mut().insert(caller);
    let status = SchedulerService::register_worker(&service, request).await;
    let status = status.unwrap_err();
    assert_eq!(status.metadata().get(proto::CODE).unwrap(), "revoked");
    assert_eq!(registry.list(None, &[])[0].state, api::WorkerState::Left);
}

fn nobody() -> String {
    crate::ids::WorkerId::random().to_string()
}

#[tokio::test]
async fn an_id_is_one_worker_s_as_long_as_it_is_connected() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let same = RegisterWorkerRequest {
        address: worker.address.to_string(),
        name: "w1".to_owned(),
        worker_id: worker.id.clone(),
        ..Default::default()
    };
    let elsewhere = RegisterWorkerRequest {
        address: "127.0.0.1:1".to_owned(),
        ..same.clone()
    };
    let rebooted = RegisterWorkerRequest {
        boot_id: "another".to_owned(),
        ..same.clone()
    };
    for other in [&elsewhere, &rebooted] {
        let refused = scheduler.register(other.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let word = refused.metadata().get(proto::CODE).unwrap();
        assert_eq!(word, "worker_id_in_use");
        for said in ["w1", &worker.id, &same.address, "all of it but `scripts`"] {
            assert!(refused.message().contains(said), "{}", refused.message());
        }
        worker.beats.send(Vec::new(), false).await.unwrap();
    }
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    worker.beats.send(Vec::new(), true).await.unwrap();
    drop(worker.beats);
    scheduler.only_worker_is("unreachable").await;
    for other in [elsewhere, rebooted] {
        let answer = scheduler.register(other).await.unwrap();
        assert_eq!(answer.worker_id, worker.id);
    }
    scheduler.end().await;
}

#[tokio::test]
async fn a_worker_without_name_and_id_is_known_by_its_address() {
    let scheduler = TestScheduler::new().await;
    let request = RegisterWorkerRequest {
        address: "127.0.0.1:9".to_owned(),
        ..Default::default()
    };
    let first = scheduler.register(request.clone()).await.unwrap();
    let again = scheduler.register(request).await.unwrap();
    assert_eq!(first.worker_id, again.worker_id);
    assert_ne!(first.session, again.session);
    scheduler.end().await;
}

#[tokio::test]
async fn a_new_session_loses_the_jobs_it_does_not_name() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let kept = scheduler.start("true").await;
    let gone = scheduler.start("true").await;
    let mut old = Beats::open(&scheduler, &worker.id, &worker.session).await;
    assert_eq!(worker.beats.over().await.code(), Code::FailedPrecondition);
    worker.register(&scheduler).await;
    assert_eq!(old.over().await.code(), Code::FailedPrecondition);
    for (start, reason) in [
        (
            json!({"worker_id": "w1", "command": "true", "no_queue": true}),
            "worker w1 is not ready yet",
        ),
        (
            json!({"command": "true", "no_queue": true}),
            "1 worker, not ready",
        ),
    ] {
        let (status, body) = scheduler.post("/start", start).await;
        assert_eq!(
            (status.as_u16(), &body["code"]),
            (503, &json!("no_free_slot"))
        );
        let error = body["error"].as_str().unwrap();
        assert!(error.ends_with(reason), "{error}");
    }

    worker.beat(&scheduler).await;
    let running = || status_report(&kept);
    worker.beats.send(vec![running()], false).await.unwrap();
    let adopted = "11111111-2222-4333-8444-555555555555";
    let spec = StartJobRequest {
        command: "sleep".to_owned(),
        name: "from-before".to_owned(),
        created_us: 1_000_000,
        ..Default::default()
    };
    let found = JobReport {
        spec: Some(spec),
        ..status_report(adopted)
    };
    worker.beats.send(vec![found], true).await.unwrap();
    let body = scheduler.job(&gone, "lost").await;
    assert_eq!(body["error_text"], "lost: worker restarted");
    assert_eq!(body["job"]["exit_code"], Value::Null);
    scheduler.job(&kept, "running").await;
    let body = scheduler.job("from-before", "running").await;
    assert_eq!(body["job"]["id"], adopted);
    let (_, body) = scheduler.get("/jobs").await;
    assert_eq!(body["jobs"][2]["id"], adopted, "it is the oldest");
    scheduler.end().await;
}

#[tokio::test]
async fn a_silent_worker_is_unreachable_until_it_tells_of_its_jobs() {
    let scheduler = TestScheduler::with_heartbeat(Duration::from_millis(500)).await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let stopping = scheduler.post("/stop", json!({ "job_id": id }));
    let (status, body) = stopping.await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (504, &json!("worker_unreachable"))
    );
    let body = scheduler.job(&id, "unknown").await;
    let reason = body["job"]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("worker w1 has not answered since"),
        "{reason}"
    );
    assert_eq!(worker.beats.over().await.code(), Code::FailedPrecondition);
    let (status, body) = scheduler.post("/stop", json!({ "job_id": id })).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (504, &json!("worker_unreachable"))
    );
    let start = json!({"worker_id": "w1", "command": "true"});
    let (status, waiting) = scheduler.post("/start", start).await;
    assert_eq!(
        (status.as_u16(), &waiting["state"]),
        (201, &json!("pending"))
    );
    let reason = waiting["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("worker w1 has not answered since"),
        "{reason}"
    );
    let (status, _) = scheduler.get(&format!("/logs?job_id={id}")).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);

    let ready = scheduler.request(Method::GET, "/readyz?workers=1&wait_ms=60000", None);
    worker.beat(&scheduler).await;
    let snapshot = vec![status_report(&id)];
    let (ready, sent) = tokio::join!(ready, worker.beats.send(snapshot, true));
    sent.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    scheduler.job(&id, "running").await;
    let waited = waiting["job_id"].as_str().unwrap();
    scheduler.job(waited, "running").await;
    scheduler.end().await;
}

#[tokio::test]
async fn a_worker_whose_stream_broke_gets_no_jobs() {
    let scheduler = TestScheduler::with_heartbeat(Duration::from_secs(60)).await;
    let worker = Joined::new(&scheduler, "w1").await;
    drop(worker.beats);
    scheduler.only_worker_is("unreachable").await;
    let (status, body) = scheduler.post("/start", json!({"command": "true"})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(body["reason"], "1 worker, not ready");
    scheduler.end().await;
}

/// An address at which nothing listens.
async fn deserted() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn a_worker_that_cannot_be_called_gets_no_jobs_until_it_can() {
    let scheduler = TestScheduler::new().await;
    let address = deserted().await;
    let request = RegisterWorkerRequest {
        address: address.to_string(),
        name: "w1".to_owned(),
        ..Default::default()
    };
    let answer = scheduler.register(request).await.unwrap();
    let mut beats = Beats::open(&scheduler, &answer.worker_id, &answer.session).await;
    let last = HeartbeatRequest {
        snapshot_complete: true,
        ..Default::default()
    };
    beats.requests.send(last).await.unwrap();
    let why = loop {
        let answer = beats.answer().await.unwrap();
        if !answer.trouble.is_empty() {
            break answer.trouble;
        }
    };
    let expected = format!("cannot be dialled at {address}: Connection refused (os error 111)");
    assert_eq!(why, expected);
    let (_, body) = scheduler.get("/workers").await;
    assert_eq!(body["workers"][0]["state"], "unreachable");
    assert_eq!(body["workers"][0]["reason"], expected);
    let on_it = json!({ "command": "true", "worker_id": "w1" });
    let (status, waiting) = scheduler.post("/start", on_it).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(waiting["reason"], format!("worker w1 {expected}"));
    // It is dialled again, without a word from it.
    let (started, mut started_rx) = mpsc::unbounded_channel();
    let service = FakeWorker {
        started,
        stopped: mpsc::unbounded_channel().0,
        streamed: mpsc::unbounded_channel().0,
        script: Arc::default(),
        refusal: Arc::default(),
        followers: watch::channel(0).0,
        seen: Arc::default(),
    };
    service.serve(tokio::net::TcpListener::bind(address).await.unwrap());
    while !beats.is_ready {
        let answer = beats.answer().await.unwrap();
        assert_eq!(answer.trouble.is_empty(), answer.ready);
    }
    assert_eq!(
        soon(started_rx.recv()).await.unwrap().job_id,
        waiting["job_id"]
    );
    let (_, body) = scheduler.get("/workers").await;
    assert_eq!(body["workers"][0]["state"], "ready");
    assert_eq!(body["workers"][0]["reason"], Value::Null);
    scheduler.end().await;
}

#[tokio::test]
async fn a_worker_that_lacks_something_gets_no_jobs_until_it_has_it() {
    let scheduler = TestScheduler::new().await;
    let worker = Joined::new(&scheduler, "w1").await;
    let tells = async |lacks: &[&str]| {
        let beat = HeartbeatRequest {
            lacks: lacks.iter().map(|what| (*what).to_owned()).collect(),
            ..Default::default()
        };
        worker.beats.requests.send(beat).await.unwrap();
    };
    tells(&["the disk is full", "a folder is missing"]).await;
    scheduler.only_worker_is("short").await;
    let (_, body) = scheduler.get("/workers").await;
    let why = "cannot start jobs now: the disk is full; a folder is missing";
    assert_eq!(body["workers"][0]["reason"], why);
    let (_, waiting) = scheduler.post("/start", json!({ "command": "true" })).await;
    assert_eq!(
        waiting["reason"],
        "1 worker, none can start jobs now: the disk is full; a folder is missing"
    );
    let on_it = json!({ "command": "true", "worker_id": "w1" });
    let (_, on_it) = scheduler.post("/start", on_it).await;
    assert_eq!(on_it["reason"], format!("worker w1 {why}"));
    let readyz = scheduler.request(Method::GET, "/readyz?workers=1", None);
    assert_eq!(readyz.await.status(), StatusCode::SERVICE_UNAVAILABLE);
    tells(&[]).await;
    for job in [waiting, on_it] {
        scheduler
            .job(job["job_id"].as_str().unwrap(), "running")
            .await;
    }
    let endless = "x".repeat(100_000);
    tells(&[&endless]).await;
    scheduler.only_worker_is("short").await;
    let (_, body) = scheduler.get("/workers").await;
    assert!(body["workers"][0]["reason"].as_str().unwrap().len() < 1000);
    scheduler.end().await;
}

#[tokio::test]
async fn a_start_that_was_never_delivered_goes_to_another_worker() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let start = scheduler.post("/start", json!({ "command": "once" }));
    let (status, body) = start.await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{body}");
    let id = body["job_id"].as_str().unwrap().to_owned();
    soon(worker.started.recv()).await.unwrap();
    // It comes back without that job, from where it cannot be called.
    worker.address = deserted().await;
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    let last = HeartbeatRequest {
        snapshot_complete: true,
        ..Default::default()
    };
    worker.beats.requests.send(last).await.unwrap();
    scheduler.only_worker_is("unreachable").await;
    let body = scheduler.job(&id, "pending").await;
    assert_eq!(body["job"]["worker"], Value::Null, "{body}");
    let mut other = Joined::new(&scheduler, "w2").await;
    let sent = soon(other.started.recv()).await.unwrap();
    assert_eq!(sent.command, "once");
    scheduler.end().await;
}

#[tokio::test]
async fn a_worker_that_leaves_takes_its_jobs_along() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let mut grpc = scheduler.grpc().await;
    let goodbye = proto::DeregisterWorkerRequest {
        worker_id: worker.id.clone(),
        ..Default::default()
    };
    assert!(
        soon(grpc.deregister_worker(goodbye))
            .await
            .unwrap()
            .into_inner()
            .success
    );
    assert_eq!(worker.beats.over().await.code(), Code::FailedPrecondition);
    let body = scheduler.job(&id, "lost").await;
    assert_eq!(body["error_text"], "lost: worker left");
    let (status, body) = scheduler
        .post("/start", json!({"worker_id": "w1", "command": "true"}))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (409, &json!("worker_left"))
    );
    let stranger = proto::DeregisterWorkerRequest {
        worker_id: nobody(),
        ..Default::default()
    };
    let status = soon(grpc.deregister_worker(stranger)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    scheduler.end().await;
}

#[tokio::test]
async fn what_a_worker_tells_is_kept_within_bounds() {
    let scheduler = TestScheduler::new().await;
    // As a program does that knows only the published contract.
    let plain = RegisterWorkerRequest {
        address: "127.0.0.1:1".to_owned(),
        ..Default::default()
    };
    scheduler.register(plain.clone()).await.unwrap();
    let (_, body) = scheduler.get("/workers").await;
    let shown = &body["workers"][0];
    assert_eq!(
        (&shown["labels"], &shown["scripts"]),
        (&json!({}), &json!([]))
    );
    for field in [
        "slots",
        "cpus",
        "memory_bytes",
        "memory_available_bytes",
        "os",
        "arch",
    ] {
        assert_eq!(shown[field], Value::Null, "{field}");
    }

    let talkative = RegisterWorkerRequest {
        name: "w2".to_owned(),
        labels: [("zone".to_owned(), "eu".to_owned())].into(),
        slots: Some(0),
        os: "x".repeat(1000),
        scripts: Some(proto::ScriptList {
            paths: (0..1001).map(|n| n.to_string()).collect(),
            more: false,
        }),
        ..plain.clone()
    };
    scheduler.register(talkative.clone()).await.unwrap();
    let (_, body) = scheduler.get("/workers?label=zone").await;
    let shown = &body["workers"][0];
    assert_eq!((&shown["name"], &shown["slots"]), (&json!("w2"), &json!(0)));
    assert_eq!(shown["os"].as_str().map(str::len), Some(64));
    assert_eq!(shown["scripts"].as_array().map(Vec::len), Some(1000));
    assert_eq!(shown["more_scripts"], true);

    for (labels, word) in [
        (vec![("a b".to_owned(), String::new())], "bad_label"),
        (vec![("a".to_owned(), "\n".to_owned())], "bad_label"),
        (
            (0..65).map(|n| (format!("l{n}"), String::new())).collect(),
            "too_many_labels",
        ),
    ] {
        let labels = labels.into_iter().collect();
        let bad = RegisterWorkerRequest {
            name: "w3".to_owned(),
            labels,
            ..plain.clone()
        };
        let status = scheduler.register(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.metadata().get(proto::CODE).unwrap(), word);
    }
    scheduler.end().await;
}

#[tokio::test]
async fn orders_that_make_no_sense_are_refused() {
    let scheduler = TestScheduler::new().await;
    let worker = Joined::new(&scheduler, "w1").await;
    for (path, body, status, code) in [
        ("label", json!({ "worker_id": "w1" }), 400, "bad_request"),
        (
            "label",
            json!({ "worker_id": "w1", "labels": { "a b": "c" } }),
            400,
            "bad_label",
        ),
        (
            "drain",
            json!({ "worker_id": "w1", "deadline": 7 }),
            400,
            "bad_request",
        ),
        (
            "drain",
            json!({ "worker_id": "w1", "deadline_ms": u64::MAX }),
            400,
            "bad_request",
        ),
        (
            "drain",
            json!({ "worker_id": "w9" }),
            404,
            "worker_not_found",
        ),
        (
            "resume",
            json!({ "worker_id": "w9" }),
            404,
            "worker_not_found",
        ),
        (
            "remove",
            json!({ "worker_id": "w1" }),
            409,
            "worker_not_gone",
        ),
    ] {
        let (got, answer) = scheduler.post(&format!("/workers/{path}"), body).await;
        assert_eq!(
            (got.as_u16(), &answer["code"]),
            (status, &json!(code)),
            "{path}"
        );
    }
    // It was asked to end, over there: that is nothing to take back from here.
    let ending = HeartbeatRequest {
        draining: true,
        ..Default::default()
    };
    worker.beats.requests.send(ending).await.unwrap();
    scheduler.only_worker_is("draining").await;
    let (status, answer) = scheduler
        .post("/workers/resume", json!({ "worker_id": "w1" }))
        .await;
    assert_eq!(
        (status.as_u16(), &answer["code"]),
        (409, &json!("worker_ending"))
    );
    scheduler.end().await;
}

#[tokio::test]
async fn a_goodbye_of_an_earlier_registration_ends_nothing() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let job = scheduler.start("true").await;
    let earlier = worker.session.clone();
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    let named = vec![status_report(&job)];
    worker.beats.send(named, true).await.unwrap();
    let mut grpc = scheduler.grpc().await;
    let goodbye = |session: &str| proto::DeregisterWorkerRequest {
        worker_id: worker.id.clone(),
        session: session.to_owned(),
    };
    let late = soon(grpc.deregister_worker(goodbye(&earlier))).await;
    assert!(late.unwrap().into_inner().success);
    let (_, body) = scheduler.get("/workers").await;
    assert_eq!(body["workers"][0]["state"], "ready");
    scheduler.job(&job, "running").await;
    let now = soon(grpc.deregister_worker(goodbye(&worker.session))).await;
    assert!(now.unwrap().into_inner().success);
    scheduler.job(&job, "lost").await;
    scheduler.end().await;
}

#[tokio::test]
async fn a_job_that_is_over_and_lives_is_ended() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let job = scheduler.start("true").await;
    let mut grpc = scheduler.grpc().await;
    let goodbye = proto::DeregisterWorkerRequest {
        worker_id: worker.id.clone(),
        ..Default::default()
    };
    soon(grpc.deregister_worker(goodbye)).await.unwrap();
    scheduler.job(&job, "lost").await;
    // It had not left after all: the job is named once in the list of all jobs, and
    // once more when there is no record in memory any more.
    for _ in 0..2 {
        worker.register(&scheduler).await;
        worker.beat(&scheduler).await;
        let named = vec![status_report(&job)];
        worker.beats.send(named, true).await.unwrap();
        let stop = soon(worker.stopped.recv()).await.unwrap();
        assert_eq!(stop.job_id, job);
    }
    // Of a job that was never recorded nothing is known, and it is left alone.
    let strange = vec![status_report(&JobId::random().to_string())];
    worker.beats.send(strange, false).await.unwrap();
    let next = scheduler.start("true").await;
    let stop = json!({ "job_id": next, "no_wait": true });
    assert_eq!(scheduler.post("/stop", stop).await.0, StatusCode::OK);
    let stop = soon(worker.stopped.recv()).await.unwrap();
    assert_eq!(stop.job_id, next);
    scheduler.end().await;
}
