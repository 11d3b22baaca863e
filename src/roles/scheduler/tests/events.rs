//! `GET /events`: what those who watch are told, and how they go on.

use super::*;

/// Somebody who watches.
struct Watching {
    answer: reqwest::Response,
    text: String,
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    id: String,
    name: String,
    data: Value,
}

impl Watching {
    async fn new(scheduler: &TestScheduler, query: &str, last: Option<&str>) -> Self {
        let url = format!("http://{}/events{query}", scheduler.http);
        let mut request = scheduler.client.get(url);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = soon(request.send()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream");
        Self {
            answer,
            text: String::new(),
        }
    }

    /// The next block of lines, or None at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                return Some(block);
            }
            let chunk = soon(self.answer.chunk()).await.ok()??;
            self.text += str::from_utf8(&chunk).unwrap();
        }
    }

    async fn next(&mut self) -> Told {
        loop {
            let block = self.block().await.unwrap();
            let line = |prefix| {
                let line = block.lines().find_map(|line| line.strip_prefix(prefix));
                line.unwrap_or_default().to_owned()
            };
            let name = line("event: ");
            if !name.is_empty() {
                return Told {
                    id: line("id: "),
                    name,
                    data: serde_json::from_str(&line("data: ")).unwrap(),
                };
            }
        }
    }

    /// The next that is about that, and is so.
    async fn until(&mut self, id: &str, state: &str) -> Told {
        loop {
            let told = self.next().await;
            assert_ne!(told.name, "reset", "{told:?}");
            if told.data["id"] == id && told.data["state"] == state {
                return told;
            }
        }
    }
}

#[tokio::test]
async fn a_job_s_life_is_told_in_order_and_again_to_who_comes_back() {
    let scheduler = TestScheduler::new().await;
    let mut watching = Watching::new(&scheduler, "", None).await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let ready = watching.until(&worker.id, "ready").await;
    assert_eq!(ready.name, "worker");
    let id = scheduler.start("sleep").await;
    let pending = watching.until(&id, "pending").await;
    assert_eq!(
        (pending.name.as_str(), &pending.data["worker"]),
        ("job", &json!("w1"))
    );
    let running = watching.until(&id, "running").await;
    let reports = vec![report(&id, ended(proto::JobState::Failed, 3))];
    worker.beats.send(reports, false).await.unwrap();
    let failed = watching.until(&id, "failed").await;
    let (_, body) = scheduler.post("/query", json!({ "job_id": id })).await;
    assert_eq!(failed.data, body["job"]);
    let number = |told: &Told| -> u64 {
        let (epoch, sequence) = told.id.split_once('-').unwrap();
        assert_eq!(epoch, ready.id.split_once('-').unwrap().0);
        sequence.parse().unwrap()
    };
    let numbers = [&ready, &pending, &running, &failed].map(number);
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");

    for (query, last) in [
        (String::new(), Some(pending.id.as_str())),
        (format!("?after={}", pending.id), None),
        // The header is newer than the address.
        (format!("?after={}", ready.id), Some(pending.id.as_str())),
    ] {
        let mut again = Watching::new(&scheduler, &query, last).await;
        assert_eq!(again.until(&id, "running").await, running);
        assert_eq!(again.until(&id, "failed").await, failed);
    }
    scheduler.end().await;
    while let Some(block) = watching.block().await {
        assert!(block.contains("worker"), "{block}");
    }
}

