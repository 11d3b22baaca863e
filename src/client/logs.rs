//! Reads a job's output: cuts the body of `GET /logs` into messages, and takes a
//! broken connection up again behind the last byte, so that nothing is lost and
//! nothing comes twice. What is done with the bytes is not decided here.

use std::{pin::Pin, time::Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use prost::Message as _;
use reqwest::header;

use super::{Away, Client, Error, Retry};
use crate::{
    api::{GapCause, Job, JobState, LogsQuery},
    proto::{self, StreamJobResponse},
};

/// No scheduler sends a longer message, so one that claims to be longer means
/// that this is not the stream it should be.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// What a stream of output brings.
#[derive(Debug)]
pub enum Event {
    /// A piece of output, never empty, each byte exactly once.
    Output(StreamJobResponse),
    /// The job wrote more here, and it is not recorded. Each gap is told once, when
    /// it is known how long it is.
    Gap {
        /// How many bytes are missing.
        bytes: u64,
        /// Why, where it is known.
        cause: Option<GapCause>,
    },
    /// Who is to send it is away, and was not back at once, or answers and sends
    /// nothing. Told once for each of them; goes on being tried.
    Away(Away),
    /// Everything asked for has been sent; nothing follows.
    End(Ending),
}

/// How a job stands when there is no more to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// How it stands; final, unless nobody waited for the end.
    pub state: JobState,
    /// What the main process returned, if it returned.
    pub exit_code: Option<i32>,
    /// The signal that ended the main process, if one did.
    pub signal: Option<i32>,
    /// Why it never started, as a code word.
    pub start_error: Option<String>,
    /// How it ended, in one line; empty after exit code 0.
    pub reason: String,
}

impl From<&Job> for Ending {
    fn from(job: &Job) -> Self {
        Self {
            state: job.state,
            exit_code: job.exit_code,
            signal: job.signal,
            start_error: job.start_error.clone(),
            reason: job.reason.clone().unwrap_or_default(),
        }
    }
}

impl From<proto::JobStatus> for Ending {
    fn from(status: proto::JobStatus) -> Self {
        let state = match status.state() {
            proto::JobState::Unspecified | proto::JobState::Unknown => JobState::Unknown,
            proto::JobState::Pending => JobState::Pending,
            proto::JobState::Running => JobState::Running,
            proto::JobState::Succeeded => JobState::Succeeded,
            proto::JobState::Failed => JobState::Failed,
            proto::JobState::Stopped => JobState::Stopped,
            proto::JobState::TimedOut => JobState::TimedOut,
            proto::JobState::Lost => JobState::Lost,
        };
        Self {
            state,
            exit_code: status.exit_code,
            signal: status.signal,
            start_error: Some(status.start_error).filter(|word| !word.is_empty()),
            reason: status.reason,
        }
    }
}

/// A job's output, across broken connections.
pub struct Logs {
    client: Client,
    query: LogsQuery,
    /// Behind the last byte handed out; `None` before the first.
    next_offset: Option<u64>,
    connection: Connection,
    retry: Retry,
    /// Who is away now, as was told.
    away: Option<Away>,
    /// The connection was mended, and has brought nothing yet.
    is_silent: bool,
    /// That this happens was told.
    told: bool,
    /// Missing since the last output.
    gap: Option<(u64, Option<GapCause>)>,
    /// What comes after the gap.
    after_gap: Option<Event>,
}

enum Connection {
    Open(Messages),
    Broken(Error),
}

impl Logs {
    pub(super) async fn open(client: Client, query: LogsQuery) -> Result<Self, Error> {
        let now = Instant::now();
        let mut retry = match query.follow {
            true => Retry::new(now),
            false => Retry::within(client.patience.limit, now),
        };
        let connection = match Messages::open(&client, &query).await {
            Ok(messages) => {
                retry.connected(Instant::now());
                Connection::Open(messages)
            }
            Err(error) => match client.away(&error) {
                Some(Away::Scheduler(_) | Away::Worker(_)) => Connection::Broken(error),
                Some(Away::Other(_)) | None => return Err(error),
            },
        };
        let mut logs = Self {
            client,
            query,
            next_offset: None,
            connection,
            retry,
            away: None,
            is_silent: false,
            told: false,
            gap: None,
            after_gap: None,
        };
        // Who only reads is to know at once whether there is anything to read.
        while let (false, Connection::Broken(_)) = (logs.query.follow, &logs.connection) {
            if let Some(Event::Away(away)) = logs.mend().await? {
                logs.client.say(&away);
            }
        }
        Ok(logs)
    }

