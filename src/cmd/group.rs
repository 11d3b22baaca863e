//! What commands do with a group where they take a job: wait for it, follow it,
//! tell how it ended.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;

use super::{Caller, wait};
use crate::{
    api::{
        GapCause, Group, Job, JobState, JobsQuery, LogsQuery, MAX_PAGE, QueryAnswer, QueryRequest,
        Stream, exit_code,
    },
    client::{
        self, Away, Client, Retry,
        logs::Event,
        render::{self, GroupBar, GroupOutput, Look, MemberEnd},
    },
    ids::GroupId,
};

/// How often a bar is drawn anew.
const REDRAWN: Duration = Duration::from_millis(200);

/// How often a step is looked for where there is no terminal.
const STEP: Duration = Duration::from_secs(1);

/// So many jobs of a group are followed at the same time: fewer than the streams
/// that one connection to the scheduler may have.
const FOLLOWED: usize = 48;

/// Of a group in which more failed, so many are told of.
const FAILED: usize = 20;

/// Messages on their way to the terminal.
const AHEAD: usize = 256;

/// Waits for the group's end, or for Ctrl-C; the number is the exit code.
pub(super) async fn attached(caller: &Caller, group: GroupId) -> anyhow::Result<u8> {
    tokio::select! {
        // First of all, so that it is heard from before the first request on.
        biased;
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            Ok(wait::detached_from(caller, "group", &[group.short()]))
        }
        group = awaited(&caller.client, group) => Ok(group?.exit_code),
    }
}

/// As [`attached`], where Ctrl-C is somebody else's affair.
pub(super) async fn awaited(client: &Client, group: GroupId) -> anyhow::Result<Group> {
    let group = until_ended(client, group).await?;
    tell(client, &group).await?;
    Ok(group)
}

/// Shows the output of all jobs until the last of them has ended, or until Ctrl-C;
/// what of each is in the template. The number is the exit code.
pub(super) async fn followed(
    caller: &Caller,
    group: &Group,
    template: &LogsQuery,
    look: Look,
) -> anyhow::Result<u8> {
    let client = &caller.client;
    let to_the_end = async {
        show(client, group, template, look).await?;
        let group = until_ended(client, group.id).await?;
        remark(&group);
        anyhow::Ok(group.exit_code)
    };
    tokio::select! {
        // First of all, so that it is heard from before the first request on.
        biased;
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            Ok(wait::detached_from(caller, "group", &[group.id.short()]))
        }
        code = to_the_end => code,
    }
}

/// As [`followed`], of a group that was just started.
pub(super) async fn followed_from_start(
    caller: &Caller,
    id: GroupId,
    look: Look,
) -> anyhow::Result<u8> {
    let client = &caller.client;
    let group = patiently(client, async || queried(client, id, None).await).await?;
    let template = LogsQuery {
        follow: true,
        offset: Some(0),
        ..LogsQuery::default()
    };
    followed(caller, &group, &template, look).await
}

