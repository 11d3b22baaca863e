//! A job's output on its way from its worker to a client: where it begins
//! and ends, and the formats it is sent in. Nothing is read from the worker
//! before the client has taken what was read before.

use std::{fmt::Display, sync::Arc};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::{Stream, stream};
use http_body_util::StreamBody;
use prost::Message as _;
use tokio::sync::watch;

use super::{
    Scheduler,
    error::{Error, Refusal},
    gaps::Gaps,
    jobs::{Part, Record, State},
    wire,
    worker_rpc::{Output, OutputRequest},
};
use crate::{api, ids::JobId, proto};

pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

const STATE: HeaderName = HeaderName::from_static("jobctl-state");
const EXIT_CODE: HeaderName = HeaderName::from_static("jobctl-exit-code");
const SIGNAL: HeaderName = HeaderName::from_static("jobctl-signal");
const ERROR_TEXT: HeaderName = HeaderName::from_static("jobctl-error-text");
const MISSING_BYTES: HeaderName = HeaderName::from_static("jobctl-missing-bytes");
const TRAILERS: HeaderValue = HeaderValue::from_static(
    "jobctl-state, jobctl-exit-code, jobctl-signal, jobctl-error-text, jobctl-missing-bytes",
);

/// What the id of the last event ends with: who has seen it has seen everything.
const AFTER_END: &str = "-end";

type Frame = http_body::Frame<Bytes>;

/// How output is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The bytes alone; how the job ended, and how much is missing, is in the trailers.
    Text,
    Ndjson,
    Events,
    Protobuf,
}

impl Format {
    /// The first media type in `Accept` that is known here; else text.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(header::ACCEPT);
        accepted
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|range| range.split(';').next())
            .find_map(|media_type| match media_type.trim() {
                "text/plain" => Some(Self::Text),
                api::NDJSON => Some(Self::Ndjson),
                "text/event-stream" => Some(Self::Events),
                api::PROTOBUF_STREAM => Some(Self::Protobuf),
                _ => None,
            })
            .unwrap_or(Self::Text)
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Ndjson => api::NDJSON,
            Self::Events => "text/event-stream",
            Self::Protobuf => api::PROTOBUF_STREAM,
        })
    }

    /// None: raw bytes have no room for words. `missing` is how much was.
    fn piece(self, piece: Piece, missing: u64) -> Option<Frame> {
        match piece {
            Piece::Output(chunk) if self == Self::Text && chunk.output.is_empty() => None,
            Piece::Output(chunk) => Some(self.output(chunk)),
            Piece::End { record, .. } if self == Self::Text => {
                Some(Frame::trailers(trailers(&record, missing)))
            }
            Piece::End {
                offset,
                job,
                status,
                ..
            } => Some(Frame::data(self.end(offset, *job, status))),
        }
    }

    fn output(self, chunk: proto::StreamJobResponse) -> Frame {
        let behind = end_of(&chunk);
        Frame::data(match self {
            Self::Text => chunk.output,
            Self::Ndjson => ndjson(&line(chunk)),
            Self::Events => event(behind, None, &line(chunk)),
            Self::Protobuf => chunk.encode_length_delimited_to_vec().into(),
        })
    }

    /// As text it has trailers instead.
    fn end(self, offset: u64, job: api::Job, status: proto::JobStatus) -> Bytes {
        let job = Box::new(job);
        match self {
            Self::Text => Bytes::new(),
            Self::Ndjson => ndjson(&api::LogLine::End { job }),
            Self::Events => {
                let id = format!("{offset}{AFTER_END}");
                event(id, Some("end"), &api::LogLine::End { job })
            }
            Self::Protobuf => ending(offset, status)
                .encode_length_delimited_to_vec()
                .into(),
        }
    }
}

fn ending(offset: u64, status: proto::JobStatus) -> proto::StreamJobResponse {
    proto::StreamJobResponse {
        offset,
        end: Some(status),
        ..Default::default()
    }
}

