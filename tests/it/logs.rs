//! `GET /logs`: every byte, live, from anywhere, for anybody.

use std::fs;

use futures_util::future::join_all;
use jobctl::{
    api::{JobState, LogsQuery, Stream},
    client::{Error, logs::Event},
};

use crate::{
    cluster::{TestCluster, everything, read, rest},
    support::{eventually, within},
    typed::Jobctl,
};

#[tokio::test]
async fn a_line_is_seen_as_soon_as_it_was_written() {
    let cluster = TestCluster::start(1).await;
    let fifo = cluster.data_dir(1).join("fifo");
    let script = format!(
        "mkfifo {fifo}; for i in 1 2 3; do echo $i; read x < {fifo}; done; exit 3",
        fifo = fifo.display()
    );
    let id = cluster.sh(&script).await;
    let mut logs = within(cluster.client.logs(everything(id))).await.unwrap();
    let mut held = Vec::new();
    for expected in ["1\n", "2\n", "3\n"] {
        let Event::Output(message) = within(logs.next()).await.unwrap() else {
            panic!("ended before {expected}");
        };
        assert_eq!(message.output, expected);
        // The job goes on only when its line was seen.
        let mut fifo = fs::File::options()
            .read(true)
            .write(true)
            .open(&fifo)
            .unwrap();
        std::io::Write::write_all(&mut fifo, b"\n").unwrap();
        held.push(fifo);
    }
    let Event::End(status) = within(logs.next()).await.unwrap() else {
        panic!("more output");
    };
    assert_eq!(
        (status.state, status.exit_code),
        (JobState::Failed, Some(3))
    );
    cluster.end().await;
}