/// Shows the output of all jobs of a group, each line behind its job's label. What
/// of each is in the template.
pub(super) async fn show(
    client: &Client,
    group: &Group,
    template: &LogsQuery,
    look: Look,
) -> anyhow::Result<()> {
    let (sender, mut messages) = mpsc::channel(AHEAD);
    let followers = members(client, group.id).map(|job| {
        let sender = sender.clone();
        async move {
            let job = job?;
            let query = LogsQuery {
                job_id: job.id.to_string(),
                ..template.clone()
            };
            let mut logs = client.logs(query).await?;
            let mut label = None;
            loop {
                let message = match logs.next().await? {
                    Event::Output(message) => message,
                    Event::Gap { bytes, cause } => {
                        let note = GapCause::note(bytes, cause);
                        render::note(&format!("job {}: {note}", job.id.short()));
                        continue;
                    }
                    Event::Away(away) => {
                        client.say(&away);
                        continue;
                    }
                    Event::End(_) => break,
                };
                let label = match &mut label {
                    Some(label) => label,
                    none => none.insert(label_of(client, group, &job).await?),
                };
                let message = (label.clone(), message);
                if sender.send((job.id, Some(message))).await.is_err() {
                    break;
                }
            }
            // Nobody listens any more once stdout is closed.
            let _ = sender.send((job.id, None)).await;
            Ok::<(), client::Error>(())
        }
    });
    // In their order where there is nothing to wait for, so that what is shown is
    // the same each time.
    let at_once = match template.follow {
        true => FOLLOWED,
        false => 1,
    };
    let mut followers = Box::pin(followers.buffer_unordered(at_once));
    let width = group.count.saturating_sub(1).to_string().len();
    let mut output = GroupOutput::new(look, width);
    let mut failure = None;
    loop {
        let (job, message) = tokio::select! {
            biased;
            Some(message) = messages.recv() => message,
            ended = followers.next() => match ended {
                Some(Ok(())) => continue,
                Some(Err(error)) => {
                    failure = failure.or(Some(error));
                    continue;
                }
                // All of it has been received before: that comes first.
                None => break,
            },
        };
        match message {
            None => output.end(job).await?,
            Some((label, message)) => {
                output.write(job, &label, &message).await?;
                if messages.is_empty() {
                    output.flush().await?;
                }
            }
        }
    }
    output.flush().await?;
    match failure {
        None => Ok(()),
        Some(error) => Err(error.into()),
    }
}

/// What a job that has written something is called beside the others. Of a group with
/// a job for each worker that is its worker, which it had not when it was listed if it
/// waited then.
async fn label_of(client: &Client, group: &Group, job: &Job) -> Result<Arc<str>, client::Error> {
    if !group.all || job.worker.is_some() {
        return Ok(render::member_label(group, job).into());
    }
    let request = QueryRequest {
        job_id: job.id.to_string(),
        ..QueryRequest::default()
    };
    let answer = patiently(client, async || client.query(&request).await).await?;
    Ok(match answer {
        QueryAnswer::Job(answer) => render::member_label(group, &answer.job).into(),
        QueryAnswer::Group(_) => render::member_label(group, job).into(),
    })
}

/// The jobs of a group, in their order.
fn members(
    client: &Client,
    group: GroupId,
) -> impl futures_util::Stream<Item = Result<Job, client::Error>> {
    let first = JobsQuery {
        group_id: Some(group.to_string()),
        limit: Some(MAX_PAGE),
        ..JobsQuery::default()
    };
    let begin = (Some(first), VecDeque::new());
    stream::try_unfold(begin, move |(mut next, mut page)| async move {
        loop {
            if let Some(job) = page.pop_front() {
                return Ok(Some((job, (next, page))));
            }
            let Some(query) = next.take() else {
                return Ok(None);
            };
            let answer = patiently(client, async || client.jobs(&query).await).await?;
            page = answer.jobs.into();
            next = answer.next.map(|after| JobsQuery {
                after: Some(after),
                ..query
            });
        }
    })
}

/// Asks again for some minutes where the scheduler is away, as in a restart.
pub(super) async fn patiently<T>(
    client: &Client,
    ask: impl AsyncFn() -> Result<T, client::Error>,
) -> Result<T, client::Error> {
    let mut retry = Retry::new(Instant::now());
    let mut failures = 0;
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let Some(pause) = retry.pause(&error, Instant::now()) else {
            return Err(error);
        };
        failures += 1;
        if let (2, Some(away)) = (failures, client.away(&error)) {
            client.say(&away);
        }
        tokio::time::sleep(pause).await;
    }
}

async fn queried(
    client: &Client,
    id: GroupId,
    wait: Option<Duration>,
) -> Result<Group, client::Error> {
    let request = QueryRequest {
        job_id: id.to_string(),
        worker_id: None,
        wait_ms: wait.map(super::whole_milliseconds),
    };
    match client.query(&request).await? {
        QueryAnswer::Group(answer) => Ok(answer.group),
        QueryAnswer::Job(_) => Err(client::Error::Unreadable {
            server: client.server().to_string(),
            status: 200,
            reason: format!("group {id} is told of as a job"),
        }),
    }
}

