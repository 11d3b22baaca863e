//! The real binary, as far as it needs no scheduler: usage, help, settings.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Stdio},
};

use crate::typed::{Jobctl, Outcome, nowhere};

fn outcome(command: &mut Command) -> Outcome {
    command.output().unwrap().into()
}

const VERBS: [&str; 18] = [
    "start",
    "stop",
    "query",
    "jobs",
    "logs",
    "wait",
    "workers",
    "token",
    "cert",
    "ca",
    "audit",
    "version",
    "context",
    "login",
    "scheduler",
    "worker",
    "dev",
    "completions",
];

#[test]
fn wrong_usage_ends_with_2_and_says_so_on_stderr() {
    let jobctl = Jobctl::new();
    for args in [
        &[][..],
        &["nonsense"],
        &["start"],
        &["start", ""],
        &["start", "--wait", ""],
        &["start", "--with", "bash", "x"],
        &["start", "--env", "NOT_SET_HERE", "x"],
        &["start", "--timeout", "soon", "x"],
        &["stop"],
        &["stop", ""],
        &["stop", "--grace", "10", "x"],
        &["query"],
        &["query", "-o", "xml", "x"],
        &["query", "-q", "-o", "json", "x"],
        &["jobs", "--state", "sleeping"],
        &["jobs", "-n", "0"],
        &["logs"],
        &["logs", "--since", "yesterday-ish", "x"],
        &["logs", "--stream", "stdin", "x"],
        &["wait"],
        &["completions", "tcsh"],
        &["dev", ""],
        &["--server", "localhost:3000", "jobs"],
        &["--server", "ftp://localhost", "jobs"],
        &["--color", "sometimes", "jobs"],
        &["jobs", "--server", "https://"],
        &["--context", "", "jobs"],
        &["--context", "x", "context", "list"],
        &["--client-dir", "x", "completions", "bash"],
        &["context"],
        &["context", "use"],
        &["context", "add", "a b", "--server", "http://x"],
        &["context", "add", "x", "--server", "x"],
        &["--server", "http://localhost", "scheduler"],
        &["-v", "completions", "bash"],
        &["version", "-q"],
        &["token", "create"],
        &["token", "create", "--role", "scheduler"],
        &["token", "create", "--role", "worker", "--bearer"],
        &["token", "create", "--role", "viewer", "--ttl", "0s"],
        &["cert", "revoke"],
        &["ca", "rotate", "--yes", "--overlap", "366d"],
        &["ca", "rotate", "--yes", "--overlap", "59s"],
        &["audit", "--verify", "--follow"],
        &["audit", "-n", "-1"],
        &["logs", "x", "--tail", "-1"],
        &["stop", "x", "--grace", "-5s"],
        &["start", "--name", "last", "x"],
        &["start", "--timeout", "0.1ms", "x"],
        &["start", "--timeout", "1y", "x"],
        &["start", "--script", ""],
        &["worker", "--keep-finished", "-1"],
        &["worker", "--memory", "1000"],
        &["worker", "--memory", "much"],
        &["worker", "--processes", "0"],
        &["worker", "--processes", "-1"],
        &["worker", "--open-files", "3"],
        &["worker", "--cpus", "0"],
        &["worker", "--cpus", "-1"],
        &["worker", "--cpus", "nan"],
        &["worker", "--scheduler", "nonsense"],
        &["worker", "--advertise", "host"],
        &["worker", "--script-dir", "./nope"],
        &[
            "scheduler",
            "--http-addr",
            "127.0.0.1:0",
            "--grpc-addr",
            "foo",
        ],
        &["scheduler", "--http-addr", "foo"],
        &["scheduler", "--log-level", "bogus"],
        &["dev", "--log-level", "bogus"],
    ] {
        let mut command = jobctl.command(args);
        command.env("JOBCTL_SERVER", "http://127.0.0.1:1");
        let run = outcome(&mut command);
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{args:?}");
        assert_ne!(run.stderr, "", "{args:?}");
        // No word of a setting that was not typed, and none of `--` for a number.
        let usage = run.stderr.lines().find(|line| line.starts_with("Usage:"));
        assert!(!usage.unwrap_or_default().contains("--server"), "{run:?}");
        assert!(!run.stderr.contains("-- -"), "{run:?}");
        for line in run.stderr.lines() {
            assert!(line.chars().count() <= 80, "{args:?}: {line}");
        }
    }
}

#[test]
fn a_folder_that_is_not_there_can_be_made() {
    let jobctl = Jobctl::new();
    let run = jobctl.run(&["worker", "--script-dir", "./nope"]);
    let shown = "error: cannot use `jobs.script_dir` ./nope\n";
    assert!(run.stderr.starts_with(shown), "{run:?}");
    assert!(run.stderr.contains("`mkdir -p ./nope`"), "{run:?}");
    fs::write(jobctl.folder().join("file"), "").unwrap();
    let run = jobctl.run(&["worker", "--script-dir", "file"]);
    assert!(run.stderr.contains("not a folder"), "{run:?}");
}