#[tokio::test]
async fn only_what_is_asked_for_is_told() {
    let scheduler = TestScheduler::new().await;
    let mut first = Joined::new(&scheduler, "w1").await;
    let (_, body) = scheduler
        .post(
            "/start",
            json!({"command": "a", "worker_id": "w1", "count": 2}),
        )
        .await;
    let group = body["group_id"].as_str().unwrap();
    soon(first.started.recv()).await.unwrap();
    soon(first.started.recv()).await.unwrap();
    let mut of_group = Watching::new(&scheduler, &format!("?job_id={group}"), None).await;
    let mut groups = Watching::new(&scheduler, "?kind=group", None).await;
    let mut workers = Watching::new(&scheduler, "?kind=worker", None).await;
    let second = Joined::new(&scheduler, "w2").await;
    let mut of_worker = Watching::new(&scheduler, "?worker_id=w2&kind=job", None).await;
    let (_, body) = scheduler
        .post("/start", json!({"command": "b", "worker_id": "w2"}))
        .await;
    let other = body["job_id"].as_str().unwrap();
    let (_, body) = scheduler.get(&format!("/jobs?group_id={group}")).await;
    let members: Vec<&str> = [0, 1]
        .map(|n| body["jobs"][n]["id"].as_str().unwrap())
        .into();
    for member in &members {
        let reports = vec![report(member, ended(proto::JobState::Succeeded, 0))];
        first.beats.send(reports, false).await.unwrap();
    }
    // Its jobs' own changes, and of the group that it has ended.
    let mut told = Vec::new();
    while told.last().is_none_or(|told: &Told| told.name != "group") {
        told.push(of_group.next().await);
    }
    let end = told.pop().unwrap();
    assert_eq!(end.data["states"]["succeeded"], 2, "{end:?}");
    assert!(end.data["ended_at"].is_string());
    for told in told {
        assert_eq!(told.data["group_id"], group, "{told:?}");
    }
    assert_eq!(groups.next().await, end);
    assert_eq!(of_worker.next().await.data["id"], other);
    assert_eq!(workers.next().await.data["id"], second.id.as_str());

    let one = members[0];
    for (query, status, said) in [
        (
            "?kind=jobs".to_owned(),
            400,
            "no such kind of event: 'jobs'",
        ),
        ("?job_id=nobody".to_owned(), 404, "nobody"),
        ("?worker_id=w9".to_owned(), 404, "w9"),
        ("?after=7".to_owned(), 400, "EPOCH-SEQUENCE"),
        ("?jobs=1".to_owned(), 400, "unknown field"),
        (
            format!("?job_id={one}&kind=worker,group"),
            400,
            "no such events",
        ),
        ("?worker_id=w1&kind=group".to_owned(), 400, "no such events"),
    ] {
        let (found, body) = scheduler.get(&format!("/events{query}")).await;
        assert_eq!(found.as_u16(), status, "{query}: {body}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(said), "{query}: {error}");
    }
    scheduler.end().await;
}

#[tokio::test]
async fn a_group_is_told_of_when_it_begins_with_all_its_jobs() {
    let scheduler = TestScheduler::new().await;
    let mut watching = Watching::new(&scheduler, "", None).await;
    let asked = json!({"command": "a", "count": 50});
    let (_, body) = scheduler.post("/start", asked).await;
    let begun = watching.next().await;
    assert_eq!(begun.data["id"], body["group_id"]);
    assert_eq!(begun.data["states"]["pending"], 50);
    let lone = scheduler.start("b").await;
    // Nothing of jobs that only wait.
    assert_eq!(watching.next().await.data["id"], lone.as_str());
    let (status, _) = scheduler
        .post("/stop", json!({ "job_id": body["group_id"] }))
        .await;
    assert_eq!(status, StatusCode::OK);
    let stopped = watching.next().await;
    assert_eq!(
        (stopped.name.as_str(), &stopped.data["ended_at"]),
        ("group", &Value::Null)
    );
    for _ in 0..50 {
        assert_eq!(watching.next().await.data["state"], "stopped");
    }
    assert_eq!(watching.next().await.data["states"]["stopped"], 50);
    scheduler.end().await;
}

#[tokio::test]
async fn after_a_restart_everything_is_to_be_listed_anew() {
    let scheduler = TestScheduler::new().await;
    let mut watching = Watching::new(&scheduler, "", None).await;
    let id = scheduler.start("sleep").await;
    let told = watching.until(&id, "pending").await;
    let scheduler = scheduler.restart().await;
    let mut again = Watching::new(&scheduler, "", Some(&told.id)).await;
    let reset = again.next().await;
    assert_eq!(reset.name, "reset");
    assert_eq!(reset.data["after"], reset.id);
    let reason = reset.data["reason"].as_str().unwrap();
    assert!(reason.contains("restarted"), "{reason}");
    // From there on nothing is missed.
    let next = scheduler.start("sleep").await;
    again.until(&next, "pending").await;
    let mut resumed = Watching::new(&scheduler, "", Some(&reset.id)).await;
    resumed.until(&next, "pending").await;
    // An id that was never given out.
    let (epoch, _) = reset.id.split_once('-').unwrap();
    let never = format!("{epoch}-999999");
    let mut astray = Watching::new(&scheduler, "", Some(&never)).await;
    assert_eq!(astray.next().await.name, "reset");
    scheduler.end().await;
}

#[tokio::test]
async fn lines_of_json_say_the_same() {
    let scheduler = TestScheduler::new().await;
    let mut sse = Watching::new(&scheduler, "", None).await;
    let url = format!("http://{}/v1/events", scheduler.http);
    let request = scheduler
        .client
        .get(url)
        .header(header::ACCEPT, api::NDJSON);
    let mut answer = soon(request.send()).await.unwrap();
    let id = scheduler.start("sleep").await;
    let mut text = String::new();
    while text.lines().count() < 2 || !text.ends_with('\n') {
        let chunk = soon(answer.chunk()).await.unwrap().unwrap();
        text += str::from_utf8(&chunk).unwrap();
    }
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["event"], "keep_alive");
    let told = sse.until(&id, "pending").await;
    let expected = json!({ "id": told.id, "event": "job", "data": told.data });
    assert_eq!(lines[1], expected);
    let parsed: api::Event = serde_json::from_value(lines[1].clone()).unwrap();
    assert_eq!(parsed.id.to_string(), told.id);
    scheduler.end().await;
}

#[tokio::test]
async fn who_is_revoked_is_told_no_more() {
    let scheduler = TestScheduler::new().await;
    let asked = json!({ "kind": "bearer", "role": "viewer" });
    let (status, token) = scheduler.post("/tokens", asked).await;
    assert_eq!(status, StatusCode::CREATED, "{token}");
    let viewer = client_with(token["token"].as_str().unwrap());
    let url = format!("http://{}/events", scheduler.http);
    let answer = soon(viewer.get(url).send()).await.unwrap();
    let mut watching = Watching {
        answer,
        text: String::new(),
    };
    assert!(watching.block().await.unwrap().contains("keep-alive"));
    let revoked = json!({ "id": token["id"] });
    scheduler.post("/tokens/revoke", revoked).await;
    assert_eq!(watching.block().await, None);
    scheduler.end().await;
}
