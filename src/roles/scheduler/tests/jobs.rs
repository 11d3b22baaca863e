//! Jobs: how one starts, how it ends, and how it is stopped.

use super::*;

#[tokio::test]
async fn a_job_runs_and_its_end_is_known() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let (status, body) = scheduler
        .post(
            "/v1/start",
            json!({"worker_id": "w1", "command": "sh", "args": ["-c", "exit 3"],
                   "env": {"A": "secret"}, "name": "nightly", "timeout_ms": 600_000}),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let id = body["job_id"].as_str().unwrap();
    assert_eq!(body, json!({ "job_id": id, "state": "running" }));
    let sent = soon(worker.started.recv()).await.unwrap();
    assert_eq!((sent.job_id.as_str(), &sent.session), (id, &worker.session));
    assert_eq!((sent.args.len(), sent.env["A"].as_str()), (2, "secret"));
    assert_eq!(sent.timeout_ms, 600_000);

    let (_, body) = scheduler
        .post("/query", json!({ "job_id": "nightly" }))
        .await;
    assert_eq!(body["done"], false);
    assert_eq!(body["job"]["state"], "running");
    assert_eq!(body["job"]["env"], json!(["A"]));
    assert_eq!(body["job"]["pid"], 7);

    let waiting = scheduler.post("/query", json!({ "job_id": "last", "wait_ms": 60_000 }));
    let reports = vec![report(id, ended(proto::JobState::Failed, 3))];
    let (answer, sent) = tokio::join!(waiting, worker.beats.send(reports, false));
    sent.unwrap();
    let body = answer.1;
    assert_eq!(
        (&body["done"], &body["error"], &body["error_text"]),
        (&json!(true), &json!(true), &json!("exit status 3"))
    );
    let reports = vec![report(id, ended(proto::JobState::Succeeded, 0))];
    worker.beats.send(reports, false).await.unwrap();
    let body = scheduler.job(id, "failed").await;
    assert_eq!(body["job"]["exit_code"], 3);

    let (_, body) = scheduler.get("/jobs?state=failed,lost&worker_id=w1").await;
    assert_eq!(body["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(body["next"], Value::Null);
    let (_, body) = scheduler.get("/workers").await;
    assert_eq!(body["workers"][0]["state"], "ready");
    scheduler.end().await;
}

/// Every job behind `query`, page by page, and how many pages that were.
async fn walked(scheduler: &TestScheduler, query: &str) -> (Vec<String>, usize) {
    let (mut found, mut pages, mut after) = (Vec::new(), 0, String::new());
    loop {
        let path = format!("/jobs?limit=1000&{query}{after}");
        let text = scheduler.text(&path, "application/json", &[]).await;
        assert!(text.len() < api::MAX_PAGE_BYTES + 1024, "{}", text.len());
        let page: Value = serde_json::from_str(&text).unwrap();
        pages += 1;
        let jobs = page["jobs"].as_array().unwrap().iter();
        found.extend(jobs.map(|job| job["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return (found, pages),
        }
    }
}

#[tokio::test]
async fn a_page_has_so_many_bytes_and_no_job_is_passed_over() {
    let scheduler = TestScheduler::new().await;
    // As JSON each takes six bytes.
    let large = "\u{1}".repeat(40_000);
    let mut started = Vec::new();
    for _ in 0..12 {
        let asked = json!({ "command": "true", "args": [large], "name": "large" });
        let (status, body) = scheduler.post("/start", asked).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        started.push(body["job_id"].as_str().unwrap().to_owned());
    }
    started.reverse();
    assert_eq!(walked(&scheduler, "").await, (started.clone(), 2));
    // From memory, the disk, and both.
    for id in started.iter().step_by(2) {
        let (status, _) = scheduler.post("/stop", json!({ "job_id": id })).await;
        assert_eq!(status, StatusCode::OK);
    }
    assert_eq!(walked(&scheduler, "name=large").await, (started.clone(), 2));
    for id in started.iter().skip(1).step_by(2) {
        scheduler.post("/stop", json!({ "job_id": id })).await;
    }
    let (found, pages) = walked(&scheduler, "state=stopped").await;
    assert_eq!((found, pages), (started, 2));

    let asked = json!({ "command": "true", "args": [large], "count": 12 });
    let (_, body) = scheduler.post("/start", asked).await;
    let group = body["group_id"].as_str().unwrap();
    let query = format!("group_id={group}");
    let (found, pages) = walked(&scheduler, &query).await;
    assert_eq!((found.len(), pages), (12, 2));
    scheduler.post("/stop", json!({ "job_id": group })).await;
    assert_eq!(walked(&scheduler, &query).await, (found, pages));
    scheduler.end().await;
}

#[tokio::test]
async fn a_refused_start_is_recorded_as_failed() {
    let scheduler = TestScheduler::new().await;
    let _worker = Joined::new(&scheduler, "w1").await;
    let (status, body) = scheduler
        .post("/start", json!({"command": "missing"}))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(body["code"], "program_not_found");
    assert_eq!(body["error"], "program 'missing' not found");
    let id = body["job_id"].as_str().unwrap();
    let body = scheduler.job(id, "failed").await;
    assert_eq!(body["job"]["start_error"], "program_not_found");
    assert_eq!(
        body["error_text"],
        "could not start: program 'missing' not found"
    );
    let path = format!("/logs?job_id={id}&follow=true");
    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["job"]["state"], "failed");
    let (status, body) = scheduler.get(&format!("/logs?job_id={id}&offset=1")).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (416, &json!("offset_past_end"))
    );
    scheduler.end().await;
}

#[tokio::test]
async fn a_start_that_is_not_answered_is_unknown_and_sent_again() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    for command in ["once", "twice"] {
        let (status, body) = scheduler
            .post(
                "/start",
                json!({"command": command, "env": {"A": "secret"}}),
            )
            .await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(body["code"], "worker_unreachable");
        assert_eq!(body["error"], "worker w1 did not answer within 1s");
        let id = body["job_id"].as_str().unwrap().to_owned();
        let first = soon(worker.started.recv()).await.unwrap();
        scheduler.job(&id, "unknown").await;
        worker.register(&scheduler).await;
        worker.beat(&scheduler).await;
        worker.beats.send(Vec::new(), true).await.unwrap();
        scheduler.job(&id, "running").await;
        let again = soon(worker.started.recv()).await.unwrap();
        assert_eq!((&again.job_id, &again.session), (&id, &worker.session));
        assert_eq!(again.env["A"], "secret");
        let same = StartJobRequest {
            session: first.session.clone(),
            ..again
        };
        assert_eq!(same, first);
        let reports = vec![report(&id, ended(proto::JobState::Succeeded, 0))];
        worker.beats.send(reports, false).await.unwrap();
    }
    scheduler.end().await;
}

#[tokio::test]
async fn a_start_goes_on_when_its_client_goes_away() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let mut client = TcpStream::connect(scheduler.http).await.unwrap();
    let body = r#"{"command":"slow"}"#;
    let request = format!(
        "POST /start HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        scheduler.token,
        body.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let sent = soon(worker.started.recv()).await.unwrap();
    drop(client);
    scheduler.job(&sent.job_id, "unknown").await;
    scheduler.end().await;
}

#[tokio::test]
async fn a_stop_waits_until_the_job_is_gone() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let other = Joined::new(&scheduler, "w2").await;
    let (_, body) = scheduler
        .post("/start", json!({"worker_id": worker.id, "command": "true"}))
        .await;
    let id = body["job_id"].as_str().unwrap();
    let (status, body) = scheduler
        .post("/stop", json!({"worker_id": other.id, "job_id": id}))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (409, &json!("job_on_other_worker"))
    );
    assert!(body["error"].as_str().unwrap().contains("w1"));
    let (status, body) = scheduler
        .post("/stop", json!({"job_id": id, "signal": "NOPE"}))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (400, &json!("bad_request"))
    );

    let stop = json!({"job_id": id, "signal": "int", "grace_ms": 5, "no_wait": true});
    let (status, body) = scheduler.post("/stop", stop).await;
    assert_eq!((status, body), (StatusCode::OK, json!({"success": true})));
    let sent = soon(worker.stopped.recv()).await.unwrap();
    assert_eq!(
        (sent.signal, sent.grace_ms, sent.no_wait),
        (2, Some(5), true)
    );

    let stopping = scheduler.post("/stop", json!({"worker_id": "w1", "job_id": id}));
    let ending = async {
        let sent = soon(worker.stopped.recv()).await.unwrap();
        assert_eq!((sent.signal, sent.grace_ms, sent.no_wait), (0, None, true));
        let status = JobStatus {
            exit_code: None,
            signal: Some(15),
            reason: "stopped: signal: terminated".to_owned(),
            ..ended(proto::JobState::Stopped, 0)
        };
        let reports = vec![report(id, status)];
        worker.beats.send(reports, false).await.unwrap();
    };
    let ((status, body), ()) = tokio::join!(stopping, ending);
    assert_eq!((status, body), (StatusCode::OK, json!({"success": true})));
    let body = scheduler.job(id, "stopped").await;
    assert_eq!(body["error_text"], "stopped: signal: terminated");
    let (status, body) = scheduler.post("/stop", json!({ "job_id": id })).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (409, &json!("job_finished"))
    );
    assert!(body["error"].as_str().unwrap().contains("terminated"));
    scheduler.end().await;
}
