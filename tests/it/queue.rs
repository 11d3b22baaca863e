//! Which job goes to which worker, and what jobs wait for.

use std::fs;

use jobctl::{
    api::{JobState, Priority, StartRequest, StartResponse, StopRequest, code},
    ids::JobId,
};

use crate::{
    cluster::{TestCluster, job_is, sh},
    support::{Folder, within},
    typed::Jobctl,
    workers::labelled,
};

async fn accepted(cluster: &TestCluster, request: &StartRequest) -> StartResponse {
    within(cluster.client.start(request)).await.unwrap()
}

async fn stop(cluster: &TestCluster, job: JobId) {
    let stop = StopRequest {
        job_id: job.to_string(),
        ..Default::default()
    };
    within(cluster.client.stop(&stop)).await.unwrap();
}

/// Of different labels, each with two slots.
pub(crate) async fn three_workers() -> TestCluster {
    let mut cluster = TestCluster::start(0).await;
    for (number, labels) in [
        (1, &[("zone", "eu"), ("gpu", "a100")][..]),
        (2, &[("zone", "us")]),
        (3, &[]),
    ] {
        let worker = labelled(&cluster, number, labels, Some(2)).await;
        cluster.workers.push(worker);
    }
    cluster.ready(3).await;
    cluster
}

/// On one worker with one slot, which is busy.
async fn busy() -> (TestCluster, JobId) {
    let mut cluster = TestCluster::start(0).await;
    let worker = labelled(&cluster, 1, &[("zone", "eu")], Some(1)).await;
    cluster.workers.push(worker);
    cluster.ready(1).await;
    let busy = cluster.sh("sleep 600").await;
    (cluster, busy)
}

#[tokio::test]
async fn labels_say_where_a_job_may_run() {
    let cluster = three_workers().await;
    for (labels, workers) in [
        (&["gpu=a100"][..], &["w1"][..]),
        (&["zone", "!gpu"], &["w2"]),
        (&["zone!=eu", "!zone"], &["w3"]),
        (&["!zone"], &["w3"]),
    ] {
        let request = StartRequest {
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            ..sh("true")
        };
        let job = cluster.start_job(&request).await.unwrap();
        let job = cluster.end_of(job).await;
        let worker = job.worker.unwrap();
        assert!(workers.contains(&&*worker), "{labels:?} ran on {worker}");
    }
    let nobody = StartRequest {
        labels: vec!["gpu=h100".to_owned(), "zone".to_owned()],
        ..sh("true")
    };
    let waiting = accepted(&cluster, &nobody).await;
    assert_eq!(waiting.state, JobState::Pending);
    let reason = waiting.reason.unwrap();
    assert_eq!(reason, "no worker matches gpu=h100, zone");
    let now_or_never = StartRequest {
        no_queue: true,
        ..nobody
    };
    let error = within(cluster.client.start(&now_or_never)).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Some(code::NO_FREE_SLOT));
    assert!(error.to_string().contains(&reason), "{error}");
    // A label that an admin sets is enough.
    let jobctl = Jobctl::of(&cluster);
    jobctl
        .ask(&["workers", "label", "w2", "gpu=h100"])
        .await
        .is(0, "");
    let job = cluster.end_of(waiting.job_id).await;
    assert_eq!(job.worker.as_deref(), Some("w2"));
    cluster.end().await;
}

#[tokio::test]
async fn no_worker_has_more_jobs_than_slots_and_the_least_loaded_is_taken() {
    let mut cluster = TestCluster::start(0).await;
    for (number, slots) in [(1, 4), (2, 2), (3, 0)] {
        let worker = labelled(&cluster, number, &[], Some(slots)).await;
        cluster.workers.push(worker);
    }
    cluster.ready(3).await;
    let mut places = Vec::new();
    let mut jobs = Vec::new();
    for _ in 0..6 {
        let job = cluster.sh("sleep 600").await;
        places.push(cluster.job(job).await.worker.unwrap());
        jobs.push(job);
    }
    assert!(places[..3].contains(&"w2".to_owned()), "{places:?}");
    places.sort();
    assert_eq!(places, ["w1", "w1", "w1", "w1", "w2", "w2"]);
    let waiting = accepted(&cluster, &sh("true")).await;
    assert_eq!(
        waiting.reason.as_deref(),
        Some("3 workers, all 6 slots busy")
    );
    let never = StartRequest {
        worker_id: Some("w3".to_owned()),
        ..sh("true")
    };
    let never = accepted(&cluster, &never).await;
    assert_eq!(never.reason.as_deref(), Some("worker w3 takes no jobs"));
    stop(&cluster, jobs[0]).await;
    cluster.end_of(waiting.job_id).await;
    assert_eq!(cluster.job(never.job_id).await.state, JobState::Pending);
    cluster.end().await;
}

