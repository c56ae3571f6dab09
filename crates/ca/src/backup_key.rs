//! The key of a backup: `SKEPBACKUP-1-<base64 of 32 bytes>`, made like the unlock key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::Error;

const PREFIX: &str = "SKEPBACKUP-1-";
const BYTES: usize = 32;

/// A new key.
pub fn new_backup_key() -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// The key as operators keep it.
pub fn backup_key_text(key: &[u8; BYTES]) -> String {
    format!("{PREFIX}{}", STANDARD_NO_PAD.encode(key))
}

/// # Errors
/// [`Error::BackupKey`] for what is no key. Space around it is left out: keys are pasted.
pub fn backup_key_from_text(text: &str) -> Result<[u8; BYTES], Error> {
    let digits = text.trim().strip_prefix(PREFIX).ok_or(Error::BackupKey)?;
    let bytes = STANDARD_NO_PAD.decode(digits).map_err(|_| Error::BackupKey)?;
    bytes.try_into().map_err(|_| Error::BackupKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_told_and_nothing_else_is() {
        let key = new_backup_key();
        let text = backup_key_text(&key);
        assert_eq!(backup_key_from_text(&format!(" {text}\n")).unwrap(), key);
        for wrong in ["", "SKEPBACKUP-1-", "SWMKEY-1-AAAA", &text[..text.len() - 1]] {
            assert!(backup_key_from_text(wrong).is_err(), "{wrong}");
        }
    }
}
