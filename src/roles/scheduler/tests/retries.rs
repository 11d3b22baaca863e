//! Jobs that are tried again.

use super::*;

fn failed(output_bytes: u64) -> JobStatus {
    JobStatus {
        output_bytes,
        ..ended(proto::JobState::Failed, 3)
    }
}

impl TestScheduler {
    /// Starts a job that is tried again, and returns its id.
    async fn start_trying(&self, body: Value) -> String {
        let (status, body) = self.post("/start", body).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["job_id"].as_str().unwrap().to_owned()
    }

    async fn query(&self, id: &str) -> Value {
        self.post("/query", json!({ "job_id": id })).await.1
    }
}

#[tokio::test]
async fn a_job_that_fails_is_tried_again_under_another_id() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let body = json!({"command": "sh", "retries": 1, "retry_pause_ms": 1, "env": {"A": "secret"}});
    let id = scheduler.start_trying(body).await;
    let first = soon(worker.started.recv()).await.unwrap();
    assert_eq!((&first.job_id, first.attempt), (&id, 0));
    let reports = vec![report(&id, failed(5))];
    worker.beats.send(reports, false).await.unwrap();
    let second = soon(worker.started.recv()).await.unwrap();
    assert_ne!(second.job_id, id);
    assert_eq!((&second.attempt_of, second.attempt), (&id, 2));
    assert_eq!(second.env["A"], "secret");
    scheduler.job(&id, "running").await;

    // What is said of the first attempt changes nothing any more.
    let reports = vec![report(&id, ended(proto::JobState::Succeeded, 0))];
    worker.beats.send(reports, false).await.unwrap();
    let body = scheduler.job(&id, "running").await;
    assert_eq!(body["job"]["attempt"], 2);

    let success = JobStatus {
        output_bytes: 2,
        ..ended(proto::JobState::Succeeded, 0)
    };
    let reports = vec![report(&second.job_id, success)];
    worker.beats.send(reports, false).await.unwrap();
    let body = scheduler.job(&id, "succeeded").await;
    let job = &body["job"];
    assert_eq!(
        (&job["retries"], &job["output_bytes"]),
        (&json!(1), &json!(7))
    );
    let attempts = job["attempts"].as_array().unwrap();
    let of = |field: &str| -> Vec<Value> { attempts.iter().map(|a| a[field].clone()).collect() };
    assert_eq!(of("number"), [1, 2]);
    assert_eq!(of("state"), ["failed", "succeeded"]);
    assert_eq!(of("run_id"), [id.clone(), second.job_id.clone()]);
    assert_eq!(of("worker"), ["w1", "w1"]);
    assert_eq!(of("exit_code"), [3, 0]);
    assert_eq!(of("reason"), [json!("exit status 3"), Value::Null]);
    assert_eq!(of("offset"), [0, 5]);
    assert_eq!(of("output_bytes"), [5, 2]);
    let (_, list) = scheduler.get("/jobs").await;
    assert_eq!(list["jobs"][0]["attempts"], Value::Null);
    scheduler.end().await;
}

#[tokio::test]
async fn attempts_are_kept_across_a_restart_and_forgotten_with_the_job() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let scheduler = TestScheduler::on(dir, Duration::from_secs(60), 1).await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let body = json!({"command": "sh", "retries": 1, "retry_pause_ms": 1, "env": {"A": "secret"}});
    let id = scheduler.start_trying(body).await;
    soon(worker.started.recv()).await.unwrap();
    let reports = vec![report(&id, failed(0))];
    worker.beats.send(reports, false).await.unwrap();
    soon(worker.started.recv()).await.unwrap();
    let (_, before) = scheduler.get("/jobs").await;

    // The second attempt is lost in the restart of its worker.
    let scheduler = TestScheduler::on(
        {
            scheduler.task.abort();
            assert!(soon(scheduler.task).await.unwrap_err().is_cancelled());
            scheduler.dir
        },
        Duration::from_secs(60),
        1,
    )
    .await;
    let body = scheduler.query(&id).await;
    let run = body["job"]["attempts"][1]["run_id"].as_str().unwrap();
    assert_ne!(run, before["jobs"][0]["id"]);
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    let full = |job: &str, status| JobReport {
        spec: Some(StartJobRequest {
            job_id: job.to_owned(),
            command: "sh".to_owned(),
            ..Default::default()
        }),
        ..report(job, status)
    };
    let jobs = vec![
        full(&id, failed(0)),
        full(run, status(proto::JobState::Running)),
    ];
    worker.beats.send(jobs, true).await.unwrap();
    scheduler.job(&id, "running").await;
    let (_, list) = scheduler.get("/jobs").await;
    let count = list["jobs"].as_array().unwrap().len();
    assert_eq!(count, 1, "no attempt is adopted as a job: {list}");

    worker
        .beats
        .send(vec![report(run, failed(0))], false)
        .await
        .unwrap();
    scheduler.job(&id, "failed").await;
    // The next one that ends takes its place.
    let next = scheduler.start("true").await;
    let reports = vec![report(&next, ended(proto::JobState::Succeeded, 0))];
    worker.beats.send(reports, false).await.unwrap();
    let mut forgotten = worker.beats.forgets(2).await;
    forgotten.sort();
    let mut both = [id.clone(), run.to_owned()];
    both.sort();
    assert_eq!(forgotten, both);
    let jobs = vec![full(&id, failed(0)), full(run, failed(0))];
    worker.beats.send(jobs, false).await.unwrap();
    let (status, _) = scheduler.post("/query", json!({ "job_id": id })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    scheduler.end().await;
}

