//! `jobctl dev`: the real binary, with everything in one process.

use std::{fs, process::Command};

use rustix::process::Signal;

use crate::{
    support::{binary, eventually, gone},
    typed::{Jobctl, Typed},
};

#[tokio::test]
async fn dev_runs_one_job_and_ends_as_it_does() {
    let jobctl = Jobctl::new();
    let run = jobctl
        .ask(&["dev", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])
        .await;
    run.is(7, "out\n");
    assert!(run.stderr.starts_with("err\n"), "{run:?}");
    let missing = jobctl.ask(&["dev", "--", "no-such-program"]).await;
    missing.is(127, "");
    // Its cluster is gone: there is nobody to ask.
    assert!(!missing.stderr.contains("hint"), "{missing:?}");
    assert_eq!(fs::read_dir(jobctl.folder()).unwrap().count(), 0);
}

#[tokio::test]
async fn ctrl_c_ends_the_job_of_dev_and_leaves_nothing() {
    let jobctl = Jobctl::new();
    let script = "echo $$; exec sleep 600";
    let mut dev = jobctl.begin(&["dev", "--", "sh", "-c", script]);
    let pid = dev.line().await.trim().to_owned();
    assert!(!gone(&pid));
    dev.signal(Signal::INT);
    dev.end().await.is(130, "");
    eventually(|| gone(&pid)).await;
    assert_eq!(fs::read_dir(jobctl.folder()).unwrap().count(), 0);
}

#[tokio::test]
async fn dev_alone_says_what_to_type_and_that_works() {
    let jobctl = Jobctl::new();
    let mut dev = jobctl.begin(&["dev"]);
    let greeting = dev.says("Ctrl-C", 1).await;
    assert!(greeting.trim_end().chars().count() <= 80, "{greeting}");
    let path = format!("{}:/usr/bin:/bin", binary().parent().unwrap().display());
    for expected in ["hello\nbye\n", "echo hello", "hello\nbye\n"] {
        // Typed into a shell, as it stands there.
        let line = dev.line().await;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &line]).env_clear().env("PATH", &path);
        shell.env("JOBCTL_CLIENT_DIR", jobctl.client_dir());
        let run = Typed::new(shell).end().await;
        assert_eq!(run.code, Some(0), "{line}: {run:?}");
        assert!(run.stdout.contains(expected), "{line}: {run:?}");
    }
    dev.signal(Signal::INT);
    dev.end().await.is(0, "");
    assert_eq!(fs::read_dir(jobctl.folder()).unwrap().count(), 0);
}
