//! Those who want too much, or never say what they want.

use std::{
    ffi::{OsStr, OsString},
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use jobctl::{
    api::StartRequest,
    client::{Client, Error, Logs},
    identity::Role,
    ids::JobId,
    net::bounds::Bounds,
};
use rustls::{ClientConnection, pki_types::ServerName};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{interval, timeout},
};

use crate::{
    attacker::{
        Answer, JSON, Outcome, Shown, config, connect, dial, exchange, http, memory, post,
        read_all, secure,
    },
    cluster::{Place, Process, TestCluster, end_of, everything, output, sh, start_worker_with},
    support::{Folder, LIMIT, eventually, within},
};

/// Where attackers call from, so that others do not suffer for them.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));

/// What a scheduler may need for all that happens here, in KiB.
const MEMORY: u64 = 256 * 1024;

/// A scheduler as a process, which answers.
async fn process(place: Place, data: &Path) -> (Process, Client) {
    let scheduler = Process::scheduler(place, data);
    let client = place.client();
    up(&client).await;
    (scheduler, client)
}

async fn up(client: &Client) {
    within(async {
        let mut pause = interval(Duration::from_millis(10));
        while client.version().await.is_err() {
            pause.tick().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let (place, dir) = (Place::new(), Folder::new());
    let (scheduler, client) = process(place, dir.path()).await;
    let to = place.http();
    let admin = Shown::new(Role::Admin, "alice");
    let before = memory(scheduler.id());
    let huge = "x".repeat(10 << 20);
    for shown in [Some(&admin), None] {
        for path in ["/start", "/join"] {
            let answer = http(&to, shown, &format!("POST {path}"), JSON, &huge).await;
            match (shown, path) {
                (None, "/start") => assert_eq!(answer.outcome, Outcome::Answered(401)),
                _ => assert_eq!(answer.code(), "body_too_large", "{path}"),
            }
        }
    }
    // And one that does not say how long it is.
    let head = format!(
        "POST /start HTTP/1.1\r\nhost: {to}\r\n{JSON}connection: close\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, "x".repeat(1 << 16));
    let request = format!("{head}{}0\r\n\r\n", chunk.repeat(160));
    let mut stream = connect(&to, Some(&admin), "http/1.1").await.unwrap();
    let answer = Answer::of(exchange(&mut stream, request.as_bytes()).await);
    assert_eq!(answer.code(), "body_too_large");

    let many = json!({ "command": "true", "args": vec!["x"; 100_000] });
    let answer = post(&to, Some(&admin), "/start", &many).await;
    assert_eq!(answer.outcome, Outcome::Answered(400), "{}", answer.text);
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = http(&to, Some(&admin), "POST /start", JSON, &nested).await;
    assert_eq!(answer.outcome, Outcome::Answered(400), "{}", answer.text);

    let long = format!("x-long: {}\r\n", "x".repeat(20 * 1024));
    let many = "x-many: x\r\n".repeat(20_000);
    let path = format!("GET /{}", "x".repeat(40_000));
    for (call, headers) in [
        ("GET /jobs", long),
        ("GET /jobs", many),
        (&*path, String::new()),
    ] {
        let answer = http(&to, Some(&admin), call, &headers, "").await;
        let refused = [
            Outcome::Answered(431),
            Outcome::Answered(414),
            Outcome::Closed,
        ];
        assert!(refused.contains(&answer.outcome), "{answer:?}");
    }
    up(&client).await;
    let grown = memory(scheduler.id()).saturating_sub(before);
    println!("memory grown by {grown} KiB");
    assert!(grown < MEMORY);
}

/// Writes `bytes` one by one, as long as somebody takes them.
async fn drip(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let dripped = async {
        let mut pause = interval(Duration::from_millis(20));
        for byte in bytes {
            pause.tick().await;
            if writer.write_all(&[*byte]).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = dripped => unreachable!(),
        answer = read_all(&mut reader) => answer,
    }
}

#[tokio::test]
async fn whoever_takes_for_ever_is_hung_up_on() {
    let patience = Duration::from_millis(500);
    let cluster = TestCluster::start_with(0, |config| {
        config.bounds = Bounds {
            handshake: patience,
            headers: patience,
            ..Bounds::default()
        };
    })
    .await;
    let admin = Shown::new(Role::Admin, "alice");
    for to in [cluster.place.http(), cluster.place.grpc()] {
        // Silent, and with half of a handshake.
        let mut silent = dial(&to, None).await.unwrap();
        assert_eq!(read_all(&mut silent).await, b"");
        let mut half = dial(&to, None).await.unwrap();
        half.write_all(&hello()).await.unwrap();
        read_all(&mut half).await;
        let mut begun = dial(&to, None).await.unwrap();
        drip(&mut begun, &hello()).await;
        // Nothing after it, or too slowly.
        for (shown, protocol) in [(None, "h2"), (Some(&admin), "h2")] {
            let mut stream = connect(&to, shown, protocol).await.unwrap();
            read_all(&mut stream).await;
            let mut stream = connect(&to, shown, protocol).await.unwrap();
            drip(&mut stream, &[PREFACE, &SETTINGS, &[0; 4096]].concat()).await;
        }
    }
    // The headers of the second request on an HTTP/2 connection.
    let worker = Folder::new();
    let worker = start_worker_with(cluster.place, 1, worker.path(), |config| {
        config.bounds.headers = patience;
    })
    .await;
    cluster.ready(1).await;
    let place = cluster.place;
    for to in [place.http(), place.grpc(), place.worker(1)] {
        let mut stream = connect(&to, Some(&admin), "h2").await.unwrap();
        let asks = headers(1, "GET", "/livez", &to, END_HEADERS | END_STREAM);
        let asks = [PREFACE, &SETTINGS, &asks].concat();
        stream.write_all(&asks).await.unwrap();
        let answered = |(kind, _, stream)| kind == 1 && stream == 1;
        let seen = read_frames(&mut stream, answered).await;
        assert!(frames(&seen).into_iter().any(answered), "{to}");
        let begun = Instant::now();
        drip(&mut stream, &frame(1, END_HEADERS, 3, &[0; 4096])).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "{to}");
    }
    worker.end().await;
    let to = cluster.place.http();
    for shown in [None, Some(&admin)] {
        let mut stream = connect(&to, shown, "http/1.1").await.unwrap();
        read_all(&mut stream).await;
        let mut stream = connect(&to, shown, "http/1.1").await.unwrap();
        let drips = format!(
            "GET /livez HTTP/1.1\r\nhost: {to}\r\nx: {}",
            "x".repeat(4096)
        );
        let answer = Answer::of(drip(&mut stream, drips.as_bytes()).await);
        assert_ne!(answer.outcome, Outcome::Answered(200));
        // The second request on a connection is not different.
        let mut stream = connect(&to, shown, "http/1.1").await.unwrap();
        let first = format!("GET /livez HTTP/1.1\r\nhost: {to}\r\n\r\n");
        stream.write_all(first.as_bytes()).await.unwrap();
        let answers = drip(&mut stream, drips.as_bytes()).await;
        let count = String::from_utf8_lossy(&answers)
            .matches("HTTP/1.1 200")
            .count();
        assert_eq!(count, 1);
    }
    // A body that is never all there, from somebody who is not known.
    let head = format!(
        "POST /join HTTP/1.1\r\nhost: {to}\r\n{JSON}content-length: 9000\r\n\r\n{}",
        " ".repeat(8000)
    );
    let mut stream = connect(&to, None, "http/1.1").await.unwrap();
    let answer = Answer::of(drip(&mut stream, head.as_bytes()).await);
    assert_ne!(answer.outcome, Outcome::Answered(200));
    let mut stream = connect(&cluster.place.grpc(), None, "h2").await.unwrap();
    let to = cluster.place.grpc();
    let join = "/jobscheduler.Scheduler/Join";
    let request = [
        PREFACE,
        &SETTINGS,
        &headers(1, "POST", join, &to, END_HEADERS),
    ]
    .concat();
    stream.write_all(&request).await.unwrap();
    stream.flush().await.unwrap();
    // The connection may go on; the call may not.
    read_frames(&mut stream, |(kind, ..)| kind == 1).await;
    cluster.end().await;
}

/// What a client says first in a TLS handshake.
fn hello() -> Vec<u8> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = ClientConnection::new(config(None, "h2").into(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// How long each of `count` requests took, each on a connection of its own.
async fn timed(place: Place, count: usize) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        within(place.client().workers()).await.unwrap();
        took.push(begun.elapsed());
    }
    took.sort();
    took
}

fn report(what: &str, took: &[Duration]) {
    let at = |part: usize| took[(took.len() * part / 100).min(took.len() - 1)];
    println!(
        "{what}: p50 {:?}, p99 {:?}, max {:?}",
        at(50),
        at(99),
        at(100)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_keeps_nobody_out() {
    let (place, dir) = (Place::new(), Folder::new());
    let (scheduler, client) = process(place, dir.path()).await;
    report("alone", &timed(place, 50).await);
    let before = memory(scheduler.id());
    let flood = tokio::spawn(async move {
        let mut held = Vec::new();
        for number in 0..4000 {
            let to = if number % 4 < 2 {
                place.http()
            } else {
                place.grpc()
            };
            let Ok(mut stream) = dial(&to, Some(ELSEWHERE)).await else {
                continue;
            };
            if number % 2 == 0 {
                let _ = stream.write_all(&hello()).await;
            }
            held.push(stream);
        }
        held
    });
    let during = timed(place, 100).await;
    let held = within(flood).await.unwrap();
    let full = timed(place, 100).await;
    report("while it comes", &during);
    report("while it lasts", &full);
    let grown = memory(scheduler.id()).saturating_sub(before);
    println!("{} connections, memory grown by {grown} KiB", held.len());
    assert!(held.len() > 3900, "{}", held.len());
    assert!(grown < MEMORY);
    assert!(during.last().unwrap() < &Duration::from_secs(20));

    // From the same address one who is served already is served on.
    let mut same = Vec::new();
    for _ in 0..500 {
        same.extend(dial(&place.http(), None).await);
        if same.len() % 50 == 0 {
            within(client.workers()).await.unwrap();
        }
    }
    within(client.workers()).await.unwrap();
}

/// Of a role that is to log more than others here.
fn loud(arg: &OsStr) -> OsString {
    match arg.to_str() {
        Some("warn") => "info".into(),
        _ => arg.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_without_descriptors_says_so_and_goes_on() {
    let (place, dir) = (Place::new(), Folder::new());
    let log = dir.path().join("log");
    let ordinary = Process::scheduler_command(place, dir.path());
    let mut command = Command::new("prlimit");
    command.arg("--nofile=64:64").arg(ordinary.get_program());
    command.args(ordinary.get_args().map(loud));
    command.stdout(Stdio::null());
    command.stderr(std::fs::File::create(&log).unwrap());
    let scheduler = Process::run(command);
    let client = place.client();
    up(&client).await;
    let said = |what: &str| std::fs::read_to_string(&log).unwrap().matches(what).count();
    let begun = Instant::now();
    let mut held: Vec<TcpStream> = Vec::new();
    for number in 0..200 {
        let to = if number % 2 == 0 {
            place.http()
        } else {
            place.grpc()
        };
        held.push(within(dial(&to, Some(ELSEWHERE))).await.unwrap());
    }
    eventually(|| said("cannot accept connections") > 0).await;
    drop(held);
    eventually(|| said("connections are accepted again") > 0).await;
    up(&client).await;
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
    // Once a second at most, for each of the two servers.
    assert!(said("cannot accept connections") <= 2 * (seconds + 1));
    assert!(memory(scheduler.id()) < MEMORY);
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_no_more() {
    let cluster = TestCluster::start_with(0, |config| config.bounds.connections = 4).await;
    let to = cluster.place.http();
    let admin = Shown::new(Role::Admin, "alice");
    let asks = format!("GET /version HTTP/1.1\r\nhost: {to}\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..4 {
        let from = dial(&to, Some(ELSEWHERE)).await.unwrap();
        let mut stream = secure(from, Some(&admin), "http/1.1").await.unwrap();
        stream.write_all(asks.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        within(stream.read_exact(&mut first)).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        held.push(stream);
    }
    let fifth = async |from| {
        let stream = dial(&to, Some(from)).await.unwrap();
        let mut stream = secure(stream, Some(&admin), "http/1.1").await.unwrap();
        let asks = asks.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
        Answer::of(exchange(&mut stream, asks.as_bytes()).await)
    };
    let answer = fifth(ELSEWHERE).await;
    assert_eq!(answer.outcome, Outcome::Answered(429));
    assert_eq!(answer.code(), "too_many_connections");
    let other = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));
    assert_eq!(fifth(other).await.outcome, Outcome::Answered(200));
    held.pop();
    within(async {
        let mut pause = interval(Duration::from_millis(10));
        while fifth(ELSEWHERE).await.outcome != Outcome::Answered(200) {
            pause.tick().await;
        }
    })
    .await;
    drop(held);
    cluster.end().await;
}

#[tokio::test]
async fn a_server_has_so_many_connections_and_no_more() {
    let (place, dir) = (Place::new(), Folder::new());
    let log = dir.path().join("log");
    let ordinary = Process::scheduler_command(place, dir.path());
    let mut command = Command::new(ordinary.get_program());
    command.args(ordinary.get_args().map(loud));
    command.args([
        "--total-connections",
        "4",
        "--handshake",
        "1h",
        "--headers",
        "1h",
    ]);
    command.stdout(Stdio::null());
    command.stderr(std::fs::File::create(&log).unwrap());
    let _scheduler = Process::run(command);
    let said = |what: &str| std::fs::read_to_string(&log).unwrap().matches(what).count();
    let to = place.http();
    eventually(|| said("scheduler listens") > 0).await;
    let admin = Shown::new(Role::Admin, "alice");
    let asks = format!("GET /version HTTP/1.1\r\nhost: {to}\r\n\r\n");
    // The last number of the address from which another one asks for something.
    let served = async |from| {
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, from));
        let mut stream = secure(dial(&to, Some(from)).await?, Some(&admin), "http/1.1").await?;
        stream.write_all(asks.as_bytes()).await?;
        let mut first = [0; 12];
        within(stream.read_exact(&mut first)).await?;
        assert_eq!(&first, b"HTTP/1.1 200");
        Ok::<_, std::io::Error>(stream)
    };
    // Of those that ask for nothing the oldest go, wherever they are from.
    let mut silent = Vec::new();
    for from in 70..74 {
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, from));
        silent.push(dial(&to, Some(from)).await.unwrap());
    }
    let mut held = Vec::new();
    for from in 80..84 {
        assert_eq!(said("no connection is left"), held.len().min(1));
        held.push(served(from).await.unwrap());
    }
    for mut silent in silent {
        assert_eq!(read_all(&mut silent).await, b"");
    }
    // Those that asked for something stay, and nobody comes in beside them.
    for from in [80, 90] {
        served(from).await.unwrap_err();
    }
    for stream in &mut held {
        stream.write_all(asks.as_bytes()).await.unwrap();
        let mut all = [0; 20];
        within(stream.read_exact(&mut all)).await.unwrap();
    }
    assert_eq!(said("no connection is left"), 1);
    assert_eq!(said("connections are left again"), 0);
    held.pop();
    eventually(|| said("connections are left again") == 1).await;
    served(90).await.unwrap();
}

async fn start(client: &Client, request: &StartRequest) -> Result<JobId, Error> {
    Ok(within(client.start(request)).await?.job_id)
}

/// What is refused, with this status and this code, of a start.
async fn refused_start(client: &Client, request: &StartRequest, status: u16, code: &str) -> String {
    match start(client, request).await.unwrap_err() {
        Error::Refused { status: is, error } => {
            assert_eq!((is, &*error.code), (status, code), "{}", error.error);
            error.error
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_settings_say_what_is_taken() {
    let (place, dir) = (Place::new(), Folder::new());
    let settings = dir.path().join("config.toml");
    let text = "[bounds]\nbody_bytes = 2000\nheader_bytes = 8192\nargs = 3\narg_bytes = 100\n\
                streams = 3\njob_followers = 1\nfollowers = 2\n";
    std::fs::write(&settings, text).unwrap();
    let mut command = Process::scheduler_command(place, dir.path());
    let _scheduler = Process::run({
        command.arg("--config").arg(settings);
        command
    });
    let mut command = Process::worker_command(place, 1, &dir.path().join("w1"));
    command.args(["--args", "2"]);
    command.env("JOBCTL_BOUNDS_ARG_BYTES", "50");
    let _worker = Process::run(command);
    let client = place.client();
    up(&client).await;
    client.ready(1, LIMIT).await.unwrap();
    let (to, admin) = (place.http(), Shown::new(Role::Admin, "alice"));

    let body = format!(
        "{{\"command\": \"true\", \"cwd\": \"/{}\"}}",
        "x".repeat(2000)
    );
    let answer = http(&to, Some(&admin), "POST /start", JSON, &body).await;
    assert_eq!(answer.outcome, Outcome::Answered(413));
    assert_eq!(answer.code(), "body_too_large");
    assert!(
        answer.text.contains("larger than 2000 bytes"),
        "{}",
        answer.text
    );

    let long = format!("x-long: {}\r\n", "x".repeat(9000));
    let answer = http(&to, Some(&admin), "GET /jobs", &long, "").await;
    assert_eq!(answer.outcome, Outcome::Answered(431));

    let with = |args: &[&str]| StartRequest {
        command: Some("true".to_owned()),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..Default::default()
    };
    let [most, much] = ["x".repeat(50), "x".repeat(101)];
    for (args, status, said) in [
        (&["", "", "", ""][..], 400, "4 arguments, and 3 are taken"),
        (&[&much], 400, "101 bytes, and 100 are taken"),
        // The worker's own.
        (
            &["", "", ""],
            422,
            "3 arguments, and 2 are taken at most on worker w1",
        ),
        (
            &[&most, "x"],
            422,
            "51 bytes, and 50 are taken at most on worker w1",
        ),
    ] {
        let text = refused_start(&client, &with(args), status, "bad_request").await;
        assert!(text.contains(said), "{text}");
    }
    let id = start(&client, &with(&[&most, ""])).await.unwrap();
    end_of(&client, id).await;

    let mut stream = connect(&to, Some(&admin), "h2").await.unwrap();
    let begun = [1, 3, 5, 7].map(|stream| headers(stream, "POST", "/start", &to, END_HEADERS));
    let request = [PREFACE, &SETTINGS, &begun.concat()].concat();
    stream.write_all(&request).await.unwrap();
    let seen = read_frames(&mut stream, |(kind, _, stream)| kind == 3 && stream == 7).await;
    let refused = frame(3, 0, 7, &[0, 0, 0, 7]);
    assert!(seen.windows(refused.len()).any(|bytes| bytes == refused));

    let followed = |id| async move { within(place.client().logs(everything(id))).await };
    let [first, second, third] = [(); 3].map(|()| sh("sleep 600"));
    let first = start(&client, &first).await.unwrap();
    let (second, third) = (start(&client, &second).await, start(&client, &third).await);
    let (second, third) = (second.unwrap(), third.unwrap());
    let reading = followed(first).await.unwrap();
    let refused = |answer: Result<Logs, Error>| match answer.map(drop).unwrap_err() {
        Error::Refused { status: 503, error } => error,
        other => panic!("{other}"),
    };
    let error = refused(followed(first).await);
    assert_eq!(error.code, "too_many_followers_of_job");
    assert_eq!(error.error, format!("job {first} has 1 followers already"));
    assert_eq!(error.job_id, Some(first));
    let also = followed(second).await.unwrap();
    let error = refused(followed(third).await);
    assert_eq!(error.code, "too_many_followers");
    assert_eq!(error.error, "worker w1 has 2 followers already");
    drop(reading);
    within(async {
        let mut pause = interval(Duration::from_millis(10));
        while followed(third).await.is_err() {
            pause.tick().await;
        }
    })
    .await;
    drop(also);
}

#[tokio::test]
async fn a_worker_has_so_many_followers_and_no_more() {
    let cluster = TestCluster::start(0).await;
    let folder = Folder::new();
    let worker = start_worker_with(cluster.place, 1, folder.path(), |config| {
        config.bounds.followers = 1;
    })
    .await;
    cluster.ready(1).await;
    let id = cluster.sh("sleep 600").await;
    let reading = within(cluster.client.logs(everything(id))).await.unwrap();
    match within(cluster.client.logs(everything(id))).await.map(drop) {
        Err(Error::Refused { status: 503, error }) => {
            assert_eq!(error.code, "too_many_followers");
            assert_eq!(error.error, "worker w1 has its 1 followers already");
        }
        other => panic!("{other:?}"),
    }
    drop(reading);
    worker.end().await;
    cluster.end().await;
}

#[test]
fn bounds_that_make_no_sense_are_refused() {
    let (place, dir) = (Place::new(), Folder::new());
    // Whatever else is in the way.
    let _taken = std::net::TcpListener::bind(place.http()).unwrap();
    for (key, value) in [
        ("header_bytes", "100"),
        ("streams", "0"),
        ("total_connections", "0"),
        ("args", "0"),
        ("arg_bytes", "10000000"),
        ("followers", "0"),
        ("job_followers", "0"),
        ("body_bytes", "0"),
    ] {
        let mut command = Process::scheduler_command(place, dir.path());
        command.env(format!("JOBCTL_BOUNDS_{}", key.to_uppercase()), value);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains(&format!("`bounds.{key}` is {value}")),
            "{text}"
        );
        assert!(text.contains("hint: from"), "{text}");
    }
}

/// What an HTTP/2 client says first (RFC 9113, 3.4), and empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The frames that are there as a whole: kind, flags, stream.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32)> {
    let mut found = Vec::new();
    while let [a, b, c, kind, flags, d, e, f, g, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(after) = rest.get(length..) else {
            break;
        };
        found.push((*kind, *flags, u32::from_be_bytes([*d, *e, *f, *g])));
        bytes = after;
    }
    found
}

/// The headers of a request, none of them in a table (RFC 7541, 6.2.2).
fn headers(stream: u32, method: &str, path: &str, authority: &str, flags: u8) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", method),
        (":scheme", "https"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    frame(1, flags, stream, &block)
}

/// Reads until a frame came that is `wanted`, or the connection ended; all that came.
async fn read_frames(
    stream: &mut (impl AsyncRead + Unpin),
    wanted: impl Fn((u8, u8, u32)) -> bool,
) -> Vec<u8> {
    within(async {
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer).await.unwrap_or_default();
            seen.extend_from_slice(&buffer[..count]);
            if count == 0 || frames(&seen).into_iter().any(&wanted) {
                return seen;
            }
        }
    })
    .await
}

type Pieces<'a> = Box<dyn Iterator<Item = Vec<u8>> + Send + 'a>;

/// Sends pieces as long as they are taken, and reads what comes if `reads`. What
/// became of it, and how many pieces were taken.
async fn flood(
    to: &str,
    shown: Option<&Shown>,
    reads: bool,
    pieces: impl Iterator<Item = Vec<u8>>,
) -> (&'static str, usize) {
    let stream = dial(to, Some(ELSEWHERE)).await.unwrap();
    let stream = secure(stream, shown, "h2").await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(async move {
        match reads {
            true => drop(read_all(&mut reader).await),
            false => std::future::pending().await,
        }
    });
    let mut sent = 0;
    let writing = async {
        writer.write_all(PREFACE).await?;
        writer.write_all(&SETTINGS).await?;
        for piece in pieces {
            writer.write_all(&piece).await?;
            sent += 1;
        }
        writer.flush().await
    };
    let outcome = match timeout(Duration::from_secs(3), writing).await {
        Ok(Ok(())) => "all taken",
        Ok(Err(_)) => "cut off",
        Err(_) => "throttled",
    };
    reading.abort();
    (outcome, sent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_within_a_connection_are_cut_off_or_slowed_down() {
    const MANY: u32 = 50_000;
    let (place, dir) = (Place::new(), Folder::new());
    let (scheduler, client) = process(place, dir.path()).await;
    let mut worker = Process::worker_command(place, 1, &dir.path().join("w1"));
    // Each call it refuses is a line.
    worker.stderr(Stdio::null());
    let worker = Process::run(worker);
    client.ready(1, LIMIT).await.unwrap();
    let viewer = Shown::new(Role::Viewer, "eve");
    for (to, shown, of) in [
        (place.http(), None, &scheduler),
        (place.grpc(), None, &scheduler),
        (place.worker(1), Some(&viewer), &worker),
    ] {
        let before = memory(of.id());
        let streams = || (0..MANY).map(|number| 2 * number + 1);
        let opened = |stream| headers(stream, "GET", "/livez", &to, END_HEADERS | END_STREAM);
        let begun = |stream| headers(stream, "POST", "/join", &to, END_HEADERS);
        let reset = |stream| frame(3, 0, stream, &[0, 0, 0, 8]);
        let never_closed: Vec<u8> = headers(1, "GET", "/livez", &to, 0);
        let more = frame(9, 0, 1, &b"\0\x01x\x01y".repeat(200));
        let empty = frame(9, 0, 1, &[]);
        let floods: Vec<(&str, bool, Pieces<'_>)> = vec![
            (
                "opened and reset",
                true,
                Box::new(streams().map(|stream| [opened(stream), reset(stream)].concat())),
            ),
            (
                "begun and reset",
                true,
                Box::new(streams().map(|stream| [begun(stream), reset(stream)].concat())),
            ),
            ("opened", false, Box::new(streams().map(opened))),
            ("begun", true, Box::new(streams().map(begun))),
            (
                "made to be reset",
                true,
                Box::new(streams().map(|stream| {
                    let zero = frame(8, 0, stream, &[0; 4]);
                    [begun(stream), zero].concat()
                })),
            ),
            (
                "CONTINUATION",
                true,
                Box::new(
                    std::iter::once(never_closed.clone())
                        .chain(std::iter::repeat_n(more, MANY as usize)),
                ),
            ),
            (
                "empty CONTINUATION",
                true,
                Box::new(
                    std::iter::once(never_closed).chain(std::iter::repeat_n(empty, MANY as usize)),
                ),
            ),
            (
                "PING",
                false,
                Box::new((0..20 * MANY).map(|_| frame(6, 0, 0, &[7; 8]))),
            ),
            (
                "SETTINGS",
                false,
                Box::new((0..20 * MANY).map(|_| SETTINGS.to_vec())),
            ),
            (
                "PRIORITY",
                false,
                Box::new(streams().map(|stream| frame(2, 0, stream, &[0, 0, 0, 0, 1]))),
            ),
            (
                "empty DATA",
                true,
                Box::new(
                    std::iter::once(begun(1))
                        .chain(std::iter::repeat_n(frame(0, 0, 1, &[]), MANY as usize)),
                ),
            ),
            (
                "unknown frames",
                true,
                Box::new((0..MANY).map(|_| frame(0x77, 0, 0, &[0; 1000]))),
            ),
        ];
        for (what, reads, pieces) in floods {
            let (outcome, sent) = flood(&to, shown, reads, pieces).await;
            let begun = Instant::now();
            within(client.workers()).await.unwrap();
            if shown.is_some() {
                let id = start(&client, &sh("echo unharmed")).await.unwrap();
                assert_eq!(output(&client, id).await, b"unharmed\n", "{what}");
            }
            let grown = memory(of.id()).saturating_sub(before);
            println!(
                "{to} {what}: {outcome} after {sent}, others wait {:?}, {grown} KiB more",
                begun.elapsed()
            );
            std::io::stdout().flush().unwrap();
            assert!(grown < MEMORY, "{what}: {grown} KiB");
            if matches!(what, "opened and reset" | "CONTINUATION" | "opened") {
                assert_ne!(outcome, "all taken", "{what}");
            }
        }
    }
    up(&client).await;
    assert_eq!(within(timed(place, 20)).await.len(), 20);
}