/// What there is to send.
enum Piece {
    /// Output, or that some is missing.
    Output(proto::StreamJobResponse),
    /// The last.
    End {
        offset: u64,
        record: Arc<Record>,
        job: Box<api::Job>,
        status: proto::JobStatus,
    },
}

/// The offset behind a message.
fn end_of(chunk: &proto::StreamJobResponse) -> u64 {
    let length = (chunk.output.len() as u64).saturating_add(chunk.gap);
    chunk.offset.saturating_add(length)
}

fn line(chunk: proto::StreamJobResponse) -> api::LogLine {
    if chunk.output.is_empty() {
        return api::LogLine::Gap {
            offset: chunk.offset,
            gap: chunk.gap,
            cause: wire::gap_cause(chunk.gap_cause()),
        };
    }
    api::LogLine::Output {
        offset: chunk.offset,
        time: wire::time(chunk.time_us),
        stream: match chunk.stream() {
            proto::OutputStream::Stderr => api::Stream::Stderr,
            proto::OutputStream::Stdout | proto::OutputStream::Unspecified => api::Stream::Stdout,
        },
        data: match str::from_utf8(&chunk.output) {
            Ok(text) => api::LogData::Text(text.to_owned()),
            Err(_) => api::LogData::Base64(BASE64.encode(&chunk.output)),
        },
    }
}

/// A [`api::LogLine`] has no map with odd keys, so that it always has a JSON form.
fn json(line: &api::LogLine) -> String {
    serde_json::to_string(line).unwrap_or_default()
}

fn ndjson(line: &api::LogLine) -> Bytes {
    let mut text = json(line);
    text.push('\n');
    text.into()
}

fn event(id: impl Display, name: Option<&str>, line: &api::LogLine) -> Bytes {
    let name = name.map(|name| format!("event: {name}\n"));
    let name = name.unwrap_or_default();
    format!("id: {id}\n{name}data: {}\n\n", json(line)).into()
}

fn trailers(record: &Record, missing: u64) -> HeaderMap {
    let job = record.job();
    let mut trailers = HeaderMap::new();
    trailers.insert(STATE, HeaderValue::from_static(job.state.as_str()));
    if let Some(code) = job.exit_code {
        trailers.insert(EXIT_CODE, code.into());
    }
    if let Some(signal) = job.signal {
        trailers.insert(SIGNAL, signal.into());
    }
    if missing > 0 {
        trailers.insert(MISSING_BYTES, missing.into());
    }
    let text = record.error_text().replace(char::is_control, " ");
    if let Ok(text) = HeaderValue::from_str(&text)
        && !text.is_empty()
    {
        trailers.insert(ERROR_TEXT, text);
    }
    trailers
}

/// Output that is ready to be sent: of one attempt after the other.
pub(super) struct Follower {
    scheduler: Scheduler,
    record: watch::Receiver<Arc<Record>>,
    follow: bool,
    /// Nothing but one attempt was asked for.
    one_attempt: bool,
    stream: proto::OutputStream,
    /// The attempt whose output is being sent; None: there has been none.
    part: Option<Part>,
    source: Source,
    /// The end of what was sent.
    offset: u64,
    /// Where it ends, in the last of several attempts, if that is not with the job.
    until: Option<Until>,
    gaps: Gaps,
    /// What comes after the line that says what is missing.
    held: Option<Piece>,
    ended: bool,
}

/// The end as it was when it was asked for.
#[derive(Clone, Copy)]
struct Until {
    /// Of the last attempt that there was.
    attempt: u32,
    /// `None`: its worker did not say; it ends where it ends when it is opened.
    offset: Option<u64>,
}

/// Where the output of an attempt comes from.
enum Source {
    Worker(Box<Output>),
    /// Its worker has it no more: so many bytes are missing.
    Gone(u64),
    /// There is nothing (more) of it.
    Over,
}

