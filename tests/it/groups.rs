//! Jobs that are started together, and every verb that takes a group where it
//! takes a job.

use std::{collections::HashMap, fs, time::Duration};

use jobctl::{
    api::{
        Counts, Group, JobsQuery, QueryAnswer, QueryRequest, StartGroupResponse, StartRequest,
        StopRequest, WorkerState,
    },
    client::Error,
    ids::GroupId,
};

use crate::{
    cluster::{TestCluster, sh},
    queue::three_workers,
    support::{Folder, within},
    typed::Jobctl,
    workers::labelled,
};

async fn started(cluster: &TestCluster, request: &StartRequest) -> StartGroupResponse {
    begun(cluster, request).await.unwrap()
}

async fn begun(cluster: &TestCluster, request: &StartRequest) -> Result<StartGroupResponse, Error> {
    let key = uuid::Uuid::new_v4().to_string();
    within(cluster.client.start_group(request, &key)).await
}

async fn group(cluster: &TestCluster, id: GroupId, wait: Option<Duration>) -> Group {
    let request = QueryRequest {
        job_id: id.to_string(),
        worker_id: None,
        wait_ms: wait.map(|wait| wait.as_millis() as u64),
    };
    match cluster.client.query(&request).await.unwrap() {
        QueryAnswer::Group(answer) => answer.group,
        QueryAnswer::Job(answer) => panic!("{answer:?}"),
    }
}

async fn ended(cluster: &TestCluster, id: GroupId) -> Group {
    let group = within(group(cluster, id, Some(Duration::from_secs(60)))).await;
    assert!(group.ended_at.is_some(), "{group:?}");
    group
}

fn count(script: &str, count: u32) -> StartRequest {
    StartRequest {
        count: Some(count),
        ..sh(script)
    }
}

async fn with_slots(slots: &[u32]) -> TestCluster {
    let mut cluster = TestCluster::start(0).await;
    for (slots, number) in slots.iter().zip(1..) {
        let worker = labelled(&cluster, number, &[], Some(*slots)).await;
        cluster.workers.push(worker);
    }
    cluster.ready(slots.len()).await;
    cluster
}

#[tokio::test]
async fn every_job_of_a_group_runs_once_though_the_scheduler_is_killed() {
    const JOBS: u32 = 500;
    let mut cluster = with_slots(&[4, 4, 4]).await;
    let folder = Folder::new();
    let marks = folder.path().join("marks");
    // One write of a few bytes each: no line is torn.
    let script = format!(
        "echo b $JOBCTL_INDEX/$JOBCTL_ATTEMPT $JOBCTL_COUNT >> {0}; echo e >> {0}
         test $JOBCTL_ATTEMPT = 2 || test $((JOBCTL_INDEX % 10)) != 3",
        marks.display()
    );
    let request = StartRequest {
        at_once: Some(8),
        retries: 1,
        retry_pause_ms: Some(10),
        ..count(&script, JOBS)
    };
    let id = started(&cluster, &request).await.group_id;
    for part in [50, 200, 350] {
        within(async {
            let mut pause = tokio::time::interval(Duration::from_millis(5));
            while group(&cluster, id, None).await.states.ended() < part {
                pause.tick().await;
            }
        })
        .await;
        cluster.restart_scheduler().await;
    }
    let group = ended(&cluster, id).await;
    assert_eq!(group.states.succeeded, JOBS, "{group:?}");
    assert_eq!(group.exit_code, 0);
    let marks = fs::read_to_string(marks).unwrap();
    let (mut seen, mut running, mut most) = (HashMap::new(), 0, 0);
    for line in marks.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "b" => {
                assert_eq!(words[2], JOBS.to_string());
                *seen.entry(words[1].to_owned()).or_insert(0) += 1;
                running += 1;
            }
            _ => running -= 1,
        }
        most = most.max(running);
    }
    let retried = JOBS / 10;
    assert_eq!(seen.len(), (JOBS + retried) as usize);
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    assert!((1..=8).contains(&most), "{most} ran at once");
    cluster.end().await;
}