#[test]
fn a_variable_set_to_nothing_is_not_set() {
    let jobctl = Jobctl::new();
    let mut command = jobctl.command(&["scheduler", "--http-addr", "foo"]);
    command
        .env("JOBCTL_LOG_FORMAT", "")
        .env("JOBCTL_HTTP_SERVER_ADDR", "");
    command
        .env("JOBCTL_HEARTBEAT_INTERVAL", "")
        .env("JOBCTL_CONFIG", "");
    let run = outcome(&mut command);
    assert!(run.stderr.contains("`http_server.addr`: `foo`"), "{run:?}");
    let mut command = jobctl.command(&["version"]);
    let run = outcome(command.env("JOBCTL_SERVER", ""));
    run.is(2, &run.stdout);
    assert!(!run.stdout.contains("http"), "{run:?}");
    assert!(run.stderr.contains("no scheduler is known here"), "{run:?}");
    let mut command = jobctl.command(&["version"]);
    let run = outcome(command.env("JOBCTL_SERVER", "nonsense"));
    run.is(2, "");
    assert!(
        run.stderr
            .starts_with("error: `JOBCTL_SERVER` is `nonsense`"),
        "{run:?}"
    );
}

#[test]
fn a_scheduler_that_says_nothing_is_not_waited_for_long() {
    // Takes connections in, by its backlog, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let jobctl = Jobctl::at(format!("http://{}", silent.local_addr().unwrap()));
    let begun = std::time::Instant::now();
    let run = jobctl.run(&["version"]);
    assert!(run.stderr.contains("does not answer in time"), "{run:?}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(40));
}

#[test]
fn a_variable_that_does_nothing_is_said_once_and_is_no_error() {
    let jobctl = Jobctl::new();
    let mut command = jobctl.command(&["completions", "bash"]);
    command
        .env("JOBCTL_WORKER_SLOT", "7")
        .env("JOBCTL_JOB_ID", "x");
    let run = outcome(&mut command);
    assert_eq!(run.code, Some(0));
    assert_eq!(
        run.stderr,
        "warning: the variable JOBCTL_WORKER_SLOT does nothing; did you mean \
         JOBCTL_WORKER_SLOTS?\n"
    );
}

#[test]
fn a_patience_that_cannot_be_used_is_said() {
    let jobctl = Jobctl::at(nowhere());
    let mut command = jobctl.command(&["jobs"]);
    let run = outcome(command.env("JOBCTL_PATIENCE", "long"));
    run.is(2, "");
    assert!(run.stderr.contains("`JOBCTL_PATIENCE`"), "{run:?}");
    assert_eq!(jobctl.run(&["jobs", "--patience", "-1s"]).code, Some(2));
}

#[test]
fn a_mistyped_verb_is_put_right() {
    let run = Jobctl::new().run(&["strat", "x"]);
    assert!(run.stderr.contains("start"), "{}", run.stderr);
}

#[test]
fn an_unreachable_scheduler_ends_with_5_its_url_and_a_hint() {
    let jobctl = Jobctl::new();
    let server = nowhere();
    for args in [
        &["start", "true"][..],
        &["stop", "x"],
        &["query", "x"],
        &["jobs"],
        &["logs", "x"],
        &["workers", "-o", "json"],
    ] {
        let run = outcome(jobctl.command(args).env("JOBCTL_SERVER", &server));
        assert_eq!(run.code, Some(5), "{args:?}");
        assert_eq!(run.stdout, "", "{args:?}");
        let first = format!("error: cannot reach the scheduler at {server}: ");
        assert!(run.stderr.starts_with(&first), "{}", run.stderr);
        assert!(
            run.stderr
                .contains("\nhint: start one with `jobctl scheduler`"),
            "{}",
            run.stderr
        );
    }
}

#[test]
fn where_the_exit_code_is_the_jobs_an_unreachable_scheduler_is_125() {
    let jobctl = Jobctl::new();
    let server = nowhere();
    for args in [
        &["start", "--wait", "true"][..],
        &["start", "--follow", "true"],
        &["logs", "--follow", "x"],
        &["logs", "-f", "3f2a8b1c-9d4e-4f00-8000-000000000000"],
        &["wait", "x"],
    ] {
        let run = outcome(jobctl.command(args).env("JOBCTL_SERVER", &server));
        assert_eq!(run.code, Some(125), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(&server), "{}", run.stderr);
    }
}

#[test]
fn the_flag_wins_over_the_variable() {
    let run = outcome(
        Jobctl::new()
            .command(&["--server", "http://127.0.0.1:1", "jobs"])
            .env("JOBCTL_SERVER", "http://127.0.0.1:2"),
    );
    assert!(run.stderr.contains("http://127.0.0.1:1:"), "{}", run.stderr);
}

#[test]
fn each_request_is_shown_with_its_id_when_asked_for() {
    let run = Jobctl::new().run(&["-v", "--server", &nowhere(), "jobs"]);
    let line = run.stderr.lines().next().unwrap();
    assert!(line.contains("GET /jobs unanswered in "), "{line}");
    let (_, id) = line.split_once("request_id=").unwrap();
    assert_eq!(id.trim_matches('"').len(), 36, "{line}");
}

#[test]
fn version_is_shown_without_a_scheduler_and_is_no_success_then() {
    let jobctl = Jobctl::new();
    let server = nowhere();
    let version = env!("CARGO_PKG_VERSION");
    let run = jobctl.run(&["version", "--server", &server]);
    run.is(5, &format!("client {version}\nserver unknown\n"));
    let first = format!("error: cannot reach the scheduler at {server}: ");
    assert!(run.stderr.starts_with(&first), "{}", run.stderr);
    let run = jobctl.run(&["version", "--server", &server, "-o", "json"]);
    assert_eq!(run.code, Some(5));
    let read: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(read, serde_json::json!({"client": version, "server": null}));
    let run = jobctl.run(&["--version"]);
    assert_eq!(run.stdout, format!("jobctl {version}\n"));
}

#[test]
fn help_of_every_command_fits_80_columns() {
    let jobctl = Jobctl::new();
    let verbs = VERBS.iter().map(|verb| vec![*verb]);
    for command in verbs.chain([vec![]]) {
        for flag in ["-h", "--help"] {
            for columns in ["200", "80"] {
                let args = [&command[..], &[flag]].concat();
                let run = outcome(jobctl.command(&args).env("COLUMNS", columns));
                assert_eq!(run.code, Some(0), "{args:?}");
                for line in run.stdout.lines() {
                    assert!(line.chars().count() <= 80, "{args:?}: {line}");
                }
            }
        }
    }
}

#[test]
fn help_lists_every_verb_and_no_other() {
    let run = Jobctl::new().run(&["-h"]);
    let commands = run.stdout.split_once("Commands:\n").unwrap().1;
    let listed: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(listed, [&VERBS[..], &["help"]].concat());
}

#[test]
fn long_help_begins_with_examples_and_lists_the_exit_codes() {
    let jobctl = Jobctl::new();
    for verb in VERBS {
        let run = jobctl.run(&[verb, "--help"]);
        assert!(run.stdout.starts_with("Examples:\n  "), "{verb}");
        assert!(
            !jobctl.run(&[verb, "-h"]).stdout.contains("Examples:"),
            "{verb}"
        );
    }
    for args in [
        &["--help"][..],
        &["start", "--help"],
        &["logs", "--help"],
        &["wait", "--help"],
        &["dev", "--help"],
    ] {
        let run = jobctl.run(args);
        assert!(run.stdout.contains(jobctl::cmd::EXIT_CODES), "{args:?}");
    }
}

#[test]
fn a_closed_pipe_is_quiet_and_no_failure() {
    let jobctl = Jobctl::new();
    for args in [&["completions", "bash"][..], &["version"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_jobctl"))
            .args(args)
            .env_clear()
            .env("JOBCTL_SERVER", nowhere())
            .env("JOBCTL_PATIENCE", "0s")
            .env("JOBCTL_CLIENT_DIR", jobctl.client_dir())
            .current_dir(jobctl.folder())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{args:?}");
    }
}

#[test]
fn a_full_disk_is_a_failure() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let jobctl = Jobctl::new();
    let mut command = jobctl.command(&["completions", "bash"]);
    let output = command.stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("error: cannot write the output\n  cause: "),
        "{stderr}"
    );
}