/// Waits for the end of all jobs, under a bar.
async fn until_ended(client: &Client, id: GroupId) -> Result<Group, client::Error> {
    let mut group = patiently(client, async || queried(client, id, None).await).await?;
    let bar = GroupBar::new(&group);
    let pause = match render::is_attended() {
        true => REDRAWN,
        false => STEP,
    };
    let mut retry = Retry::new(Instant::now());
    let mut failures = 0;
    let mut away = None;
    while group.ended_at.is_none() {
        wait::say_who_is_away(client, &mut away, in_doubt(&group));
        match queried(client, id, Some(pause)).await {
            Ok(now) => {
                retry.connected(Instant::now());
                retry.progressed();
                failures = 0;
                group = now;
                bar.show(&group);
            }
            Err(error) => {
                let Some(pause) = retry.pause(&error, Instant::now()) else {
                    return Err(error);
                };
                failures += 1;
                if let (2, Some(away)) = (failures, client.away(&error)) {
                    client.say(&away);
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
    Ok(group)
}

/// That some of its jobs are on workers that do not answer.
fn in_doubt(group: &Group) -> Option<Away> {
    let id = group.id.short();
    match group.states.unknown {
        0 => None,
        _ => Some(Away::Other(format!(
            "a worker that has jobs of group {id} is away"
        ))),
    }
}

/// How a group ended: a row for each worker, or for those that failed.
async fn tell(client: &Client, group: &Group) -> anyhow::Result<()> {
    let mut ends = Vec::new();
    let mut left = 0;
    if group.all || group.states.unsuccessful() > 0 {
        let mut members = Box::pin(members(client, group.id));
        while let Some(job) = members.next().await {
            let job = job?;
            let has_failed = job.state != JobState::Succeeded;
            if has_failed && ends.len() >= FAILED && !group.all {
                left += 1;
            } else if has_failed || group.all {
                ends.push(job);
            }
        }
    }
    let ends = stream::iter(ends).map(|job| with_last_words(client, job));
    let ends: Vec<MemberEnd> = ends.buffered(super::AT_ONCE).collect().await;
    if !ends.is_empty() {
        render::ends(group, &ends)?;
    }
    if left > 0 {
        render::note(&format!(
            "and {left} more that did not succeed: `jobctl jobs --all --group {}`",
            group.id.short()
        ));
    }
    remark(group);
    Ok(())
}

/// The last line a failed job wrote to stderr says more than its exit code.
async fn with_last_words(client: &Client, job: Job) -> MemberEnd {
    let speaks = matches!(job.state, JobState::Failed | JobState::TimedOut);
    let last_words = match speaks && job.output_bytes > 0 {
        true => last_words(client, &job).await.ok().flatten(),
        false => None,
    };
    MemberEnd { job, last_words }
}

async fn last_words(client: &Client, job: &Job) -> Result<Option<String>, client::Error> {
    let query = LogsQuery {
        job_id: job.id.to_string(),
        tail: Some(1),
        stream: Some(Stream::Stderr),
        ..LogsQuery::default()
    };
    let mut logs = client.logs(query).await?;
    let mut words = Vec::new();
    loop {
        match logs.next().await? {
            Event::Output(message) => words.extend_from_slice(&message.output),
            Event::Gap { .. } | Event::Away(_) => {}
            Event::End(_) => break,
        }
    }
    let words = String::from_utf8_lossy(&words);
    let words = words.trim();
    Ok((!words.is_empty()).then(|| words.to_owned()))
}

fn remark(group: &Group) {
    let text = render::in_short(group);
    match group.exit_code {
        // Where nobody looks on the exit code says as much.
        0 | exit_code::TERMINATED => render::remark(&text),
        _ => render::note(&text),
    }
}
