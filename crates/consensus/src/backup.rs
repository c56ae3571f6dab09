//! The whole state in one sealed file, for the day when all managers are lost.

use std::io::{self, Read, Write};

use store::Snapshot;

use crate::cipher::DataKey;
use crate::sealed::{self, Magic};
use crate::{Corruption, Error};

const MAGIC: &Magic = b"SKEPBAK1";

/// Writes `state` as a backup.
///
/// # Errors
/// Those of `sink`.
pub fn write_backup(state: &Snapshot, key: &DataKey, sink: impl Write) -> io::Result<()> {
    sealed::write(sink, MAGIC, key, state)?.flush()
}

/// Reads a backup whole.
///
/// # Errors
/// [`Error::DamagedBackup`] for what is no backup, was changed or cut, or was made with another key.
pub fn read_backup(source: impl Read, key: &DataKey) -> Result<Snapshot, Error> {
    sealed::read(source, MAGIC, key).map_err(|damage| match damage {
        Corruption::Header => Error::NotABackup,
        damage => Error::DamagedBackup { damage },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_read_with_its_key_and_only_whole() {
        let (state, key) = (Snapshot::default(), DataKey::new([1; 32]));
        let mut file = Vec::new();
        write_backup(&state, &key, &mut file).unwrap();
        assert_eq!(read_backup(&file[..], &key).unwrap(), state);
        for cut in 0..file.len() {
            assert!(read_backup(&file[..cut], &key).is_err(), "cut at {cut}");
        }
        let other = read_backup(&file[..], &DataKey::new([2; 32])).unwrap_err();
        assert!(matches!(other, Error::DamagedBackup { .. }), "{other}");
        let text = read_backup(&b"something else entirely"[..], &key).unwrap_err();
        assert!(matches!(text, Error::NotABackup), "{text}");
    }
}
