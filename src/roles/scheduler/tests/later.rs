//! Jobs that wait for a time.

use jiff::Timestamp;

use super::*;

#[tokio::test]
async fn a_job_starts_when_its_time_has_come() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let not_before = Timestamp::now() + Duration::from_millis(300);
    let later = json!({"command": "true", "not_before": not_before, "env": {"A": "b"}});
    let (status, body) = scheduler.post("/start", later).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    assert_eq!(body["state"], "pending");
    let reason = body["reason"].as_str().unwrap();
    assert!(reason.starts_with("starts at 20"), "{reason}");
    assert!(reason.ends_with("Z, in 1s"), "{reason}");
    let id = body["job_id"].as_str().unwrap().to_owned();
    // One that need not wait does not wait for it.
    let now = scheduler.start("true").await;
    assert_eq!(soon(worker.started.recv()).await.unwrap().job_id, now);
    let sent = soon(worker.started.recv()).await.unwrap();
    assert!(Timestamp::now() >= not_before);
    assert_eq!((&sent.job_id, sent.env["A"].as_str()), (&id, "b"));
    let body = scheduler.job(&id, "running").await;
    assert_eq!(body["job"]["reason"], Value::Null);
    scheduler.end().await;
}

#[tokio::test]
async fn times_are_kept_across_a_restart() {
    let scheduler = TestScheduler::new().await;
    let start = async |body| {
        let (status, body) = scheduler.post("/start", body).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["job_id"].as_str().unwrap().to_owned()
    };
    let far = start(json!({"command": "far", "delay_ms": 3_600_000})).await;
    let near = start(json!({"command": "near", "delay_ms": 1})).await;
    let given_up = start(json!({"command": "true", "deadline_ms": 1})).await;
    let stopped = start(json!({"command": "true", "delay_ms": 3_600_000})).await;
    let (status, _) = scheduler.post("/stop", json!({ "job_id": stopped })).await;
    assert_eq!(status, StatusCode::OK);

    let scheduler = scheduler.restart().await;
    let body = scheduler.job(&given_up, "timed_out").await;
    assert_eq!(body["error_text"], "waited longer than its deadline of 1ms");
    assert_eq!(body["job"]["started_at"], Value::Null);
    assert_eq!(body["job"]["deadline_ms"], 1);
    let mut worker = Joined::new(&scheduler, "w1").await;
    let sent = soon(worker.started.recv()).await.unwrap();
    assert_eq!(sent.job_id, near, "its time has passed");
    let body = scheduler.job(&far, "pending").await;
    let reason = body["job"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("Z, in 59m ") || reason.ends_with("Z, in 1h"),
        "{reason}"
    );
    let body = scheduler.job(&stopped, "stopped").await;
    assert_eq!(body["error_text"], "stopped before it was started");
    scheduler.end().await;
}

/// Between them the clock is wrong, the scheduler restarts, and the clock is right.
#[tokio::test]
async fn times_are_kept_across_a_restart_and_a_step_of_the_clock() {
    const DAYS_40: jiff::SignedDuration = jiff::SignedDuration::from_hours(40 * 24);
    let scheduler = TestScheduler::new().await;
    let mut jobs = Vec::new();
    for step in [DAYS_40, -DAYS_40] {
        scheduler.store.step_clock(step);
        for body in [
            json!({"command": "true", "delay_ms": 3_600_000}),
            json!({"command": "true", "deadline_ms": 3_600_000, "labels": ["gpu"]}),
        ] {
            let (status, body) = scheduler.post("/start", body).await;
            assert_eq!(status, StatusCode::CREATED, "{body}");
            jobs.push(body["job_id"].as_str().unwrap().to_owned());
        }
    }
    let scheduler = scheduler.restart().await;
    // It shows that those whose time has come were looked at.
    let other = json!({"command": "true", "deadline_ms": 1});
    let (_, body) = scheduler.post("/start", other).await;
    let other = body["job_id"].as_str().unwrap();
    scheduler.job(other, "timed_out").await;
    for (number, id) in jobs.iter().enumerate() {
        let body = scheduler.job(id, "pending").await;
        let reason = body["job"]["reason"].as_str().unwrap();
        match number % 2 {
            0 => assert!(
                reason.contains("Z, in 59m ") || reason.ends_with("Z, in 1h"),
                "{reason}"
            ),
            _ => assert!(!reason.contains("deadline"), "{reason}"),
        }
    }
    scheduler.end().await;
}

#[tokio::test]
async fn a_job_that_has_a_worker_is_not_given_up() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let start = json!({"command": "true", "deadline_ms": 50});
    let (_, body) = scheduler.post("/start", start).await;
    let id = body["job_id"].as_str().unwrap();
    soon(worker.started.recv()).await.unwrap();
    // One that is given up shows that the time has passed.
    let other = json!({"command": "true", "deadline_ms": 60, "labels": ["gpu"]});
    let (_, body) = scheduler.post("/start", other).await;
    let other = body["job_id"].as_str().unwrap();
    scheduler.job(other, "timed_out").await;
    scheduler.job(id, "running").await;
    scheduler.end().await;
}
