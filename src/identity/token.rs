//! Tokens: what buys a certificate once (a join token), and what a program shows
//! with every call (a bearer token). Both are an id, which is no secret, and a
//! secret of 160 random bits, of which only the digest is kept anywhere. A join
//! token also bears the fingerprint of the authority, so that whoever joins
//! knows whom to tell the secret.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Base32 in small letters: nothing in it means anything to a shell, and a
/// double click selects it.
fn encode(bytes: &[u8]) -> String {
    BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    // One way to write it, so that a token is found again as it was given out.
    if text.chars().any(|c| c.is_ascii_uppercase()) {
        return None;
    }
    let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes());
    bytes.ok()?.try_into().ok()
}

/// The first 160 bits of the SHA-256 of an authority's public key (its
/// SubjectPublicKeyInfo in DER), which stays the same however it is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 20]);

impl Fingerprint {
    /// Of a public key.
    pub fn of(public_key: &[u8]) -> Self {
        let digest: [u8; 32] = Sha256::digest(public_key).into();
        let mut first = [0; 20];
        first.copy_from_slice(&digest[..20]);
        Self(first)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl FromStr for Fingerprint {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        decode(text).map(Self).ok_or(BadToken)
    }
}

/// Which token; no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId([u8; 5]);

impl TokenId {
    /// One that never was.
    pub fn random() -> Self {
        Self(random())
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&encode(&self.0))
    }
}

impl FromStr for TokenId {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        decode(text).map(Self).ok_or(BadToken)
    }
}

impl Serialize for TokenId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a token")]
pub struct BadToken;

/// The part of a token that nobody else may know. Never shown by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 20]);

impl Secret {
    /// A new one.
    pub fn random() -> Self {
        Self(random())
    }

    /// What is kept of it. It needs no salt and no slow hash: it is random.
    pub fn digest(&self) -> Digest {
        Digest(Sha256::digest(self.0).into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The digest of a secret.
#[derive(Clone, Copy, Debug)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Compared in constant time.
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// As it is stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As it was stored.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// `ID.SECRET`, what `Authorization: Bearer` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// Which.
    pub id: TokenId,
    /// The proof.
    pub secret: Secret,
}

impl Bearer {
    /// A new one.
    pub fn random() -> Self {
        Self {
            id: TokenId::random(),
            secret: Secret::random(),
        }
    }

    /// With its secret: for the one it is made for.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, encode(&self.secret.0))
    }
}

impl FromStr for Bearer {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let (id, secret) = text.split_once('.').ok_or(BadToken)?;
        Ok(Self {
            id: id.parse()?,
            secret: Secret(decode(secret).ok_or(BadToken)?),
        })
    }
}

/// `FINGERPRINT.ID.SECRET@HOST:PORT`, with which somebody joins: whom to trust,
/// the proof, and where to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Of the authority that whoever answers there must be known to.
    pub authority: Fingerprint,
    /// Told to nobody else.
    pub token: Bearer,
    /// host:port
    pub address: String,
}

impl Invitation {
    /// With its secret: for the one it is made for.
    pub fn reveal(&self) -> String {
        format!(
            "{}.{}@{}",
            self.authority,
            self.token.reveal(),
            self.address
        )
    }
}

impl FromStr for Invitation {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let (token, address) = text.trim().split_once('@').ok_or(BadToken)?;
        let (authority, token) = token.split_once('.').ok_or(BadToken)?;
        if address.is_empty() {
            return Err(BadToken);
        }
        Ok(Self {
            authority: authority.parse()?,
            token: token.parse()?,
            address: address.to_owned(),
        })
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without random numbers there is no security, and nothing else to do.
    #[expect(
        clippy::expect_used,
        reason = "the kernel's source of random numbers does not fail once it works"
    )]
    getrandom::fill(&mut bytes).expect("the kernel gives random numbers");
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_are_read_as_they_are_written() {
        let invitation = Invitation {
            authority: Fingerprint::of(b"key"),
            token: Bearer::random(),
            address: "[::1]:50000".to_owned(),
        };
        let text = invitation.reveal();
        assert_eq!(text.parse(), Ok(invitation.clone()));
        assert_eq!(format!("\n{text} ").parse(), Ok(invitation.clone()));
        assert_ne!(Bearer::random(), Bearer::random());
        let bearer = invitation.token.reveal();
        assert_eq!(bearer.parse(), Ok(invitation.token));
        for bad in [
            "",
            ".",
            "a.b",
            &bearer.to_uppercase(),
            &bearer[1..],
            &format!("{bearer}a"),
            &text,
        ] {
            assert_eq!(bad.parse::<Bearer>(), Err(BadToken), "{bad}");
        }
        for bad in [&bearer, &format!("{bearer}@h:1"), &text[1..], "a.b.c@"] {
            assert_eq!(bad.parse::<Invitation>(), Err(BadToken), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_not_shown_by_accident() {
        let bearer = Bearer::random();
        let secret = bearer.reveal().split_off(9);
        assert!(!format!("{bearer:?}").contains(&secret));
        let digest = bearer.secret.digest();
        assert!(digest.is(&Digest::from_bytes(digest.as_bytes()).unwrap()));
        assert!(!digest.is(&Secret::random().digest()));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC*") {
            let _ = text.parse::<Invitation>();
            let _ = text.parse::<Bearer>();
        }
    }
}
