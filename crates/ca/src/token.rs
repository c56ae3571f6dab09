//! Join tokens: `SWMTKN-1-<digest of the root>-<secret>`, in Docker's format.
//!
//! The digest lets a node trust the root it is shown; the secret says which role it may take.

use std::fmt;
use std::str::FromStr;

use subtle::ConstantTimeEq;

use crate::{Error, base36};

const PREFIX: &str = "SWMTKN-1-";
const DIGEST_DIGITS: usize = 50;
const SECRET_DIGITS: usize = 25;
const SECRET_BYTES: usize = 16;

/// A token split into its parts.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the root certificate's DER, base 36.
    pub digest: String,
    secret: String,
}

impl JoinToken {
    /// A token for the root with this digest.
    pub fn new(digest: &str, secret: &str) -> Self {
        Self { digest: digest.to_owned(), secret: secret.to_owned() }
    }

    /// Compares in constant time, so that answers tell nothing about how much of a guess was right.
    pub fn matches(&self, other: &Self) -> bool {
        let digests = self.digest.as_bytes().ct_eq(other.digest.as_bytes());
        let secrets = self.secret.as_bytes().ct_eq(other.secret.as_bytes());
        (digests & secrets).into()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.digest, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    /// Leaves the secret out: debug output ends in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-..", self.digest)
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        let (digest, secret) = parts.ok_or(Error::Token)?;
        let sound =
            base36::is_number(digest, DIGEST_DIGITS) && base36::is_number(secret, SECRET_DIGITS);
        if sound { Ok(Self::new(digest, secret)) } else { Err(Error::Token) }
    }
}

/// A new secret half of a token: 128 random bits.
pub fn new_secret() -> String {
    let mut bytes = [0; SECRET_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel gives random bytes");
    base36::encode(&bytes, SECRET_DIGITS)
}

/// The digest half of a token.
pub(crate) fn digest(der: &[u8]) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    base36::encode(hash.as_ref(), DIGEST_DIGITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_form() {
        let token = JoinToken::new(&digest(b"root"), &new_secret());
        let text = token.to_string();
        assert_eq!(text.len(), PREFIX.len() + DIGEST_DIGITS + 1 + SECRET_DIGITS);
        assert!(text.parse::<JoinToken>().expect("well formed").matches(&token));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "SWMTKN-1-", "SWMTKN-1-abc-def", "SWMTKN-2-1-x-y", "hello"] {
            assert!(text.parse::<JoinToken>().is_err(), "{text}");
        }
    }
}
