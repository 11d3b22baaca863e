//! What outlives the scheduler, and what is done again after it.

use super::*;
use crate::roles::scheduler::store::StoredWorker;

impl TestScheduler {
    async fn start_with_key(&self, key: &str, body: Value) -> (StatusCode, Value) {
        let request = self
            .client
            .post(format!("http://{}/start", self.http))
            .header(api::IDEMPOTENCY_KEY, key);
        let answer = soon(request.json(&body).send()).await.unwrap();
        (answer.status(), soon(answer.json()).await.unwrap())
    }

    /// What a query of the store's file says, beside the scheduler.
    fn sql(&self, query: &str) -> i64 {
        let file = self.dir.path().join("store.sqlite");
        let connection = rusqlite::Connection::open(file).unwrap();
        connection.query_row(query, (), |row| row.get(0)).unwrap()
    }
}

impl Joined {
    /// Registers anew and names these jobs.
    async fn come_back(&mut self, scheduler: &TestScheduler, jobs: &[&str]) {
        self.register(scheduler).await;
        self.beat(scheduler).await;
        let jobs = jobs.iter().map(|job| status_report(job)).collect();
        self.beats.send(jobs, true).await.unwrap();
    }

    async fn ends(&mut self, job: &str, exit_code: i32) {
        let state = match exit_code {
            0 => proto::JobState::Succeeded,
            _ => proto::JobState::Failed,
        };
        let reports = vec![report(job, ended(state, exit_code))];
        self.beats.send(reports, false).await.unwrap();
    }
}

#[tokio::test]
async fn records_outlive_the_scheduler() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let body = json!({"command": "true", "name": "nightly", "env": {"A": "secret"}});
    let (_, body) = scheduler.post("/start", body).await;
    let done = body["job_id"].as_str().unwrap().to_owned();
    let live = scheduler.start("true").await;
    worker.ends(&done, 3).await;
    let (_, before) = scheduler.post("/query", json!({ "job_id": done })).await;
    assert_eq!(
        scheduler.sql("SELECT count(*) FROM jobs WHERE env IS NOT NULL"),
        0
    );
    let epoch = soon(worker.started.recv()).await.unwrap().epoch;
    assert!(epoch > 0);

    let scheduler = scheduler.restart().await;
    let (_, after) = scheduler.post("/query", json!({"job_id": "nightly"})).await;
    assert_eq!(after, before);
    assert!(after["job"]["kept_until"].is_string());
    let (_, body) = scheduler.post("/query", json!({"job_id": "last"})).await;
    assert_eq!(
        (&body["job"]["id"], &body["job"]["state"]),
        (&json!(live), &json!("unknown"))
    );
    let reason = body["job"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("restarted") && reason.contains("w1"),
        "{reason}"
    );
    for prefix in [&done[..8], &live[..8]] {
        let (status, body) = scheduler.post("/query", json!({ "job_id": prefix })).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
    let (_, body) = scheduler.get("/jobs?limit=1").await;
    assert_eq!(body["jobs"][0]["id"], live);
    let (_, body) = scheduler.get(&format!("/jobs?limit=1&after={live}")).await;
    assert_eq!(
        (&body["jobs"][0]["id"], &body["next"]),
        (&json!(done), &Value::Null)
    );
    let (_, body) = scheduler
        .get("/jobs?name=nightly&state=failed&worker_id=w1")
        .await;
    assert_eq!(body["jobs"].as_array().unwrap().len(), 1);
    let (_, body) = scheduler.get("/workers").await;
    assert_eq!(body["workers"][0]["state"], "unreachable");

    let answer = scheduler
        .register(RegisterWorkerRequest {
            address: worker.address.to_string(),
            name: "w1".to_owned(),
            worker_id: worker.id.clone(),
            ..Default::default()
        })
        .await
        .unwrap();
    assert!(answer.epoch > epoch);
    worker.come_back(&scheduler, &[&live, &done]).await;
    scheduler.job(&live, "running").await;
    scheduler.job(&done, "failed").await;
    let (_, body) = scheduler.get("/jobs").await;
    assert_eq!(body["jobs"].as_array().unwrap().len(), 2);
    scheduler.end().await;
}

