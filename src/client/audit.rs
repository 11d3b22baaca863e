//! The audit log as it is read: line by line, across broken connections; and
//! whether its lines are still those that were written.

use std::{pin::Pin, time::Instant};

use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use futures_util::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Away, Client, Error, Retry};
use crate::api::AuditQuery;

/// A line bears the arguments of a job at most, which came in a request. A
/// character of them may be written in six.
const LONGEST_LINE: usize = 8 * crate::api::MAX_BODY;

/// What reading brings.
#[derive(Debug)]
pub enum Event {
    /// A line, without its end.
    Line(Bytes),
    /// The connection broke, and the first attempt to mend it failed.
    Away(Away),
}

/// The lines behind one, across broken connections.
pub struct Audit {
    client: Client,
    query: AuditQuery,
    connection: Connection,
    retry: Retry,
    /// Who is away now, as was told.
    away: Option<Away>,
}

enum Connection {
    Open(Lines),
    Broken(Error),
}

impl Audit {
    /// Returns once the scheduler has answered, or with the reason why not.
    pub async fn open(client: Client, query: AuditQuery) -> Result<Self, Error> {
        let lines = Lines::open(&client, &query).await?;
        Ok(Self {
            client,
            query,
            connection: Connection::Open(lines),
            retry: Retry::new(Instant::now()),
            away: None,
        })
    }

    /// None: that was the last, and those that come were not asked for.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            match &mut self.connection {
                Connection::Open(lines) => match lines.next().await {
                    Ok(Some(line)) => {
                        self.query.after = number_of(&self.client, &line)?;
                        self.query.tail = None;
                        self.retry.progressed();
                        return Ok(Some(Event::Line(line)));
                    }
                    Ok(None) if !self.query.follow => return Ok(None),
                    // It is about to be restarted.
                    Ok(None) => self.connection = Connection::Broken(ended(&self.client)),
                    Err(error) if error.is_passing() => {
                        self.connection = Connection::Broken(error);
                    }
                    Err(error) => return Err(error),
                },
                Connection::Broken(_) => {
                    if let Some(away) = self.mend().await? {
                        return Ok(Some(Event::Away(away)));
                    }
                }
            }
        }
    }

    /// One attempt to connect again, after a pause; who is away, if that is to be told.
    async fn mend(&mut self) -> Result<Option<Away>, Error> {
        let Connection::Broken(error) = &mut self.connection else {
            return Ok(None);
        };
        let Some(pause) = self.retry.pause(error, Instant::now()) else {
            return Err(std::mem::replace(error, ended(&self.client)));
        };
        tokio::time::sleep(pause).await;
        match Lines::open(&self.client, &self.query).await {
            Ok(lines) => {
                self.retry.connected(Instant::now());
                self.connection = Connection::Open(lines);
                if let Some(away) = self.away.take() {
                    self.client.is_back(&away);
                }
                Ok(None)
            }
            Err(error) => {
                let away = self.client.away(&error);
                self.connection = Connection::Broken(error);
                if away == self.away {
                    return Ok(None);
                }
                self.away.clone_from(&away);
                Ok(away)
            }
        }
    }
}

fn ended(client: &Client) -> Error {
    Error::Interrupted {
        server: client.server.to_string(),
        reason: "the stream ended before the audit log did".to_owned(),
        hung_up: true,
    }
}

fn unreadable(client: &Client, reason: String) -> Error {
    Error::Unreadable {
        server: client.server.to_string(),
        status: 200,
        reason,
    }
}

fn number_of(client: &Client, line: &[u8]) -> Result<i64, Error> {
    #[derive(Deserialize)]
    struct Numbered {
        number: i64,
    }
    let read: Result<Numbered, _> = serde_json::from_slice(line);
    let read = read.map_err(|error| unreadable(client, error.to_string()));
    Ok(read?.number)
}

/// The lines of one connection.
struct Lines {
    client: Client,
    body: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    buffer: BytesMut,
    /// So much of the buffer is known to have no end of a line.
    searched: usize,
}

impl Lines {
    async fn open(client: &Client, query: &AuditQuery) -> Result<Self, Error> {
        let response = client.audit(query).await?;
        Ok(Self {
            client: client.clone(),
            body: Box::pin(response.bytes_stream()),
            buffer: BytesMut::new(),
            searched: 0,
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let rest = &self.buffer[self.searched..];
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(self.searched + end + 1);
                line.truncate(line.len() - 1);
                self.searched = 0;
                return Ok(Some(line.freeze()));
            }
            self.searched = self.buffer.len();
            if self.searched > LONGEST_LINE {
                let reason = format!("a line of more than {LONGEST_LINE} bytes");
                return Err(unreadable(&self.client, reason));
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => {
                    return Err(Error::interrupted(self.client.server.to_string(), &error));
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(ended(&self.client)),
            }
        }
    }
}

/// What is in a line, for people.
#[derive(Debug, Deserialize)]
pub struct Entry {
    /// When it was written.
    pub at: jiff::Timestamp,
    /// Role and name.
    pub who: String,
    /// Where they called from.
    #[serde(default)]
    pub address: Option<String>,
    /// What was done, or tried.
    pub action: String,
    /// To what.
    #[serde(default)]
    pub target: String,
    /// `ok`, or why not.
    pub result: String,
}

/// What a chain of lines is worth. Lines that were cut off its end are not
/// missed by it: number and hash of the last are to be kept elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// How many lines hold.
    pub lines: u64,
    /// The number of the first; those before are no longer kept.
    pub first: Option<i64>,
    /// The number of the last that holds.
    pub last: Option<i64>,
    /// Its hash.
    pub hash: Option<String>,
}

