//! Jobs that wait for a worker.

use super::*;

impl TestScheduler {
    /// Starts a job for which nobody has room.
    async fn wait_for_room(&self, body: Value) -> String {
        let (status, body) = self.post("/start", body).await;
        assert_eq!(
            (status.as_u16(), &body["state"]),
            (201, &json!("pending")),
            "{body}"
        );
        body["job_id"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn jobs_wait_for_a_worker_across_a_restart() {
    let scheduler = TestScheduler::new().await;
    let low = json!({"command": "low", "priority": "low", "env": {"A": "secret"}});
    let low = scheduler.wait_for_room(low).await;
    let high = json!({"command": "high", "priority": "high"});
    let high = scheduler.wait_for_room(high).await;
    let gpu = json!({"command": "gpu", "labels": ["gpu"]});
    let gpu = scheduler.wait_for_room(gpu).await;
    let body = scheduler.job(&low, "pending").await;
    assert_eq!(body["job"]["reason"], "there is no worker");
    assert_eq!(body["job"]["worker"], Value::Null);
    assert_eq!(body["job"]["priority"], -100);

    let scheduler = scheduler.restart().await;
    let body = scheduler.job(&gpu, "pending").await;
    assert_eq!(body["job"]["reason"], "no worker has label gpu");
    let mut worker = Joined::new(&scheduler, "w1").await;
    let mut sent = Vec::new();
    for _ in 0..2 {
        let start = soon(worker.started.recv()).await.unwrap();
        if start.command == "low" {
            assert_eq!(start.env["A"], "secret", "values are kept for the start");
        }
        sent.push(start.job_id);
    }
    sent.sort();
    let mut both = [low.clone(), high.clone()];
    both.sort();
    assert_eq!(sent, both);
    let body = scheduler.job(&low, "running").await;
    assert_eq!(body["job"]["worker"], "w1");
    scheduler.job(&high, "running").await;
    scheduler.job(&gpu, "pending").await;
    scheduler.end().await;
}

#[tokio::test]
async fn a_job_that_waits_is_stopped_at_once_and_has_no_output() {
    let scheduler = TestScheduler::new().await;
    let id = scheduler.wait_for_room(json!({"command": "true"})).await;
    let (status, body) = scheduler.get("/jobs?state=pending").await;
    assert_eq!((status.as_u16(), &body["jobs"][0]["id"]), (200, &json!(id)));
    let logs = scheduler
        .text(&format!("/logs?job_id={id}"), "text/plain", &[])
        .await;
    assert_eq!(logs, "");
    let (status, body) = scheduler.post("/stop", json!({ "job_id": id })).await;
    assert_eq!((status.as_u16(), &body["success"]), (200, &json!(true)));
    let body = scheduler.job(&id, "stopped").await;
    assert_eq!(body["error_text"], "stopped before it was started");
    let (status, body) = scheduler.post("/stop", json!({ "job_id": id })).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (409, &json!("job_finished"))
    );
    let mut worker = Joined::new(&scheduler, "w1").await;
    let next = scheduler.start("true").await;
    let sent = soon(worker.started.recv()).await.unwrap();
    assert_eq!(sent.job_id, next, "the stopped one was never sent");
    scheduler.end().await;
}

#[tokio::test]
async fn a_follower_waits_for_a_job_that_waits() {
    let scheduler = TestScheduler::new().await;
    let worker = Joined::new(&scheduler, "w1").await;
    let end = last(2, ended(proto::JobState::Succeeded, 0));
    *worker.script.lock().unwrap() = (vec![Ok(chunk(0, b"ok")), Ok(end)], Some(()));
    let start = json!({"command": "true", "labels": ["gpu"]});
    let id = scheduler.wait_for_room(start).await;
    let path = format!("/logs?job_id={id}&follow=true");
    let follower = scheduler.text(&path, "text/plain", &[]);
    let label = json!({"worker_id": "w1", "labels": {"gpu": "a100"}});
    let labelled = scheduler.post("/workers/label", label);
    let (text, (status, _)) = tokio::join!(follower, labelled);
    assert_eq!((&*text, status), ("ok", StatusCode::OK));
    scheduler.end().await;
}

#[tokio::test]
async fn a_worker_that_turns_a_job_away_does_not_fail_it() {
    let scheduler = TestScheduler::new().await;
    let mut ending = Joined::new(&scheduler, "w1").await;
    let id = scheduler
        .wait_for_room(json!({"command": "draining"}))
        .await;
    soon(ending.started.recv()).await.unwrap();
    let body = scheduler.job(&id, "pending").await;
    assert_eq!(body["job"]["reason"], "1 worker, not ready");
    let named = json!({"command": "true", "worker_id": "w1", "no_queue": true});
    let (_, body) = scheduler.post("/start", named).await;
    let error = body["error"].as_str().unwrap();
    assert!(error.ends_with("worker w1 is draining"), "{error}");
    // It was told apart from the start that the next worker takes.
    let mut next = Joined::new(&scheduler, "w2").await;
    let sent = soon(next.started.recv()).await.unwrap();
    assert_eq!(sent.job_id, id);
    scheduler.end().await;
}

#[tokio::test]
async fn a_group_whose_jobs_had_all_ended_at_a_crash_has_ended() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let start = json!({"command": "true", "count": 2});
    let (status, body) = scheduler.post("/start", start).await;
    assert_eq!((status.as_u16(), &body["count"]), (201, &json!(2)));
    let group = body["group_id"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        let sent = soon(worker.started.recv()).await.unwrap();
        assert_eq!(sent.env["JOBCTL_COUNT"], "2");
        scheduler.job(&sent.job_id, "running").await;
        let end = vec![report(&sent.job_id, ended(proto::JobState::Failed, 4))];
        worker.beats.send(end, false).await.unwrap();
    }
    let whole = json!({ "job_id": group, "wait_ms": 60_000 });
    let (_, before) = scheduler.post("/query", whole.clone()).await;
    assert_eq!(
        (&before["done"], &before["error"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(before["error_text"], "2 of 2 jobs did not succeed");
    assert_eq!(before["group"]["exit_code"], 4);
    scheduler
        .store
        .committed(scheduler.store.now())
        .await
        .unwrap();
    let store = scheduler.dir.path().join("store.sqlite");
    let scheduler = scheduler.restart_after(move || {
        let store = rusqlite::Connection::open(store).unwrap();
        let undone = "UPDATE groups SET ended_us = NULL,
            record = json_set(record, '$.ended_at', NULL, '$.states.pending', 2)";
        assert_eq!(store.execute(undone, ()).unwrap(), 1);
    });
    let (_, after) = soon(scheduler).await.post("/query", whole).await;
    assert_eq!(after["group"], before["group"]);
}
