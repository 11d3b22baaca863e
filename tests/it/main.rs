//! The one integration-test binary: a file for each verb or part, with the
//! cluster they share.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so do the functions it calls"
)]

mod access;
mod after;
mod attacker;
mod attacks;
mod away;
mod bounds;
mod cli;
mod cluster;
mod completions;
mod context;
mod data_folder;
mod dev;
mod enrolled;
mod faults;
mod groups;
mod hostile;
mod jobs;
mod later;
mod logs;
mod membership;
mod nemesis;
mod output;
mod power;
mod processes;
mod query;
mod queue;
mod restore;
mod retries;
mod roles;
mod rooms;
mod rpc;
mod start;
mod stop;
mod support;
mod takeover;
mod terminal;
mod told;
mod typed;
mod wait;
mod worker;
mod workers;