#[tokio::test]
async fn a_new_session_after_a_restart_loses_what_ran_and_is_not_named() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let gone = scheduler.start("true").await;
    worker.beats.send(Vec::new(), false).await.unwrap();
    let scheduler = scheduler.restart().await;
    worker.come_back(&scheduler, &[]).await;
    let body = scheduler.job(&gone, "lost").await;
    assert_eq!(body["error_text"], "lost: worker restarted");
    scheduler.end().await;
}

#[tokio::test]
async fn one_store_has_one_scheduler() {
    let scheduler = TestScheduler::new().await;
    let config = Config {
        heartbeat_interval: Duration::from_secs(60),
        call_deadline: Duration::from_secs(1),
        data_dir: scheduler.dir.path().to_owned(),
        keep_finished: KEEP,
        keep_for: Duration::from_secs(1),
        keep_audit: Duration::from_secs(1),
        names: Vec::new(),
        security: Security::Insecure,
        bounds: Bounds::default(),
        body_bytes: api::MAX_BODY,
        job_followers: 128,
        certificate_lifetime: crate::identity::ca::LIFETIME,
    };
    let listeners = Listeners {
        http: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        grpc: TcpListener::bind("127.0.0.1:0").await.unwrap(),
    };
    let second = run(config, listeners, CancellationToken::new());
    let error = soon(second).await.unwrap_err().to_string();
    let holder = format!(
        "is in use by another scheduler (pid {}, http {}, grpc {})",
        std::process::id(),
        scheduler.http,
        scheduler.grpc
    );
    assert!(error.ends_with(&holder), "{error}");
    scheduler.end().await;
}

#[tokio::test]
async fn the_same_key_is_the_same_job() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let start = || scheduler.start_with_key("k1", json!({"command": "true"}));
    let answers = futures_util::future::join_all((0..20).map(|_| start())).await;
    let id = answers[0].1["job_id"].clone();
    for (status, body) in answers {
        assert_eq!((status, &body["job_id"]), (StatusCode::CREATED, &id));
    }
    soon(worker.started.recv()).await.unwrap();
    let (status, body) = scheduler
        .start_with_key("k1", json!({"command": "false"}))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"], &body["job_id"]),
        (422, &json!("idempotency_key_reused"), &id)
    );
    let scheduler = scheduler.restart().await;
    // Its worker is not back yet: what was answered before is answered again.
    worker.come_back(&scheduler, &[id.as_str().unwrap()]).await;
    worker.ends(id.as_str().unwrap(), 3).await;
    let again = scheduler
        .start_with_key("k1", json!({"command": "true"}))
        .await;
    let failed = json!({ "job_id": id, "state": "failed" });
    assert_eq!(again, (StatusCode::CREATED, failed));
    assert!(worker.started.try_recv().is_err(), "it was sent once");

    let missing = json!({"command": "missing"});
    let first = scheduler.start_with_key("k2", missing.clone()).await;
    assert_eq!(first.0, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(scheduler.start_with_key("k2", missing).await, first);
    soon(worker.started.recv()).await.unwrap();
    assert!(worker.started.try_recv().is_err(), "it was sent once");
    for bad in ["a b", &"x".repeat(256), ""] {
        let (status, body) = scheduler
            .start_with_key(bad, json!({"command": "true"}))
            .await;
        assert_eq!(
            (status.as_u16(), &body["code"]),
            (400, &json!("bad_request")),
            "{bad}"
        );
    }
    scheduler.end().await;
}

#[tokio::test]
async fn a_start_that_was_recorded_is_made_after_a_crash() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let body = json!({"command": "once", "env": {"A": "secret"}});
    let first = {
        let starting = scheduler.start_with_key("k", body.clone());
        tokio::pin!(starting);
        tokio::select! {
            first = worker.started.recv() => first.unwrap(),
            _ = &mut starting => panic!("nobody has answered"),
        }
    };
    let scheduler = scheduler.restart().await;
    scheduler.job(&first.job_id, "unknown").await;
    let retries = futures_util::future::join_all(
        (0..10).map(|_| scheduler.start_with_key("k", body.clone())),
    );
    let (retries, ()) = tokio::join!(retries, worker.come_back(&scheduler, &[]));
    for (status, body) in retries {
        assert_eq!(body["job_id"], first.job_id);
        assert_eq!(status, StatusCode::CREATED);
    }
    let again = soon(worker.started.recv()).await.unwrap();
    assert_eq!(again.job_id, first.job_id);
    assert!(again.epoch > first.epoch);
    assert_eq!(again.env["A"], "secret");
    assert!(worker.started.try_recv().is_err(), "it was sent again once");
    worker.beats.send(Vec::new(), false).await.unwrap();
    assert_eq!(scheduler.sql("SELECT count(*) FROM jobs"), 1);
    assert_eq!(
        scheduler.sql("SELECT count(*) FROM jobs WHERE env IS NOT NULL"),
        0
    );
    scheduler.end().await;
}