#[test]
fn colour_comes_only_where_it_is_wanted() {
    let jobctl = Jobctl::new();
    let args = ["--server", "http://127.0.0.1:1", "jobs"];
    assert!(!jobctl.run(&args).stderr.contains('\u{1b}'));
    let always = jobctl.run(&[&args[..], &["--color", "always"]].concat());
    assert!(always.stderr.starts_with("\u{1b}["), "{}", always.stderr);
    let forced = outcome(jobctl.command(&args).env("CLICOLOR_FORCE", "1"));
    assert!(forced.stderr.contains('\u{1b}'));
    let never = [&args[..], &["--color", "never"]].concat();
    let never = outcome(jobctl.command(&never).env("CLICOLOR_FORCE", "1"));
    assert!(!never.stderr.contains('\u{1b}'));
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_the_nearest_valid_one() {
    let jobctl = Jobctl::new();
    for (role, text, key, nearest) in [
        (
            "scheduler",
            "[http_server]\nadr = \"x\"",
            "http_server.adr",
            "http_server.addr",
        ),
        (
            "worker",
            "[jobs]\nscript_dri = \"x\"",
            "jobs.script_dri",
            "jobs.script_dir",
        ),
    ] {
        fs::write(jobctl.folder().join("config.toml"), text).unwrap();
        let run = jobctl.run(&[role]);
        assert_eq!(run.code, Some(2), "{role}");
        assert_eq!(
            run.stderr,
            format!("error: unknown key `{key}` in config.toml\nhint: did you mean `{nearest}`?\n")
        );
    }
}

#[test]
fn a_file_that_cannot_be_read_names_itself() {
    let jobctl = Jobctl::new();
    let run = jobctl.run(&["scheduler", "--config", "etc/missing.toml"]);
    assert_eq!(run.code, Some(2));
    assert!(
        run.stderr
            .starts_with("error: cannot read etc/missing.toml\n  cause: ")
    );
    fs::write(jobctl.folder().join("x.toml"), "[http_server\n").unwrap();
    let run = outcome(jobctl.command(&["worker"]).env("JOBCTL_CONFIG", "x.toml"));
    assert_eq!(run.code, Some(2));
    assert!(
        run.stderr.contains("x.toml is not a valid settings file"),
        "{}",
        run.stderr
    );
}

#[test]
fn plain_text_is_for_loopback_whoever_asks() {
    let jobctl = Jobctl::new();
    fs::write(
        jobctl.folder().join("open.toml"),
        "[grpc_server]\naddr = \"0.0.0.0:0\"",
    )
    .unwrap();
    for (args, key, address) in [
        (
            &["scheduler", "--http-addr", "0.0.0.0:0"][..],
            "http_server.addr",
            "0.0.0.0:0",
        ),
        (
            &[
                "scheduler",
                "--http-addr",
                "127.0.0.1:0",
                "--config",
                "open.toml",
            ],
            "grpc_server.addr",
            "0.0.0.0:0",
        ),
        (
            &["worker", "--grpc-addr", "[::]:0"],
            "grpc_server.addr",
            "[::]:0",
        ),
        (
            &["worker", "--config", "open.toml"],
            "grpc_server.addr",
            "0.0.0.0:0",
        ),
    ] {
        let run = jobctl.run(&[args, &["--insecure"]].concat());
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.stderr);
        let start = format!("error: `{key}` is {address}, but ");
        assert!(run.stderr.starts_with(&start), "{args:?}: {}", run.stderr);
        assert!(
            run.stderr.contains("not a loopback address"),
            "{}",
            run.stderr
        );
        assert!(run.stderr.contains("\nhint: "), "{}", run.stderr);
    }
}

