//! Autolock: `SWMKEY-1-<base64 of 32 bytes>`, in Docker's format, and what is sealed with it.
//!
//! The key is random, so it is used as it is: AES-256-GCM with a random nonce for each seal. A manager seals a few
//! times in its life; nonces of 96 bits do not meet.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use types::cluster::UnlockKey;

use crate::Error;

const PREFIX: &str = "SWMKEY-1-";

/// A new key.
pub fn new_unlock_key() -> UnlockKey {
    let mut bytes = [0; UnlockKey::BYTES];
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel gives random bytes");
    UnlockKey::from_random(bytes)
}

/// The key as operators keep it.
pub fn unlock_key_text(key: &UnlockKey) -> String {
    format!("{PREFIX}{}", STANDARD_NO_PAD.encode(key.as_bytes()))
}

/// # Errors
/// [`Error::UnlockKey`] for what is no key. Space around it is left out: keys are pasted.
pub fn unlock_key_from_text(text: &str) -> Result<UnlockKey, Error> {
    let digits = text.trim().strip_prefix(PREFIX).ok_or(Error::UnlockKey)?;
    let bytes = STANDARD_NO_PAD.decode(digits).map_err(|_| Error::UnlockKey)?;
    Ok(UnlockKey::from_random(bytes.try_into().map_err(|_| Error::UnlockKey)?))
}

fn cipher(key: &UnlockKey) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).expect("the key has 32 bytes");
    LessSafeKey::new(key)
}

/// Locks `secret`; `purpose` must be named again to open it. Answers with base64 of nonce, ciphertext and tag.
pub fn seal(key: &UnlockKey, purpose: &str, secret: &[u8]) -> String {
    let mut nonce = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).expect("the kernel gives random bytes");
    let mut buffer = secret.to_vec();
    cipher(key)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(purpose.as_bytes()),
            &mut buffer,
        )
        .expect("a secret is far below the cipher's limit of 64 GiB");
    STANDARD.encode([&nonce[..], &buffer].concat())
}

/// # Errors
/// [`Error::Locked`] when the key or the purpose is another one, or the text is damaged.
pub fn open(key: &UnlockKey, purpose: &str, sealed: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = STANDARD.decode(sealed).map_err(|_| Error::Locked)?;
    let (nonce, buffer) = bytes.split_at_mut_checked(NONCE_LEN).ok_or(Error::Locked)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::Locked)?;
    let aad = Aad::from(purpose.as_bytes());
    Ok(cipher(key).open_in_place(nonce, aad, buffer).map_err(|_| Error::Locked)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_form() {
        let key = new_unlock_key();
        let text = unlock_key_text(&key);
        assert_eq!(text.len(), PREFIX.len() + 43);
        assert!(unlock_key_from_text(&format!(" {text}\n")).expect("well formed") == key);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let cut = &unlock_key_text(&new_unlock_key())[..40];
        for text in ["", "SWMKEY-1-", "SWMKEY-1-abc", "SWMKEY-2-abc", "hello", cut] {
            assert!(unlock_key_from_text(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_the_same_key_and_purpose_open_what_was_sealed() {
        let (key, other) = (new_unlock_key(), new_unlock_key());
        let sealed = seal(&key, "one", b"secret");
        assert_eq!(open(&key, "one", &sealed).expect("opens"), b"secret");
        assert!(open(&other, "one", &sealed).is_err());
        assert!(open(&key, "two", &sealed).is_err());
        assert!(seal(&key, "one", b"secret") != sealed, "each seal has a nonce of its own");
    }

    #[test]
    fn damage_is_noticed() {
        let key = new_unlock_key();
        let sealed = STANDARD.decode(seal(&key, "one", b"secret")).expect("base64");
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(open(&key, "one", &STANDARD.encode(damaged)).is_err(), "byte {at}");
            assert!(open(&key, "one", &STANDARD.encode(&sealed[..at])).is_err(), "cut at {at}");
        }
    }
}
