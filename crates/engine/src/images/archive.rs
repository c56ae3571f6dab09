//! Reads tar archives that nobody vouches for: ustar, PAX and GNU forms, one entry at a time.
//!
//! Every length that an archive states is checked against a limit before it is believed. The reader
//! knows nothing of file systems; `unpack.rs` and `load.rs` decide what entries mean.

use std::io::{self, Read};

/// Bytes of a tar block.
const BLOCK: usize = 512;
/// Longest path or link target, in bytes: Linux's `PATH_MAX`.
pub const PATH_BYTES_MAX: usize = 4096;
/// Largest block of PAX records of one entry, in bytes: room for several attributes of 64 KiB,
/// the most that the kernel stores.
const PAX_BYTES_MAX: u64 = 1024 * 1024;
/// Most pieces of a sparse file; a map of this length takes 16 MiB.
const SPARSE_PIECES_MAX: usize = 1024 * 1024;
/// Extension entries before one real entry; two are usual, more than a few are an attack.
const EXTENSIONS_MAX: usize = 16;
/// PAX key prefix of extended attributes.
const PAX_XATTR: &[u8] = b"SCHILY.xattr.";

/// Why an archive could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are no tar header: its checksum is wrong.
    #[error("archive/tar: invalid tar header")]
    NotTar,
    /// The archive ends within an entry.
    #[error("unexpected EOF")]
    Truncated,
    /// A field of a header is outside what we accept.
    #[error("archive/tar: {what} out of bounds in entry {path:?}")]
    Bounds { what: &'static str, path: String },
    /// A limit of this reader on the whole archive.
    #[error("archive has more than {max} {what}")]
    TooMuch { what: &'static str, max: u64 },
    /// Reading the bytes beneath.
    #[error("read archive: {0}")]
    Read(#[source] io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Truncated;
        }
        // An error of this reader may have passed through somebody's `Read`.
        error.downcast().unwrap_or_else(Self::Read)
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry's header, with all extensions applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of the file when unpacked, in bytes.
    pub size: u64,
    pub mtime: Timestamp,
    /// Major and minor number.
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the archived bytes belong, as (offset, length), when the file has holes.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// Seconds since 1970, and nanoseconds within.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// Limits on a whole archive.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries.
    pub entries_max: u64,
    /// Bytes of archive, padding and headers included.
    pub bytes_max: u64,
}

/// A tar archive being read.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    limits: Limits,
    entries: u64,
    bytes: u64,
    /// Of the current entry, unread.
    data_left: u64,
    padding: u64,
    is_at_end: bool,
}

/// Values that extension entries give to the entry after them.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Timestamp>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: PaxSparse,
}

/// GNU's sparse files in PAX form, versions 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
struct PaxSparse {
    is_version_1: bool,
    real_size: Option<u64>,
    name: Option<Vec<u8>>,
    /// Offsets and lengths in turn.
    numbers: Vec<u64>,
}

impl<R: Read> Reader<R> {
    /// Starts at the first header of `inner`.
    pub fn new(inner: R, limits: Limits) -> Self {
        Self { inner, limits, entries: 0, bytes: 0, data_left: 0, padding: 0, is_at_end: false }
    }