    /// The next event if it has already arrived. `None` is the moment to show
    /// what was kept back so far.
    pub fn at_hand(&mut self) -> Option<Result<Event, Error>> {
        if let Some(event) = self.after_gap.take() {
            return Some(Ok(event));
        }
        loop {
            let Connection::Open(messages) = &mut self.connection else {
                return None;
            };
            let read = messages.next().now_or_never()?;
            if let Some(event) = self.take(read) {
                return Some(event);
            }
        }
    }

    /// Waits for the next event; mends the connection meanwhile where it must.
    /// After [`Event::End`] there is none.
    pub async fn next(&mut self) -> Result<Event, Error> {
        if let Some(event) = self.after_gap.take() {
            return Ok(event);
        }
        loop {
            match &mut self.connection {
                Connection::Open(messages) => {
                    let read = messages.next().await;
                    if let Some(event) = self.take(read) {
                        return event;
                    }
                }
                Connection::Broken(_) => {
                    if let Some(event) = self.mend().await? {
                        return Ok(event);
                    }
                }
            }
        }
    }

    /// What a read means; `None` if it calls for another one.
    fn take(&mut self, read: Result<StreamJobResponse, Error>) -> Option<Result<Event, Error>> {
        let mut message = match read {
            Ok(message) => message,
            Err(error) if error.is_passing() => {
                self.connection = Connection::Broken(error);
                return None;
            }
            Err(error) => return Some(Err(error)),
        };
        self.retry.progressed();
        (self.told, self.is_silent) = (false, false);
        if let Some(status) = message.end.take() {
            return Some(Ok(self.after_gap(Event::End(status.into()))));
        }
        if message.gap == 0
            && let Some(next) = self.next_offset
            && message.offset < next
        {
            let shown = usize::try_from(next - message.offset)
                .unwrap_or(usize::MAX)
                .min(message.output.len());
            message.output.advance(shown);
            message.offset += shown as u64;
        }
        if message.gap > 0 {
            let behind = message.offset.saturating_add(message.gap);
            let begin = self.next_offset.unwrap_or(0).max(message.offset);
            self.next_offset = Some(behind.max(begin));
            let (bytes, cause) = self.gap.unwrap_or_default();
            let bytes = bytes.saturating_add(behind.saturating_sub(begin));
            let cause = cause.or(gap_cause(message.gap_cause()));
            self.gap = (bytes > 0).then_some((bytes, cause));
            return None;
        }
        if message.output.is_empty() {
            return None;
        }
        self.next_offset = Some(message.offset + message.output.len() as u64);
        Some(Ok(self.after_gap(Event::Output(message))))
    }

    /// The event, or the gap before it.
    fn after_gap(&mut self, event: Event) -> Event {
        match self.gap.take() {
            None => event,
            Some((bytes, cause)) => {
                self.after_gap = Some(event);
                Event::Gap { bytes, cause }
            }
        }
    }

    /// One attempt to connect again, after a pause.
    async fn mend(&mut self) -> Result<Option<Event>, Error> {
        // What answers and then brings nothing is away as well.
        if std::mem::take(&mut self.is_silent) && !std::mem::replace(&mut self.told, true) {
            let what = "the output breaks off".to_owned();
            return Ok(Some(Event::Away(Away::Other(what))));
        }
        let Connection::Broken(error) = &mut self.connection else {
            return Ok(None);
        };
        let Some(pause) = self.retry.pause(error, Instant::now()) else {
            return Err(std::mem::replace(error, cut_short(&self.client)));
        };
        tokio::time::sleep(pause).await;
        match Messages::open(&self.client, &self.resumed()).await {
            Ok(messages) => {
                self.retry.connected(Instant::now());
                self.connection = Connection::Open(messages);
                self.is_silent = true;
                if let Some(away) = self.away.take() {
                    self.client.is_back(&away);
                }
                Ok(None)
            }
            Err(error) => {
                let away = self.client.away(&error);
                self.connection = Connection::Broken(error);
                match away {
                    Some(away) if self.away.as_ref() != Some(&away) => {
                        self.away = Some(away.clone());
                        Ok(Some(Event::Away(away)))
                    }
                    Some(_) | None => Ok(None),
                }
            }
        }
    }

