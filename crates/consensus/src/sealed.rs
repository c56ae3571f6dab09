//! Sealed streams: what is written whole and read whole, encrypted chunk by chunk.
//!
//! ```text
//! magic 8 | nonce base 12 | chunk … | last chunk
//! chunk:   length 4, its top bit set on the last one | sealed bytes
//! ```
//! Chunks bound the memory that writing and reading take beside the value itself.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Corruption;
use crate::cipher::{Cipher, DataKey, TAG_BYTES, random_base};

/// Bytes of the value in one chunk.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

const LAST: u32 = 1 << 31;

/// What a stream holds; one kind is not taken for another.
pub(crate) type Magic = [u8; 8];

/// Writes `value`; answers with the sink, whose content is whole then.
pub(crate) fn write<W: Write>(
    sink: W,
    magic: &Magic,
    key: &DataKey,
    value: &impl Serialize,
) -> io::Result<W> {
    let mut writer = SealingWriter::new(sink, magic, key)?;
    let encoder = &mut rmp_serde::Serializer::new(&mut writer).with_struct_map();
    value.serialize(encoder).map_err(io::Error::other)?;
    writer.finish()
}

/// Reads what [`write`] wrote: all of it, unchanged, and nothing after it.
pub(crate) fn read<T: DeserializeOwned>(
    source: impl Read,
    magic: &Magic,
    key: &DataKey,
) -> Result<T, Corruption> {
    let reader = OpeningReader::new(source, magic, key);
    let mut reader = reader.map_err(|_| Corruption::Header)?;
    let decoded: Result<T, _> = rmp_serde::from_read(io::BufReader::new(&mut reader));
    let is_whole = reader.is_whole();
    match decoded {
        Ok(value) if is_whole => Ok(value),
        _ if reader.is_damaged || !is_whole => Err(Corruption::Checksum),
        _ => Err(Corruption::Content),
    }
}

/// Binds a chunk to its place.
fn associated(magic: &Magic, is_last: bool) -> [u8; 9] {
    let mut aad = [0; 9];
    aad[..8].copy_from_slice(magic);
    aad[8] = u8::from(is_last);
    aad
}

struct SealingWriter<W> {
    sink: W,
    magic: Magic,
    cipher: Cipher,
    counter: u64,
    chunk: Vec<u8>,
}

impl<W: Write> SealingWriter<W> {
    fn new(mut sink: W, magic: &Magic, key: &DataKey) -> io::Result<Self> {
        let base = random_base();
        sink.write_all(magic)?;
        sink.write_all(&base)?;
        let cipher = Cipher::new(key, base);
        Ok(Self { sink, magic: *magic, cipher, counter: 0, chunk: Vec::new() })
    }

    fn seal(&mut self, is_last: bool) -> io::Result<()> {
        self.cipher.seal(self.counter, &associated(&self.magic, is_last), &mut self.chunk);
        let length = u32::try_from(self.chunk.len()).expect("a chunk is a mebibyte");
        let header = if is_last { length | LAST } else { length };
        self.sink.write_all(&header.to_le_bytes())?;
        self.sink.write_all(&self.chunk)?;
        self.counter += 1;
        self.chunk.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.sink)
    }
}

impl<W: Write> Write for SealingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK_BYTES {
            self.seal(false)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct OpeningReader<R> {
    source: R,
    magic: Magic,
    cipher: Cipher,
    counter: u64,
    chunk: Vec<u8>,
    read: usize,
    was_last: bool,
    is_damaged: bool,
}

impl<R: Read> OpeningReader<R> {
    fn new(mut source: R, expected: &Magic, key: &DataKey) -> io::Result<Self> {
        let (mut magic, mut base) = ([0; 8], [0; 12]);
        source.read_exact(&mut magic)?;
        source.read_exact(&mut base)?;
        if &magic != expected {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let cipher = Cipher::new(key, base);
        let chunk = Vec::new();
        let (counter, read) = (0, 0);
        let (was_last, is_damaged) = (false, false);
        Ok(Self { source, magic, cipher, counter, chunk, read, was_last, is_damaged })
    }

    /// Whether everything was read, and nothing follows.
    fn is_whole(&mut self) -> bool {
        let mut rest = [0; 1];
        self.was_last
            && self.read == self.chunk.len()
            && matches!(self.source.read(&mut rest), Ok(0))
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let mut header = [0; 4];
        self.source.read_exact(&mut header)?;
        let header = u32::from_le_bytes(header);
        let (is_last, length) = (header & LAST != 0, (header & !LAST) as usize);
        if !(TAG_BYTES..=CHUNK_BYTES + TAG_BYTES).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.chunk.resize(length, 0);
        self.source.read_exact(&mut self.chunk)?;
        let opened =
            self.cipher.open(self.counter, &associated(&self.magic, is_last), &mut self.chunk);
        let length = opened.ok_or(io::ErrorKind::InvalidData)?.len();
        self.chunk.truncate(length);
        (self.read, self.was_last) = (0, is_last);
        self.counter += 1;
        Ok(())
    }
}

impl<R: Read> Read for OpeningReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.chunk.len() && !self.was_last {
            if let Err(error) = self.next_chunk() {
                self.is_damaged = true;
                return Err(error);
            }
        }
        let count = into.len().min(self.chunk.len() - self.read);
        into[..count].copy_from_slice(&self.chunk[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}
