//! What is remembered of tokens and certificates, what admins order of workers, and the
//! audit log.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Error, read::Reader};
use crate::{
    api,
    identity::{
        Role,
        token::{Digest, TokenId},
    },
    ids::WorkerId,
    roles::scheduler::about::Orders,
};

/// A token, without its secret.
#[derive(Clone, Debug)]
pub(in crate::roles::scheduler) struct Token {
    pub(in crate::roles::scheduler) id: TokenId,
    pub(in crate::roles::scheduler) kind: api::TokenKind,
    pub(in crate::roles::scheduler) role: Role,
    pub(in crate::roles::scheduler) name: String,
    pub(in crate::roles::scheduler) digest: Digest,
    pub(in crate::roles::scheduler) created_at: Timestamp,
    pub(in crate::roles::scheduler) expires_at: Timestamp,
    /// When it bought a certificate.
    pub(in crate::roles::scheduler) used_at: Option<Timestamp>,
    pub(in crate::roles::scheduler) revoked_at: Option<Timestamp>,
}

/// The newest certificate of somebody. Of one that was signed elsewhere, and was
/// revoked here, only the id is known.
#[derive(Clone, Debug)]
pub(in crate::roles::scheduler) struct Certificate {
    pub(in crate::roles::scheduler) id: Uuid,
    pub(in crate::roles::scheduler) role: Option<Role>,
    pub(in crate::roles::scheduler) name: String,
    pub(in crate::roles::scheduler) serial: String,
    pub(in crate::roles::scheduler) issued_at: Timestamp,
    pub(in crate::roles::scheduler) expires_at: Timestamp,
    pub(in crate::roles::scheduler) revoked_at: Option<Timestamp>,
}

/// A change of who is who, or of what a worker is to do. All of it is written, or none.
#[derive(Clone, Debug)]
pub(in crate::roles::scheduler) enum AccessChange {
    /// A token was made.
    Token(Token),
    /// A token will not be taken any more.
    TokenRevoked(TokenId, Timestamp),
    /// A certificate was signed; with a token, it is spent on it.
    Certificate(Certificate, Option<TokenId>),
    /// Nobody of this id is accepted any more.
    Revoked(Uuid, Timestamp),
    /// This is ordered of a worker from now on.
    Orders(WorkerId, Orders),
    /// A worker nobody will hear of again.
    WorkerRemoved(WorkerId),
    /// Nothing, but the line of the audit log that comes with it.
    Nothing,
}

/// What came of such a change. Unless it was done nothing was written, not even
/// the line of the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::roles::scheduler) enum Written {
    Done,
    /// Whom the certificate names was revoked, then.
    Revoked(Timestamp),
    /// The token has bought another one, or was revoked.
    TokenSpent,
    /// The name of the worker that would join belongs to this one.
    NameTaken(Uuid),
}

/// A line of the audit log, before it has its place.
#[derive(Clone, Debug, serde::Serialize)]
pub(in crate::roles::scheduler) struct AuditEntry {
    pub(in crate::roles::scheduler) at: Timestamp,
    /// Role and name.
    pub(in crate::roles::scheduler) who: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::roles::scheduler) who_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::roles::scheduler) address: Option<String>,
    /// What was done, or tried.
    pub(in crate::roles::scheduler) action: String,
    /// To what.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::roles::scheduler) target: String,
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub(in crate::roles::scheduler) details: serde_json::Value,
    /// `ok`, or the code of the refusal.
    pub(in crate::roles::scheduler) result: String,
}

/// The tables of this file, in version 2 of the store.
pub(super) const TABLES: &str = "
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    created_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,
    used_us INTEGER,
    revoked_us INTEGER
) STRICT, WITHOUT ROWID;

-- Of everybody the newest. One that is revoked stays, whoever signed for it.
CREATE TABLE certificates (
    id BLOB PRIMARY KEY,
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    serial TEXT NOT NULL,
    issued_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,
    revoked_us INTEGER
) STRICT, WITHOUT ROWID;

-- Each line ends with the hash of itself and the hash before.
CREATE TABLE audit (
    number INTEGER PRIMARY KEY,
    at_us INTEGER NOT NULL,
    line TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_time ON audit (at_us);
";

/// What is deleted for good so long after it ended.
const FORGET_AFTER_US: i64 = 30 * 24 * 3600 * 1_000_000;

fn time(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn some_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(time))
}

fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|_| rusqlite::Error::InvalidColumnType(column, text, rusqlite::types::Type::Text))
}

