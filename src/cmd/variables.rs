//! The variables that jobctl reads, and those that only look as if it did.

use std::ffi::OsString;

use clap::CommandFactory as _;

use super::Cli;
use crate::config;

const PREFIX: &str = "JOBCTL_";

/// Those of the client; those of the roles are known to the command line.
const CLIENT: [&str; 6] = [
    "JOBCTL_CA_FILE",
    "JOBCTL_CLIENT_DIR",
    "JOBCTL_CONTEXT",
    "JOBCTL_PATIENCE",
    "JOBCTL_SERVER",
    "JOBCTL_TOKEN_FILE",
];

/// Those that a job is given: jobctl may well be called in one.
const OF_JOBS: [&str; 8] = [
    "JOBCTL_ATTEMPT",
    "JOBCTL_COUNT",
    "JOBCTL_GROUP_ID",
    "JOBCTL_INDEX",
    "JOBCTL_ITEM",
    "JOBCTL_JOB_ID",
    "JOBCTL_RUN_ID",
    "JOBCTL_SCRIPT",
];

/// What to say of the variables that are set and are none of jobctl's.
pub(super) fn warnings(set: impl Iterator<Item = OsString>) -> Vec<String> {
    let is_known = |name: &str| CLIENT.contains(&name) || OF_JOBS.contains(&name);
    let mut unknown: Vec<_> = set
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with(PREFIX) && !is_known(name))
        .collect();
    if unknown.is_empty() {
        return Vec::new();
    }
    let mut known = CLIENT.map(str::to_owned).to_vec();
    add_variables(&Cli::command(), &mut known);
    unknown.retain(|name| !known.contains(name));
    unknown.sort_unstable();
    unknown
        .iter()
        .filter_map(|name| {
            let nearest = config::nearest(name, known.iter().map(String::as_str))?;
            Some(format!(
                "warning: the variable {name} does nothing; did you mean {nearest}?"
            ))
        })
        .collect()
}

fn add_variables(command: &clap::Command, known: &mut Vec<String>) {
    let variables = command.get_arguments().filter_map(clap::Arg::get_env);
    known.extend(variables.filter_map(|name| name.to_str().map(str::to_owned)));
    for command in command.get_subcommands() {
        add_variables(command, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_does_nothing_is_named_with_the_nearest() {
        let warned = |set: &[&str]| warnings(set.iter().map(OsString::from));
        assert_eq!(warned(&CLIENT), [""; 0]);
        assert_eq!(warned(&OF_JOBS), [""; 0]);
        let roles = [
            "JOBCTL_WORKER_SLOTS",
            "JOBCTL_JOBS_GRACE",
            "PATH",
            "JOBCTLX",
        ];
        assert_eq!(warned(&roles), [""; 0]);
        assert_eq!(
            warned(&["JOBCTL_WORKER_SLOT", "JOBCTL_SERVERR", "JOBCTL_SERVER"]),
            [
                "warning: the variable JOBCTL_SERVERR does nothing; did you mean JOBCTL_SERVER?",
                "warning: the variable JOBCTL_WORKER_SLOT does nothing; did you mean \
                 JOBCTL_WORKER_SLOTS?",
            ]
        );
    }
}
