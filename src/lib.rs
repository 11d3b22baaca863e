//! jobctl starts, stops, queries and follows jobs on a fleet of machines. One
//! binary plays every part; this is the map of its rooms.
//!
//! | room | what is in it | may import |
//! |---|---|---|
//! | [`cmd`] | the command line: one file a verb, flags to values, the exit codes | `api`, `client`, `config`, `identity`, `ids`, `labels`, `net`, `roles` |
//! | [`config`] | reads `config.toml`; which key was meant | – |
//! | [`client`] | one method per HTTP endpoint, the contexts, and everything written to stdout | `api`, `config`, `identity`, `ids`, `proto` |
//! | [`roles::scheduler`] | the HTTP API, who is in the cluster, who may do what, which job goes where, the record of every job | `api`, `blocking`, `identity`, `ids`, `labels`, `net`, `proto` |
//! | [`roles::worker`] | the jobs of one machine and their output | `blocking`, `identity`, `ids`, `labels`, `net`, `proto`, `shim` |
//! | [`roles::shim`] | one job's process tree | `ids` |
//! | [`net`] | connections: accepted with bounds, dialled with certificates; the bounds | `identity` |
//! | [`identity`] | certificates and who signs them, tokens, TLS, the table of roles | – |
//! | [`api`] | the JSON bodies of the HTTP API | `identity`, `ids` |
//! | [`proto`] | the gRPC messages, health and reflection | – |
//! | `blocking` | work that may wait for a disk | – |
//! | [`ids`] | job and worker ids, names | – |
//! | [`labels`] | the labels of workers, and what jobs ask of them | – |
//!
//! Only for tests and fuzzers there is `fuzzing`, the doors through which they reach
//! what reads bytes from outside. Only for the unit tests there is `simulation`, in which
//! the roles run over a simulated network; they, `net` and `blocking` ask it whether it is on.
//!
//! To place a line of code, ask which verb it serves, then on which side of the
//! wire. `start`, say, is `cmd/start.rs`, `Client::start`, `POST /start`,
//! `StartJob`, `Jobs::start` and `tests/it/start.rs`.

pub mod api;
mod blocking;
pub mod client;
pub mod cmd;
pub mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod identity;
pub mod ids;
pub mod labels;
pub mod net;
pub mod proto;
pub mod roles;
#[cfg(test)]
mod simulation;