#[tokio::test]
async fn a_stop_for_a_worker_that_is_away_is_delivered() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let started = soon(worker.started.recv()).await.unwrap();
    worker.beats.send(Vec::new(), false).await.unwrap();
    let scheduler = scheduler.restart().await;
    let stop = json!({"job_id": id, "signal": "INT", "grace_ms": 5});
    let (status, body) = scheduler.post("/stop", stop).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (504, &json!("worker_unreachable"))
    );
    let error = body["error"].as_str().unwrap();
    assert!(
        error.ends_with("the stop is recorded and will be delivered when it is back"),
        "{error}"
    );
    let body = scheduler.job(&id, "unknown").await;
    assert!(
        body["job"]["reason"]
            .as_str()
            .unwrap()
            .contains("stop is recorded")
    );
    // Twice, so that it is known to be on the disk.
    let scheduler = scheduler.restart().await;
    worker.come_back(&scheduler, &[&id]).await;
    let sent = soon(worker.stopped.recv()).await.unwrap();
    assert_eq!(
        (sent.job_id.as_str(), sent.signal, sent.grace_ms),
        (id.as_str(), 2, Some(5))
    );
    assert!(sent.no_wait && sent.epoch > started.epoch + 1);
    worker.come_back(&scheduler, &[&id]).await;
    let stopping = scheduler.post(
        "/stop",
        json!({"job_id": id, "signal": "TERM", "no_wait": true}),
    );
    assert_eq!(stopping.await.0, StatusCode::OK);
    let sent = soon(worker.stopped.recv()).await.unwrap();
    assert_eq!(sent.signal, 15, "the other was delivered once");
    scheduler.end().await;
}

#[tokio::test]
async fn a_stop_of_a_job_that_is_being_started_waits_for_its_start() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let scheduler = scheduler.restart().await;
    let stop = json!({ "job_id": id });
    let (answer, _) = scheduler.post("/stop", stop).await;
    assert_eq!(answer, StatusCode::GATEWAY_TIMEOUT);
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    let begins = report(&id, status(proto::JobState::Pending));
    worker.beats.send(vec![begins], true).await.unwrap();
    assert!(
        worker.stopped.try_recv().is_err(),
        "there is nothing to stop yet"
    );
    let runs = report(&id, status(proto::JobState::Running));
    worker.beats.send(vec![runs], false).await.unwrap();
    let sent = soon(worker.stopped.recv()).await.unwrap();
    assert_eq!(sent.job_id, id);
    scheduler.end().await;
}

#[tokio::test]
async fn a_stop_ends_a_job_that_never_arrived() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let (_, body) = scheduler.post("/start", json!({"command": "slow"})).await;
    let id = body["job_id"].as_str().unwrap().to_owned();
    let (status, _) = scheduler.post("/stop", json!({ "job_id": id })).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    soon(worker.started.recv()).await.unwrap();
    worker.come_back(&scheduler, &[]).await;
    let body = scheduler.job(&id, "stopped").await;
    assert_eq!(body["error_text"], "stopped before it was started");
    assert!(worker.started.try_recv().is_err(), "it was not sent again");
    let text = scheduler
        .text(&format!("/logs?job_id={id}"), api::NDJSON, &[])
        .await;
    assert_eq!(text.lines().count(), 1);
    scheduler.end().await;
}

