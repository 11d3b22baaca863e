//! `completions/` holds what `jobctl completions` prints.

use std::{fs, path::Path};

use assert_cmd::Command;

use crate::typed::Jobctl;

#[test]
fn the_scripts_are_not_stale() {
    for (shell, file) in [
        ("bash", "jobctl.bash"),
        ("zsh", "_jobctl"),
        ("fish", "jobctl.fish"),
    ] {
        let run = Command::from_std(Jobctl::new().command(&["completions", shell]))
            .assert()
            .success()
            .stderr("");
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("completions")
            .join(file);
        let kept = fs::read(&path).unwrap_or_default();
        assert!(
            kept == run.get_output().stdout,
            "completions/{file} is stale: jobctl completions {shell} > completions/{file}"
        );
    }
}