/// Waits until the job has started and its worker has agreed to send, so that
/// whatever is wrong is known before the first byte.
pub(super) async fn open(
    scheduler: &Scheduler,
    id: JobId,
    asked: &api::LogsQuery,
    headers: &HeaderMap,
) -> Result<Follower, Error> {
    let (request, offset) = decode(asked, headers)?;
    let changes = scheduler.jobs.watch(id).await?;
    // What earlier attempts have written can be sent before the next one begins.
    let is_first = changes.borrow().attempts.is_empty();
    let record = match request.follow && is_first {
        true => scheduler.jobs.settled_start(id).await?,
        false => scheduler.jobs.asked_start(id).await?,
    };
    let parts = record.parts();
    let part = match (asked.attempt, offset) {
        (Some(number), _) => {
            let part = parts.iter().find(|part| part.number == number);
            let missing = || Error::BadRequest(format!("job {id} has had no attempt {number}"));
            Some(part.ok_or_else(missing)?)
        }
        // Behind the last byte of one attempt the next one begins.
        (None, Some(offset)) => parts.iter().rev().find(|part| part.begin <= offset),
        (None, None) => parts.last(),
    };
    let mut follower = Follower {
        scheduler: scheduler.clone(),
        record: changes,
        follow: request.follow,
        one_attempt: asked.attempt.is_some(),
        stream: request.stream,
        part: part.cloned(),
        source: Source::Over,
        offset: offset.unwrap_or_else(|| part.map_or(0, |part| part.begin)),
        until: None,
        gaps: Gaps::new(asked.gaps),
        held: None,
        ended: false,
    };
    if !follower.follow && asked.attempt.is_none() {
        follower.until = follower.end_now(&parts).await;
    }
    follower.open(&record, request).await?;
    Ok(follower)
}

/// Whether who asks has seen the last event. A browser asks again, until it is told
/// that there is no more.
pub(super) fn has_seen_the_end(headers: &HeaderMap) -> bool {
    let last = headers.get(LAST_EVENT_ID);
    let offset = last.and_then(|last| last.to_str().ok()?.strip_suffix(AFTER_END));
    offset.is_some_and(|offset| offset.parse::<u64>().is_ok())
}

/// What is asked of a worker, and where to begin in the output of all attempts.
fn decode(
    asked: &api::LogsQuery,
    headers: &HeaderMap,
) -> Result<(OutputRequest, Option<u64>), Error> {
    let mut request = OutputRequest {
        offset: 0,
        follow: asked.follow,
        tail: asked.tail,
        since_us: asked.since.map(|since| since.as_microsecond()),
        written: None,
        stream: match asked.stream {
            None => proto::OutputStream::Unspecified,
            Some(api::Stream::Stdout) => proto::OutputStream::Stdout,
            Some(api::Stream::Stderr) => proto::OutputStream::Stderr,
        },
    };
    let Some(last) = headers.get(LAST_EVENT_ID) else {
        return Ok((request, asked.offset));
    };
    let offset = last.to_str().ok().and_then(|text| text.parse().ok());
    let offset =
        offset.ok_or_else(|| Error::BadRequest("last-event-id is not an offset".to_owned()))?;
    // Where to begin was decided the first time; deciding it again would
    // skip what was written meanwhile.
    request.tail = None;
    request.since_us = None;
    Ok((request, Some(offset)))
}

impl Drop for Follower {
    /// Where a lost attempt's output ends, and that of the next begins, is not
    /// before what somebody has read of it.
    fn drop(&mut self) {
        if let (Source::Worker(_), Some(part)) = (&self.source, &self.part) {
            let seen = self.offset.saturating_sub(part.begin);
            self.scheduler.jobs.seen(part.run, seen);
        }
    }
}

impl Follower {
    /// The answer; its body ends in an error, and so the connection breaks, if
    /// the output breaks off.
    pub(super) fn into_response(self, format: Format) -> Response {
        let id = self.record.borrow().id;
        let frames = stream::try_unfold(self, move |mut follower| async move {
            let frame = match follower.frame(format).await {
                Ok(frame) => frame,
                Err(error) => {
                    tracing::info!(job_id = %id, %error, "output broke off");
                    // The server sends what it has when a body makes it wait, and
                    // throws it away when a body fails: what was read goes out first.
                    tokio::task::yield_now().await;
                    return Err(error);
                }
            };
            Ok(frame.map(|frame| (frame, follower)))
        });
        let body = Body::new(StreamBody::new(frames));
        let mut response = body.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // Or a browser takes a job's output for a page of ours.
        let nosniff = HeaderValue::from_static("nosniff");
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
        headers.insert(header::CONTENT_TYPE, format.content_type());
        if format == Format::Text {
            headers.insert(header::TRAILER, TRAILERS);
        }
        response
    }