    /// Goes to the next entry, skipping what is left of the current one. `None` at the end.
    ///
    /// # Errors
    /// After an error the reader is of no further use.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        if self.is_at_end {
            return Ok(None);
        }
        self.skip(self.data_left + self.padding)?;
        (self.data_left, self.padding) = (0, 0);
        let mut extensions = Extensions::default();
        for _ in 0..=EXTENSIONS_MAX {
            let Some(block) = self.read_header()? else { return Ok(None) };
            let header = Header(&block);
            let size = header.size()?;
            match header.type_flag() {
                b'L' => extensions.path = Some(self.read_long_name(&header, size)?),
                b'K' => extensions.link = Some(self.read_long_name(&header, size)?),
                b'x' | b'X' => self.read_pax(&header, size, &mut extensions)?,
                // Global records carry comments in practice (git's commit id); Docker skips them.
                b'g' => self.skip(padded(size))?,
                _ => return self.finish_entry(&header, extensions).map(Some),
            }
        }
        Err(Error::TooMuch { what: "extension headers in a row", max: EXTENSIONS_MAX as u64 })
    }

    /// Reads to the end of the stream beneath, so that whoever hashes it has seen every byte.
    pub fn drain(&mut self) -> Result<(), Error> {
        let mut buffer = [0u8; 8192];
        loop {
            let count = read_retrying(&mut self.inner, &mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.count(count as u64)?;
        }
    }

    /// Bytes of archive read so far.
    pub fn position(&self) -> u64 {
        self.bytes
    }

    fn finish_entry(&mut self, header: &Header<'_>, mut ext: Extensions) -> Result<Entry, Error> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(Error::TooMuch { what: "entries", max: self.limits.entries_max });
        }
        let stored = match ext.size {
            Some(size) => size,
            None => header.size()?,
        };
        let path = ext.sparse.name.take().or(ext.path.take()).unwrap_or_else(|| header.path());
        let out_of = |what| Error::Bounds { what, path: lossy(&path) };
        let link = ext.link.take().unwrap_or_else(|| header.link());
        if path.len() > PATH_BYTES_MAX || link.len() > PATH_BYTES_MAX {
            return Err(out_of("path length"));
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(out_of("path"));
        }
        let kind = header.kind(&path).ok_or_else(|| out_of("type"))?;
        // Only files have data; other kinds may state a size that means nothing.
        let has_data = matches!(kind, Kind::File);
        let stored = if has_data { stored } else { 0 };
        if stored > self.limits.bytes_max {
            return Err(out_of("size"));
        }
        (self.data_left, self.padding) = (stored, padded(stored) - stored);
        let number = |value: Result<u64, Error>| {
            value.and_then(|v| u32::try_from(v).map_err(|_| out_of("number")))
        };
        let mut entry = Entry {
            link,
            kind,
            mode: number(header.mode())? & 0o7777,
            uid: ext.uid.map_or_else(|| number(header.uid()), Ok)?,
            gid: ext.gid.map_or_else(|| number(header.gid()), Ok)?,
            size: stored,
            mtime: match ext.mtime {
                Some(mtime) => mtime,
                None => header.mtime()?,
            },
            device: if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
                (number(header.device_major())?, number(header.device_minor())?)
            } else {
                (0, 0)
            },
            xattrs: std::mem::take(&mut ext.xattrs),
            sparse: None,
            path,
        };
        self.apply_sparse(header, ext.sparse, &mut entry)?;
        Ok(entry)
    }

    fn apply_sparse(
        &mut self,
        header: &Header<'_>,
        pax: PaxSparse,
        entry: &mut Entry,
    ) -> Result<(), Error> {
        let (numbers, real_size) = if header.type_flag() == b'S' {
            (self.read_gnu_sparse(header)?, header.real_size()?)
        } else if pax.is_version_1 {
            let Some(real_size) = pax.real_size else { return Ok(()) };
            (self.read_sparse_map()?, real_size)
        } else if let (false, Some(real_size)) = (pax.numbers.is_empty(), pax.real_size) {
            (pax.numbers, real_size)
        } else {
            return Ok(());
        };
        let out_of = |what| Error::Bounds { what, path: lossy(&entry.path) };
        let mut pieces = Vec::with_capacity(numbers.len() / 2);
        let (mut end, mut stored) = (0u64, 0u64);
        for pair in numbers.chunks_exact(2) {
            let (offset, length) = (pair[0], pair[1]);
            let piece_end = offset.checked_add(length).ok_or_else(|| out_of("sparse map"))?;
            if offset < end || piece_end > real_size {
                return Err(out_of("sparse map"));
            }
            (end, stored) = (piece_end, stored + length);
            pieces.push((offset, length));
        }
        if numbers.len() % 2 != 0 || stored != self.data_left {
            return Err(out_of("sparse map"));
        }
        entry.size = real_size;
        entry.sparse = Some(pieces);
        Ok(())
    }

    fn read_gnu_sparse(&mut self, header: &Header<'_>) -> Result<Vec<u64>, Error> {
        let mut numbers = Vec::new();
        push_gnu_pieces(&header.0[386..482], &mut numbers)?;
        let mut is_extended = header.0[482] != 0;
        while is_extended {
            let mut block = [0u8; BLOCK];
            self.fill(&mut block)?;
            push_gnu_pieces(&block[..504], &mut numbers)?;
            is_extended = block[504] != 0;
            if numbers.len() > 2 * SPARSE_PIECES_MAX {
                return Err(Error::TooMuch {
                    what: "pieces in a sparse file",
                    max: SPARSE_PIECES_MAX as u64,
                });
            }
        }
        Ok(numbers)
    }

    /// Version 1.0 keeps the map at the head of the data: decimal lines, padded to a block.
    fn read_sparse_map(&mut self) -> Result<Vec<u64>, Error> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut current: Option<u64> = None;
        while wanted.is_none_or(|count| numbers.len() < count) {
            let mut block = [0u8; BLOCK];
            if self.data_left < BLOCK as u64 {
                return Err(Error::Truncated);
            }
            self.fill(&mut block)?;
            self.data_left -= BLOCK as u64;
            for byte in block {
                match byte {
                    b'0'..=b'9' => {
                        let value = current.unwrap_or(0).checked_mul(10);
                        let value = value.and_then(|v| v.checked_add(u64::from(byte - b'0')));
                        current = Some(value.ok_or(Error::NotTar)?);
                    }
                    b'\n' => {
                        let value = current.take().ok_or(Error::NotTar)?;
                        match wanted {
                            None if value > SPARSE_PIECES_MAX as u64 => {
                                let max = SPARSE_PIECES_MAX as u64;
                                return Err(Error::TooMuch {
                                    what: "pieces in a sparse file",
                                    max,
                                });
                            }
                            None => wanted = usize::try_from(2 * value).ok(),
                            Some(_) => numbers.push(value),
                        }
                    }
                    _ => break,
                }
                if wanted == Some(numbers.len()) {
                    break;
                }
            }
        }
        Ok(numbers)
    }

    fn read_long_name(&mut self, header: &Header<'_>, size: u64) -> Result<Vec<u8>, Error> {
        if size > PATH_BYTES_MAX as u64 + 1 {
            return Err(Error::Bounds { what: "path length", path: lossy(&header.path()) });
        }
        let name = self.read_small(size)?;
        Ok(until_nul(&name).to_vec())
    }

    fn read_pax(
        &mut self,
        header: &Header<'_>,
        size: u64,
        extensions: &mut Extensions,
    ) -> Result<(), Error> {
        let out_of = |what| Error::Bounds { what, path: lossy(&header.path()) };
        if size > PAX_BYTES_MAX {
            return Err(out_of("extended header size"));
        }
        let records = self.read_small(size)?;
        let mut rest = records.as_slice();
        while !rest.is_empty() && rest[0] != 0 {
            let (key, value, after) = split_pax(rest).ok_or_else(|| out_of("extended header"))?;
            extensions.apply(key, value).ok_or_else(|| out_of("extended header"))?;
            rest = after;
        }
        Ok(())
    }

    /// Reads extension data whose size is checked already, with its padding.
    fn read_small(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let size = usize::try_from(size).expect("checked against a small limit");
        let mut data = vec![0; usize::try_from(padded(size as u64)).expect("small")];
        self.fill(&mut data)?;
        data.truncate(size);
        Ok(data)
    }

    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0u8; BLOCK];
        let mut zero_blocks = 0;
        loop {
            let count = self.fill_some(&mut block)?;
            if count == 0 {
                self.is_at_end = true;
                return Ok(None);
            }
            if count < BLOCK {
                return Err(if self.bytes < BLOCK as u64 {
                    Error::NotTar
                } else {
                    Error::Truncated
                });
            }
            if block.iter().any(|b| *b != 0) {
                break;
            }
            zero_blocks += 1;
            if zero_blocks == 2 {
                self.is_at_end = true;
                return Ok(None);
            }
        }
        if !Header(&block).is_checksum_right() {
            return Err(Error::NotTar);
        }
        Ok(Some(block))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        if self.fill_some(buffer)? < buffer.len() {
            return Err(Error::Truncated);
        }
        Ok(())
    }

    /// Fills as much of `buffer` as the stream has.
    fn fill_some(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            let count = read_retrying(&mut self.inner, &mut buffer[filled..])?;
            if count == 0 {
                break;
            }
            filled += count;
        }
        self.count(filled as u64)?;
        Ok(filled)
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), Error> {
        let mut buffer = [0u8; 8192];
        while bytes > 0 {
            let want = usize::try_from(bytes.min(buffer.len() as u64)).expect("a buffer's length");
            let count = read_retrying(&mut self.inner, &mut buffer[..want])?;
            if count == 0 {
                return Err(Error::Truncated);
            }
            self.count(count as u64)?;
            bytes -= count as u64;
        }
        Ok(())
    }

    fn count(&mut self, bytes: u64) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes > self.limits.bytes_max {
            return Err(Error::TooMuch { what: "bytes", max: self.limits.bytes_max });
        }
        Ok(())
    }
}

