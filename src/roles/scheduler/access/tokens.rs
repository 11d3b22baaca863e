//! Tokens: made, shown and revoked.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    super::{
        error::Error,
        store::{AccessChange, Token},
    },
    Access, Caller, CutOff, Known, Subject,
};
use crate::{
    api::{self, TokenKind},
    identity::{
        Role,
        token::{Bearer, TokenId},
    },
};

/// How long a token is good, unless its maker says otherwise.
const TTL: Duration = Duration::from_secs(3600);

/// The longest it may be.
const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// So many tokens may be good at the same time.
const MAX_TOKENS: usize = 10_000;

impl Access {
    /// Makes a token. The secret is in the answer, and nowhere else.
    pub(in super::super) async fn create_token(
        &self,
        caller: &Caller,
        asked: &api::CreateTokenRequest,
    ) -> Result<(Token, Bearer), Error> {
        let ttl = asked.ttl_ms.map_or(TTL, Duration::from_millis);
        if ttl.is_zero() || ttl > MAX_TTL {
            let message = "the ttl is not between 1 ms and 3650d".to_owned();
            return Err(Error::BadRequest(message));
        }
        let is_possible = match (asked.kind, asked.role) {
            (_, Role::Scheduler) => false,
            (TokenKind::Bearer, Role::Worker) => false,
            (TokenKind::Join, _) => {
                self.authority()?;
                true
            }
            (TokenKind::Bearer, _) => true,
        };
        if !is_possible {
            let (kind, role) = (asked.kind.as_str(), asked.role);
            let message = format!("there are no {kind} tokens for the role {role}");
            return Err(Error::BadRequest(message));
        }
        let name = asked.name.clone().unwrap_or_default();
        if !name.is_empty() && !crate::ids::is_name(&name) {
            return Err(Error::BadRequest(format!("'{name}' cannot be a name")));
        }
        let bearer = Bearer::random();
        let created_at = Timestamp::now();
        let expires_at = created_at.checked_add(ttl);
        let token = Token {
            id: bearer.id,
            kind: asked.kind,
            role: asked.role,
            name,
            digest: bearer.secret.digest(),
            created_at,
            expires_at: expires_at.map_err(|error| Error::BadRequest(error.to_string()))?,
            used_at: None,
            revoked_at: None,
        };
        {
            let mut known = self.known();
            let now = Timestamp::now();
            let good = known
                .tokens
                .values()
                .filter(|token| token.is_good(now).is_ok());
            if good.count() >= MAX_TOKENS {
                return Err(Error::TooManyTokens(MAX_TOKENS));
            }
            known.forget(self.0.store.time().now());
        }
        let details = json!({
            "kind": token.kind, "role": token.role, "name": token.name,
            "expires_at": token.expires_at,
        });
        let entry = caller.did("create token", token.id, details);
        let change = AccessChange::Token(token.clone());
        self.0.store.access(change, Some(entry)).await?;
        self.known().tokens.insert(token.id, token.clone());
        Ok((token, bearer))
    }

    /// A join token as a person passes it on, but for where to go.
    pub(in super::super) fn join_token(&self, token: &Bearer) -> Result<String, Error> {
        let authority = self.authority()?.ca().fingerprint();
        Ok(format!("{authority}.{}", token.reveal()))
    }

    /// From now on it is not taken; who shows it is cut off with what is returned.
    pub(in super::super) async fn revoke_token(
        &self,
        caller: &Caller,
        id: TokenId,
    ) -> Result<CutOff, Error> {
        if !self.known().tokens.contains_key(&id) {
            return Err(Error::TokenNotFound(id));
        }
        let now = Timestamp::now();
        let entry = caller.did("revoke token", id, Value::Null);
        let change = AccessChange::TokenRevoked(id, now);
        self.0.store.access(change, Some(entry)).await?;
        if let Some(token) = self.known().tokens.get_mut(&id) {
            token.revoked_at.get_or_insert(now);
        }
        Ok(CutOff::new(self, Subject::Token(id)))
    }

    /// Every token, the newest first.
    pub(in super::super) fn tokens(&self) -> Vec<Token> {
        let mut tokens: Vec<Token> = self.known().tokens.values().cloned().collect();
        tokens.sort_by_key(|token| (std::cmp::Reverse(token.created_at), token.id));
        tokens
    }
}

impl Known {
    /// The token whose secret somebody shows, be it good or not.
    pub(super) fn shown_token(&self, shown: &Bearer) -> Result<&Token, Error> {
        let token = self.tokens.get(&shown.id);
        let token = token.filter(|token| token.digest.is(&shown.secret.digest()));
        token.ok_or(Error::BadToken)
    }
}