#[tokio::test]
async fn nothing_is_acknowledged_and_nothing_started_while_the_disk_is_full() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    worker.beats.send(Vec::new(), false).await.unwrap();
    // No page more than there are.
    scheduler.store.limit_pages(1);
    let large = "x".repeat(100_000);
    let spec = StartJobRequest {
        command: large.clone(),
        created_us: 1_000_000,
        ..Default::default()
    };
    let adopted = "11111111-2222-4333-8444-555555555555";
    let found = JobReport {
        spec: Some(spec),
        ..status_report(adopted)
    };
    worker.beats.sequence += 1;
    let message = HeartbeatRequest {
        sequence: worker.beats.sequence,
        jobs: vec![report(&id, ended(proto::JobState::Failed, 7)), found],
        ..Default::default()
    };
    worker.beats.requests.send(message).await.unwrap();
    scheduler.job(adopted, "running").await;
    let body = json!({"command": "true", "args": [large]});
    let (status, answer) = scheduler.start_with_key("k", body.clone()).await;
    assert_eq!(
        (status.as_u16(), &answer["code"]),
        (507, &json!("disk_full"))
    );
    let before = worker.beats.sequence - 1;
    // More than a stream keeps apart.
    for _ in 0..5000 {
        let answer = soon(worker.beats.answers.message()).await.unwrap().unwrap();
        assert_eq!(
            answer.acknowledged, before,
            "a sign of life, and no acknowledgement of what is not on the disk"
        );
        worker.beats.sequence += 1;
        let beat = HeartbeatRequest {
            sequence: worker.beats.sequence,
            ..Default::default()
        };
        worker.beats.requests.send(beat).await.unwrap();
    }
    let (_, jobs) = scheduler.get("/jobs").await;
    assert_eq!(
        jobs["jobs"].as_array().unwrap().len(),
        2,
        "the refused start is no job"
    );
    assert_eq!(scheduler.sql("SELECT count(*) FROM jobs"), 1);

    scheduler.store.limit_pages(1_000_000);
    worker.beats.acknowledged().await.unwrap();
    assert_eq!(scheduler.sql("SELECT count(*) FROM jobs"), 2);
    let (status, _) = scheduler.start_with_key("k", body).await;
    assert_eq!(status, StatusCode::CREATED);
    let scheduler = scheduler.restart().await;
    let body = scheduler.job(&id, "failed").await;
    assert_eq!(body["job"]["exit_code"], 7);
    scheduler.end().await;
}

#[tokio::test]
async fn a_stop_that_there_is_no_room_to_record_is_delivered() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    scheduler.store.limit_pages(1);
    // The first of them find room in the pages that there are.
    const STOPS: i64 = 60;
    for _ in 0..STOPS {
        let stop = json!({ "job_id": id, "no_wait": true });
        let (status, answer) = scheduler.post("/stop", stop).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(soon(worker.stopped.recv()).await.unwrap().job_id, id);
    }
    let lines = "SELECT count(*) FROM audit WHERE line ->> '$.action' = 'stop'";
    assert!(scheduler.sql(lines) < STOPS, "there is no room");
    scheduler.store.limit_pages(1_000_000);
    // Written in its order, and so after them.
    scheduler.start("true").await;
    assert_eq!(scheduler.sql(lines), STOPS);
    scheduler.end().await;
}

