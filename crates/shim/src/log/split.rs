//! Cuts a stream of bytes into lines, and lines that are too long into pieces.

use super::{Part, Record, Stream};

/// Longest record, in bytes: Docker's, so that its clients join the same pieces.
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// Cuts one stream. Holds at most [`RECORD_BYTES_MAX`] bytes.
#[derive(Debug)]
pub(super) struct Splitter {
    stream: Stream,
    held: Vec<u8>,
    /// The line's first piece and how many pieces there were, once there is one.
    pieces: Option<(u64, u32)>,
}

impl Splitter {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, held: Vec::new(), pieces: None }
    }

    /// Hands every record that is complete to `emit`.
    pub(super) fn feed(&mut self, mut bytes: &[u8], at_ns: u64, mut emit: impl FnMut(Record<'_>)) {
        while !bytes.is_empty() {
            let room = RECORD_BYTES_MAX - self.held.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.complete(&window[..end], at_ns, &mut emit);
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.held.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.held.len() == RECORD_BYTES_MAX {
                        self.piece(at_ns, &mut emit);
                    }
                }
            }
        }
    }

    /// Hands over what is held at the end of the stream.
    pub(super) fn finish(&mut self, at_ns: u64, mut emit: impl FnMut(Record<'_>)) {
        if !self.held.is_empty() {
            self.complete(&[], at_ns, &mut emit);
        }
    }

    fn complete(&mut self, rest: &[u8], at_ns: u64, emit: &mut impl FnMut(Record<'_>)) {
        let (at_ns, part) = match self.pieces.take() {
            Some((id, count)) => (id, Some(Part { id, ordinal: count + 1, last: true })),
            None => (at_ns, None),
        };
        if self.held.is_empty() {
            emit(Record { stream: self.stream, line: rest, part, at_ns });
            return;
        }
        self.held.extend_from_slice(rest);
        emit(Record { stream: self.stream, line: &self.held, part, at_ns });
        self.held.clear();
    }

    fn piece(&mut self, at_ns: u64, emit: &mut impl FnMut(Record<'_>)) {
        let (id, count) = self.pieces.unwrap_or((at_ns, 0));
        let part = Part { id, ordinal: count + 1, last: false };
        emit(Record { stream: self.stream, line: &self.held, part: Some(part), at_ns: id });
        self.pieces = Some((id, count + 1));
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<(Vec<u8>, Option<bool>)> {
        let mut splitter = Splitter::new(Stream::Stdout);
        let mut records = Vec::new();
        let mut emit = |record: Record<'_>| {
            records.push((record.line.to_vec(), record.part.map(|part| part.last)));
        };
        chunks.iter().for_each(|chunk| splitter.feed(chunk, 1, &mut emit));
        splitter.finish(2, &mut emit);
        records
    }

    #[test]
    fn lines_are_whole_records() {
        let records = split(&[b"one\ntw", b"o\n\nlast"]);
        let lines: Vec<&[u8]> = records.iter().map(|(line, _)| line.as_slice()).collect();
        assert_eq!(lines, [&b"one"[..], b"two", b"", b"last"]);
        assert!(records.iter().all(|(_, part)| part.is_none()));
    }

    #[test]
    fn a_long_line_becomes_pieces_of_16_kib() {
        let line = [vec![b'x'; 40_000], vec![b'\n']].concat();
        let lengths: Vec<_> =
            split(&[&line]).iter().map(|(line, part)| (line.len(), *part)).collect();
        assert_eq!(lengths, [(16384, Some(false)), (16384, Some(false)), (7232, Some(true))]);
    }

    #[test]
    fn a_line_of_exactly_16_kib_ends_with_an_empty_piece() {
        let line = [vec![b'x'; RECORD_BYTES_MAX], b"\nnext\n".to_vec()].concat();
        let lengths: Vec<_> =
            split(&[&line]).iter().map(|(line, part)| (line.len(), *part)).collect();
        assert_eq!(lengths, [(16384, Some(false)), (0, Some(true)), (4, None)]);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_however_the_stream_is_cut(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), any::<u8>()], 0..200),
            repeat in 1usize..400,
            cut in 1usize..50_000,
        ) {
            let stream = bytes.repeat(repeat);
            let chunks: Vec<&[u8]> = stream.chunks(cut).collect();
            let mut joined = Vec::new();
            for (line, part) in split(&chunks) {
                prop_assert!(line.len() <= RECORD_BYTES_MAX);
                joined.extend(line);
                if part != Some(false) {
                    joined.push(b'\n');
                }
            }
            let mut expected = stream.clone();
            // A line of exactly the limit at the very end has no newline to wait for.
            joined.extend(if joined.len() + 1 == expected.len() { b"\n".as_slice() } else { b"" });
            if joined.len() == expected.len() + 1 {
                expected.push(b'\n');
            }
            prop_assert_eq!(joined, expected);
        }
    }
}