    /// The first request over again, or only what lies behind the last byte.
    fn resumed(&self) -> LogsQuery {
        match self.next_offset {
            None => self.query.clone(),
            Some(offset) => LogsQuery {
                offset: Some(offset),
                tail: None,
                since: None,
                ..self.query.clone()
            },
        }
    }
}

/// `None`: it is not known, or not to this version.
fn gap_cause(wire: proto::GapCause) -> Option<GapCause> {
    match wire {
        proto::GapCause::Unspecified => None,
        proto::GapCause::Limit => Some(GapCause::Limit),
        proto::GapCause::DiskFull => Some(GapCause::DiskFull),
        proto::GapCause::NotWritten => Some(GapCause::NotWritten),
        proto::GapCause::Removed => Some(GapCause::Removed),
        proto::GapCause::Damaged => Some(GapCause::Damaged),
        proto::GapCause::PowerLoss => Some(GapCause::PowerLoss),
    }
}

fn cut_short(client: &Client) -> Error {
    Error::Interrupted {
        server: client.server.to_string(),
        reason: "the stream ended before the job's output did".to_owned(),
        hung_up: true,
    }
}

/// The messages of one connection.
struct Messages {
    client: Client,
    body: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    buffer: BytesMut,
}

impl Messages {
    async fn open(client: &Client, query: &LogsQuery) -> Result<Self, Error> {
        let response = client.open_logs(query).await?;
        // Text could be taken for the length of a message that never comes.
        let kind = response.headers().get(header::CONTENT_TYPE);
        if let Some(kind) = kind.filter(|kind| kind.as_bytes().starts_with(b"text/")) {
            return Err(Error::Unreadable {
                server: client.server.to_string(),
                status: response.status().as_u16(),
                reason: format!("{kind:?} instead of a stream of messages"),
            });
        }
        Ok(Self {
            client: client.clone(),
            body: Box::pin(response.bytes_stream()),
            buffer: BytesMut::new(),
        })
    }

    /// Cancel-safe: nothing is lost when the future is dropped. The end of the
    /// stream is an error here, for the message with `end` comes before it.
    async fn next(&mut self) -> Result<StreamJobResponse, Error> {
        loop {
            match decode(&mut self.buffer) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(reason) => {
                    return Err(Error::Unreadable {
                        server: self.client.server.to_string(),
                        status: 200,
                        reason,
                    });
                }
            }
            match self.body.next().await {
                Some(Ok(chunk)) => self.buffer.extend_from_slice(&chunk),
                Some(Err(error)) => {
                    return Err(Error::interrupted(self.client.server.to_string(), &error));
                }
                None => return Err(cut_short(&self.client)),
            }
        }
    }
}

