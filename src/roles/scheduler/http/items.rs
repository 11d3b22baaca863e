//! The body of `POST /start`: one JSON object, or, for a group with many items, that
//! object on the first line and an item on each further one. The lines are taken as
//! they come, so that no more of them is in memory than the items themselves.

use std::time::Duration;

use axum::{
    body::BodyDataStream,
    extract::{FromRequest, Request},
    http::header,
};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::{Body, Scheduler};
use crate::{api, roles::scheduler::error::Error};

/// From its first byte to its last a long body takes no longer: others wait for it.
const WHOLE: Duration = Duration::from_secs(60);

/// What is asked for, however it was sent.
pub(super) struct StartBody(pub(super) api::StartRequest);

impl FromRequest<Scheduler> for StartBody {
    type Rejection = Error;

    async fn from_request(request: Request, scheduler: &Scheduler) -> Result<Self, Error> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case(api::NDJSON) {
            let Body(asked) = Body::from_request(request, scheduler).await?;
            return Ok(Self(asked));
        }
        // Each holds what may be many times the usual body.
        let _turn = scheduler.long_bodies.acquire().await;
        let mut lines = Lines {
            stream: request.into_body().into_data_stream(),
            read: BytesMut::new(),
            searched: 0,
            longest: scheduler.body_bytes,
        };
        match timeout(WHOLE, lines.request()).await {
            Ok(asked) => asked.map(Self),
            Err(_) => Err(Error::BadRequest(format!(
                "bad body: not all of it has come within {WHOLE:?}"
            ))),
        }
    }
}

fn bad(line: usize, what: &str) -> Error {
    Error::BadRequest(format!("bad body: line {line}: {what}"))
}

struct Lines {
    stream: BodyDataStream,
    read: BytesMut,
    /// So many bytes of `read` are known to hold no end of a line.
    searched: usize,
    longest: usize,
}

impl Lines {
    async fn request(&mut self) -> Result<api::StartRequest, Error> {
        let first = self.next().await?.unwrap_or_default();
        let asked = serde_json::from_slice(&first);
        let mut asked: api::StartRequest = asked.map_err(|error| bad(1, &error.to_string()))?;
        if asked.each.is_some() {
            return Err(bad(1, "it has each, and items follow on lines"));
        }
        let (mut items, mut bytes) = (Vec::new(), 0);
        while let Some(line) = self.next().await? {
            let number = items.len() + 2;
            if items.len() == api::MAX_GROUP {
                let most = api::MAX_GROUP;
                return Err(Error::BadRequest(format!(
                    "each has more than {most} items"
                )));
            }
            let item = serde_json::from_slice::<String>(&line);
            let item = item.map_err(|error| bad(number, &error.to_string()))?;
            bytes += item.len();
            if bytes > api::MAX_ITEMS_BYTES {
                return Err(Error::BodyTooLarge(api::MAX_ITEMS_BYTES));
            }
            items.push(item);
        }
        asked.each = Some(items);
        Ok(asked)
    }

    /// The next line without its end; the last may have none.
    async fn next(&mut self) -> Result<Option<BytesMut>, Error> {
        loop {
            let end = self.read[self.searched..].iter().position(|b| *b == b'\n');
            if let Some(end) = end {
                let mut line = self.read.split_to(self.searched + end + 1);
                line.truncate(self.searched + end);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.read.len();
            if self.searched > self.longest {
                return Err(Error::BodyTooLarge(self.longest));
            }
            match self.stream.next().await {
                Some(Ok(more)) => self.read.extend_from_slice(&more),
                Some(Err(error)) => {
                    return Err(Error::BadRequest(format!("bad body: {error}")));
                }
                None if self.read.is_empty() => return Ok(None),
                None => {
                    self.searched = 0;
                    return Ok(Some(self.read.split()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(pieces: &'static [&str], longest: usize) -> Result<Vec<String>, Error> {
        let pieces = pieces.iter().map(|piece| Ok::<_, std::io::Error>(*piece));
        let body = axum::body::Body::from_stream(futures_util::stream::iter(pieces));
        let mut lines = Lines {
            stream: body.into_data_stream(),
            read: BytesMut::new(),
            searched: 0,
            longest,
        };
        let mut found = Vec::new();
        while let Some(line) = lines.next().await? {
            found.push(String::from_utf8(line.to_vec()).unwrap());
        }
        Ok(found)
    }

    #[tokio::test]
    async fn lines_are_found_however_they_are_cut() {
        let pieces = &["a", "b\ncd", "\n\ne", "f"];
        assert_eq!(lines(pieces, 10).await.unwrap(), ["ab", "cd", "", "ef"]);
        assert!(lines(&[], 10).await.unwrap().is_empty());
        assert_eq!(lines(&["a\n"], 10).await.unwrap(), ["a"]);
    }

    #[tokio::test]
    async fn a_line_that_never_ends_is_refused() {
        let error = lines(&["ab", "cd", "ef"], 3).await.unwrap_err();
        assert!(matches!(error, Error::BodyTooLarge(3)), "{error}");
    }
}
