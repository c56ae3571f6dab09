//! SHA-256 digests in the `sha256:<hex>` form that names every blob, layer and image.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Prefix of the textual form; no other algorithm is accepted.
const ALGORITHM: &str = "sha256:";

/// The SHA-256 of some content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; SHA256_OUTPUT_LEN]);

/// Why a text is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// Not of the form `algorithm:hex`.
    #[error("invalid checksum digest format")]
    Format,
    /// An algorithm other than SHA-256.
    #[error("unsupported digest algorithm")]
    Algorithm,
    /// Not 64 digits.
    #[error("invalid checksum digest length")]
    Length,
}

impl Digest {
    /// Hashes `content`.
    pub fn of(content: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(content);
        hasher.finish()
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        const_hex::encode(self.0)
    }

    /// The first twelve digits, as `docker images` shows them.
    pub fn short(&self) -> String {
        const_hex::encode(&self.0[..6])
    }

    /// Reads 64 hexadecimal digits, lower case.
    ///
    /// # Errors
    /// [`ParseDigestError::Length`] or [`ParseDigestError::Format`].
    pub fn from_hex(hex: &str) -> Result<Self, ParseDigestError> {
        if hex.len() != 2 * SHA256_OUTPUT_LEN {
            return Err(ParseDigestError::Length);
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseDigestError::Format);
        }
        const_hex::decode_to_array(hex).map(Self).map_err(|_| ParseDigestError::Format)
    }

    /// The chain id of the layer `self` (a diff id) on top of `parent`, as the image specification
    /// defines it.
    pub fn chain(&self, parent: Option<&Digest>) -> Digest {
        match parent {
            None => *self,
            Some(parent) => Digest::of(format!("{parent} {self}").as_bytes()),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ALGORITHM)?;
        f.write_str(const_hex::Buffer::<SHA256_OUTPUT_LEN>::new().format(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) = text.split_once(':').ok_or(ParseDigestError::Format)?;
        if algorithm != "sha256" {
            return Err(ParseDigestError::Algorithm);
        }
        Self::from_hex(hex)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes content that arrives in pieces.
#[derive(Clone)]
pub struct Hasher(Context);

impl Hasher {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces.
    pub fn finish(self) -> Digest {
        let digest = self.0.finish();
        Digest(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_and_digest_are_two_forms_of_one_thing() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
        let json = serde_json::to_string(&Digest::of(b"")).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), Digest::of(b""));
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        let hex = &EMPTY[7..];
        for (text, error) in [
            (hex.to_owned(), ParseDigestError::Format),
            (format!("sha512:{hex}"), ParseDigestError::Algorithm),
            (format!("sha256:{}", &hex[1..]), ParseDigestError::Length),
            (format!("sha256:{}", hex.to_uppercase()), ParseDigestError::Format),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_chain_id_depends_on_everything_beneath() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(a.chain(None), a);
        assert_eq!(b.chain(Some(&a)), Digest::of(format!("{a} {b}").as_bytes()));
    }
}