/// Takes one message off the front: its length as a varint, then itself. `None`
/// if it is not all there yet.
fn decode(buffer: &mut BytesMut) -> Result<Option<StreamJobResponse>, String> {
    let mut length = 0_usize;
    let mut prefix = 0;
    loop {
        let Some(&byte) = buffer.get(prefix) else {
            return Ok(None);
        };
        length |= usize::from(byte & 0x7f) << (7 * prefix);
        prefix += 1;
        if length > MAX_MESSAGE || (prefix == 4 && byte & 0x80 != 0) {
            return Err(format!("a message of more than {MAX_MESSAGE} bytes"));
        }
        if byte & 0x80 == 0 {
            break;
        }
    }
    if buffer.len() < prefix + length {
        buffer.reserve(prefix + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(prefix);
    StreamJobResponse::decode(buffer.split_to(length).freeze())
        .map(Some)
        .map_err(|error| error.to_string())
}

/// However the bytes of a stream are cut, the same messages come out of them, and
/// after an error there is no more. See [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub fn fuzz(bytes: &[u8]) {
    let Some((&size, bytes)) = bytes.split_first() else {
        return;
    };
    let all = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut buffer, mut messages) = (BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match decode(&mut buffer) {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(_) => return (messages, false),
                }
            }
        }
        (messages, true)
    };
    let whole = all(&mut [bytes].into_iter());
    let pieces = all(&mut bytes.chunks(usize::from(size).max(1)));
    assert_eq!(whole, pieces);
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        future::IntoFuture as _,
        io,
        sync::{Arc, Mutex},
    };

    use axum::{
        Json, Router,
        body::Body,
        extract::Query,
        http::StatusCode,
        response::{IntoResponse, Response},
        routing::get,
    };
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::*;
    use crate::api;
    use crate::client::Proof;

    fn output(offset: u64, bytes: &'static [u8]) -> StreamJobResponse {
        StreamJobResponse {
            output: Bytes::from_static(bytes),
            offset,
            time_us: 1,
            stream: proto::OutputStream::Stdout.into(),
            ..StreamJobResponse::default()
        }
    }

    fn end(offset: u64) -> StreamJobResponse {
        StreamJobResponse {
            offset,
            end: Some(proto::JobStatus {
                state: proto::JobState::Failed.into(),
                exit_code: Some(3),
                ..proto::JobStatus::default()
            }),
            ..StreamJobResponse::default()
        }
    }

    fn encoded(messages: &[StreamJobResponse]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            message.encode_length_delimited(&mut bytes).unwrap();
        }
        bytes
    }

    /// Bytes, then the connection breaks (or with `whole` ends in order).
    fn answer(bytes: Vec<u8>, whole: bool) -> Response {
        let mut pieces = vec![Ok(bytes)];
        if !whole {
            pieces.push(Err(io::Error::other("cut")));
        }
        // Handed over one by one, so that what comes before the break is sent.
        let body = futures_util::stream::iter(pieces).then(|piece| async {
            tokio::task::yield_now().await;
            piece
        });
        Body::from_stream(body).into_response()
    }

    fn refusal(status: StatusCode, code: &str) -> Response {
        let error = api::Error {
            error: code.into(),
            code: code.into(),
            job_id: None,
            worker: None,
        };
        (status, Json(error)).into_response()
    }

    fn worker_away(status: StatusCode) -> Response {
        let error = api::Error {
            error: "worker w2 is not there".into(),
            code: "whatever".into(),
            job_id: None,
            worker: Some("w2".into()),
        };
        (status, Json(error)).into_response()
    }

    /// A scheduler that gives these answers, one after the other, and notes what
    /// it was asked.
    async fn serve(answers: Vec<Response>) -> (Client, Arc<Mutex<Vec<LogsQuery>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let keep = Arc::clone(&asked);
        let router = Router::new().route(
            "/logs",
            get(move |Query(query): Query<LogsQuery>| async move {
                keep.lock().unwrap().push(query);
                answers.lock().unwrap().pop_front().unwrap()
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router).into_future());
        (
            Client::new(server.parse().unwrap(), &Proof::default()).unwrap(),
            asked,
        )
    }

    fn query() -> LogsQuery {
        LogsQuery {
            job_id: "j".into(),
            follow: true,
            tail: Some(10),
            ..LogsQuery::default()
        }
    }

    async fn read_all(mut logs: Logs) -> (String, usize, Result<Ending, Error>) {
        let (mut text, mut told) = (Vec::new(), 0);
        loop {
            let event = match logs.at_hand() {
                Some(event) => event,
                None => logs.next().await,
            };
            let outcome = match event {
                Ok(Event::Output(message)) => {
                    text.extend_from_slice(&message.output);
                    continue;
                }
                Ok(Event::Gap { bytes, cause }) => {
                    let cause = cause.map_or_else(String::new, |cause| format!(" {cause:?}"));
                    text.extend_from_slice(format!("<{bytes}{cause}>").as_bytes());
                    continue;
                }
                Ok(Event::Away(_)) => {
                    told += 1;
                    continue;
                }
                Ok(Event::End(status)) => Ok(status),
                Err(error) => Err(error),
            };
            return (String::from_utf8(text).unwrap(), told, outcome);
        }
    }

    #[tokio::test]
    async fn a_gap_is_told_once_and_read_on_behind() {
        let gap = |offset, gap| StreamJobResponse {
            offset,
            gap,
            ..StreamJobResponse::default()
        };
        let (client, asked) = serve(vec![
            answer(encoded(&[output(0, b"a"), gap(1, 9)]), false),
            answer(encoded(&[gap(1, 9), output(10, b"b"), end(11)]), true),
        ])
        .await;
        let logs = client.logs(query()).await.unwrap();
        let (text, _, outcome) = read_all(logs).await;
        assert_eq!(text, "a<9>b");
        assert_eq!(outcome.unwrap().state, JobState::Failed);
        assert_eq!(asked.lock().unwrap()[1].offset, Some(10));
    }

    #[tokio::test]
    async fn gaps_one_behind_the_other_are_one_with_the_cause_that_is_known() {
        let gap = |offset, gap, cause: proto::GapCause| StreamJobResponse {
            offset,
            gap,
            gap_cause: cause.into(),
            ..StreamJobResponse::default()
        };
        let (client, _) = serve(vec![
            answer(
                encoded(&[
                    output(0, b"a"),
                    gap(1, 9, proto::GapCause::Unspecified),
                    gap(10, 5, proto::GapCause::DiskFull),
                ]),
                false,
            ),
            answer(
                encoded(&[
                    gap(15, 1, proto::GapCause::Damaged),
                    output(16, b"b"),
                    gap(17, 3, proto::GapCause::Limit),
                    end(20),
                ]),
                true,
            ),
        ])
        .await;
        let logs = client.logs(query()).await.unwrap();
        let (text, _, outcome) = read_all(logs).await;
        assert_eq!(text, "a<15 DiskFull>b<3 Limit>");
        outcome.unwrap();
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_again_and_again_is_told_once() {
        let (client, _) = serve(vec![
            answer(encoded(&[output(0, b"a")]), false),
            answer(Vec::new(), false),
            answer(Vec::new(), false),
            answer(Vec::new(), false),
            answer(encoded(&[output(1, b"b"), end(2)]), true),
        ])
        .await;
        let logs = client.logs(query()).await.unwrap();
        let (text, told, outcome) = read_all(logs).await;
        assert_eq!((text.as_str(), told), ("ab", 1));
        outcome.unwrap();
    }

    #[tokio::test]
    async fn a_cut_stream_is_resumed_without_loss_or_repetition() {
        let mut half = encoded(&[
            output(5, b"one\n"),
            output(9, b"two\n"),
            output(13, b"lost"),
        ]);
        half.truncate(half.len() - 2);
        let (client, asked) = serve(vec![
            answer(half, false),
            refusal(StatusCode::GATEWAY_TIMEOUT, "worker_unreachable"),
            refusal(StatusCode::NOT_FOUND, "job_not_found"),
            // Begins a little earlier than asked, and in the middle of a message.
            answer(
                encoded(&[output(5, b"one\n"), output(11, b"o\nthree\n")]),
                true,
            ),
            answer(encoded(&[output(19, b"four\n"), end(24)]), true),
        ])
        .await;
        let logs = client.logs(query()).await.unwrap();
        let (text, told, status) = read_all(logs).await;
        assert_eq!(text, "one\ntwo\nthree\nfour\n");
        assert_eq!(told, 1);
        assert_eq!(status.unwrap().exit_code, Some(3));
        let asked = asked.lock().unwrap();
        let offsets: Vec<_> = asked.iter().map(|query| query.offset).collect();
        assert_eq!(offsets, [None, Some(13), Some(13), Some(13), Some(19)]);
        let tails: Vec<_> = asked.iter().map(|query| query.tail).collect();
        assert_eq!(tails, [Some(10), None, None, None, None]);
        assert!(asked.iter().all(|query| query.follow));
    }

    #[tokio::test]
    async fn a_break_before_the_first_message_repeats_the_request() {
        let (client, asked) = serve(vec![
            answer(Vec::new(), false),
            answer(encoded(&[end(0)]), true),
        ])
        .await;
        let (text, told, status) = read_all(client.logs(query()).await.unwrap()).await;
        assert_eq!((text.as_str(), told), ("", 0));
        status.unwrap();
        assert_eq!(*asked.lock().unwrap(), [query(), query()]);
    }

    #[tokio::test]
    async fn the_first_refusal_is_final_and_so_is_a_later_plain_one() {
        let (client, _) = serve(vec![
            refusal(StatusCode::GATEWAY_TIMEOUT, "worker_unreachable"),
            answer(encoded(&[output(0, b"x")]), false),
            refusal(StatusCode::FORBIDDEN, "forbidden"),
        ])
        .await;
        let first = client.logs(query()).await.err().unwrap();
        assert_eq!(first.code(), Some("worker_unreachable"));
        let (text, _, outcome) = read_all(client.logs(query()).await.unwrap()).await;
        assert_eq!(text, "x");
        assert_eq!(outcome.unwrap_err().code(), Some("forbidden"));
    }

    #[tokio::test]
    async fn a_worker_that_is_away_from_the_first_is_waited_for() {
        let (client, asked) = serve(vec![
            worker_away(StatusCode::SERVICE_UNAVAILABLE),
            worker_away(StatusCode::GATEWAY_TIMEOUT),
            worker_away(StatusCode::GATEWAY_TIMEOUT),
            answer(encoded(&[output(0, b"x"), end(1)]), true),
        ])
        .await;
        let mut logs = client.logs(query()).await.unwrap();
        let Event::Away(away) = logs.next().await.unwrap() else {
            panic!("output of a worker that is away");
        };
        assert_eq!(away.to_string(), "worker w2 is away, waiting");
        let (text, told, outcome) = read_all(logs).await;
        assert_eq!((text.as_str(), told), ("x", 0));
        outcome.unwrap();
        assert_eq!(asked.lock().unwrap().len(), 4);
    }

    #[tokio::test]
    async fn who_only_reads_waits_as_long_as_the_patience_lasts() {
        let reads = LogsQuery {
            follow: false,
            ..query()
        };
        let (client, asked) = serve(vec![worker_away(StatusCode::GATEWAY_TIMEOUT)]).await;
        let error = client.logs(reads.clone()).await.err().unwrap();
        assert_eq!(error.to_string(), "worker w2 is not there");
        assert_eq!(asked.lock().unwrap().len(), 1);
        let (client, _) = serve(vec![
            worker_away(StatusCode::GATEWAY_TIMEOUT),
            worker_away(StatusCode::GATEWAY_TIMEOUT),
            answer(encoded(&[output(0, b"x"), end(1)]), true),
        ])
        .await;
        let limit = std::time::Duration::from_secs(60);
        let client = client.with_patience(crate::client::Patience::new(limit, |_| ()));
        let (text, told, outcome) = read_all(client.logs(reads).await.unwrap()).await;
        assert_eq!((text.as_str(), told), ("x", 0));
        outcome.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_stream_of_messages_is_an_error() {
        for nonsense in [&[0xff; 16][..], &[3, 0, 0, 0]] {
            let (client, _) = serve(vec![answer(nonsense.to_vec(), true)]).await;
            let mut logs = client.logs(query()).await.unwrap();
            let error = logs.next().await.unwrap_err();
            assert!(matches!(error, Error::Unreadable { .. }), "{error}");
        }
        let (client, _) = serve(vec!["<html>".into_response()]).await;
        let error = client.logs(query()).await.err().unwrap();
        assert!(matches!(error, Error::Unreadable { .. }), "{error}");
    }

    #[test]
    fn a_state_of_a_later_version_is_an_unknown_one() {
        let status = proto::JobStatus {
            state: 99,
            start_error: "not_executable".into(),
            ..proto::JobStatus::default()
        };
        let ending = Ending::from(status);
        assert_eq!(ending.state, JobState::Unknown);
        assert_eq!(ending.start_error.as_deref(), Some("not_executable"));
        let status = proto::JobStatus::default();
        assert_eq!(Ending::from(status).start_error, None);
    }

    #[test]
    fn a_message_may_not_be_longer_than_the_limit() {
        let mut buffer = BytesMut::from(&[0x81, 0x80, 0x80, 0x02][..]);
        assert!(decode(&mut buffer).is_err());
        let mut buffer = BytesMut::from(&[0x80, 0x80, 0x80, 0x02][..]);
        assert_eq!(decode(&mut buffer), Ok(None));
        let mut buffer = BytesMut::from(&[0x80, 0x80, 0x80, 0x80, 0x01][..]);
        assert!(decode(&mut buffer).is_err());
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            cut in 1_usize..97,
        ) {
            let messages: Vec<_> = pieces
                .into_iter()
                .map(|piece| StreamJobResponse { output: piece.into(), ..output(7, b"") })
                .collect();
            let mut buffer = BytesMut::new();
            let mut read = Vec::new();
            for chunk in encoded(&messages).chunks(cut) {
                buffer.extend_from_slice(chunk);
                while let Some(message) = decode(&mut buffer).unwrap() {
                    read.push(message);
                }
            }
            prop_assert_eq!(read, messages);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }
    }
}
