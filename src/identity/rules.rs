//! Who may make which call: the one table, for every HTTP route and every RPC of
//! both roles. A call that is not in it is refused. docs/security.md shows it.

use super::Role::{self, Admin, Operator, Scheduler, Viewer, Worker};

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Whoever reaches the server: the call itself asks for proof, or tells
    /// nothing.
    Anyone,
    /// These roles.
    Roles(&'static [Role]),
}

/// One call, as `METHOD /route` or `/package.Service/Method`.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Which call.
    pub call: &'static str,
    /// Who may make it.
    pub callers: Callers,
}

const READERS: Callers = Callers::Roles(&[Viewer, Operator, Admin]);
const OPERATORS: Callers = Callers::Roles(&[Operator, Admin]);
const ADMINS: Callers = Callers::Roles(&[Admin]);
/// About itself and its own jobs alone, which the handler sees to.
const WORKERS: Callers = Callers::Roles(&[Worker]);
const SCHEDULERS: Callers = Callers::Roles(&[Scheduler]);

const fn rule(call: &'static str, callers: Callers) -> Rule {
    Rule { call, callers }
}

/// The scheduler's HTTP API; each route is there under `/v1` as well.
pub const HTTP: &[Rule] = &[
    rule("GET /livez", Callers::Anyone),
    rule("POST /join", Callers::Anyone),
    rule("POST /renew", READERS),
    rule("GET /readyz", READERS),
    rule("GET /version", READERS),
    rule("GET /workers", READERS),
    rule("GET /jobs", READERS),
    rule("POST /query", READERS),
    rule("GET /logs", READERS),
    rule("GET /events", READERS),
    rule("POST /start", OPERATORS),
    rule("POST /stop", OPERATORS),
    rule("POST /workers/label", ADMINS),
    rule("POST /workers/drain", ADMINS),
    rule("POST /workers/resume", ADMINS),
    rule("POST /workers/remove", ADMINS),
    rule("GET /tokens", ADMINS),
    rule("POST /tokens", ADMINS),
    rule("POST /tokens/revoke", ADMINS),
    rule("GET /certs", ADMINS),
    rule("POST /certs/revoke", ADMINS),
    rule("POST /ca/rotate", ADMINS),
    rule("GET /audit", ADMINS),
];

/// The scheduler's gRPC API.
pub const SCHEDULER_RPC: &[Rule] = &[
    rule("/jobscheduler.Scheduler/Join", Callers::Anyone),
    rule("/jobscheduler.Scheduler/RenewCertificate", WORKERS),
    rule("/jobscheduler.Scheduler/RegisterWorker", WORKERS),
    rule("/jobscheduler.Scheduler/DeregisterWorker", WORKERS),
    rule("/jobscheduler.Scheduler/Heartbeat", WORKERS),
    rule("/jobscheduler.Jobs/StartJob", OPERATORS),
    rule("/jobscheduler.Jobs/StopJob", OPERATORS),
    rule("/jobscheduler.Jobs/QueryJob", READERS),
    rule("/jobscheduler.Jobs/ListJobs", READERS),
    rule("/jobscheduler.Jobs/StreamJob", READERS),
    rule("/jobscheduler.Jobs/ListWorkers", READERS),
    rule("/jobscheduler.Jobs/WatchJobs", READERS),
    rule("/grpc.health.v1.Health/Check", PROBES),
    rule("/grpc.health.v1.Health/Watch", PROBES),
    rule("/grpc.health.v1.Health/List", PROBES),
    rule(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        PROBES,
    ),
    rule(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        PROBES,
    ),
];

/// The gRPC API of a worker.
pub const WORKER_RPC: &[Rule] = &[
    rule("/jobscheduler.Worker/StartJob", SCHEDULERS),
    rule("/jobscheduler.Worker/StopJob", SCHEDULERS),
    rule("/jobscheduler.Worker/QueryJob", SCHEDULERS),
    rule("/jobscheduler.Worker/StreamJob", SCHEDULERS),
    rule("/grpc.health.v1.Health/Check", PROBES),
    rule("/grpc.health.v1.Health/Watch", PROBES),
    rule("/grpc.health.v1.Health/List", PROBES),
    rule(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        PROBES,
    ),
    rule(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        PROBES,
    ),
];

const PROBES: Callers = Callers::Roles(&[Viewer, Operator, Admin, Worker, Scheduler]);

/// What the table says of somebody and a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They may.
    Allowed,
    /// Nobody knows who they are, and that matters here.
    Unidentified,
    /// They may not.
    Forbidden,
}

/// Looks a call up; `role` is `None` for somebody who has not proven to be
/// anybody.
pub fn judge(rules: &[Rule], call: &str, role: Option<Role>) -> Verdict {
    let rule = rules.iter().find(|rule| rule.call == call);
    match (rule.map(|rule| rule.callers), role) {
        (Some(Callers::Anyone), _) => Verdict::Allowed,
        (Some(Callers::Roles(roles)), Some(role)) if roles.contains(&role) => Verdict::Allowed,
        (_, None) => Verdict::Unidentified,
        (_, Some(_)) => Verdict::Forbidden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_table_is_refused() {
        for role in Role::ALL {
            let verdict = judge(HTTP, "GET /secrets", Some(role));
            assert_eq!(verdict, Verdict::Forbidden, "{role}");
        }
        assert_eq!(judge(HTTP, "GET /secrets", None), Verdict::Unidentified);
        assert_eq!(judge(HTTP, "POST /start", Some(Viewer)), Verdict::Forbidden);
        assert_eq!(judge(HTTP, "POST /start", Some(Operator)), Verdict::Allowed);
        assert_eq!(judge(HTTP, "POST /start", None), Verdict::Unidentified);
        assert_eq!(judge(HTTP, "POST /join", None), Verdict::Allowed);
    }

    /// The table of docs/security.md.
    fn table() -> String {
        let mut rows = String::new();
        for (prefix, rules) in [
            ("", HTTP),
            ("scheduler ", SCHEDULER_RPC),
            ("worker ", WORKER_RPC),
        ] {
            for rule in rules {
                let callers = match rule.callers {
                    Callers::Anyone => "*anyone*".to_owned(),
                    Callers::Roles(roles) => {
                        let words: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
                        words.join(", ")
                    }
                };
                rows += &format!("| {prefix}`{}` | {callers} |\n", rule.call);
            }
        }
        rows
    }

    #[test]
    fn the_published_table_is_this_one() {
        let docs = include_str!("../../docs/security.md");
        let (_, rest) = docs
            .split_once("<!-- roles -->\n| call | who may |\n|---|---|\n")
            .unwrap();
        let (published, _) = rest.split_once("<!-- /roles -->").unwrap();
        assert_eq!(published, table());
    }

    #[test]
    fn each_call_has_one_rule() {
        for rules in [HTTP, SCHEDULER_RPC, WORKER_RPC] {
            for rule in rules {
                let same = rules.iter().filter(|other| other.call == rule.call);
                assert_eq!(same.count(), 1, "{}", rule.call);
            }
        }
    }
}