#[tokio::test]
async fn all_is_one_job_on_each_worker_that_matches() {
    let mut cluster = three_workers().await;
    let jobctl = Jobctl::of(&cluster);
    let script = "echo on $JOBCTL_INDEX; echo oops >&2; test $JOBCTL_INDEX = 0 || exit 3";
    let args = ["start", "--all", "-l", "zone", "--wait", "sh", "-c", script];
    let outcome = jobctl.ask(&args).await;
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    let rows: Vec<Vec<&str>> = outcome
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["WORKER", "STATE", "EXIT", "TIME", "REASON"]);
    assert_eq!(rows[1][..3], ["w1", "succeeded", "0"]);
    assert_eq!(rows[2][..3], ["w2", "failed", "3"]);
    assert_eq!(rows[2][4], "oops", "the last words of what failed");
    assert_eq!(rows.len(), 3);
    assert!(
        outcome.stderr.contains("1 succeeded, 1 failed"),
        "{outcome:?}"
    );

    // A worker that is away gets none, and is named.
    cluster.workers.remove(1).shutdown.cancel();
    cluster.worker_is("w2", WorkerState::Left).await;
    jobctl.ask(&["workers", "drain", "w1"]).await.is(0, "");
    let all = StartRequest {
        all: true,
        ..sh("true")
    };
    let answer = started(&cluster, &all).await;
    assert_eq!(answer.count, 1);
    let passed_over = &answer.passed_over[..];
    assert_eq!(passed_over.len(), 1);
    assert_eq!(
        (&*passed_over[0].worker, &*passed_over[0].reason),
        ("w1", "worker w1 is draining")
    );
    let nobody = StartRequest {
        labels: vec!["gpu=h100".to_owned()],
        ..all
    };
    let error = begun(&cluster, &nobody).await.unwrap_err();
    assert!(error.to_string().contains("no worker matches"), "{error}");
    cluster.end().await;
}

#[tokio::test]
async fn each_line_of_a_file_is_a_job_and_a_group_is_a_job_to_every_verb() {
    let cluster = with_slots(&[2]).await;
    let jobctl = Jobctl::of(&cluster);
    let file = jobctl.folder().join("items");
    fs::write(&file, "one\n\ntwo words\nthree").unwrap();
    let script = "echo \"$JOBCTL_ITEM\"; test \"$JOBCTL_ITEM\" != three || exit 7";
    let file = file.to_str().unwrap();
    let args = [
        "start", "--each", file, "--name", "items", "sh", "-c", script,
    ];
    let id = jobctl.ask(&args).await;
    assert_eq!(id.code, Some(0), "{id:?}");
    let id = id.stdout.trim().to_owned();
    let waited = jobctl.ask(&["wait", "items"]).await;
    assert_eq!(waited.code, Some(7), "{waited:?}");
    assert!(waited.stdout.contains("2    failed"), "{waited:?}");

    let logs = jobctl.ask(&["logs", "last"]).await;
    logs.is(0, "0 | one\n1 | two words\n2 | three\n");
    let logs = jobctl.ask(&["logs", &format!("{}/1", &id[..8])]).await;
    logs.is(0, "two words\n");
    let shown = jobctl.ask(&["query", "items"]).await.stdout;
    for line in [
        &format!("Group:      {id}\n"),
        "Jobs:       3\n",
        "States:     2 succeeded, 1 failed\n",
        "Exit code:  7\n",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    let json = jobctl.ask(&["query", &id, "-o", "json"]).await.stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["count"], &json["states"]["failed"]),
        (&3.into(), &1.into())
    );
    let one = jobctl.ask(&["query", "items/2", "-o", "json"]).await.stdout;
    let one: serde_json::Value = serde_json::from_str(&one).unwrap();
    assert_eq!(
        (&one["item"], &one["index"], &one["group_id"]),
        (&"three".into(), &2.into(), &id.as_str().into())
    );
    let list = ["jobs", "--group", "items", "-o", "jsonl"];
    let list = jobctl.ask(&list).await.stdout;
    let items = list.lines().map(|line| {
        let job: serde_json::Value = serde_json::from_str(line).unwrap();
        job["item"].as_str().unwrap().to_owned()
    });
    assert_eq!(items.collect::<Vec<_>>(), ["one", "two words", "three"]);
    let stopped = jobctl.ask(&["stop", "items"]).await;
    stopped.is(0, "");
    assert!(stopped.stderr.contains("group items"), "{stopped:?}");
    for absent in ["items/3", "items/x", "nobody/0"] {
        assert_eq!(jobctl.ask(&["query", absent]).await.code, Some(3));
    }
    cluster.end().await;
}

#[tokio::test]
async fn a_group_is_followed_line_by_line() {
    let cluster = with_slots(&[3]).await;
    let jobctl = Jobctl::of(&cluster);
    let script = "echo a$JOBCTL_INDEX; echo e >&2; printf b$JOBCTL_INDEX; exit $JOBCTL_INDEX";
    let args = ["start", "--count", "3", "--follow", "sh", "-c", script];
    let outcome = jobctl.ask(&args).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let mut lines: Vec<&str> = outcome.stdout.lines().collect();
    lines.sort_unstable();
    let whole = ["0 | a0", "0 | b0", "1 | a1", "1 | b1", "2 | a2", "2 | b2"];
    assert_eq!(lines, whole);
    for line in ["0 | e\n", "1 | e\n", "2 | e\n", "1 succeeded, 2 failed"] {
        assert!(outcome.stderr.contains(line), "{outcome:?}");
    }
    cluster.end().await;
}

