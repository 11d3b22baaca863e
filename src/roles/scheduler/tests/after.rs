//! Jobs that wait for other jobs.

use super::*;

impl TestScheduler {
    async fn start_after(&self, body: Value) -> (String, Value) {
        let (status, body) = self.post("/start", body).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        (body["job_id"].as_str().unwrap().to_owned(), body)
    }
}

impl Joined {
    async fn end_of(&mut self, job: &str, exit_code: i32) {
        let state = match exit_code {
            0 => proto::JobState::Succeeded,
            _ => proto::JobState::Failed,
        };
        let reports = vec![report(job, ended(state, exit_code))];
        self.beats.send(reports, false).await.unwrap();
    }

    async fn sent(&mut self) -> String {
        soon(self.started.recv()).await.unwrap().job_id
    }
}

/// The first digits of an id, as reasons have them.
fn short(id: &str) -> String {
    id.replace('-', "")[..12].to_owned()
}

#[tokio::test]
async fn chains_and_fans_run_in_order() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let body = json!({"command": "true", "name": "first"});
    let (first, _) = scheduler.start_after(body).await;
    let body = json!({"command": "true", "after": ["first"]});
    let (left, answer) = scheduler.start_after(body).await;
    assert_eq!(answer["state"], "pending");
    let waits = format!("waits for job {} to succeed", short(&first));
    assert_eq!(answer["reason"], waits);
    let body = json!({"command": "true", "after": [&first[..8]]});
    let (right, _) = scheduler.start_after(body).await;
    let body = json!({"command": "true", "after": [left, left], "after_any": ["last"]});
    let (end, _) = scheduler.start_after(body).await;
    let body = scheduler.job(&end, "pending").await;
    assert_eq!(
        body["job"]["after"],
        json!([
            {"job_id": left, "until": "succeeded", "state": null},
            {"job_id": right, "until": "ended", "state": null},
        ])
    );
    assert_eq!(worker.sent().await, first);
    worker.end_of(&first, 0).await;
    let mut both = [worker.sent().await, worker.sent().await];
    both.sort();
    let mut expected = [left.clone(), right.clone()];
    expected.sort();
    assert_eq!(both, expected);
    worker.end_of(&right, 3).await;
    let body = scheduler.job(&end, "pending").await;
    let waits = format!("waits for job {} to succeed", short(&left));
    assert_eq!(body["job"]["reason"], waits);
    worker.end_of(&left, 0).await;
    assert_eq!(worker.sent().await, end);
    let body = scheduler.job(&end, "running").await;
    assert_eq!(body["job"]["after"][1]["state"], "failed");
    scheduler.end().await;
}

#[tokio::test]
async fn what_waits_for_a_job_that_fails_is_stopped_and_the_rest_starts() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let (first, _) = scheduler.start_after(json!({"command": "true"})).await;
    let body = json!({"command": "true", "after": [first]});
    let (second, _) = scheduler.start_after(body).await;
    let body = json!({"command": "true", "after": [second], "delay_ms": 3_600_000});
    let (third, _) = scheduler.start_after(body).await;
    let body = json!({"command": "true", "after_any": [third]});
    let (anyway, _) = scheduler.start_after(body).await;
    assert_eq!(worker.sent().await, first);
    worker.end_of(&first, 3).await;
    let said = format!("job {} failed: exit status 3", short(&first));
    for id in [&second, &third] {
        let body = scheduler.job(id, "stopped").await;
        assert_eq!(body["error_text"], said);
    }
    assert_eq!(worker.sent().await, anyway);

    // The same where it has failed before, and is not in memory any more.
    let body = json!({"command": "true", "after": [first]});
    let (late, answer) = scheduler.start_after(body).await;
    assert_eq!(
        (&answer["state"], &answer["reason"]),
        (&json!("stopped"), &json!(said))
    );
    scheduler.job(&late, "stopped").await;
    let body = json!({"command": "true", "after_any": [first]});
    let (now, answer) = scheduler.start_after(body).await;
    assert_eq!(answer["state"], "running");
    assert_eq!(worker.sent().await, now);

    let body = json!({"command": "true", "after": ["nobody"]});
    let (status, body) = scheduler.post("/start", body).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (404, &json!("job_not_found"))
    );
    scheduler.end().await;
}