#[tokio::test]
async fn an_order_that_there_is_no_room_to_record_is_refused_and_not_done() {
    let scheduler = TestScheduler::new().await;
    let worker = Joined::new(&scheduler, "w1").await;
    let shown = async || scheduler.get("/workers").await.1["workers"][0].clone();
    let stored = "SELECT count(*) FROM workers WHERE orders = '{\"labels\":{},\"drain\":null}'";
    assert_eq!(scheduler.sql(stored), 1);
    scheduler.store.limit_pages(1);
    // The first of them find room in the pages that there are.
    let refused = async |verb: &str, body: &Value| {
        for _ in 0..1000 {
            let (status, answer) = scheduler
                .post(&format!("/workers/{verb}"), body.clone())
                .await;
            if status != StatusCode::OK {
                assert_eq!(status.as_u16(), 507, "{answer}");
                assert_eq!(answer["code"], "disk_full");
                return;
            }
        }
        panic!("{verb}: it never gets full");
    };
    let label = json!({"worker_id": "w1", "labels": {"zone": null}});
    refused("label", &label).await;
    let label = json!({"worker_id": "w1", "labels": {"zone": "eu"}});
    let drain = json!({"worker_id": "w1", "deadline_ms": 1});
    for (verb, body) in [("label", &label), ("drain", &drain)] {
        refused(verb, body).await;
        let worker = shown().await;
        assert_eq!(
            (&worker["state"], &worker["draining"]),
            (&json!("ready"), &json!(false))
        );
        assert_eq!(worker["labels"], json!({}), "{verb}");
    }
    let mut grpc = scheduler.grpc().await;
    let goodbye = proto::DeregisterWorkerRequest {
        worker_id: worker.id.clone(),
        ..Default::default()
    };
    soon(grpc.deregister_worker(goodbye)).await.unwrap();
    let removed = json!({"worker_id": "w1"});
    refused("remove", &removed).await;
    assert_eq!(shown().await["state"], "left");
    scheduler.store.limit_pages(1_000_000);
    for (verb, body) in [("label", &label), ("drain", &drain)] {
        let (status, answer) = scheduler
            .post(&format!("/workers/{verb}"), body.clone())
            .await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let scheduler = scheduler.restart().await;
    let (_, workers) = scheduler.get("/workers").await;
    let worker = &workers["workers"][0];
    assert_eq!(
        (&worker["labels"]["zone"], &worker["draining"]),
        (&json!("eu"), &json!(true))
    );
    let (status, answer) = scheduler.post("/workers/remove", removed).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let scheduler = scheduler.restart().await;
    assert_eq!(scheduler.get("/workers").await.1["workers"], json!([]));
    scheduler.end().await;
}

#[tokio::test]
async fn a_stop_of_what_waits_says_that_it_counts_and_is_not_recorded() {
    let scheduler = TestScheduler::new().await;
    let start = async |body| {
        let (status, body) = scheduler.post("/start", body).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["job_id"].as_str().unwrap().to_owned()
    };
    let mut waiting = Vec::new();
    for _ in 0..60 {
        waiting.push(start(json!({"command": "true"})).await);
    }
    let (status, group) = scheduler
        .post("/start", json!({"command": "true", "count": 2}))
        .await;
    assert_eq!(status, StatusCode::CREATED, "{group}");
    let group = group["group_id"].as_str().unwrap();
    scheduler.store.limit_pages(1);
    waiting.push(group.to_owned());
    let mut unrecorded = 0;
    for id in &waiting {
        let (status, answer) = scheduler.post("/stop", json!({ "job_id": id })).await;
        match status.as_u16() {
            200 => assert_eq!(unrecorded, 0, "there was room before"),
            507 => {
                assert_eq!(answer["code"], "stop_unrecorded", "{answer}");
                unrecorded += 1;
            }
            _ => panic!("{answer}"),
        }
    }
    assert!(unrecorded > 1, "there is no room");
    waiting.pop();
    for id in &waiting {
        scheduler.job(id, "stopped").await;
    }
    scheduler.store.limit_pages(1_000_000);
    start(json!({"command": "true"})).await;
    let stopped = "SELECT count(*) FROM jobs WHERE state = 'stopped'";
    assert_eq!(scheduler.sql(stopped), 62);
    scheduler.end().await;
}

#[tokio::test]
async fn deleted_jobs_are_forgotten_on_their_worker_too() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let scheduler = TestScheduler::on(dir, Duration::from_secs(60), 2).await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let mut jobs = Vec::new();
    for _ in 0..4 {
        let id = scheduler.start("true").await;
        worker.ends(&id, 0).await;
        jobs.push(id);
    }
    // The last end is there, and with it the two that are too many are deleted.
    let mut told = worker.beats.forgets(2).await;
    let deleted: Vec<_> = jobs.iter().filter(|id| told.contains(id)).collect();
    assert_eq!(deleted.len(), 2);
    let (_, body) = scheduler.get("/jobs").await;
    assert_eq!(body["jobs"].as_array().unwrap().len(), 2);
    let (status, _) = scheduler.post("/query", json!({ "job_id": told[0] })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    // Not confirmed: it is told again, and a deleted job is not adopted.
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    let spec = StartJobRequest {
        command: "true".to_owned(),
        ..Default::default()
    };
    let found = JobReport {
        spec: Some(spec),
        ..report(&told[0], ended(proto::JobState::Succeeded, 0))
    };
    worker.beats.send(vec![found], true).await.unwrap();
    let mut again = worker.beats.forgets(2).await;
    again.sort();
    told.sort();
    assert_eq!(again, told);
    let (status, _) = scheduler.post("/query", json!({ "job_id": told[0] })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    worker.beats.sequence += 1;
    let message = HeartbeatRequest {
        sequence: worker.beats.sequence,
        forgotten: told,
        ..Default::default()
    };
    worker.beats.requests.send(message).await.unwrap();
    worker.beats.acknowledged().await.unwrap();
    assert_eq!(scheduler.sql("SELECT count(*) FROM forget"), 0);
    scheduler.end().await;
}

fn some_worker() -> StoredWorker {
    StoredWorker {
        id: crate::ids::WorkerId::random(),
        name: "w9".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        version: String::new(),
        left: false,
        registered_at: jiff::Timestamp::now(),
        heard_at: None,
        told: Default::default(),
        orders: Default::default(),
    }
}

#[tokio::test]
async fn a_store_that_somebody_else_writes_for_a_moment_is_waited_for() {
    let scheduler = TestScheduler::new().await;
    let file = scheduler.dir.path().join("store.sqlite");
    let other = rusqlite::Connection::open(file).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let ticket = scheduler.store.worker(some_worker());
    let written = scheduler.store.committed(ticket);
    tokio::pin!(written);
    let early = tokio::time::timeout(Duration::from_millis(50), &mut written);
    assert!(early.await.is_err(), "neither written nor given up");
    other.execute_batch("ROLLBACK").unwrap();
    soon(written).await.unwrap();
    assert_eq!(scheduler.sql("SELECT count(*) FROM workers"), 1);
    scheduler.end().await;
}

#[tokio::test]
async fn a_store_that_fails_ends_the_scheduler() {
    let scheduler = TestScheduler::new().await;
    let file = scheduler.dir.path().join("store.sqlite");
    let other = rusqlite::Connection::open(file).unwrap();
    // As good as a failed sync: what is to be written cannot be.
    other.execute_batch("DROP TABLE workers").unwrap();
    scheduler.store.worker(some_worker());
    let ended = soon(scheduler.task).await.unwrap();
    assert!(matches!(ended, Err(Error::Store(_))), "{ended:?}");
}

#[tokio::test]
async fn the_worker_has_only_the_output_left() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    worker.ends(&id, 3).await;
    worker.writes(
        vec![Ok(chunk(0, b"ab")), Ok(last(2, JobStatus::default()))],
        Some(()),
    );
    let path = format!("/logs?job_id={id}&follow=true");
    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    let end: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(end["job"]["exit_code"], 3);
    scheduler.end().await;
}

#[tokio::test]
async fn a_gap_is_said_in_every_format() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    worker.ends(&id, 3).await;
    let gap = |offset, gap, cause: proto::GapCause| StreamJobResponse {
        offset,
        gap,
        gap_cause: cause.into(),
        ..Default::default()
    };
    let messages = vec![
        Ok(chunk(0, b"ab")),
        Ok(gap(2, 30, proto::GapCause::Unspecified)),
        Ok(gap(32, 10, proto::GapCause::DiskFull)),
        Ok(chunk(42, b"c\n")),
        Ok(gap(44, 1, proto::GapCause::Unspecified)),
        Ok(last(45, JobStatus::default())),
    ];
    worker.writes(messages, Some(()));
    let path = format!("/logs?job_id={id}&follow=true");
    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    let line = |number| serde_json::from_str::<Value>(text.lines().nth(number).unwrap()).unwrap();
    assert_eq!(line(1), json!({"offset": 2, "gap": 30}));
    assert_eq!(
        line(2),
        json!({"offset": 32, "gap": 10, "cause": "disk_full"})
    );
    let text = scheduler.text(&path, "text/event-stream", &[]).await;
    assert!(
        text.contains("id: 32\ndata: {\"offset\":2,\"gap\":30}\n"),
        "{text}"
    );
    // Bytes alone, and the size of what is missing after them.
    assert_eq!(scheduler.text(&path, "text/plain", &[]).await, "abc\n");
    let trailer = trailers_of(&scheduler, &path).await;
    assert!(
        trailer.contains("jobctl-missing-bytes: 41\r\n"),
        "{trailer}"
    );
    // Words among them, for who asks for that.
    let path = format!("{path}&gaps=true");
    let text = scheduler.text(&path, "text/plain", &[]).await;
    assert_eq!(
        text,
        "ab\n[jobctl: 40 bytes of output are missing here: the worker's disk was full]\n\
         c\n[jobctl: 1 byte of output is missing here]\n"
    );
    worker.writes(
        vec![Ok(chunk(0, b"ab")), Ok(last(2, JobStatus::default()))],
        Some(()),
    );
    let trailer = trailers_of(&scheduler, &path).await;
    assert!(!trailer.contains("jobctl-missing-bytes:"), "{trailer}");
    scheduler.end().await;
}

