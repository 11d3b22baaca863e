//! The store on real files.

use std::time::Instant;

use super::*;
use crate::{
    api,
    identity::{
        Role,
        token::{Digest, TokenId},
    },
    roles::scheduler::{
        about::Drain,
        jobs::{End, Exit, Member, Process, Spec, State, now, tests::record},
    },
};

const KEEP: Keep = Keep {
    finished: 10_000_000,
    time: Duration::from_secs(3600 * 24 * 365),
    audit: Duration::from_secs(3600),
};

/// A store for tests that never read what they have written.
pub(in crate::roles::scheduler) fn scratch() -> Store {
    let keep = Keep {
        finished: 1000,
        time: Duration::from_secs(3600),
        audit: Duration::from_secs(3600),
    };
    let folder = tempfile::tempdir().unwrap();
    let (store, writing, _) = open(folder.path(), keep, "a test").unwrap();
    std::mem::forget(writing);
    store.0.folder.set(folder).unwrap();
    store
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn nobody_else_may_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("a/b");
    let (_store, _writing, loaded) = open(&folder, KEEP, "a test").unwrap();
    let now = Timestamp::now().as_second().unsigned_abs();
    assert!((now - 60..=now + 1).contains(&loaded.epoch), "{now}");
    assert_eq!(mode(&folder), 0o700);
    for entry in fs::read_dir(&folder).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_, writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    writing.end().await.unwrap();
    let file = folder.path().join(schema::FILE);
    let connection = Connection::open(file).unwrap();
    connection
        .execute_batch("PRAGMA user_version = 99")
        .unwrap();
    let error = open(folder.path(), KEEP, "a test").unwrap_err();
    assert!(matches!(error, Error::Newer { found: 99, .. }));
    let text = error.to_string();
    assert!(
        text.contains("newer jobctl") && text.contains("--data-dir"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_told_and_ordered_of_a_worker_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (store, writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    let worker = StoredWorker {
        id: WorkerId::random(),
        name: "w1".into(),
        address: "127.0.0.1:1".into(),
        version: "0.1.0".into(),
        left: false,
        registered_at: at,
        heard_at: None,
        told: Told {
            labels: [("zone".to_owned(), "eu".to_owned())].into(),
            slots: Some(4),
            ..Told::default()
        },
        orders: Orders {
            labels: [("zone".to_owned(), None)].into(),
            drain: Some(Drain {
                until: Some(at),
                counted: Some(at),
            }),
        },
    };
    store.worker(worker.clone());
    writing.end().await.unwrap();
    let (_, _writing, loaded) = open(folder.path(), KEEP, "a test").unwrap();
    assert_eq!(loaded.workers, [worker]);
}

/// What is on people's disks must be read by every later version.
#[tokio::test]
async fn a_record_of_the_first_version_is_read() {
    let text = r#"{"id":"3f2a8b1c-9d4e-4f00-8000-000000000000","name":"nightly",
        "command":"sh","path":null,"args":["-c","exit 3"],"env":["A"],"cwd":null,
        "timeout":{"secs":600,"nanos":0},"worker":"7c00b51c-0d77-40a9-90aa-470f25a197bb",
        "worker_name":"w1","session":"7c00b51c-0d77-40a9-90aa-470f25a197bc",
        "state":{"ended":{"process":{"pid":7,"since":"2026-01-02T03:04:05Z"},
            "at":"2026-01-02T03:04:06Z","end":{"failed":{"code":3}},"reason":"exit status 3"}},
        "output_bytes":5,"created_at":"2026-01-02T03:04:04Z",
        "stop":{"signal":2,"grace":{"secs":1,"nanos":0}}}"#;
    let folder = tempfile::tempdir().unwrap();
    let old = Connection::open(folder.path().join(schema::FILE)).unwrap();
    old.execute_batch(schema::MIGRATIONS[0]).unwrap();
    let id: JobId = "3f2a8b1c-9d4e-4f00-8000-000000000000".parse().unwrap();
    let worker: WorkerId = "7c00b51c-0d77-40a9-90aa-470f25a197bb".parse().unwrap();
    old.execute(
        "INSERT INTO jobs (id, name, worker, state, created_us, ended_us, record)
         VALUES (?, 'nightly', ?, 'failed', 1, ?, ?)",
        rusqlite::params![
            id.as_bytes(),
            worker.as_bytes(),
            Timestamp::now().as_microsecond(),
            text
        ],
    )
    .unwrap();
    old.execute("INSERT INTO keys VALUES ('k', ?, x'00')", [id.as_bytes()])
        .unwrap();
    old.execute_batch("PRAGMA user_version = 1").unwrap();
    drop(old);
    let (store, _writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    let job = store.find(id).await.unwrap().unwrap();
    assert_eq!(job.error_text(), "exit status 3");
    assert_eq!((job.job().pid, job.worker()), (Some(7), Some(worker)));
    assert_eq!((job.worker_name(), &job.spec.args[1][..]), ("w1", "exit 3"));
    assert_eq!(job.spec.timeout, Some(Duration::from_secs(600)));
    assert_eq!(store.newest(None).await.unwrap().unwrap().id, id);
    let key = store.key("k".to_owned()).await.unwrap().unwrap();
    assert_eq!(key.job, id, "what refers to a job stays");
    let stored = [
        serde_json::to_string(&job).unwrap(),
        serde_json::to_string(&*job.spec).unwrap(),
    ];
    assert_eq!(read::record(stored).unwrap(), job);
    for state in [
        r#""queued""#,
        r#"{"pending":{"call_open":true}}"#,
        r#"{"running":{"pid":null,"since":null}}"#,
        r#"{"unknown":{"process":null,"why":"x","doubt":"unconfirmed"}}"#,
        r#"{"unknown":{"process":null,"why":"x","doubt":"worker_unreachable"}}"#,
    ] {
        let state: State = serde_json::from_str(state).unwrap();
        assert!(!state.is_final());
    }
    for end in [
        r#""succeeded""#,
        r#"{"failed":{"signal":9}}"#,
        r#"{"not_started":{"code":"x"}}"#,
        r#"{"stopped":null}"#,
        r#"{"timed_out":{"code":1}}"#,
        r#""lost""#,
    ] {
        serde_json::from_str::<End>(end).unwrap();
    }
}

#[tokio::test]
async fn a_page_is_between_two_jobs_also_of_the_same_moment() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    let at = now();
    let ended = (0..6).map(|n| {
        let state = State::Ended {
            process: None,
            at,
            end: End::Succeeded,
            reason: String::new(),
        };
        Record {
            created_at: at + Duration::from_secs(n / 4),
            ..record(state)
        }
    });
    let mut all: Vec<Cursor> = Vec::new();
    for job in ended {
        all.push((job.created_at, job.id));
        store.adopted(Arc::new(job));
    }
    store.committed(store.now()).await.unwrap();
    all.sort_unstable_by(|a, b| b.cmp(a));
    let page = async |newer_than, after| -> Vec<Cursor> {
        let range = Range { newer_than, after };
        let page = store.page(Filter::default(), Room::of(50), range);
        let page = page.await.unwrap().jobs;
        page.iter().map(|job| (job.created_at, job.id)).collect()
    };
    assert_eq!(page(None, None).await, all);
    assert_eq!(page(None, Some(all[3])).await, all[4..]);
    assert_eq!(page(Some(all[3]), None).await, all[..3]);
    assert_eq!(page(Some(all[4]), Some(all[1])).await, all[2..4]);
}

/// Prints how long the questions take that people ask most. Run it with
/// `cargo test --release -- --ignored --nocapture a_million_records`.
#[tokio::test]
#[ignore = "takes a minute and half a gigabyte"]
async fn a_million_records() {
    const RECORDS: u64 = 1_000_000;
    let folder = tempfile::tempdir().unwrap();
    let (store, writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    let workers: Vec<WorkerId> = (0..10).map(|_| WorkerId::random()).collect();
    let start = Timestamp::now() - Duration::from_secs(RECORDS);
    let began = Instant::now();
    let mut some = Vec::new();
    for n in 0..RECORDS {
        let at = start + Duration::from_secs(n);
        let end = match n % 10 {
            9 => End::Failed(Some(Exit::Code(3))),
            // So rare that a scan would pass half a million others.
            _ if n == RECORDS / 2 => End::TimedOut(None),
            _ => End::Succeeded,
        };
        let process = Some(Process {
            pid: Some(4711),
            since: Some(at),
            ..Process::default()
        });
        let mut job = record(State::Ended {
            process,
            at: at + Duration::from_secs(1),
            end,
            reason: String::new(),
        });
        job.created_at = at;
        job.place.as_mut().unwrap().worker = workers[(n % 10) as usize];
        job.spec = Arc::new(Spec {
            name: Some(format!("job-{}", n % 3)),
            args: vec!["-c".to_owned(), format!("echo {n}")],
            ..Spec::default()
        });
        if n % 1000 == 0 {
            some.push(job.id);
            store.committed(store.now()).await.unwrap();
        }
        store.adopted(Arc::new(job));
    }
    store.committed(store.now()).await.unwrap();
    let took = began.elapsed();
    println!("{RECORDS} records written in {took:.1?}");

    let filter =
        |states: Option<Vec<api::JobState>>, worker: Option<WorkerId>, name: Option<&str>| Filter {
            states,
            worker,
            name: name.map(str::to_owned),
        };
    let rare = || Some(vec![api::JobState::TimedOut, api::JobState::Lost]);
    let middle = store.find(some[500]).await.unwrap().unwrap();
    let middle = Some((middle.created_at, middle.id));
    let pages = [
        ("newest 50", filter(None, None, None), None),
        ("50 from the middle", filter(None, None, None), middle),
        (
            "state failed",
            filter(Some(vec![api::JobState::Failed]), None, None),
            middle,
        ),
        ("a rare state", filter(rare(), None, None), None),
        ("worker", filter(None, Some(workers[9]), None), middle),
        (
            "worker and rare state",
            filter(rare(), Some(workers[0]), None),
            None,
        ),
        ("name", filter(None, None, Some("job-1")), middle),
        (
            "name and rare state",
            filter(rare(), None, Some("job-1")),
            None,
        ),
        (
            "name, worker",
            filter(None, Some(workers[3]), Some("job-0")),
            middle,
        ),
        (
            "name, worker, rare state",
            filter(rare(), Some(workers[3]), Some("job-0")),
            None,
        ),
        ("no such name", filter(None, None, Some("nobody")), None),
    ];
    // A connection is made once.
    store.newest(None).await.unwrap();
    let mut slowest = Duration::ZERO;
    let mut say = |what: &str, mut took: Vec<Duration>| {
        took.sort();
        let (half, worst) = (took[took.len() / 2], took[took.len() - 1]);
        println!(
            "{what}: median {half:.1?}, slowest {worst:.1?} of {}",
            took.len()
        );
        slowest = slowest.max(half);
    };
    let mut took = Vec::new();
    for id in &some {
        let began = Instant::now();
        store.find(*id).await.unwrap().unwrap();
        took.push(began.elapsed());
    }
    say("one job", took);
    for (what, filter, after) in pages {
        let mut took = Vec::new();
        for _ in 0..100 {
            let began = Instant::now();
            let range = Range {
                after,
                ..Range::default()
            };
            store
                .page(filter.clone(), Room::of(50), range)
                .await
                .unwrap();
            took.push(began.elapsed());
        }
        say(what, took);
    }
    let size = fs::metadata(folder.path().join(schema::FILE))
        .unwrap()
        .len();
    writing.end().await.unwrap();
    let began = Instant::now();
    let (_store, writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    println!(
        "opened again in {:.1?}; {} MiB",
        began.elapsed(),
        size >> 20
    );
    writing.end().await.unwrap();
    assert!(slowest < Duration::from_millis(10), "{slowest:?}");
}

#[tokio::test]
async fn who_was_revoked_while_a_certificate_was_signed_stays_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let (store, writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    let now = Timestamp::now();
    let certificate = Certificate {
        id: uuid::Uuid::new_v4(),
        role: Some(Role::Worker),
        name: "w1".to_owned(),
        serial: "01".to_owned(),
        issued_at: now,
        expires_at: now,
        revoked_at: None,
    };
    let sign = || AccessChange::Certificate(certificate.clone(), None);
    let done = async |change| store.access(change, None).await.unwrap();
    assert_eq!(done(sign()).await, Written::Done);
    let revoke = |at| AccessChange::Revoked(certificate.id, at);
    assert_eq!(done(revoke(now)).await, Written::Done);
    // It was revoked when it was revoked first.
    let later = now + jiff::SignedDuration::from_hours(1);
    assert_eq!(done(revoke(later)).await, Written::Done);
    // What was signed before it comes behind it.
    let Written::Revoked(at) = done(sign()).await else {
        panic!("it was signed");
    };
    assert_eq!(at.as_microsecond(), now.as_microsecond());
    // Of one that was signed elsewhere nothing is known.
    let elsewhere = uuid::Uuid::new_v4();
    assert_eq!(
        done(AccessChange::Revoked(elsewhere, now)).await,
        Written::Done
    );
    drop(store);
    writing.end().await.unwrap();
    let (_store, _writing, loaded) = open(folder.path(), KEEP, "a test").unwrap();
    let of = |id| {
        loaded
            .certificates
            .iter()
            .find(|known| known.id == id)
            .unwrap()
    };
    let first = of(certificate.id);
    assert_eq!(first.role, Some(Role::Worker));
    assert_eq!(
        first.revoked_at.unwrap().as_microsecond(),
        now.as_microsecond()
    );
    let foreign = of(elsewhere);
    assert!(foreign.role.is_none() && foreign.revoked_at.is_some());
}

#[tokio::test]
async fn of_two_who_join_at_once_under_one_name_one_gets_it() {
    let (store, now) = (scratch(), Timestamp::now());
    let token = || Token {
        id: TokenId::random(),
        kind: api::TokenKind::Join,
        role: Role::Worker,
        name: String::new(),
        digest: Digest::from_bytes(&[0; 32]).unwrap(),
        created_at: now,
        expires_at: now,
        used_at: None,
        revoked_at: None,
    };
    let tokens = [token(), token()];
    for token in &tokens {
        let made = store.access(AccessChange::Token(token.clone()), None).await;
        assert_eq!(made.unwrap(), Written::Done);
    }
    let certificate = |role| Certificate {
        id: uuid::Uuid::new_v4(),
        role: Some(role),
        name: "w1".to_owned(),
        serial: "01".to_owned(),
        issued_at: now,
        expires_at: now,
        revoked_at: None,
    };
    let join = |certificate: &Certificate, token: &Token| {
        let change = AccessChange::Certificate(certificate.clone(), Some(token.id));
        store.access(change, None)
    };
    let (first, second) = (certificate(Role::Worker), certificate(Role::Worker));
    // Both are on their way before either is answered.
    let (one, other) = tokio::join!(join(&first, &tokens[0]), join(&second, &tokens[1]));
    let taken = Written::NameTaken(first.id);
    assert_eq!((one.unwrap(), other.unwrap()), (Written::Done, taken));
    // That has not spent the token, and people may be called like a worker.
    let user = certificate(Role::Viewer);
    assert_eq!(join(&user, &tokens[1]).await.unwrap(), Written::Done);
    assert_eq!(join(&user, &tokens[1]).await.unwrap(), Written::TokenSpent);
}

#[tokio::test]
async fn transactions_are_counted_also_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (store, writing, loaded) = open(folder.path(), KEEP, "a test").unwrap();
    let before = store.progress().borrow().commits;
    assert!(before >= loaded.commits);
    let ended = record(State::Queued);
    store.committed(store.job(Arc::new(ended))).await.unwrap();
    let after = store.progress().borrow().commits;
    assert!(after > before, "{after} {before}");
    writing.end().await.unwrap();
    let (_store, _writing, loaded) = open(folder.path(), KEEP, "a test").unwrap();
    assert!(loaded.commits >= after, "{} {after}", loaded.commits);
}

fn ended(mut job: Record, end: End) -> Arc<Record> {
    job.state = State::Ended {
        process: None,
        at: Timestamp::now(),
        end,
        reason: String::new(),
    };
    Arc::new(job)
}

/// A group of ten, recorded under the key `k`.
async fn group_of_ten(store: &Store) -> (Group, Arc<[Record]>) {
    let first = record(State::Queued);
    let group = Group {
        id: GroupId::random(),
        spec: first.spec.clone(),
        count: 10,
        all: false,
        at_once: None,
        stop_on_failure: false,
        created_at: first.created_at,
        states: Counts::default(),
        exit_code: 0,
        failed_index: None,
        ended_at: None,
        stopped: None,
    };
    let member = |index| Record {
        member: Some(Member {
            group: group.id,
            index,
            count: 10,
            item: None,
            is_bound: false,
        }),
        spec: group.spec.clone(),
        ..record(State::Queued)
    };
    let jobs: Arc<[Record]> = (0..10).map(member).collect();
    let key = Key {
        key: "k".to_owned(),
        body: vec![7],
    };
    let (env, group) = (Arc::default(), Arc::new(group));
    let started = store.start_group(group.clone(), jobs.clone(), env, Some(key), entry());
    started.await.unwrap();
    ((*group).clone(), jobs)
}

fn entry() -> AuditEntry {
    AuditEntry {
        at: Timestamp::now(),
        who: "a test".to_owned(),
        who_id: None,
        address: None,
        action: "start".to_owned(),
        target: String::new(),
        details: serde_json::Value::Null,
        result: "ok".to_owned(),
    }
}

/// All but the last end, the first two of them as failures.
async fn nine_end(store: &Store, jobs: &[Record]) {
    for (n, job) in jobs.iter().take(9).enumerate() {
        let end = match n {
            0 => End::Failed(Some(Exit::Code(3))),
            1 => End::Failed(Some(Exit::Code(9))),
            _ => End::Succeeded,
        };
        store.job(ended(job.clone(), end));
    }
    store.committed(store.now()).await.unwrap();
}

async fn rows_left(store: &Store, group: GroupId, wanted: usize) {
    let mut progress = store.progress();
    let gone = async {
        while store
            .members(group, 0, Room::of(20))
            .await
            .unwrap()
            .jobs
            .len()
            != wanted
        {
            progress.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .unwrap();
}

const THREE: Keep = Keep {
    finished: 3,
    ..KEEP
};

#[tokio::test]
async fn a_group_knows_what_it_came_to_though_records_of_its_jobs_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (store, writing, _) = open(folder.path(), THREE, "a test").unwrap();
    let (group, jobs) = group_of_ten(&store).await;
    nine_end(&store, &jobs).await;
    rows_left(&store, group.id, 3).await;
    writing.end().await.unwrap();

    let (store, writing, loaded) = open(folder.path(), THREE, "a test").unwrap();
    let [after] = &loaded.groups[..] else {
        panic!("{:?}", loaded.groups);
    };
    let counts = Counts {
        failed: 2,
        succeeded: 7,
        ..Counts::default()
    };
    assert_eq!((after.states, after.exit_code), (counts, 3));
    assert_eq!((after.ended_at, loaded.live.len()), (None, 1));
    // The end of a job counts once.
    store.job(ended(jobs[0].clone(), End::Lost));
    store.job(ended(jobs[9].clone(), End::Succeeded));
    store.committed(store.now()).await.unwrap();
    writing.end().await.unwrap();
    let (_store, _writing, loaded) = open(folder.path(), THREE, "a test").unwrap();
    let after = &loaded.groups[0];
    let counts = Counts {
        succeeded: 8,
        ..counts
    };
    assert_eq!((after.states, after.exit_code), (counts, 3));
    assert!(after.ended_at.is_some());
}

#[tokio::test]
async fn an_older_store_is_counted_once_and_what_is_gone_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let (store, writing, _) = open(folder.path(), THREE, "a test").unwrap();
    let (group, jobs) = group_of_ten(&store).await;
    nine_end(&store, &jobs).await;
    rows_left(&store, group.id, 3).await;
    writing.end().await.unwrap();
    let old = Connection::open(folder.path().join(schema::FILE)).unwrap();
    old.execute_batch(
        "DROP TABLE group_ends; DROP TABLE keys; DELETE FROM meta WHERE key = 'clock_us';
         CREATE TABLE keys (key TEXT PRIMARY KEY, job BLOB NOT NULL, body BLOB NOT NULL)
             STRICT, WITHOUT ROWID;
         PRAGMA user_version = 6;",
    )
    .unwrap();
    drop(old);
    for _ in 0..2 {
        let (_, writing, loaded) = open(folder.path(), THREE, "a test").unwrap();
        let counts = Counts {
            succeeded: 3,
            lost: 6,
            ..Counts::default()
        };
        assert_eq!(loaded.groups[0].states, counts);
        assert_eq!(loaded.groups[0].exit_code, api::exit_code::CANNOT_TELL);
        writing.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_key_outlives_the_records_of_what_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let keep = Keep {
        finished: 0,
        ..KEEP
    };
    let (store, _writing, _) = open(folder.path(), keep, "a test").unwrap();
    let (group, jobs) = group_of_ten(&store).await;
    nine_end(&store, &jobs).await;
    rows_left(&store, group.id, 0).await;
    let key = store.key("k".to_owned()).await.unwrap().unwrap();
    assert_eq!((key.group, key.is_gone), (Some(group.id), false));
    store.job(ended(jobs[9].clone(), End::Succeeded));
    store.committed(store.now()).await.unwrap();
    let mut progress = store.progress();
    let gone = async {
        while store.group(group.id).await.unwrap().is_some() {
            progress.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .unwrap();
    let key = store.key("k".to_owned()).await.unwrap().unwrap();
    assert!(key.is_gone);
}

#[tokio::test]
async fn nothing_is_acknowledged_once_a_file_of_the_store_is_gone() {
    for name in ["store.sqlite", "store.sqlite-wal"] {
        for replaced in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let (store, mut writing, _) = open(folder.path(), KEEP, "a test").unwrap();
            let start = || {
                let job = Arc::new(record(State::Queued));
                store.start(job, Arc::default(), None, entry())
            };
            start().await.unwrap();
            let file = folder.path().join(name);
            fs::rename(&file, folder.path().join("away")).unwrap();
            if replaced {
                fs::copy(folder.path().join("away"), &file).unwrap();
            }
            let answer = start().await;
            assert!(matches!(answer, Err(Error::Ended)), "{answer:?}");
            let error = writing.failed().await;
            assert!(matches!(error, Error::Replaced { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

#[tokio::test]
async fn the_write_ahead_log_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    let log = folder.path().join("store.sqlite-wal");
    let spec = Arc::new(Spec {
        args: vec!["x".repeat(200_000)],
        ..Spec::default()
    });
    let mut written = 0;
    let mut largest = 0;
    while written < 60_000_000 {
        let mut job = record(State::Queued);
        job.spec = spec.clone();
        let started = store.start(Arc::new(job), Arc::default(), None, entry());
        started.await.unwrap();
        written += 200_000;
        largest = largest.max(fs::metadata(&log).unwrap().len());
    }
    assert!(largest < 8 * 1024 * 1024, "{largest}");
}

#[tokio::test]
async fn another_program_with_the_lock_does_not_end_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    let other = Connection::open(folder.path().join(schema::FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let kept = store.job(Arc::new(record(State::Queued)));
    assert!(matches!(store.committed_now(kept).await, Err(Error::Busy)));
    let job = Arc::new(record(State::Queued));
    let refused = store.start(job, Arc::default(), None, entry()).await;
    assert!(matches!(refused, Err(Error::Busy)), "{refused:?}");
    other.execute_batch("ROLLBACK").unwrap();
    store.committed(kept).await.unwrap();
    let job = Arc::new(record(State::Queued));
    store
        .start(job, Arc::default(), None, entry())
        .await
        .unwrap();
}

#[tokio::test]
async fn an_epoch_is_taken_though_there_is_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let (store, writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    store.committed(store.now()).await.unwrap();
    store.limit_pages(1);
    let mut more = 0;
    while store
        .access(AccessChange::Nothing, Some(entry()))
        .await
        .is_ok()
    {
        more += 1;
        assert!(more < 1000, "it never gets full");
    }
    // Or the number would find room where it stands.
    store.audit_later(entry());
    let epoch = store.epoch_above(1 << 40).await.unwrap();
    assert_eq!(epoch, (1 << 40) + 1);
    writing.end().await.unwrap();
    drop(store);
    let (_, _writing, loaded) = open(folder.path(), KEEP, "a test").unwrap();
    assert_eq!(loaded.epoch, epoch + 1);
}

#[tokio::test]
async fn what_waits_for_room_does_not_grow_with_the_time() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    store.committed(store.now()).await.unwrap();
    store.limit_pages(1);
    let mut before = 0;
    while store
        .access(AccessChange::Nothing, Some(entry()))
        .await
        .is_ok()
    {
        before += 1;
        assert!(before < 1000, "it never gets full");
    }
    let more = 100;
    for _ in 0..writer::MOST_LINES_KEPT + more {
        store.audit_later(entry());
    }
    let worker = |heard_at| StoredWorker {
        id: WorkerId::from(uuid::Uuid::nil()),
        name: "w1".into(),
        address: "127.0.0.1:1".into(),
        version: String::new(),
        left: false,
        registered_at: Timestamp::UNIX_EPOCH,
        heard_at: Some(heard_at),
        told: Told::default(),
        orders: Orders::default(),
    };
    for second in 0..100 {
        store.worker(worker(Timestamp::from_second(second).unwrap()));
    }
    let all = store.now();
    assert!(matches!(store.committed_now(all).await, Err(Error::Full)));
    // Refused behind them, and so they were looked at.
    let refused = store.access(AccessChange::Nothing, Some(entry())).await;
    assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
    store.limit_pages(1_000_000);
    store.committed(all).await.unwrap();
    let lines = store.audit_lines(before, 10_000).await.unwrap();
    assert_eq!(lines.len(), writer::MOST_LINES_KEPT + 1);
    let last = &lines.last().unwrap().1;
    assert!(
        last.contains(&format!("{{\"lines_without_room\":{more}}}")),
        "{last}"
    );
    // Once.
    store
        .access(AccessChange::Nothing, Some(entry()))
        .await
        .unwrap();
    assert_eq!(
        store.last_audit_line().await.unwrap(),
        before + lines.len() as i64 + 1
    );
}

#[tokio::test]
async fn a_step_of_the_clock_deletes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _writing, _) = open(folder.path(), KEEP, "a test").unwrap();
    let job = record(State::Queued);
    let id = job.id;
    store.adopted(ended(job, End::Succeeded));
    // The clocks of the scheduler and of the worker were wrong when it ended.
    let mut job = record(State::Queued);
    let under_a_wrong_clock = job.id;
    let years_ago = Timestamp::now() - jiff::SignedDuration::from_hours(2 * 366 * 24);
    job.created_at = years_ago;
    let mut line = entry();
    line.at = years_ago;
    store
        .start(Arc::new(job.clone()), Arc::default(), None, line)
        .await
        .unwrap();
    job.state = State::Ended {
        process: None,
        at: years_ago,
        end: End::Succeeded,
        reason: String::new(),
    };
    store.job(Arc::new(job));
    let last = entry();
    store
        .access(AccessChange::Nothing, Some(last))
        .await
        .unwrap();
    store.committed(store.now()).await.unwrap();
    let passed = async |before| {
        let mut progress = store.progress();
        progress
            .wait_for(|progress| progress.commits > before)
            .await
            .unwrap();
    };
    for years in [2, 0, -2, 0] {
        let before = store.progress().borrow().commits;
        store.step_clock(jiff::SignedDuration::from_hours(years * 366 * 24));
        passed(before).await;
        assert!(store.find(id).await.unwrap().is_some(), "{years}");
        let found = store.find(under_a_wrong_clock).await.unwrap();
        assert!(found.is_some(), "{years}");
        assert_eq!(store.audit_lines(0, 10).await.unwrap().len(), 2);
    }
}