#[tokio::test]
async fn values_are_kept_until_a_job_cannot_be_started_again() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let body = json!({"command": "sh", "retries": 1, "retry_pause_ms": 1, "env": {"A": "secret"}});
    let id = scheduler.start_trying(body).await;
    soon(worker.started.recv()).await.unwrap();
    scheduler.job(&id, "running").await;
    let scheduler = scheduler.restart().await;
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    worker
        .beats
        .send(vec![report(&id, failed(0))], true)
        .await
        .unwrap();
    let again = soon(worker.started.recv()).await.unwrap();
    assert_eq!(again.env["A"], "secret");
    let body = scheduler.job(&id, "running").await;
    assert_eq!(body["job"]["attempt"], 2);
    let reports = vec![report(&again.job_id, status(proto::JobState::Running))];
    worker.beats.send(reports, false).await.unwrap();
    let file = scheduler.dir.path().join("store.sqlite");
    let store = rusqlite::Connection::open(file).unwrap();
    let kept = "SELECT count(*) FROM jobs WHERE env IS NOT NULL";
    let kept: i64 = store.query_row(kept, (), |row| row.get(0)).unwrap();
    assert_eq!(kept, 0, "there is no third attempt");
    scheduler.end().await;
}

#[tokio::test]
async fn a_start_that_is_refused_is_a_failure_too() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let body = json!({"command": "missing", "retries": 1, "retry_pause_ms": 1});
    let id = scheduler.start_trying(body).await;
    let body = scheduler.job(&id, "failed").await;
    assert_eq!(body["job"]["start_error"], "program_not_found");
    let attempts = body["job"]["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2);
    assert_eq!(attempts[0]["start_error"], "program_not_found");
    assert_eq!(soon(worker.started.recv()).await.unwrap().attempt, 0);
    assert_eq!(soon(worker.started.recv()).await.unwrap().attempt, 2);
    scheduler.end().await;
}

#[tokio::test]
async fn a_stop_ends_a_job_between_attempts_and_takes_the_retries_back() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let body = json!({"command": "sh", "retries": 1, "retry_pause_ms": 3_600_000});
    let id = scheduler.start_trying(body.clone()).await;
    soon(worker.started.recv()).await.unwrap();
    let reports = vec![report(&id, failed(0))];
    worker.beats.send(reports, false).await.unwrap();
    let body_now = scheduler.query(&id).await;
    let reason = body_now["job"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("attempt 2 starts at 2"), "{reason}");
    let (status, _) = scheduler.post("/stop", json!({ "job_id": id })).await;
    assert_eq!(status, StatusCode::OK);
    let stopped = scheduler.job(&id, "stopped").await;
    let said = "stopped between attempts, after attempt 1: exit status 3";
    assert_eq!(stopped["error_text"], said);

    // A job that fails by itself while it is being stopped is not started again.
    let id = scheduler.start_trying(body).await;
    soon(worker.started.recv()).await.unwrap();
    let stopping = scheduler.post("/stop", json!({ "job_id": id }));
    let ending = async {
        soon(worker.stopped.recv()).await.unwrap();
        let reports = vec![report(&id, failed(0))];
        worker.beats.send(reports, false).await.unwrap();
    };
    let ((status, _), ()) = tokio::join!(stopping, ending);
    assert_eq!(status, StatusCode::OK);
    scheduler.job(&id, "failed").await;
    scheduler.end().await;
}