/// What comes after the body of an answer, in lower case.
async fn trailers_of(scheduler: &TestScheduler, path: &str) -> String {
    let mut client = TcpStream::connect(scheduler.http).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nTE: trailers\r\nConnection: close\r\n\r\n",
        scheduler.token
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut raw = Vec::new();
    soon(client.read_to_end(&mut raw)).await.unwrap();
    let text = String::from_utf8_lossy(&raw).to_ascii_lowercase();
    text.rsplit_once("\r\n0\r\n").unwrap().1.to_owned()
}

#[tokio::test]
async fn a_worker_that_leaves_out_ends_is_asked_for_what_is_on_record_before_it_is_lost() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let mut started = Vec::new();
    for _ in 0..4 {
        started.push(scheduler.start("true").await);
    }
    let [running, over, known, gone] = &started[..] else {
        panic!("four jobs were started");
    };
    let scheduler = scheduler.restart().await;
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    let list = HeartbeatRequest {
        sequence: 1,
        jobs: vec![status_report(running)],
        snapshot_complete: true,
        ends_left_out: true,
        ..Default::default()
    };
    worker.beats.requests.send(list).await.unwrap();
    let asked = loop {
        let answer = soon(worker.beats.answers.message()).await.unwrap().unwrap();
        if !answer.tell_of.is_empty() {
            break answer.tell_of;
        }
    };
    let asked: HashSet<String> = asked.into_iter().collect();
    assert_eq!(asked, HashSet::from([over, known, gone].map(String::clone)));
    // It is asked once, and nothing follows before it has answered.
    worker.beats.send(Vec::new(), false).await.unwrap();
    scheduler.only_worker_is("joining").await;
    let told = HeartbeatRequest {
        sequence: 2,
        jobs: vec![
            report(over, ended(proto::JobState::Failed, 3)),
            status_report(known),
        ],
        told_of: true,
        ..Default::default()
    };
    worker.beats.requests.send(told).await.unwrap();
    worker.beats.sequence = 2;
    worker.beats.acknowledged().await.unwrap();
    scheduler.only_worker_is("ready").await;
    for (job, state) in [
        (running, "running"),
        (over, "failed"),
        (known, "running"),
        (gone, "lost"),
    ] {
        scheduler.job(job, state).await;
    }
    scheduler.end().await;
}