/// Reads the data of the current entry.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want =
            usize::try_from(self.data_left.min(buffer.len() as u64)).expect("a buffer's length");
        if want == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data_left -= count as u64;
        self.count(count as u64).map_err(io::Error::other)?;
        Ok(count)
    }
}

impl Extensions {
    /// Takes one PAX record; `None` when its value makes no sense.
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(u32::try_from(decimal(value)?).ok()?),
            b"gid" => self.gid = Some(u32::try_from(decimal(value)?).ok()?),
            b"mtime" => self.mtime = Some(parse_time(value)?),
            b"GNU.sparse.major" => self.sparse.is_version_1 = value == b"1",
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.real_size = Some(decimal(value)?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse.numbers.push(decimal(value)?);
            }
            b"GNU.sparse.map" => {
                let numbers = value.split(|b| *b == b',').map(decimal);
                self.sparse.numbers = numbers.collect::<Option<Vec<u64>>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(PAX_XATTR) {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

/// One header block.
struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    fn type_flag(&self) -> u8 {
        self.0[156]
    }

    fn kind(&self, path: &[u8]) -> Option<Kind> {
        Some(match self.type_flag() {
            // Before ustar a trailing slash was the only mark of a directory.
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return None,
        })
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let is_ustar = &self.0[257..263] == b"ustar\0";
        let prefix = if is_ustar { until_nul(&self.0[345..500]) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn link(&self) -> Vec<u8> {
        until_nul(&self.0[157..257]).to_vec()
    }

    fn mode(&self) -> Result<u64, Error> {
        number(&self.0[100..108])
    }

    fn uid(&self) -> Result<u64, Error> {
        number(&self.0[108..116])
    }

    fn gid(&self) -> Result<u64, Error> {
        number(&self.0[116..124])
    }

    fn size(&self) -> Result<u64, Error> {
        number(&self.0[124..136])
    }

    fn mtime(&self) -> Result<Timestamp, Error> {
        let field = &self.0[136..148];
        // A time before 1970 is a negative base-256 number; such files get the epoch.
        let seconds = if field[0] == 0xff { 0 } else { number(field)? };
        Ok(Timestamp {
            seconds: i64::try_from(seconds).map_err(|_| Error::NotTar)?,
            nanoseconds: 0,
        })
    }

    fn device_major(&self) -> Result<u64, Error> {
        number(&self.0[329..337])
    }

    fn device_minor(&self) -> Result<u64, Error> {
        number(&self.0[337..345])
    }

    fn real_size(&self) -> Result<u64, Error> {
        number(&self.0[483..495])
    }

    fn is_checksum_right(&self) -> bool {
        let Ok(stated) = number(&self.0[148..156]) else { return false };
        let sum = |as_value: fn(u8) -> i64| -> i64 {
            let bytes = self.0.iter().enumerate();
            bytes.map(|(i, b)| if (148..156).contains(&i) { 32 } else { as_value(*b) }).sum()
        };
        // Some old writers summed signed bytes.
        let signed = sum(|b| i64::from(b.cast_signed()));
        i64::try_from(stated).is_ok_and(|stated| stated == sum(i64::from) || stated == signed)
    }
}

/// A numeric field: octal digits, or base 256 when the first bit is set.
fn number(field: &[u8]) -> Result<u64, Error> {
    if field[0] & 0x80 != 0 {
        // The sign bit of a base-256 number; nothing that is read here may be negative.
        if field[0] & 0x40 != 0 {
            return Err(Error::NotTar);
        }
        let digits = std::iter::once(field[0] & 0x3f).chain(field[1..].iter().copied());
        return digits.into_iter().try_fold(0u64, |value, byte| {
            value.checked_mul(256).map(|v| v + u64::from(byte)).ok_or(Error::NotTar)
        });
    }
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'7' => {
            value.checked_mul(8).map(|v| v + u64::from(byte - b'0')).ok_or(Error::NotTar)
        }
        _ => Err(Error::NotTar),
    })
}

fn push_gnu_pieces(fields: &[u8], numbers: &mut Vec<u64>) -> Result<(), Error> {
    for piece in fields.chunks_exact(24) {
        if piece[0] == 0 {
            break;
        }
        numbers.push(number(&piece[..12])?);
        numbers.push(number(&piece[12..])?);
    }
    Ok(())
}

/// Splits `"<length> <key>=<value>\n"` off the front.
fn split_pax(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(8).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&records[..space])?).ok()?;
    if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
        return None;
    }
    let record = &records[space + 1..length - 1];
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &records[length..]))
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `seconds.fraction`, as PAX writes times. Times before 1970 become the epoch.
fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with('-') {
        return Some(Timestamp::default());
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Timestamp { seconds: seconds.parse().ok()?, nanoseconds: digits.parse().ok()? })
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.iter().position(|b| *b == 0).map_or(bytes, |end| &bytes[..end])
}

fn padded(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX)
}

fn lossy(path: &[u8]) -> String {
    let shown = &path[..path.len().min(256)];
    String::from_utf8_lossy(shown).into_owned()
}

fn read_retrying(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests;