#[tokio::test]
async fn jobs_on_all_workers_are_called_by_them_also_if_they_wait_first() {
    let cluster = three_workers().await;
    let jobctl = Jobctl::of(&cluster);
    let args = [
        "start",
        "--all",
        "--at-once",
        "1",
        "--follow",
        "sh",
        "-c",
        "echo on",
    ];
    let outcome = jobctl.ask(&args).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let mut lines: Vec<&str> = outcome.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["w1 | on", "w2 | on", "w3 | on"]);
    cluster.end().await;
}

#[tokio::test]
async fn a_failure_stops_the_rest_if_asked_to() {
    let cluster = with_slots(&[2]).await;
    let script = "test $JOBCTL_INDEX = 1 && exit 9; sleep 600";
    let request = StartRequest {
        stop_on_failure: true,
        ..count(script, 50)
    };
    let id = started(&cluster, &request).await.group_id;
    let group = ended(&cluster, id).await;
    let states = Counts {
        failed: 1,
        stopped: 49,
        ..Counts::default()
    };
    assert_eq!((group.states, group.exit_code), (states, 9));
    let query = JobsQuery {
        group_id: Some(id.to_string()),
        ..JobsQuery::default()
    };
    let jobs = within(cluster.client.jobs(&query)).await.unwrap().jobs;
    let last = jobs.last().unwrap();
    let reason = last.reason.clone().unwrap();
    assert_eq!(last.started_at, None);
    assert!(
        reason.starts_with("stopped before it was started: job ")
            && reason.ends_with("/1 failed: exit status 9"),
        "{reason}"
    );
    cluster.end().await;
}

#[tokio::test]
async fn a_stop_ends_what_runs_and_what_waits() {
    let mut cluster = with_slots(&[2]).await;
    let id = started(&cluster, &count("sleep 600", 20)).await.group_id;
    cluster.restart_scheduler().await;
    cluster.ready(1).await;
    let stop = StopRequest {
        job_id: id.to_string(),
        ..Default::default()
    };
    within(cluster.client.stop(&stop)).await.unwrap();
    let group = ended(&cluster, id).await;
    assert_eq!(group.states.stopped, 20, "{group:?}");
    assert_eq!(group.exit_code, 143);
    let again = within(cluster.client.stop(&stop)).await.unwrap_err();
    assert_eq!(again.code(), Some("job_finished"), "{again}");
    // What it was is known when nothing of it is in memory.
    cluster.restart_scheduler().await;
    assert_eq!(ended(&cluster, id).await, group);
    cluster.end().await;
}

#[tokio::test]
async fn the_same_key_is_the_same_group() {
    let cluster = with_slots(&[2]).await;
    let request = count("true", 3);
    let first = within(cluster.client.start_group(&request, "k")).await;
    let again = within(cluster.client.start_group(&request, "k")).await;
    let first = first.unwrap();
    assert_eq!(first, again.unwrap());
    let other = within(cluster.client.start_group(&count("true", 4), "k")).await;
    assert_eq!(other.unwrap_err().code(), Some("idempotency_key_reused"));
    let single = within(cluster.client.start_with_key(&sh("true"), "k")).await;
    assert_eq!(single.unwrap_err().code(), Some("idempotency_key_reused"));
    assert_eq!(ended(&cluster, first.group_id).await.states.succeeded, 3);
    cluster.end().await;
}

