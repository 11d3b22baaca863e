//! What both servers do whoever asks: refusals, health, and the end.

use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};

use super::*;

#[tokio::test]
async fn bad_requests_are_told_apart() {
    let scheduler = TestScheduler::new().await;
    let url = |path: &str| format!("http://{}{path}", scheduler.http);
    let raw = |body: &'static str, content_type: &'static str| {
        let request = scheduler.client.post(url("/start")).body(body);
        request.header(header::CONTENT_TYPE, content_type)
    };
    let json_type = "application/json";
    let big = scheduler
        .client
        .post(url("/start"))
        .header(header::CONTENT_TYPE, json_type)
        .body("x".repeat(api::MAX_BODY + 1));
    for (request, status, code, said) in [
        (raw("{", json_type), 400, "bad_request", "line 1"),
        (
            raw(r#"{"command": 3}"#, json_type),
            400,
            "bad_request",
            "command: invalid type",
        ),
        (
            raw(r#"{"comand": "x"}"#, json_type),
            400,
            "bad_request",
            "unknown field `comand`",
        ),
        (
            raw(r#"["w1", "echo"]"#, json_type),
            400,
            "bad_request",
            "not a JSON object",
        ),
        (
            scheduler
                .client
                .post(url("/start"))
                .header(header::CONTENT_TYPE, json_type)
                .body(json!({"command": "x".repeat(20_000)}).to_string()),
            400,
            "bad_request",
            "command is longer than 4096 bytes",
        ),
        (
            raw(r#"{"command": ""}"#, json_type),
            400,
            "bad_request",
            "empty",
        ),
        (
            raw("{}", "text/plain"),
            415,
            "unsupported_media_type",
            "content-type",
        ),
        (big, 413, "body_too_large", "1048576"),
        (
            scheduler.client.get(url("/v1/nowhere")),
            404,
            "route_not_found",
            "/v1/nowhere",
        ),
        (
            scheduler.client.get(url("/v1/start")),
            405,
            "method_not_allowed",
            "/v1/start",
        ),
        (
            scheduler.client.get(url("/logs")),
            400,
            "bad_request",
            "job_id",
        ),
        (
            scheduler.client.get(url("/logs?job_id=x&ofset=1")),
            400,
            "bad_request",
            "ofset",
        ),
        (
            scheduler.client.get(url("/logs?job_id=nobody")),
            404,
            "job_not_found",
            "nobody",
        ),
        (
            scheduler.client.get(url("/jobs?limit=0")),
            400,
            "bad_request",
            "limit",
        ),
        (
            scheduler.client.get(url("/jobs?state=dead")),
            400,
            "bad_request",
            "dead",
        ),
        (
            scheduler.client.get(url("/jobs?after=x")),
            400,
            "bad_request",
            "after",
        ),
        (
            scheduler.client.get(url("/jobs?worker_id=w9")),
            404,
            "worker_not_found",
            "w9",
        ),
        (
            scheduler.client.get(url("/readyz?workers=1")),
            503,
            "not_ready",
            "0 of 1",
        ),
    ] {
        let answer = soon(request.send()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{code} {said}");
        let error: api::Error = soon(answer.json()).await.unwrap();
        assert_eq!(error.code, code);
        assert!(
            error.error.contains(said),
            "{} does not say {said}",
            error.error
        );
    }
    let start = json!({"command": "true", "no_queue": true});
    let (status, body) = scheduler.post("/start", start).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let error = body["error"].as_str().unwrap();
    assert!(error.ends_with("there is no worker"), "{error}");
    let (_, body) = scheduler.get("/jobs").await;
    assert_eq!(body, json!({"jobs": [], "next": null}));
    scheduler.end().await;
}

#[tokio::test]
async fn a_request_has_an_id() {
    let scheduler = TestScheduler::new().await;
    let answer = scheduler.request(Method::GET, "/livez", None).await;
    assert!(answer.headers().contains_key(api::REQUEST_ID));
    let request = scheduler
        .client
        .get(format!("http://{}/version", scheduler.http));
    let answer = soon(request.header(api::REQUEST_ID, "mine").send())
        .await
        .unwrap();
    assert_eq!(answer.headers()[api::REQUEST_ID], "mine");
    scheduler.end().await;
}

#[tokio::test]
async fn health_is_told_over_grpc() {
    let scheduler = TestScheduler::new().await;
    let channel = Channel::from_shared(format!("http://{}", scheduler.grpc)).unwrap();
    let channel = soon(channel.connect()).await.unwrap();
    let request = HealthCheckRequest {
        service: "jobscheduler.Scheduler".to_owned(),
    };
    let answer = soon(HealthClient::new(channel).check(request))
        .await
        .unwrap();
    assert_eq!(answer.into_inner().status, ServingStatus::Serving as i32);
    scheduler.end().await;
}

#[tokio::test]
async fn shutdown_ends_what_would_stay_open() {
    let scheduler = TestScheduler::new().await;
    let mut worker = Joined::new(&scheduler, "w1").await;
    let id = scheduler.start("true").await;
    worker.writes(vec![Ok(chunk(0, b"ab"))], None);
    let path = format!("/logs?job_id={id}&follow=true");
    let mut follower = scheduler.request(Method::GET, &path, None).await;
    assert_eq!(soon(follower.chunk()).await.unwrap().unwrap(), "ab");
    let mut idle = TcpStream::connect(scheduler.http).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 12];
    soon(idle.read_exact(&mut first)).await.unwrap();
    let _silent = TcpStream::connect(scheduler.http).await.unwrap();
    let query = json!({"job_id": id, "wait_ms": 60_000});
    let waiting = scheduler.request(Method::POST, "/query", Some(query));
    let stop = async {
        // The request before it on the same connection pool has been answered,
        // so that this one is under way.
        scheduler.get("/workers").await;
        scheduler.shutdown.cancel();
    };
    let (answer, ()) = tokio::join!(waiting, stop);
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(soon(follower.chunk()).await.is_err(), "no clean end");
    assert_eq!(worker.beats.over().await.code(), Code::Unavailable);
    let began = std::time::Instant::now();
    soon(scheduler.task).await.unwrap().unwrap();
    assert!(began.elapsed() < DRAIN, "nothing had to be cut off");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_half_a_request() {
    let scheduler = TestScheduler::new().await;
    let mut half = TcpStream::connect(scheduler.http).await.unwrap();
    let request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez HTTP/1.1\r\nHo";
    half.write_all(request).await.unwrap();
    let mut first = [0; 12];
    soon(half.read_exact(&mut first)).await.unwrap();
    scheduler.end().await;
}

#[tokio::test]
async fn shutdown_cuts_off_who_would_never_go() {
    let scheduler = TestScheduler::new().await;
    let channel = Channel::from_shared(format!("http://{}", scheduler.grpc)).unwrap();
    let channel = soon(channel.connect()).await.unwrap();
    let request = HealthCheckRequest::default();
    let mut client = HealthClient::new(channel);
    let mut watched = soon(client.watch(request)).await.unwrap().into_inner();
    let mut health = async || soon(watched.message()).await.unwrap().unwrap().status;
    assert_eq!(health().await, ServingStatus::Serving as i32);
    scheduler.shutdown.cancel();
    assert_eq!(health().await, ServingStatus::NotServing as i32);
    scheduler.end().await;
}

#[tokio::test]
async fn without_tls_the_service_for_programs_asks_for_a_token() {
    use proto::{ListJobsRequest, jobs_client::JobsClient};
    let scheduler = TestScheduler::new().await;
    let address = format!("http://{}", scheduler.grpc);
    let mut client = soon(JobsClient::connect(address)).await.unwrap();
    // Whoever shows nothing passes for a worker, which may not.
    let refused = soon(client.list_jobs(ListJobsRequest::default())).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let with = |token: &str| {
        let mut request = Request::new(ListJobsRequest::default());
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    };
    let refused = soon(client.list_jobs(with("a.b"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let listed = soon(client.list_jobs(with(&scheduler.token))).await;
    assert_eq!(listed.unwrap().into_inner().jobs.len(), 0);
    scheduler.end().await;
}