/// The first line that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("line {number} of the audit log is not what was written: {why}")]
pub struct Broken {
    /// Its number, or if it tells none, the one it should have.
    pub number: i64,
    /// What is wrong.
    pub why: &'static str,
}

/// What the hash of a line stands behind.
const HASH: &[u8] = b",\"hash\":\"";

impl Chain {
    /// The next line.
    ///
    /// # Errors
    ///
    /// It is not the one that was written behind those before.
    pub fn add(&mut self, line: &[u8]) -> Result<(), Broken> {
        #[derive(Deserialize)]
        struct Link {
            number: i64,
            previous: String,
            hash: String,
        }
        let expected = self.last.map_or(1, |last| last.saturating_add(1));
        let broken = |number, why| Err(Broken { number, why });
        let Ok(link) = serde_json::from_slice::<Link>(line) else {
            return broken(expected, "it is no line of an audit log");
        };
        let end = HASH.len() + link.hash.len() + b"\"}".len();
        let begun = line
            .len()
            .checked_sub(end)
            .map(|begun| line.split_at(begun));
        let Some((begun, _)) = begun.filter(|(_, end)| end.starts_with(HASH)) else {
            return broken(link.number, "its hash is not at its end");
        };
        if HEXLOWER.encode(&Sha256::digest(begun)) != link.hash {
            return broken(link.number, "its hash is another");
        }
        match &self.hash {
            Some(_) if link.number != expected => {
                return broken(
                    link.number,
                    "lines before it are missing, or it is not in its place",
                );
            }
            Some(hash) if *hash != link.previous => {
                return broken(link.number, "the line before it was another");
            }
            None if link.number == 1 && !link.previous.is_empty() => {
                return broken(link.number, "lines before it are missing");
            }
            _ => {}
        }
        self.lines += 1;
        self.first.get_or_insert(link.number);
        self.last = Some(link.number);
        self.hash = Some(link.hash);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: i64) -> Vec<String> {
        let mut previous = String::new();
        let line = |number: i64| {
            let begun = format!(
                "{{\"number\":{number},\"previous\":\"{previous}\",\"action\":\"start\",\
                 \"details\":{{\"args\":[\"\\\",\\\"hash\\\":\\\"\"]}},\"result\":\"ok\""
            );
            previous = HEXLOWER.encode(&Sha256::digest(begun.as_bytes()));
            format!("{begun},\"hash\":\"{previous}\"}}")
        };
        (1..=count).map(line).collect()
    }

    fn checked(lines: &[String]) -> Result<Chain, Broken> {
        let mut chain = Chain::default();
        for line in lines {
            chain.add(line.as_bytes())?;
        }
        Ok(chain)
    }

    #[test]
    fn a_chain_holds_from_its_first_line_or_from_what_is_kept_of_it() {
        assert_eq!(checked(&[]), Ok(Chain::default()));
        let all = lines(5);
        let whole = checked(&all).unwrap();
        assert_eq!(
            (whole.lines, whole.first, whole.last),
            (5, Some(1), Some(5))
        );
        assert!(all[4].ends_with(&format!("{}\"}}", whole.hash.unwrap())));
        let kept = checked(&all[2..]).unwrap();
        assert_eq!((kept.lines, kept.first, kept.last), (3, Some(3), Some(5)));
    }

    #[test]
    fn what_was_changed_moved_or_taken_out_is_found() {
        let broken = |change: &dyn Fn(&mut Vec<String>)| {
            let mut all = lines(5);
            change(&mut all);
            checked(&all).unwrap_err().number
        };
        assert_eq!(broken(&|all| all[2] = all[2].replace("start", "stop")), 3);
        assert_eq!(broken(&|all| all[2] = all[2].replace("ok", "OK")), 3);
        assert_eq!(broken(&|all| all[2].insert(1, ' ')), 3);
        assert_eq!(broken(&|all| all[2].push(' ')), 3);
        assert_eq!(broken(&|all| drop(all.remove(2))), 4);
        assert_eq!(broken(&|all| all.swap(2, 3)), 4);
        assert_eq!(broken(&|all| all.insert(2, all[1].clone())), 2);
        assert_eq!(broken(&|all| all[2].truncate(9)), 3);
        // One that was written anew, with a hash of its own, is not what the next
        // one was written behind.
        let anew = |all: &mut Vec<String>| {
            let (begun, _) = all[2].rsplit_once(",\"hash\"").unwrap();
            let begun = begun.replace("start", "stop");
            let hash = HEXLOWER.encode(&Sha256::digest(begun.as_bytes()));
            all[2] = format!("{begun},\"hash\":\"{hash}\"}}");
        };
        assert_eq!(broken(&anew), 4);
        let first = |all: &mut Vec<String>| {
            let begun = "{\"number\":1,\"previous\":\"00\"";
            let hash = HEXLOWER.encode(&Sha256::digest(begun.as_bytes()));
            *all = vec![format!("{begun},\"hash\":\"{hash}\"}}")];
        };
        assert_eq!(broken(&first), 1);
    }
}
