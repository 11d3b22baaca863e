//! Output on its way from a worker to who asks for it.

use prost::Message as _;

use super::*;

#[tokio::test]
async fn output_is_sent_in_every_format() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let end = ended(proto::JobState::Failed, 3);
    worker.writes(
        vec![
            Ok(chunk(0, b"ab\n")),
            Ok(chunk(3, b"\xff\n")),
            Ok(last(5, end)),
        ],
        Some(()),
    );
    let path = format!("/logs?job_id={id}&follow=true");

    let mut client = TcpStream::connect(scheduler.http).await.unwrap();
    let request = format!(
        "GET {path}&tail=2&stream=stderr HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nTE: trailers\r\nConnection: close\r\n\r\n",
        scheduler.token
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut raw = Vec::new();
    soon(client.read_to_end(&mut raw)).await.unwrap();
    let text = String::from_utf8_lossy(&raw).to_ascii_lowercase();
    assert!(text.contains("trailer: jobctl-state"), "{text}");
    assert!(raw.windows(3).any(|bytes| bytes == b"ab\n"));
    assert!(raw.windows(2).any(|bytes| bytes == b"\xff\n"));
    let (_, trailers) = text.rsplit_once("\r\n0\r\n").unwrap();
    assert!(trailers.contains("jobctl-state: failed"), "{trailers}");
    assert!(trailers.contains("jobctl-exit-code: 3"), "{trailers}");
    assert!(
        trailers.contains("jobctl-error-text: exit status 3"),
        "{trailers}"
    );
    let asked = soon(worker.streamed.recv()).await.unwrap();
    assert_eq!((asked.tail_lines, asked.no_follow), (Some(2), false));
    assert_eq!(asked.stream(), proto::OutputStream::Stderr);
    // The end of the output came before any heartbeat told of it.
    let (_, body) = scheduler.post("/query", json!({ "job_id": id })).await;
    assert_eq!(body["error_text"], "exit status 3");

    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines[0],
        json!({"offset": 0, "time": "1970-01-01T00:00:01Z", "stream": "stderr", "data": "ab\n"})
    );
    assert_eq!(lines[1]["data_base64"], "/wo=");
    assert_eq!(lines[2]["job"]["exit_code"], 3);

    let events = "text/event-stream";
    let text = scheduler
        .text(&path, events, &[("last-event-id", "3")])
        .await;
    assert!(text.starts_with("id: 5\ndata: {\"offset\":3,"), "{text}");
    assert!(
        text.contains("\n\nid: 5-end\nevent: end\ndata: {\"job\":"),
        "{text}"
    );
    // A browser asks again after the end, and stops when there is no content.
    let again = scheduler
        .client
        .get(format!("http://{}{path}", scheduler.http));
    let again = again.header(header::ACCEPT, events);
    let again = again.header("last-event-id", "5-end");
    let again = soon(again.send()).await.unwrap();
    assert_eq!(again.status().as_u16(), 204);
    assert_eq!(soon(again.text()).await.unwrap(), "");

    let url = format!("http://{}{path}", scheduler.http);
    let request = scheduler
        .client
        .get(url)
        .header(header::ACCEPT, api::PROTOBUF_STREAM);
    let mut bytes = soon(soon(request.send()).await.unwrap().bytes())
        .await
        .unwrap();
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        messages.push(StreamJobResponse::decode_length_delimited(&mut bytes).unwrap());
    }
    assert_eq!(messages[1], chunk(3, b"\xff\n"));
    let end = messages[2].end.clone().unwrap();
    assert_eq!(
        (messages[2].offset, end.state()),
        (5, proto::JobState::Failed)
    );

    let (status, body) = scheduler
        .get(&format!("/logs?job_id={id}&offset=2000"))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (416, &json!("offset_past_end"))
    );
    scheduler.end().await;
}

#[tokio::test]
async fn output_that_breaks_off_is_no_clean_end() {
    let scheduler = TestScheduler::new().await;
    let worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let running = last(2, status(proto::JobState::Running));
    for (script, end) in [
        (
            vec![Ok(chunk(0, b"ab")), Err(Status::internal("gone"))],
            Some(()),
        ),
        (vec![Ok(chunk(0, b"ab"))], Some(())),
        (vec![Ok(chunk(0, b"ab")), Ok(running)], Some(())),
    ] {
        worker.writes(script, end);
        let path = format!("/logs?job_id={id}&follow=true");
        let mut answer = scheduler.request(Method::GET, &path, None).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(soon(answer.chunk()).await.unwrap().unwrap(), "ab");
        assert!(soon(answer.chunk()).await.is_err());
    }
    scheduler.end().await;
}

#[tokio::test]
async fn output_that_is_gone_is_not_passed_over() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let written = scheduler.start("true").await;
    let silent = scheduler.start("true").await;
    let end = |bytes| JobStatus {
        output_bytes: bytes,
        ..ended(proto::JobState::Succeeded, 0)
    };
    let reports = vec![report(&written, end(5)), report(&silent, end(0))];
    worker.beats.send(reports, false).await.unwrap();
    let unknown = "the worker has no such job";
    *worker.refusal.lock().unwrap() = Some(refused(Code::NotFound, "job_not_found", unknown));
    let (status, body) = scheduler.get(&format!("/logs?job_id={written}")).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (404, &json!("output_gone"))
    );
    let path = format!("/logs?job_id={silent}");
    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["job"]["state"], "succeeded");
    let (status, body) = scheduler
        .get(&format!("/logs?job_id={}", scheduler.start("true").await))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (404, &json!("job_not_found"))
    );
    scheduler.end().await;
}

#[tokio::test]
async fn a_follower_who_goes_away_ends_the_worker_s_stream() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    worker.writes(vec![Ok(chunk(0, b"ab"))], None);
    let path = format!("/logs?job_id={id}&follow=true");
    let mut answer = scheduler.request(Method::GET, &path, None).await;
    assert_eq!(soon(answer.chunk()).await.unwrap().unwrap(), "ab");
    soon(worker.followers.wait_for(|count| *count == 1))
        .await
        .unwrap();
    drop(answer);
    soon(worker.followers.wait_for(|count| *count == 0))
        .await
        .unwrap();
    scheduler.end().await;
}

#[tokio::test]
async fn who_has_seen_what_a_lost_job_lost_is_at_its_end() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    let path = format!("/logs?job_id={id}&offset=2000");
    let (status, body) = scheduler.get(&path).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (416, &json!("offset_past_end"))
    );
    let lost = JobStatus {
        output_bytes: 1500,
        exit_code: None,
        ..ended(proto::JobState::Lost, 0)
    };
    worker
        .beats
        .send(vec![report(&id, lost)], false)
        .await
        .unwrap();
    let text = scheduler.text(&path, api::NDJSON, &[]).await;
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["job"]["state"], "lost");
    scheduler.end().await;
}
