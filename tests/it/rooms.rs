//! Holds the map of the rooms in src/lib.rs against the code: who may import
//! whom, and which crates stay behind which door.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A room, and the rooms it may import beside itself. The first prefix that
/// fits a file is its room.
const ROOMS: [(&str, &[&str]); 14] = [
    ("roles/shim/", &["ids"]),
    (
        "roles/worker/",
        &[
            "blocking",
            "identity",
            "ids",
            "labels",
            "net",
            "proto",
            "roles::shim",
            "simulation",
        ],
    ),
    (
        "roles/scheduler/",
        &[
            "api",
            "blocking",
            "identity",
            "ids",
            "labels",
            "net",
            "proto",
            "simulation",
        ],
    ),
    ("client/", &["api", "config", "identity", "ids", "proto"]),
    (
        "cmd/",
        &[
            "api", "client", "config", "identity", "ids", "labels", "net", "roles",
        ],
    ),
    ("net/", &["identity", "simulation"]),
    ("simulation/", &["ids", "roles::shim"]),
    ("identity/", &[]),
    ("config.rs", &[]),
    ("api.rs", &["identity", "ids"]),
    ("proto.rs", &[]),
    ("blocking.rs", &["simulation"]),
    ("ids.rs", &[]),
    ("labels.rs", &[]),
];

/// Crates that only these files may use.
const DOORS: [(&str, &[&str]); 17] = [
    ("clap", &["cmd/", "main.rs"]),
    ("anyhow", &["cmd/", "main.rs"]),
    ("unicode_width", &["client/render/"]),
    ("indicatif", &["client/render/progress.rs"]),
    ("reqwest", &["client/"]),
    (
        "axum",
        &[
            "net/accept.rs",
            "roles/scheduler/http/",
            "roles/scheduler/grpc.rs",
            "roles/scheduler/logs.rs",
            "roles/scheduler/error.rs",
            "roles/worker/grpc.rs",
        ],
    ),
    (
        "tonic",
        &[
            "proto.rs",
            "net/dial.rs",
            "roles/scheduler/grpc.rs",
            "roles/scheduler/jobs_rpc.rs",
            "roles/scheduler/worker_rpc.rs",
            "roles/scheduler/error.rs",
            "roles/scheduler/logs.rs",
            "roles/worker/grpc.rs",
            "roles/worker/session.rs",
            "roles/worker/member.rs",
            "roles/worker/error.rs",
        ],
    ),
    ("rcgen", &["identity/"]),
    ("x509_parser", &["identity/"]),
    ("tokio_rustls", &["net/"]),
    ("hyper_util", &["net/"]),
    ("toml", &["config.rs", "client/contexts.rs"]),
    (
        "tempfile",
        &["client/contexts.rs", "cmd/dev.rs", "identity/files.rs"],
    ),
    ("rusqlite", &["roles/scheduler/store/"]),
    ("serde_saphyr", &["client/render/mod.rs"]),
    ("signal_hook", &["roles/shim/mod.rs"]),
    ("turmoil", &["net/socket.rs"]),
];

/// What the shim, which lives once per job, must not drag in.
const HEAVY: [&str; 4] = ["tokio", "tonic", "axum", "prost"];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            // Tests go through every door.
            true if path.ends_with("tests") => {}
            true => found.extend(sources(&path)),
            false if path.ends_with("tests.rs") => {}
            false => found.push(path),
        }
    }
    found
}

/// The code of a file without its comments and its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = text.lines().filter(|l| !l.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths behind each `crate::`, with groups written out.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push(path(rest)),
            Some(group) => {
                let (mut depth, mut start) = (0, 0);
                for (index, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => {
                            found.push(path(group[start..index].trim()));
                            break;
                        }
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            found.push(path(group[start..index].trim()));
                            start = index + 1;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found.retain(|path| !path.is_empty());
    found
}

fn path(text: &str) -> String {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    text[..end.unwrap_or(text.len())].to_owned()
}

#[test]
fn every_file_imports_only_what_its_room_may() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for file in sources(&src) {
        let name = file.strip_prefix(&src).unwrap().display().to_string();
        let Some((room, allowed)) = ROOMS.iter().find(|(room, _)| name.starts_with(room)) else {
            assert!(
                ["main.rs", "lib.rs", "fuzzing.rs", "roles/mod.rs"].contains(&name.as_str()),
                "{name} is in no room"
            );
            continue;
        };
        let own = room
            .trim_end_matches('/')
            .trim_end_matches(".rs")
            .replace('/', "::");
        for import in imports(&code(&file)) {
            seen += 1;
            let fits = allowed
                .iter()
                .chain([&own.as_str()])
                .any(|room| import.starts_with(room));
            assert!(fits, "{name} must not import crate::{import}");
        }
    }
    assert!(
        seen > 20,
        "only {seen} imports seen: does this test still read them?"
    );
}

#[test]
fn crates_stay_behind_their_doors() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in sources(&src) {
        let name = file.strip_prefix(&src).unwrap().display().to_string();
        let code = code(&file);
        let uses = |krate: &str| {
            let path = format!("{krate}::");
            code.match_indices(&path).any(|(at, _)| {
                !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
            })
        };
        for (krate, doors) in DOORS {
            let allowed = doors.iter().any(|door| name.starts_with(door));
            assert!(allowed || !uses(krate), "{name} must not use {krate}");
        }
        for krate in HEAVY {
            assert!(
                !name.starts_with("roles/shim/") || !uses(krate),
                "{name} must not use {krate}"
            );
        }
    }
}

#[test]
fn groups_of_imports_are_written_out() {
    let code = "use crate::{api, ids::{JobId, WorkerId}, roles::shim::record};\nuse crate::proto;";
    assert_eq!(
        imports(code),
        ["api", "ids::", "roles::shim::record", "proto"]
    );
}