#[test]
fn what_is_said_of_tls_must_be_whole() {
    let jobctl = Jobctl::new();
    for (text, why) in [
        (
            "[http_server]\nuse_tls = false",
            "plain text was not asked for",
        ),
        (
            "[grpc_server]\ncrt_file = \"a\"\nkey_file = \"b\"",
            "`grpc_server.ca_file` is not set",
        ),
        (
            "[grpc_server]\nuse_tls = false\ncrt_file = \"a\"",
            "`grpc_server.use_tls` is false, and certificates are named",
        ),
    ] {
        fs::write(jobctl.folder().join("config.toml"), text).unwrap();
        let run = jobctl.run(&["scheduler"]);
        assert_eq!(run.code, Some(2), "{text}: {}", run.stderr);
        assert!(run.stderr.contains(why), "{text}: {}", run.stderr);
    }
}

#[test]
fn a_taken_address_is_named_with_the_flag_that_changes_it() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let jobctl = Jobctl::new();
    let run = outcome(
        jobctl
            .command(&["scheduler"])
            .env("JOBCTL_HTTP_SERVER_ADDR", &taken),
    );
    assert_eq!(run.code, Some(1));
    let what = format!("error: cannot listen on {taken} (`http_server.addr`)\n");
    assert!(run.stderr.starts_with(&what), "{}", run.stderr);
    assert!(run.stderr.contains("--http-addr"), "{}", run.stderr);
}

#[test]
fn a_worker_cannot_be_called_anything() {
    let run = Jobctl::new().run(&["worker", "--name", "a b\u{1b}"]);
    assert_eq!(run.code, Some(2));
    assert!(
        run.stderr.contains("`a b^[` cannot be a worker's name"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_level_that_is_none_is_refused() {
    let run = Jobctl::new().run(&["scheduler", "--log-level", "a=b=c"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("log.level"), "{}", run.stderr);
}