/// Every token and certificate there is.
pub(super) fn load(connection: &Connection) -> Result<(Vec<Token>, Vec<Certificate>), Error> {
    let mut tokens = connection.prepare(
        "SELECT id, kind, role, name, digest, created_us, expires_us, used_us, revoked_us
         FROM tokens",
    )?;
    let tokens = tokens
        .query_map((), |row| {
            let digest: Vec<u8> = row.get(4)?;
            Ok(Token {
                id: parsed(row, 0)?,
                kind: parsed(row, 1)?,
                role: parsed(row, 2)?,
                name: row.get(3)?,
                digest: Digest::from_bytes(&digest).ok_or(rusqlite::Error::InvalidQuery)?,
                created_at: time(row.get(5)?),
                expires_at: time(row.get(6)?),
                used_at: some_time(row, 7)?,
                revoked_at: some_time(row, 8)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    let mut certificates = connection.prepare(
        "SELECT id, role, name, serial, issued_us, expires_us, revoked_us FROM certificates",
    )?;
    let certificates = certificates
        .query_map((), |row| {
            Ok(Certificate {
                id: Uuid::from_bytes(row.get(0)?),
                role: match row.get::<_, String>(3)?.as_str() {
                    "" => None,
                    _ => Some(parsed(row, 1)?),
                },
                name: row.get(2)?,
                serial: row.get(3)?,
                issued_at: time(row.get(4)?),
                expires_at: time(row.get(5)?),
                revoked_at: some_time(row, 6)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok((tokens, certificates))
}

/// Does it, unless it cannot be done any more.
pub(super) fn apply(
    to: &Transaction<'_>,
    change: &AccessChange,
    entry: Option<&AuditEntry>,
    at: Timestamp,
) -> rusqlite::Result<Written> {
    let written = match change {
        AccessChange::Token(token) => {
            to.prepare_cached(
                "INSERT INTO tokens
                 (id, kind, role, name, digest, created_us, expires_us)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                token.id.to_string(),
                token.kind.as_str(),
                token.role.as_str(),
                token.name,
                token.digest.as_bytes(),
                token.created_at.as_microsecond(),
                token.expires_at.as_microsecond(),
            ])?;
            Written::Done
        }
        AccessChange::TokenRevoked(id, at) => {
            to.prepare_cached(
                "UPDATE tokens SET revoked_us = coalesce(revoked_us, ?) WHERE id = ?",
            )?
            .execute(params![at.as_microsecond(), id.to_string()])?;
            Written::Done
        }
        AccessChange::Certificate(certificate, token) => match hindered(to, certificate, *token)? {
            Some(hindered) => hindered,
            None => {
                to.prepare_cached(
                    "INSERT OR REPLACE INTO certificates
                     (id, role, name, serial, issued_us, expires_us, revoked_us)
                     VALUES (?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    certificate.id.as_bytes(),
                    certificate.role.map_or("", Role::as_str),
                    certificate.name,
                    certificate.serial,
                    certificate.issued_at.as_microsecond(),
                    certificate.expires_at.as_microsecond(),
                    certificate.revoked_at.map(Timestamp::as_microsecond),
                ])?;
                Written::Done
            }
        },
        AccessChange::Revoked(id, at) => {
            // One that was signed elsewhere is not known here. What is revoked again
            // was revoked before.
            to.prepare_cached(
                "INSERT INTO certificates (id, role, name, serial, issued_us, expires_us, revoked_us)
                 VALUES (?1, '', '', '', 0, 0, ?2)
                 ON CONFLICT (id) DO UPDATE SET revoked_us = coalesce(revoked_us, ?2)",
            )?
            .execute(params![id.as_bytes(), at.as_microsecond()])?;
            Written::Done
        }
        AccessChange::Orders(id, orders) => {
            let text = serde_json::to_string(orders).unwrap_or_default();
            to.prepare_cached("UPDATE workers SET orders = ? WHERE id = ?")?
                .execute(params![text, id.as_bytes()])?;
            Written::Done
        }
        AccessChange::WorkerRemoved(id) => {
            remove_worker(to, *id)?;
            Written::Done
        }
        AccessChange::Nothing => Written::Done,
    };
    if let Some(entry) = entry.filter(|_| written == Written::Done) {
        append(to, entry, at)?;
    }
    Ok(written)
}

pub(super) fn remove_worker(to: &Transaction<'_>, id: WorkerId) -> rusqlite::Result<()> {
    to.prepare_cached("DELETE FROM workers WHERE id = ?")?
        .execute([id.as_bytes()])?;
    to.prepare_cached("DELETE FROM forget WHERE worker = ?")?
        .execute([id.as_bytes()])?;
    Ok(())
}

/// Why a certificate cannot be given any more, if somebody else was a moment
/// faster: revoked is revoked, a token is spent once, and a name is one worker's.
/// If it can, the token is spent.
fn hindered(
    to: &Transaction<'_>,
    certificate: &Certificate,
    token: Option<TokenId>,
) -> rusqlite::Result<Option<Written>> {
    if let Some(at) = revoked_at(to, certificate.id)? {
        return Ok(Some(Written::Revoked(at)));
    }
    let Some(token) = token else {
        return Ok(None);
    };
    if certificate.role == Some(Role::Worker)
        && let Some(owner) = other_worker(to, certificate)?
    {
        return Ok(Some(Written::NameTaken(owner)));
    }
    let is_spent = spend(to, token, certificate.issued_at)?;
    Ok((!is_spent).then_some(Written::TokenSpent))
}

fn revoked_at(to: &Transaction<'_>, id: Uuid) -> rusqlite::Result<Option<Timestamp>> {
    let found = to
        .prepare_cached("SELECT revoked_us FROM certificates WHERE id = ?")?
        .query_row([id.as_bytes()], |row| some_time(row, 0))
        .optional()?;
    Ok(found.flatten())
}

/// Whose name it would take.
fn other_worker(to: &Transaction<'_>, certificate: &Certificate) -> rusqlite::Result<Option<Uuid>> {
    to.prepare_cached(
        "SELECT id FROM certificates
         WHERE role = 'worker' AND name = ? AND id <> ? AND revoked_us IS NULL
         ORDER BY issued_us, id LIMIT 1",
    )?
    .query_row(
        params![certificate.name, certificate.id.as_bytes()],
        |row| Ok(Uuid::from_bytes(row.get(0)?)),
    )
    .optional()
}

fn spend(to: &Transaction<'_>, token: TokenId, at: Timestamp) -> rusqlite::Result<bool> {
    let spent = to
        .prepare_cached(
            "UPDATE tokens SET used_us = ?
             WHERE id = ? AND used_us IS NULL AND revoked_us IS NULL",
        )?
        .execute(params![at.as_microsecond(), token.to_string()])?;
    Ok(spent == 1)
}

/// Writes a line at the end of the audit log. Its age counts from `at`.
pub(super) fn append(
    to: &Transaction<'_>,
    entry: &AuditEntry,
    at: Timestamp,
) -> rusqlite::Result<()> {
    let last: Option<(i64, String)> = to
        .prepare_cached("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1")?
        .query_row((), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (number, before) = last.unwrap_or_default();
    let number = number + 1;
    let text = serde_json::to_string(entry).unwrap_or_default();
    let members = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    let members = members.unwrap_or_default();
    // Everything before its own hash is hashed, the hash before among it: no line
    // can be changed, moved or taken out without all that follow it.
    let begun = format!("{{\"number\":{number},\"previous\":\"{before}\",{members}");
    let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(begun.as_bytes()));
    let line = format!("{begun},\"hash\":\"{hash}\"}}");
    to.prepare_cached("INSERT INTO audit (number, at_us, line, hash) VALUES (?, ?, ?, ?)")?
        .execute(params![number, at.as_microsecond(), line, hash])?;
    Ok(())
}

/// Deletes lines of the audit log that are older than `before`, but for the
/// last, tokens that ended long ago, and certificates of users that did.
pub(super) fn delete(
    to: &Transaction<'_>,
    before: Timestamp,
    now: Timestamp,
) -> rusqlite::Result<()> {
    to.prepare_cached(
        "DELETE FROM audit WHERE at_us < ? AND number < (SELECT max(number) FROM audit)",
    )?
    .execute([before.as_microsecond()])?;
    let long_ago = now.as_microsecond() - FORGET_AFTER_US;
    to.prepare_cached("DELETE FROM tokens WHERE expires_us < ?")?
        .execute([long_ago])?;
    // A worker that was off for longer is that worker still.
    to.prepare_cached(
        "DELETE FROM certificates
         WHERE expires_us < ? AND revoked_us IS NULL AND role <> 'worker'",
    )?
    .execute([long_ago])?;
    Ok(())
}

impl Reader {
    pub(super) fn last_audit_line(&self) -> Result<i64, Error> {
        let mut last = self
            .0
            .prepare_cached("SELECT coalesce(max(number), 0) FROM audit")?;
        Ok(last.query_row((), |row| row.get(0))?)
    }

    /// At most `limit` lines of the audit log behind the one with this number,
    /// each with its number.
    pub(super) fn audit(&self, after: i64, limit: usize) -> Result<Vec<(i64, String)>, Error> {
        let mut lines = self.0.prepare_cached(
            "SELECT number, line FROM audit WHERE number > ? ORDER BY number LIMIT ?",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let lines = lines.query_map([after, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let lines: rusqlite::Result<_> = lines.collect();
        Ok(lines?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ended_long_ago_is_forgotten_unless_it_is_a_worker_or_revoked() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(TABLES).unwrap();
        let change = connection.transaction().unwrap();
        let mut ids = Vec::new();
        for role in [Role::Viewer, Role::Worker, Role::Admin] {
            let certificate = Certificate {
                id: Uuid::new_v4(),
                role: Some(role),
                name: "x".to_owned(),
                serial: "1".to_owned(),
                issued_at: Timestamp::UNIX_EPOCH,
                expires_at: Timestamp::UNIX_EPOCH,
                revoked_at: None,
            };
            ids.push(certificate.id);
            let signed = AccessChange::Certificate(certificate, None);
            assert_eq!(
                apply(&change, &signed, None, Timestamp::now()).unwrap(),
                Written::Done
            );
        }
        let revoked = AccessChange::Revoked(ids[2], Timestamp::now());
        apply(&change, &revoked, None, Timestamp::now()).unwrap();
        delete(&change, Timestamp::UNIX_EPOCH, Timestamp::now()).unwrap();
        change.commit().unwrap();
        let (_, left) = load(&connection).unwrap();
        let mut left: Vec<Uuid> = left.iter().map(|certificate| certificate.id).collect();
        left.sort();
        ids.remove(0);
        ids.sort();
        assert_eq!(left, ids);
    }
}