#[tokio::test]
async fn a_worker_that_is_asked_for_many_jobs_is_asked_for_some_at_a_time() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    // As if the worker had had this many.
    let many = crate::roles::scheduler::grpc::MAX_ASKED + 1;
    let connection = rusqlite::Connection::open(scheduler.dir.path().join("store.sqlite")).unwrap();
    let scheduler = scheduler
        .restart_after(|| {
            connection
                .execute(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1 - 1)
                     INSERT INTO jobs (id, worker, state, created_us, spec, record)
                     SELECT unhex(printf('%032x', i)), worker, state, created_us, spec,
                         json_set(record, '$.id', printf('00000000-0000-0000-0000-%012x', i))
                     FROM n, jobs",
                    [i64::try_from(many).unwrap()],
                )
                .unwrap();
        })
        .await;
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    let list = HeartbeatRequest {
        snapshot_complete: true,
        ends_left_out: true,
        ..Default::default()
    };
    worker.beats.requests.send(list).await.unwrap();
    let mut asked = Vec::new();
    while asked.len() < many {
        let answer = soon(worker.beats.answers.message()).await.unwrap().unwrap();
        if answer.tell_of.is_empty() {
            continue;
        }
        assert!(answer.tell_of.len() < many);
        asked.extend(answer.tell_of);
        let told = HeartbeatRequest {
            told_of: true,
            ..Default::default()
        };
        worker.beats.requests.send(told).await.unwrap();
    }
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), many);
    scheduler.job(&id, "lost").await;
    scheduler.end().await;
}