    /// Asks the worker of the attempt for its output, from the offset on.
    async fn open(&mut self, record: &Record, request: OutputRequest) -> Result<(), Error> {
        let past_end = || Error::OffsetPastEnd {
            job: record.id,
            offset: self.offset,
            end: 0,
        };
        let part = match &self.part {
            Some(part) if !record.never_ran() => part,
            _ if self.offset == 0 => return Ok(()),
            _ => return Err(past_end()),
        };
        let offset = self.offset.saturating_sub(part.begin);
        let written = self.bytes_of_earlier(part);
        let request = OutputRequest {
            offset,
            written: written.or(record.is_final().then_some(record.output_bytes)),
            ..request
        };
        let asked = match self.scheduler.registry.get(part.place.worker) {
            Ok(worker) => match worker.is_ready() {
                Ok(()) => worker.rpc.output(part.run, request).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let error = match asked {
            Ok(output) => {
                self.source = Source::Worker(Box::new(output));
                return Ok(());
            }
            Err(error) => error.about(record.id),
        };
        // Who followed it has seen what a power loss took from the disk.
        let is_behind = matches!(
            error,
            Error::OffsetPastEnd { .. }
                | Error::Refused {
                    kind: Refusal::PastEnd,
                    ..
                }
        );
        if is_behind && self.record.borrow().api_state() == api::JobState::Lost {
            return Ok(());
        }
        let gone = matches!(
            error,
            Error::WorkerNotFound { .. }
                | Error::WorkerLeft(_)
                | Error::Refused {
                    kind: Refusal::JobNotFound,
                    ..
                }
        );
        // The worker may have told of the end while it was asked.
        let record = self.record.borrow().clone();
        let earlier = self.bytes_of_earlier(part);
        if !gone || !(record.is_final() || earlier.is_some()) {
            return Err(error);
        }
        if let Some(bytes) = earlier {
            self.source = Source::Gone(bytes.saturating_sub(offset));
            return Ok(());
        }
        // Output that existed is never passed over in silence.
        match record.api_state() == api::JobState::Lost || record.output_bytes <= offset {
            true => Ok(()),
            false => Err(Error::OutputGone {
                job: record.id,
                worker: record.worker_name().to_owned(),
            }),
        }
    }

    /// Where the output of the last attempt ends now, if it is not the one to begin
    /// with: that one has an end as soon as it is opened.
    async fn end_now(&self, parts: &[Part]) -> Option<Until> {
        let last = parts.last()?;
        let mut until = Until {
            attempt: last.number,
            offset: None,
        };
        let is_first = self
            .part
            .as_ref()
            .is_some_and(|part| part.number == last.number);
        let may_write = last.bytes.is_none() && !self.record.borrow().is_final();
        if !is_first
            && may_write
            && let Ok(worker) = self.scheduler.registry.get(last.place.worker)
            && worker.is_ready().is_ok()
            && let Ok(Some(status)) = worker.rpc.query(last.run).await
        {
            until.offset = Some(last.begin.saturating_add(status.output_bytes));
        }
        Some(until)
    }

    /// Cuts off what was written after it was asked for.
    fn cut(&self, message: &mut proto::StreamJobResponse) {
        let is_last = |until: &Until| {
            let part = self.part.as_ref();
            part.is_some_and(|part| part.number == until.attempt)
        };
        if let Some(end) = self.until.filter(is_last).and_then(|until| until.offset) {
            let room = end.saturating_sub(message.offset);
            message.gap = message.gap.min(room);
            let length = usize::try_from(room).unwrap_or(usize::MAX);
            message.output.truncate(length);
            message.offset = message.offset.min(end);
        }
    }

    /// How much this attempt has written, if there was one after it, or will be.
    fn bytes_of_earlier(&self, part: &Part) -> Option<u64> {
        let record = self.record.borrow();
        let earlier = record.attempts.get(part.number as usize - 1);
        earlier.map(|attempt| attempt.output_bytes)
    }

    /// The messages; the last tells of the end.
    pub(super) fn into_messages(
        self,
    ) -> impl Stream<Item = Result<proto::StreamJobResponse, Error>> + Send + 'static {
        stream::try_unfold(self, |mut follower| async move {
            let message = match follower.next().await? {
                None => return Ok(None),
                Some(Piece::Output(chunk)) => chunk,
                Some(Piece::End { offset, status, .. }) => ending(offset, status),
            };
            Ok(Some((message, follower)))
        })
    }

    async fn frame(&mut self, format: Format) -> Result<Option<Frame>, Error> {
        loop {
            let piece = match self.held.take() {
                Some(piece) => piece,
                None => match self.next().await? {
                    Some(piece) => piece,
                    None => return Ok(None),
                },
            };
            let goes_on = matches!(&piece, Piece::Output(chunk) if chunk.output.is_empty());
            if format == Format::Text
                && !goes_on
                && let Some(line) = self.gaps.line()
            {
                self.held = Some(piece);
                return Ok(Some(Frame::data(line)));
            }
            if let Piece::Output(chunk) = &piece {
                self.gaps.sent(chunk);
            }
            if let Some(frame) = format.piece(piece, self.gaps.missing()) {
                return Ok(Some(frame));
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Piece>, Error> {
        while !self.ended {
            let piece = match &mut self.source {
                Source::Worker(_) => self.read().await?,
                Source::Gone(0) => {
                    self.source = Source::Over;
                    None
                }
                Source::Gone(missing) => {
                    let gap = proto::StreamJobResponse {
                        offset: self.offset,
                        gap: std::mem::take(missing),
                        ..Default::default()
                    };
                    self.offset = end_of(&gap);
                    Some(Piece::Output(gap))
                }
                Source::Over => match self.next_attempt().await? {
                    true => None,
                    false => {
                        self.ended = true;
                        let record = self.record.borrow().clone();
                        let status = wire::status_of(&record);
                        Some(self.last(record, status))
                    }
                },
            };
            if piece.is_some() {
                return Ok(piece);
            }
        }
        Ok(None)
    }

    /// What the worker sends next; None if that is nothing to pass on.
    async fn read(&mut self) -> Result<Option<Piece>, Error> {
        let (Source::Worker(output), Some(part)) = (&mut self.source, &self.part) else {
            return Ok(None);
        };
        let id = self.record.borrow().id;
        let message = tokio::select! {
            biased;
            () = self.scheduler.closing.cancelled() => return Err(Error::ShuttingDown),
            message = output.next() => message,
        };
        let message = message.map_err(|status| {
            tracing::debug!(job_id = %id, %status, "the worker's stream broke");
            Error::OutputBroken(id)
        })?;
        let Some(mut message) = message else {
            return Err(Error::OutputBroken(id));
        };
        message.offset = message.offset.saturating_add(part.begin);
        self.cut(&mut message);
        if let Some(end) = message.end {
            self.offset = message.offset;
            return self.attempt_ended(end);
        }
        if message.gap == 0 && message.output.is_empty() {
            return Ok(None);
        }
        self.offset = end_of(&message);
        Ok(Some(Piece::Output(message)))
    }

    /// The worker has sent everything of this attempt. Whoever follows to the end
    /// finds the record final afterwards.
    fn attempt_ended(&mut self, end: proto::JobStatus) -> Result<Option<Piece>, Error> {
        let Some(part) = self.part.clone() else {
            return Ok(None);
        };
        let said = wire::status(&end).filter(|status| status.state.is_final());
        let has_ended = said.is_some();
        if let Some(status) = said {
            self.scheduler.jobs.ended(part.run, status);
        }
        let record = self.record.borrow().clone();
        let is_earlier = self.bytes_of_earlier(&part).is_some();
        if is_earlier && !self.one_attempt {
            self.source = Source::Over;
            return Ok(None);
        }
        // A worker that has only the output left leaves it to our record.
        if !has_ended && self.follow && !is_earlier && !record.is_final() {
            return Err(Error::OutputBroken(record.id));
        }
        self.ended = true;
        let status = match record.is_final() && !is_earlier {
            true => wire::status_of(&record),
            false => end,
        };
        Ok(Some(self.last(record, status)))
    }

    /// Goes on with the attempt behind this one; waits for it if the output is
    /// followed. Returns whether there is one.
    async fn next_attempt(&mut self) -> Result<bool, Error> {
        let Some(number) = self.part.as_ref().map(|part| part.number) else {
            return Ok(false);
        };
        if self.one_attempt {
            return Ok(false);
        }
        let id = self.record.borrow().id;
        if self.until.is_some_and(|until| number >= until.attempt) {
            return Ok(false);
        }
        let jobs = &self.scheduler.jobs;
        let record = match self.follow {
            true => {
                let begun = jobs.wait(id, |record| {
                    record.attempt() > number && !matches!(record.state, State::Pending { .. })
                });
                begun.await?
            }
            false => jobs.asked_start(id).await?,
        };
        let parts = record.parts();
        let Some(next) = parts.into_iter().find(|part| part.number > number) else {
            return Ok(false);
        };
        self.offset = next.begin;
        self.part = Some(next);
        self.source = Source::Over;
        let request = OutputRequest {
            follow: self.follow,
            stream: self.stream,
            ..OutputRequest::default()
        };
        self.open(&record, request).await?;
        Ok(true)
    }

    fn last(&self, record: Arc<Record>, status: proto::JobStatus) -> Piece {
        Piece::End {
            offset: self.offset,
            job: Box::new(self.scheduler.jobs.shown(&record)),
            record,
            status,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(accept: &str) -> Format {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Format::accepted(&headers)
    }

    #[test]
    fn the_first_known_media_type_is_taken() {
        assert_eq!(Format::accepted(&HeaderMap::new()), Format::Text);
        for (accept, format) in [
            ("*/*", Format::Text),
            ("application/x-ndjson", Format::Ndjson),
            ("text/html, text/event-stream;q=0.9", Format::Events),
            (api::PROTOBUF_STREAM, Format::Protobuf),
            ("image/png", Format::Text),
        ] {
            assert_eq!(accepted(accept), format, "{accept}");
        }
    }

    #[test]
    fn a_resumed_event_stream_begins_at_its_offset_alone() {
        let asked = api::LogsQuery {
            offset: Some(1),
            tail: Some(10),
            since: Some(jiff::Timestamp::UNIX_EPOCH),
            ..Default::default()
        };
        let mut headers = HeaderMap::new();
        let (fresh, offset) = decode(&asked, &headers).unwrap();
        assert_eq!((offset, fresh.tail), (Some(1), Some(10)));
        headers.insert(LAST_EVENT_ID, "7".parse().unwrap());
        let (resumed, offset) = decode(&asked, &headers).unwrap();
        assert_eq!((offset, resumed.tail), (Some(7), None));
        assert_eq!(resumed.since_us, None);
        headers.insert(LAST_EVENT_ID, "x".parse().unwrap());
        assert!(decode(&asked, &headers).is_err());
    }

    #[test]
    fn an_event_is_one_line_of_data_behind_the_id_of_its_end() {
        let chunk = proto::StreamJobResponse {
            output: Bytes::from_static(b"a\nb"),
            offset: 5,
            ..Default::default()
        };
        let frame = Format::Events.output(chunk).into_data().unwrap();
        let text = str::from_utf8(&frame).unwrap();
        assert!(text.starts_with("id: 8\ndata: {\"offset\":5,"), "{text}");
        assert!(text.ends_with("\"data\":\"a\\nb\"}\n\n"), "{text}");
        assert_eq!(text.lines().count(), 3);
    }
}