impl Token {
    /// Whether it is a token of this kind.
    pub(super) fn is_of(&self, kind: TokenKind) -> Result<(), Error> {
        match self.kind == kind {
            true => Ok(()),
            false => Err(Error::WrongToken(self.kind)),
        }
    }

    /// Whether it can be used.
    pub(super) fn is_good(&self, now: Timestamp) -> Result<(), Error> {
        if let Some(at) = self.revoked_at {
            let what = "token";
            return Err(Error::Revoked { what, at });
        }
        if self.used_at.is_some() {
            return Err(Error::TokenSpent);
        }
        if self.expires_at <= now {
            return Err(Error::TokenExpired(self.expires_at));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::scheduler::store;

    #[tokio::test]
    async fn a_step_of_the_clock_forgets_no_token() {
        let access = Access::new(store::scratch(), Vec::new(), Vec::new(), true);
        let itself = Caller::itself();
        let asked = api::CreateTokenRequest {
            kind: TokenKind::Bearer,
            role: Role::Viewer,
            name: None,
            ttl_ms: None,
        };
        let (_, shown) = access.create_token(&itself, &asked).await.unwrap();
        let year = jiff::SignedDuration::from_hours(366 * 24);
        for by in [year, -year] {
            access.0.store.step_clock(by);
            access.create_token(&itself, &asked).await.unwrap();
        }
        access.0.store.step_clock(jiff::SignedDuration::ZERO);
        let mut caller = Caller::nobody(None);
        access
            .identify(&mut caller, None, Some(&shown.reveal()))
            .unwrap();
    }

    #[tokio::test]
    async fn only_tokens_that_are_good_keep_others_from_being_made() {
        let asked = api::CreateTokenRequest {
            kind: TokenKind::Bearer,
            role: Role::Viewer,
            name: None,
            ttl_ms: None,
        };
        let of = |change: fn(&mut Token)| {
            let bearer = Bearer::random();
            let now = Timestamp::now();
            let mut token = Token {
                id: bearer.id,
                kind: asked.kind,
                role: asked.role,
                name: String::new(),
                digest: bearer.secret.digest(),
                created_at: now,
                expires_at: now + Duration::from_secs(3600),
                used_at: None,
                revoked_at: None,
            };
            change(&mut token);
            token
        };
        let mut tokens: Vec<Token> = (1..MAX_TOKENS).map(|_| of(|_| ())).collect();
        tokens.push(of(|token| token.used_at = Some(token.created_at)));
        tokens.push(of(|token| token.revoked_at = Some(token.created_at)));
        tokens.push(of(|token| token.expires_at = token.created_at));
        let access = Access::new(store::scratch(), tokens, Vec::new(), true);
        let itself = Caller::itself();
        access.create_token(&itself, &asked).await.unwrap();
        let refused = access.create_token(&itself, &asked).await.unwrap_err();
        assert!(matches!(refused, Error::TooManyTokens(MAX_TOKENS)));
    }

    #[tokio::test]
    async fn of_tokens_that_never_were_nothing_is_kept() {
        let access = Access::new(store::scratch(), Vec::new(), Vec::new(), true);
        let identify = |secret: &str| {
            let mut caller = Caller::nobody(None);
            let accepted = access.identify(&mut caller, None, Some(secret));
            (caller, accepted)
        };
        for _ in 0..10 {
            let stranger = Bearer::random().reveal();
            let refused = identify(&stranger).1.unwrap_err();
            assert!(matches!(refused, Error::BadToken));
        }
        assert_eq!(access.known().cuts.len(), 0);
        let asked = api::CreateTokenRequest {
            kind: TokenKind::Bearer,
            role: Role::Viewer,
            name: None,
            ttl_ms: None,
        };
        let made = access.create_token(&Caller::itself(), &asked).await;
        let (token, secret) = made.unwrap();
        let (caller, accepted) = identify(&secret.reveal());
        accepted.unwrap();
        assert_eq!(
            (caller.role, caller.cut.is_cancelled()),
            (Some(Role::Viewer), false)
        );
        let revoked = access.revoke_token(&Caller::itself(), token.id).await;
        drop(revoked.unwrap());
        assert!(caller.cut.is_cancelled());
        let (caller, accepted) = identify(&secret.reveal());
        assert!(matches!(accepted, Err(Error::Revoked { .. })));
        // For the audit log.
        assert_eq!(caller.subject, Some(Subject::Token(token.id)));
    }
}
