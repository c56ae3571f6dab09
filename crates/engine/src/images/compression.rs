//! Compressed streams told by their first bytes, and a guard against those that explode.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Output, in bytes, that any input may have: 1 GiB. Beyond it the ratio counts.
const FREE_OUTPUT_BYTES: u64 = 1 << 30;
/// Times that output may exceed input. Real layers reach 20; zeros in gzip reach 1,000.
const RATIO_MAX: u64 = 400;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

/// A stream in a form that cannot be read here.
#[derive(Debug, thiserror::Error)]
#[error("archive is compressed with {0}, which is not supported; use gzip, zstd or no compression")]
pub struct Unsupported(&'static str);

impl Compression {
    /// Tells the form from at least six first bytes.
    pub fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }
}

/// Uncompresses `input`, whatever its form, and fails when it grows out of all proportion.
///
/// # Errors
/// Forms that cannot be read come as an [`io::Error`] around [`Unsupported`].
pub fn uncompressed<'a, R: Read + Send + 'a>(input: R) -> io::Result<Box<dyn Read + Send + 'a>> {
    let consumed = Arc::new(AtomicU64::new(0));
    let counted = Counted { inner: input, count: Arc::clone(&consumed) };
    let mut buffered = io::BufReader::with_capacity(128 * 1024, counted);
    let guarded =
        |inner: Box<dyn Read + Send + 'a>| Box::new(Guard { inner, consumed, produced: 0 });
    Ok(match Compression::of(buffered.fill_buf()?) {
        Compression::None => Box::new(buffered),
        Compression::Gzip => guarded(Box::new(flate2::bufread::MultiGzDecoder::new(buffered))),
        Compression::Zstd => guarded(Box::new(zstd::Decoder::with_buffer(buffered)?)),
        Compression::Bzip2 => return Err(io::Error::other(Unsupported("bzip2"))),
        Compression::Xz => return Err(io::Error::other(Unsupported("xz"))),
    })
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Compares what comes out with what went in.
struct Guard<R> {
    inner: R,
    consumed: Arc<AtomicU64>,
    produced: u64,
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.produced += count as u64;
        let consumed = self.consumed.load(Ordering::Relaxed);
        if self.produced > FREE_OUTPUT_BYTES && self.produced / RATIO_MAX > consumed {
            let message = format!("compressed archive grows by more than {RATIO_MAX} times");
            return Err(io::Error::other(message));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_form_is_told_by_its_first_bytes() {
        let text = b"some text".as_slice();
        for stream in [
            text.to_vec(),
            gzip(text),
            zstd::encode_all(text, 1).unwrap(),
            [gzip(b"some "), gzip(b"text")].concat(),
        ] {
            let mut out = Vec::new();
            uncompressed(stream.as_slice()).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, text);
        }
        for stream in [b"BZh91AY&SY".as_slice(), b"\xfd7zXZ\0\0\0"] {
            let error = uncompressed(stream).err().unwrap();
            assert!(error.to_string().contains("not supported"), "{error}");
        }
    }

    #[test]
    fn a_stream_that_explodes_is_stopped() {
        let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
        let zeros = vec![0u8; 1 << 20];
        for _ in 0..1100 {
            bomb.write_all(&zeros).unwrap();
        }
        let bomb = bomb.finish().unwrap();
        let result = io::copy(&mut uncompressed(bomb.as_slice()).unwrap(), &mut io::sink());
        assert!(result.unwrap_err().to_string().contains("more than 400 times"));
    }
}
