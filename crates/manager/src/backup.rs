//! The whole state in a sealed stream, taken while the swarm works.

use std::io;

use consensus::DataKey;
use tokio::sync::mpsc;

use crate::{Error, Manager};

/// Chunks of a backup that wait for their reader; each has up to a mebibyte.
const BACKUP_CHUNKS: usize = 2;

impl Manager {
    /// The whole state as a sealed stream, as of now. It ends with an error where it could not be written whole.
    ///
    /// # Errors
    /// Where the managers do not agree on what is newest.
    pub async fn backup(
        &self,
        key: [u8; 32],
    ) -> Result<mpsc::Receiver<io::Result<Vec<u8>>>, Error> {
        let (state, key) = (self.read().await?, DataKey::new(key));
        let (chunks, stream) = mpsc::channel(BACKUP_CHUNKS);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = consensus::write_backup(&state, &key, Chunks(&chunks)) {
                // Nobody listens to it where the reader has gone.
                let _ = chunks.blocking_send(Err(error));
            }
        });
        Ok(stream)
    }
}

/// Passes what is written on to an async reader.
struct Chunks<'a>(&'a mpsc::Sender<io::Result<Vec<u8>>>);

impl io::Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(bytes.to_vec()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
