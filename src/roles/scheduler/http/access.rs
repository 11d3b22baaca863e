//! The routes about who is who: joining, tokens, certificates, the authority,
//! and the audit log.

use std::time::Duration;

use axum::{
    Extension, Json,
    body::Body as AnswerBody,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use data_encoding::BASE64;
use futures_util::stream;
use jiff::Timestamp;

use super::{
    super::{
        Scheduler,
        access::{Caller, Signed},
        error::Error,
        store,
    },
    Body, Params,
};
use crate::{
    api::{self, TokenKind},
    identity::{Role, files::pem},
    ids::WorkerId,
};

/// Lines of the audit log that are read at once.
const AUDIT_PAGE: usize = 500;

/// Who joins as a person: workers join where they register.
const PEOPLE: [Role; 3] = [Role::Viewer, Role::Operator, Role::Admin];

pub(super) async fn join(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::JoinRequest>,
) -> Result<Json<api::CertificateResponse>, Error> {
    let request = decode(&asked.signing_request)?;
    let access = &scheduler.access;
    let signed = access
        .join(&caller, &asked.token, &request, &PEOPLE, "")
        .await?;
    Ok(Json(certificate(signed)))
}

pub(super) async fn renew(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::RenewRequest>,
) -> Result<Json<api::CertificateResponse>, Error> {
    let request = decode(&asked.signing_request)?;
    let signed = scheduler.access.renew(&caller, &request).await?;
    Ok(Json(certificate(signed)))
}

fn decode(request: &str) -> Result<Vec<u8>, Error> {
    BASE64
        .decode(request.as_bytes())
        .map_err(|_| Error::BadSigningRequest)
}

/// What somebody gets who joined.
pub(in super::super) fn certificate(signed: Signed) -> api::CertificateResponse {
    api::CertificateResponse {
        certificate: pem(&[signed.certificate]),
        authorities: pem(&signed.authorities),
        role: signed.role,
        name: signed.about.name,
        expires_at: signed.about.expires_at,
    }
}

pub(super) async fn tokens(State(scheduler): State<Scheduler>) -> Json<api::TokensResponse> {
    let tokens = scheduler.access.tokens().into_iter().map(token);
    Json(api::TokensResponse {
        tokens: tokens.collect(),
    })
}

fn token(token: store::Token) -> api::Token {
    api::Token {
        id: token.id,
        kind: token.kind,
        role: token.role,
        name: token.name,
        created_at: token.created_at,
        expires_at: token.expires_at,
        used_at: token.used_at,
        revoked_at: token.revoked_at,
    }
}

pub(super) async fn create_token(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::CreateTokenRequest>,
) -> Result<(StatusCode, Json<api::CreateTokenResponse>), Error> {
    let access = &scheduler.access;
    let (about, secret) = access.create_token(&caller, &asked).await?;
    let token = match about.kind {
        TokenKind::Bearer => secret.reveal(),
        TokenKind::Join => access.join_token(&secret)?,
    };
    let created = api::CreateTokenResponse {
        about: self::token(about),
        token,
        grpc_address: scheduler.grpc_address.to_string(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

pub(super) async fn revoke_token(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::RevokeTokenRequest>,
) -> Result<Json<api::DoneResponse>, Error> {
    let access = scheduler.access.clone();
    let revoked = async move { access.revoke_token(&caller, asked.id).await };
    let _cut_off = scheduler.jobs.to_its_end(revoked).await?;
    Ok(Json(api::DoneResponse { success: true }))
}

pub(super) async fn certificates(
    State(scheduler): State<Scheduler>,
) -> Json<api::CertificatesResponse> {
    let all = scheduler.access.certificates().into_iter();
    let certificates = all.map(|certificate| {
        let is_known = certificate.role.is_some();
        api::Certificate {
            id: certificate.id,
            role: certificate.role,
            name: certificate.name,
            serial: certificate.serial,
            issued_at: is_known.then_some(certificate.issued_at),
            expires_at: is_known.then_some(certificate.expires_at),
            revoked_at: certificate.revoked_at,
        }
    });
    Json(api::CertificatesResponse {
        certificates: certificates.collect(),
    })
}

pub(super) async fn revoke_certificate(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::RevokeCertificateRequest>,
) -> Result<Json<api::DoneResponse>, Error> {
    let whole = scheduler.clone();
    let revoked = async move {
        let cut_off = scheduler.access.revoke(&caller, asked.id).await?;
        // A worker that is not accepted any more has left: its name is free, its jobs are
        // lost.
        match scheduler.leave(WorkerId::from(asked.id), None) {
            // It is a user's, or the worker's that never registered.
            Ok(()) | Err(Error::WorkerNotFound { .. }) => Ok(cut_off),
            Err(error) => Err(error),
        }
    };
    let _cut_off = whole.jobs.to_its_end(revoked).await?;
    Ok(Json(api::DoneResponse { success: true }))
}

pub(super) async fn rotate(
    State(scheduler): State<Scheduler>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<api::RotateRequest>,
) -> Result<Json<api::RotateResponse>, Error> {
    if asked.overlap_ms > api::MAX_OVERLAP_MS {
        let message = format!("overlap_ms is more than {}", api::MAX_OVERLAP_MS);
        return Err(Error::BadRequest(message));
    }
    let overlap = Duration::from_millis(asked.overlap_ms);
    // Nothing is waited for once it has begun.
    let ca = scheduler.access.rotate(&caller, overlap).await?;
    Ok(Json(api::RotateResponse {
        fingerprint: ca.fingerprint().to_string(),
        authorities: pem(&ca.roots()),
        overlap_until: ca
            .overlaps_until()
            .and_then(|until| Timestamp::try_from(until).ok()),
    }))
}

/// The lines as they were written, each with its hash, or the last of them; with
/// `follow` those that come as well.
pub(super) async fn audit(
    State(scheduler): State<Scheduler>,
    Params(asked): Params<api::AuditQuery>,
) -> Result<Response, Error> {
    let after = match asked.tail {
        _ if asked.after < 0 || asked.tail.is_some_and(|tail| tail < 0) => {
            return Err(Error::BadRequest(
                "after and tail are not negative".to_owned(),
            ));
        }
        Some(_) if asked.after > 0 => {
            let message = "after and tail exclude each other".to_owned();
            return Err(Error::BadRequest(message));
        }
        // The numbers have no gaps.
        Some(tail) => scheduler
            .store
            .last_audit_line()
            .await?
            .saturating_sub(tail)
            .max(0),
        None => asked.after,
    };
    let reading = Reading {
        after,
        follow: asked.follow,
        progress: scheduler.store.progress(),
        scheduler,
    };
    let lines = stream::try_unfold(reading, |mut reading| async {
        let lines = reading.next().await?;
        Ok::<_, Error>(lines.map(|lines| (lines, reading)))
    });
    let headers = [(header::CONTENT_TYPE, api::NDJSON)];
    Ok((headers, AnswerBody::from_stream(lines)).into_response())
}

/// One reader's way through the audit log.
struct Reading {
    scheduler: Scheduler,
    after: i64,
    follow: bool,
    progress: tokio::sync::watch::Receiver<store::Progress>,
}

impl Reading {
    /// The next lines; None: there will be no more.
    async fn next(&mut self) -> Result<Option<String>, Error> {
        loop {
            // Before it is read: what is written meanwhile is seen the next time.
            self.progress.mark_unchanged();
            let store = &self.scheduler.store;
            let found = store.audit_lines(self.after, AUDIT_PAGE).await?;
            if let Some((last, _)) = found.last() {
                self.after = *last;
                let lines = found.into_iter().map(|(_, line)| line + "\n");
                return Ok(Some(lines.collect()));
            }
            if !self.follow {
                return Ok(None);
            }
            tokio::select! {
                changed = self.progress.changed() => {
                    changed.map_err(|_| Error::ShuttingDown)?;
                }
                () = self.scheduler.closing.cancelled() => return Ok(None),
            }
        }
    }
}