#[tokio::test]
async fn a_lost_job_goes_back_to_the_queue_where_that_was_asked_for() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let lost = scheduler.start("true").await;
    soon(worker.started.recv()).await.unwrap();
    let body = json!({"command": "sh", "on_lost": "requeue"});
    let id = scheduler.start_trying(body).await;
    soon(worker.started.recv()).await.unwrap();
    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    worker.beats.send(Vec::new(), true).await.unwrap();
    let again = soon(worker.started.recv()).await.unwrap();
    assert_eq!((&again.attempt_of, again.attempt), (&id, 2));
    scheduler.job(&lost, "lost").await;
    let body = scheduler.job(&id, "running").await;
    let first = &body["job"]["attempts"][0];
    assert_eq!(
        (&first["state"], &first["reason"]),
        (&json!("lost"), &json!("lost: worker restarted"))
    );
    scheduler.end().await;
}

#[tokio::test]
async fn output_goes_on_with_the_next_attempt() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let script = vec![
        Ok(chunk(0, b"one")),
        Ok(chunk(3, b"two")),
        Ok(last(6, failed(6))),
    ];
    worker.writes(script, Some(()));
    let body = json!({"command": "sh", "retries": 2, "retry_pause_ms": 1});
    let id = scheduler.start_trying(body).await;
    let path = format!("/logs?job_id={id}&follow=true&offset=0");
    // Each attempt ends where its output does.
    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let offsets: Vec<_> = lines
        .iter()
        .filter_map(|line| line["offset"].as_u64())
        .collect();
    assert_eq!(offsets, [0, 3, 6, 9, 12, 15], "{text}");
    assert_eq!(lines.last().unwrap()["job"]["state"], "failed");

    let mut asked = Vec::new();
    while asked.len() < 3 {
        asked.push(soon(worker.streamed.recv()).await.unwrap().job_id);
    }
    assert_eq!(asked[0], id);
    for (query, output, run, offset) in [
        ("", "onetwo", 2, 0),
        ("&offset=9", "twoonetwo", 1, 3),
        ("&offset=12", "onetwo", 2, 0),
        ("&attempt=1", "onetwo", 0, 0),
        ("&attempt=2&offset=9&follow=true", "two", 1, 3),
    ] {
        let path = format!("/logs?job_id={id}{query}");
        let text = scheduler.text(&path, "text/plain", &[]).await;
        assert_eq!(text, output, "{query}");
        let sent = soon(worker.streamed.recv()).await.unwrap();
        assert_eq!(
            (&sent.job_id, sent.offset),
            (&asked[run], offset),
            "{query}"
        );
        while worker.streamed.try_recv().is_ok() {}
    }
    let (status, body) = scheduler.get(&format!("/logs?job_id={id}&attempt=4")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body["error"].as_str().unwrap().contains("no attempt 4"));
    scheduler.end().await;
}

#[tokio::test]
async fn output_that_went_with_an_earlier_worker_is_a_gap() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let body = json!({"command": "sh", "retries": 1, "retry_pause_ms": 1});
    let id = scheduler.start_trying(body).await;
    soon(worker.started.recv()).await.unwrap();
    *worker.refusal.lock().unwrap() = Some(refused(Code::NotFound, "job_not_found", "no such job"));
    let reports = vec![report(&id, failed(6))];
    worker.beats.send(reports, false).await.unwrap();
    let again = soon(worker.started.recv()).await.unwrap();
    scheduler.job(&id, "running").await;
    let reports = vec![report(&again.job_id, failed(0))];
    worker.beats.send(reports, false).await.unwrap();
    let path = format!("/logs?job_id={id}&offset=2");
    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    assert!(text.starts_with("{\"offset\":2,\"gap\":4}\n"), "{text}");
    scheduler.end().await;
}

#[tokio::test]
async fn without_follow_the_last_attempt_ends_where_it_ended_then() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let body = json!({"command": "sh", "retries": 1, "retry_pause_ms": 1});
    let id = scheduler.start_trying(body).await;
    soon(worker.started.recv()).await.unwrap();
    let reports = vec![report(&id, failed(3))];
    worker.beats.send(reports, false).await.unwrap();
    let again = soon(worker.started.recv()).await.unwrap();
    scheduler.job(&id, "running").await;
    // The worker says of it that it has written 9 bytes; by the time they are read
    // they are more.
    let running = status(proto::JobState::Running);
    worker.writes(
        vec![
            Ok(chunk(0, b"one")),
            Ok(chunk(3, b"two three")),
            Ok(last(12, running)),
        ],
        Some(()),
    );
    let path = format!("/logs?job_id={id}&offset=0");
    let text = scheduler.text(&path, "text/plain", &[]).await;
    assert_eq!(text, "onetwo threeonetwo th");
    let first = soon(worker.streamed.recv()).await.unwrap();
    assert_eq!((first.job_id, first.output_bytes), (id, Some(3)));
    let second = soon(worker.streamed.recv()).await.unwrap();
    assert_eq!((second.job_id, second.output_bytes), (again.job_id, None));
    scheduler.end().await;
}
