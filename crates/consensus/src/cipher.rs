//! Encryption of what is at rest: AES-256-GCM under a data key of each node's own.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

pub(crate) const TAG_BYTES: usize = 16;

/// The secret that log and snapshots are encrypted with.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey(Zeroizing<[u8; 32]>);

impl DataKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// What a member's files are sealed with.
#[derive(Clone, Debug)]
pub struct DataKeys {
    /// Seals everything from now on.
    pub current: DataKey,
    /// Files of before the last changes of keys may still be sealed with these.
    pub previous: Vec<DataKey>,
}

impl DataKeys {
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &DataKey> {
        std::iter::once(&self.current).chain(&self.previous)
    }
}

impl From<DataKey> for DataKeys {
    fn from(current: DataKey) -> Self {
        Self { current, previous: Vec::new() }
    }
}

/// Seals and opens records whose nonces never repeat: a random base for each file, combined with a counter.
#[derive(Debug)]
pub(crate) struct Cipher {
    key: LessSafeKey,
    base: [u8; NONCE_LEN],
}

impl Cipher {
    pub(crate) fn new(key: &DataKey, base: [u8; NONCE_LEN]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).expect("the key has 32 bytes");
        Self { key: LessSafeKey::new(key), base }
    }

    /// Encrypts `buffer` in place and appends the tag.
    pub(crate) fn seal(&self, counter: u64, aad: &[u8], buffer: &mut Vec<u8>) {
        self.key
            .seal_in_place_append_tag(self.nonce(counter), Aad::from(aad), buffer)
            .expect("a record is far below the cipher's limit of 64 GiB");
    }

    /// Decrypts `buffer` in place; `None` where key, counter, header or content differ from what was sealed.
    pub(crate) fn open<'a>(
        &self,
        counter: u64,
        aad: &[u8],
        buffer: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        let opened = self.key.open_in_place(self.nonce(counter), Aad::from(aad), buffer).ok()?;
        Some(opened)
    }

    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = self.base;
        for (byte, count) in nonce[NONCE_LEN - 8..].iter_mut().zip(counter.to_be_bytes()) {
            *byte ^= count;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// A nonce base for a new file.
pub(crate) fn random_base() -> [u8; NONCE_LEN] {
    let mut base = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut base).expect("the kernel gives random bytes");
    base
}