#[tokio::test]
async fn every_offset_stream_and_tail_is_served() {
    let cluster = TestCluster::start(1).await;
    let id = cluster.sh("printf 'one\\ntwo\\n\\377\\nfour\\n'").await;
    let whole = b"one\ntwo\n\xff\nfour\n";
    cluster.end_of(id).await;
    for offset in 0..=whole.len() {
        let query = LogsQuery {
            offset: Some(offset as u64),
            ..everything(id)
        };
        assert_eq!(
            read(&cluster.client, query).await.unwrap(),
            &whole[offset..]
        );
    }
    let tail = LogsQuery {
        tail: Some(2),
        follow: false,
        ..everything(id)
    };
    assert_eq!(read(&cluster.client, tail).await.unwrap(), b"\xff\nfour\n");
    let stderr = LogsQuery {
        stream: Some(Stream::Stderr),
        ..everything(id)
    };
    assert_eq!(read(&cluster.client, stderr).await.unwrap(), b"");
    let past = LogsQuery {
        offset: Some(16),
        ..everything(id)
    };
    let error = read(&cluster.client, past).await.unwrap_err();
    assert!(
        matches!(error, Error::Refused { status: 416, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("16") && error.to_string().contains("15"),
        "{error}"
    );
    cluster.end().await;
}

#[tokio::test]
async fn without_follow_it_ends_with_what_is_there() {
    let cluster = TestCluster::start(1).await;
    let id = cluster.sh("echo there; sleep 600").await;
    let mut logs = within(cluster.client.logs(everything(id))).await.unwrap();
    within(logs.next()).await.unwrap();
    let query = LogsQuery {
        follow: false,
        ..everything(id)
    };
    assert_eq!(read(&cluster.client, query).await.unwrap(), b"there\n");
    cluster.end().await;
}

#[tokio::test]
async fn fifty_followers_see_the_same_bytes() {
    let cluster = TestCluster::start(1).await;
    let file = cluster.data_dir(1).join("random");
    let fifo = cluster.data_dir(1).join("fifo");
    let script = format!(
        "mkfifo {fifo}; {{ head -c 3000000 /dev/urandom; read x < {fifo}; \
         head -c 300000 /dev/urandom; }} | tee {file}",
        fifo = fifo.display(),
        file = file.display()
    );
    let id = cluster.sh(&script).await;
    let mut followers = Vec::new();
    for _ in 0..50 {
        let mut logs = within(cluster.client.logs(everything(id))).await.unwrap();
        followers.push(tokio::spawn(async move { rest(&mut logs).await }));
    }
    // All of them follow; the job writes its last part to them live.
    eventually(|| fifo.exists()).await;
    let mut held = fs::File::options()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    std::io::Write::write_all(&mut held, b"\n").unwrap();
    let followed = join_all(followers).await;
    let written = fs::read(&file).unwrap();
    assert_eq!(written.len(), 3_300_000);
    for bytes in followed {
        assert!(bytes.unwrap() == written, "not the same bytes");
    }
    assert_eq!(cluster.end_of(id).await.output_bytes, 3_300_000);
    cluster.end().await;
}

#[tokio::test]
async fn a_follower_survives_a_restart_of_the_scheduler() {
    let mut cluster = TestCluster::start(1).await;
    let fifo = cluster.data_dir(1).join("fifo");
    let script = format!(
        "mkfifo {fifo}; echo before; read x < {fifo}; echo after; exit 7",
        fifo = fifo.display()
    );
    let id = cluster.sh(&script).await;
    let mut logs = within(cluster.client.logs(everything(id))).await.unwrap();
    let Event::Output(message) = within(logs.next()).await.unwrap() else {
        panic!("no output");
    };
    assert_eq!(message.output, "before\n");
    cluster.restart_scheduler().await;
    let held = fs::File::options()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    std::io::Write::write_all(&mut &held, b"\n").unwrap();
    let mut rest = Vec::new();
    let status = loop {
        match within(logs.next()).await.unwrap() {
            Event::Output(message) => rest.extend_from_slice(&message.output),
            Event::Gap { .. } | Event::Away(_) => {}
            Event::End(status) => break status,
        }
    };
    assert_eq!(rest, b"after\n");
    assert_eq!(status.exit_code, Some(7));
    cluster.end().await;
}

#[tokio::test]
async fn a_hundred_mebibytes_arrive_whole() {
    let cluster = TestCluster::start(1).await;
    let file = cluster.data_dir(1).join("random");
    let script = format!("head -c 104857600 /dev/urandom | tee {}", file.display());
    let id = cluster.sh(&script).await;
    let bytes = cluster.output(id).await;
    assert_eq!(bytes.len(), 104_857_600);
    assert!(bytes == fs::read(file).unwrap(), "not the same bytes");
    cluster.end().await;
}

#[tokio::test]
async fn the_command_line_shows_the_part_that_was_asked_for() {
    let cluster = TestCluster::start(1).await;
    let id = cluster
        .sh("echo one; echo two; echo three; echo bad >&2; exit 7")
        .await;
    cluster.end_of(id).await;
    let jobctl = Jobctl::of(&cluster);
    let whole = jobctl.ask(&["logs", "last"]).await;
    whole.is(0, "one\ntwo\nthree\n");
    assert_eq!(whole.stderr, "bad\n");
    for (args, code, stdout) in [
        (&["--follow"][..], 7, "one\ntwo\nthree\n"),
        (&["--tail", "2"], 0, "three\n"),
        (&["--stream", "stdout", "--offset", "4"], 0, "two\nthree\n"),
        (&["--stream", "stderr"], 0, ""),
        (&["--since", "1h ago"], 0, "one\ntwo\nthree\n"),
        (&["--since", "2100-01-01T00:00:00Z"], 0, ""),
    ] {
        let args = [&["logs", "last"], args].concat();
        jobctl.ask(&args).await.is(code, stdout);
    }
    let stamped = jobctl.ask(&["logs", "--timestamps", "last"]).await;
    for (line, word) in stamped.stdout.lines().zip(["one", "two", "three"]) {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{line}");
        assert_eq!(rest, word);
    }
    assert_eq!(stamped.stdout.lines().count(), 3);
    cluster.end().await;
}

#[tokio::test]
async fn ctrl_c_while_following_detaches() {
    let cluster = TestCluster::start(1).await;
    let job = cluster.sh("echo begun; sleep 600").await;
    let server = cluster.place.server();
    let jobctl = Jobctl::of(&cluster);
    let mut logs = jobctl.begin(&["logs", "-f", "last", "--server", &server]);
    assert_eq!(logs.line().await, "begun\n");
    logs.signal(rustix::process::Signal::INT);
    let run = logs.end().await;
    run.is(130, "");
    let id = job.short();
    let note = format!("detached; job {id} not stopped: `jobctl --server {server} stop {id}`\n");
    assert_eq!(run.stderr, note);
    assert_eq!(cluster.job(job).await.state, JobState::Running);
    cluster.end().await;
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_a_follower_quietly() {
    let cluster = TestCluster::start(1).await;
    cluster.sh("while :; do echo line; done").await;
    let jobctl = Jobctl::of(&cluster);
    let mut logs = jobctl.begin(&["logs", "-f", "last"]);
    assert_eq!(logs.line().await, "line\n");
    let run = logs.closed().await;
    run.is(0, "");
    assert_eq!(run.stderr, "");
    cluster.end().await;
}
