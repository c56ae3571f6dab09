//! Records of Docker's `local` driver: protobuf between two lengths of four bytes, big end first.
//!
//! The message is `LogEntry { string source = 1; int64 time_nano = 2; bytes line = 3;
//! bool partial = 4; PartialLogEntryMetadata partial_log_metadata = 5 }`, the metadata
//! `{ bool last = 1; string id = 2; int32 ordinal = 3 }`.

use super::Record;

/// Appends one record.
pub(super) fn append(record: &Record<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    bytes_field(1, record.stream.name().as_bytes(), out);
    number_field(2, record.at_ns, out);
    bytes_field(3, record.line, out);
    if let Some(part) = record.part {
        number_field(4, 1, out);
        let mut metadata = Vec::new();
        if part.last {
            number_field(1, 1, &mut metadata);
        }
        bytes_field(2, format!("{:x}", part.id).as_bytes(), &mut metadata);
        number_field(3, u64::from(part.ordinal), &mut metadata);
        bytes_field(5, &metadata, out);
    }
    let length = u32::try_from(out.len() - start - 4).expect("a record is bounded to 16 KiB");
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

fn number_field(field: u8, value: u64, out: &mut Vec<u8>) {
    out.push(field << 3);
    varint(value, out);
}

fn bytes_field(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    out.push(field << 3 | 2);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("below 128"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Part, Stream};

    #[test]
    fn a_record_is_framed_by_its_length() {
        let mut out = Vec::new();
        let record = Record { stream: Stream::Stderr, line: b"hi", part: None, at_ns: 300 };
        append(&record, &mut out);
        let body = b"\x0a\x06stderr\x10\xac\x02\x1a\x02hi";
        let length = [0, 0, 0, 15];
        assert_eq!(out, [&length[..], body, &length].concat());
    }

    #[test]
    fn a_piece_says_which_it_is() {
        let mut out = Vec::new();
        let part = Some(Part { id: 255, ordinal: 2, last: true });
        append(&Record { stream: Stream::Stdout, line: b"x", part, at_ns: 1 }, &mut out);
        let tail = b"\x20\x01\x2a\x08\x08\x01\x12\x02ff\x18\x02";
        assert_eq!(&out[out.len() - 4 - tail.len()..out.len() - 4], tail);
    }
}