#[tokio::test]
async fn a_job_waits_across_restarts_whatever_became_of_the_others() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let mut first = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let (id, _) = scheduler.start_after(json!({"command": "true"})).await;
        assert_eq!(worker.sent().await, id);
        scheduler.job(&id, "running").await;
        let body = json!({"command": "true", "after": [id]});
        waiting.push(scheduler.start_after(body).await.0);
        first.push(id);
    }
    let body = json!({"command": "true", "after_any": [first[2]], "labels": ["gpu"]});
    let (anyway, _) = scheduler.start_after(body).await;
    worker.beats.send(Vec::new(), false).await.unwrap();
    // The second ends, and the third is deleted, without a word to the others.
    scheduler.task.abort();
    assert!(soon(scheduler.task).await.unwrap_err().is_cancelled());
    let file = scheduler.dir.path().join("store.sqlite");
    let store = rusqlite::Connection::open(file).unwrap();
    let bytes = |id: &str| id.parse::<crate::ids::JobId>().unwrap().as_bytes().to_vec();
    let end = json!({"ended": {"process": null, "at": jiff::Timestamp::now(),
        "end": {"failed": {"code": 3}}, "reason": "exit status 3"}});
    let changed = store
        .execute(
            "UPDATE jobs SET ended_us = ?, state = 'failed',
                 record = json_set(record, '$.state', json(?)) WHERE id = ?",
            rusqlite::params![
                jiff::Timestamp::now().as_microsecond(),
                end.to_string(),
                bytes(&first[1])
            ],
        )
        .unwrap();
    let deleted = store.execute("DELETE FROM jobs WHERE id = ?", [bytes(&first[2])]);
    assert_eq!((changed, deleted.unwrap()), (1, 1));
    drop(store);
    let scheduler = TestScheduler::on(scheduler.dir, Duration::from_secs(60), KEEP).await;
    let body = scheduler.job(&waiting[1], "stopped").await;
    let said = format!("job {} failed: exit status 3", short(&first[1]));
    assert_eq!(body["error_text"], said);
    let body = scheduler.job(&waiting[2], "stopped").await;
    let said = format!("job {} is not known any more", short(&first[2]));
    assert_eq!(body["error_text"], said);
    let body = scheduler.job(&anyway, "pending").await;
    assert_eq!(body["job"]["reason"], "no worker has label gpu");

    worker.register(&scheduler).await;
    worker.beat(&scheduler).await;
    let end = report(&first[0], ended(proto::JobState::Succeeded, 0));
    worker.beats.send(vec![end], true).await.unwrap();
    assert_eq!(worker.sent().await, waiting[0]);
    scheduler.end().await;
}

#[tokio::test]
async fn a_job_that_waits_for_another_can_be_stopped_or_given_up() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let (first, _) = scheduler.start_after(json!({"command": "true"})).await;
    assert_eq!(worker.sent().await, first);
    let body = json!({"command": "true", "after": [first]});
    let (stopped, _) = scheduler.start_after(body).await;
    let body = json!({"command": "true", "after": [first], "deadline_ms": 50});
    let (given_up, _) = scheduler.start_after(body).await;
    let (status, _) = scheduler.post("/stop", json!({ "job_id": stopped })).await;
    assert_eq!(status, StatusCode::OK);
    scheduler.job(&stopped, "stopped").await;
    scheduler.job(&given_up, "timed_out").await;
    worker.end_of(&first, 0).await;
    let (next, _) = scheduler.start_after(json!({"command": "true"})).await;
    assert_eq!(worker.sent().await, next, "none of them was sent");
    scheduler.end().await;
}