#[tokio::test]
async fn the_most_urgent_goes_first_across_a_restart() {
    let (mut cluster, busy) = busy().await;
    let folder = Folder::new();
    let order = folder.path().join("order");
    let mut jobs = Vec::new();
    for (word, priority) in [
        ("low", Some(Priority::Low)),
        ("first", None),
        ("high", Some(Priority::High)),
        ("second", Some(Priority::Medium)),
        ("highest", Some(Priority::Number(101))),
    ] {
        let request = StartRequest {
            priority,
            ..sh(&format!("echo {word} >> {}", order.display()))
        };
        jobs.push(accepted(&cluster, &request).await.job_id);
    }
    cluster.restart_scheduler().await;
    cluster.ready(1).await;
    stop(&cluster, busy).await;
    for job in jobs {
        assert_eq!(cluster.end_of(job).await.state, JobState::Succeeded);
    }
    let order = fs::read_to_string(order).unwrap();
    let order: Vec<&str> = order.lines().collect();
    assert_eq!(order, ["highest", "high", "first", "second", "low"]);
    cluster.end().await;
}

#[tokio::test]
async fn what_waits_for_a_busy_worker_does_not_hold_up_what_could_run_elsewhere() {
    let (mut cluster, busy) = busy().await;
    let on_w1 = StartRequest {
        worker_id: Some("w1".to_owned()),
        priority: Some(Priority::High),
        ..sh("true")
    };
    let waiting = accepted(&cluster, &on_w1).await;
    let reason = waiting.reason.unwrap();
    assert_eq!(reason, "the one slot of worker w1 is busy");
    let anywhere = accepted(&cluster, &sh("true")).await;
    assert_eq!(anywhere.state, JobState::Pending);
    let other = labelled(&cluster, 2, &[], Some(1)).await;
    cluster.workers.push(other);
    let job = cluster.end_of(anywhere.job_id).await;
    assert_eq!(job.worker.as_deref(), Some("w2"));
    assert_eq!(cluster.job(waiting.job_id).await.state, JobState::Pending);
    stop(&cluster, busy).await;
    let job = cluster.end_of(waiting.job_id).await;
    assert_eq!(job.worker.as_deref(), Some("w1"));
    cluster.end().await;
}

#[tokio::test]
async fn a_person_sees_what_a_job_waits_for_and_may_follow_and_stop_it() {
    let (cluster, busy) = busy().await;
    let jobctl = Jobctl::of(&cluster);
    let args = ["start", "-l", "zone=eu", "--priority", "high", "echo", "hi"];
    let id = jobctl.ask(&args).await;
    assert_eq!(id.code, Some(0), "{id:?}");
    let id = id.stdout.trim();
    let shown = jobctl.ask(&["query", id]).await.stdout;
    let state = "State:      pending (1 worker matches zone=eu, its one slot busy)";
    assert!(shown.contains(state), "{shown}");
    let nothing = jobctl.ask(&["logs", id]).await;
    nothing.is(0, "");
    let second = jobctl.ask(&["start", "true"]).await.stdout;
    jobctl.ask(&["stop", second.trim()]).await.is(0, "");
    let refused = jobctl.ask(&["start", "--no-queue", "true"]).await;
    refused.is(1, "");
    assert!(
        refused.stderr.contains("no worker has a free slot"),
        "{refused:?}"
    );
    let following = jobctl.begin(&["logs", "--follow", id]);
    stop(&cluster, busy).await;
    following.end().await.is(0, "hi\n");
    cluster.end().await;
}

#[tokio::test]
async fn a_pending_job_outlives_the_worker_that_it_waits_for() {
    let (mut cluster, _busy) = busy().await;
    let on_w1 = StartRequest {
        worker_id: Some("w1".to_owned()),
        ..sh("true")
    };
    let waiting = accepted(&cluster, &on_w1).await.job_id;
    cluster.workers.remove(0).end().await;
    job_is(&cluster.client, waiting, JobState::Pending).await;
    let again = labelled(&cluster, 1, &[], Some(1)).await;
    cluster.workers.push(again);
    assert_eq!(cluster.end_of(waiting).await.state, JobState::Succeeded);
    cluster.end().await;
}

#[tokio::test]
async fn what_waits_for_a_worker_that_is_removed_ends() {
    let (mut cluster, _busy) = busy().await;
    let on_w1 = StartRequest {
        worker_id: Some("w1".to_owned()),
        ..sh("true")
    };
    let waiting = accepted(&cluster, &on_w1).await.job_id;
    cluster.workers.remove(0).end().await;
    let jobctl = Jobctl::of(&cluster);
    let removed = jobctl.ask(&["workers", "remove", "w1", "--yes"]).await;
    assert_eq!(removed.code, Some(0), "{removed:?}");
    let job = cluster.end_of(waiting).await;
    assert_eq!(job.state, JobState::Stopped);
    assert_eq!(
        job.reason.as_deref(),
        Some("stopped before it was started: worker w1 was removed")
    );
    cluster.end().await;
}