#[tokio::test]
async fn what_cannot_be_a_group_is_refused() {
    let cluster = with_slots(&[1]).await;
    for (said, request) in [
        (
            "exclude each other",
            StartRequest {
                all: true,
                ..count("true", 1)
            },
        ),
        ("count is not between", count("true", 0)),
        ("count is not between", count("true", 100_001)),
        (
            "each has not 1 to",
            StartRequest {
                each: Some(Vec::new()),
                ..sh("true")
            },
        ),
        (
            "NUL",
            StartRequest {
                each: Some(vec!["\0".to_owned()]),
                ..sh("true")
            },
        ),
        (
            "at_once is 0",
            StartRequest {
                at_once: Some(0),
                ..count("true", 2)
            },
        ),
        (
            "no_queue is not",
            StartRequest {
                no_queue: true,
                ..count("true", 2)
            },
        ),
    ] {
        let error = begun(&cluster, &request).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let single = StartRequest {
        at_once: Some(1),
        ..sh("true")
    };
    let error = within(cluster.client.start(&single)).await.unwrap_err();
    assert!(error.to_string().contains("is for groups"), "{error}");
    let jobctl = Jobctl::of(&cluster);
    for args in [
        &["start", "--all", "--count", "2", "true"][..],
        &["start", "--at-once", "2", "true"],
        &["start", "--count", "0", "true"],
        &["start", "--all", "--worker", "w1", "true"],
        &["start", "--count", "2", "--no-queue", "true"],
        &["jobs", "--group", "x", "--state", "failed"],
    ] {
        jobctl.ask(args).await.is(2, "");
    }
    let empty = jobctl.folder().join("empty");
    fs::write(&empty, "\n").unwrap();
    let args = ["start", "--each", empty.to_str().unwrap(), "true"];
    let refused = jobctl.ask(&args).await;
    assert!(refused.stderr.contains("has no line"), "{refused:?}");
    cluster.end().await;
}

#[tokio::test]
async fn a_stop_of_a_group_goes_on_after_a_crash() {
    const JOBS: u32 = 150;
    let mut cluster = TestCluster::start(1).await;
    // More of them than are told at a time, and each takes its grace.
    let script = "trap '' TERM; while :; do sleep 600; done";
    let id = started(&cluster, &count(script, JOBS)).await.group_id;
    let until = async |cluster: &TestCluster, enough: fn(Counts) -> bool| {
        within(async {
            let mut pause = tokio::time::interval(Duration::from_millis(10));
            while !enough(group(cluster, id, None).await.states) {
                pause.tick().await;
            }
        })
        .await;
    };
    until(&cluster, |states| states.running == JOBS).await;
    let (client, job_id) = (cluster.place.client(), id.to_string());
    let stopping = tokio::spawn(async move {
        let stop = StopRequest {
            job_id,
            ..Default::default()
        };
        client.stop(&stop).await
    });
    until(&cluster, |states| states.stopped > 0).await;
    cluster.restart_scheduler().await;
    cluster.ready(1).await;
    let group = ended(&cluster, id).await;
    assert_eq!(group.states.stopped, JOBS, "{group:?}");
    // Whoever asked lost the connection, or was asked to ask again.
    let _ = within(stopping).await.unwrap();
    cluster.end().await;
}

#[tokio::test]
async fn a_group_is_followed_across_a_restart_of_the_scheduler() {
    let mut cluster = with_slots(&[2]).await;
    let jobctl = Jobctl::of(&cluster);
    let args = ["start", "--count", "150", "--name", "followed", "--follow"];
    let script = ["sh", "-c", "echo line $JOBCTL_INDEX"];
    let following = jobctl.begin(&[&args[..], &script].concat());
    let request = QueryRequest {
        job_id: "followed".to_owned(),
        ..QueryRequest::default()
    };
    within(async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        loop {
            pause.tick().await;
            if let Ok(QueryAnswer::Group(answer)) = cluster.client.query(&request).await
                && answer.group.states.ended() > 20
            {
                break;
            }
        }
    })
    .await;
    cluster.restart_scheduler().await;
    let outcome = following.end().await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let mut lines: Vec<&str> = outcome.stdout.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 150, "{outcome:?}");
    cluster.end().await;
}

#[tokio::test]
async fn items_that_fit_into_no_body_are_sent_as_lines() {
    let cluster = with_slots(&[1]).await;
    let items: Vec<String> = (0..3000).map(|n| format!("{n:->1024}")).collect();
    let request = StartRequest {
        each: Some(items.clone()),
        // None of them starts: what matters is what each was given.
        delay_ms: Some(3_600_000),
        ..sh("true")
    };
    let key = "the-same";
    let started = cluster.client.start_group(&request, key).await.unwrap();
    assert_eq!(started.count, 3000);
    let again = cluster.client.start_group(&request, key).await.unwrap();
    assert_eq!(again.group_id, started.group_id);
    let mut other = request.clone();
    other.each.as_mut().unwrap()[2999].push('x');
    let error = cluster.client.start_group(&other, key).await.unwrap_err();
    assert_eq!(error.code(), Some("idempotency_key_reused"));
    for index in [0, 1, 2999] {
        let query = QueryRequest {
            job_id: format!("{}/{index}", started.group_id),
            ..Default::default()
        };
        let QueryAnswer::Job(answer) = cluster.client.query(&query).await.unwrap() else {
            panic!("it is a job");
        };
        assert_eq!(answer.job.item.as_deref(), Some(&*items[index]));
    }
    let long = StartRequest {
        each: Some(vec!["x".repeat(2 * 1024 * 1024)]),
        ..sh("true")
    };
    let error = begun(&cluster, &long).await.unwrap_err();
    assert_eq!(error.code(), Some("body_too_large"), "{error}");
    cluster.end().await;
}
