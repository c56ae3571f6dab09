//! Records of Docker's `json-file` driver, byte for byte.

use std::collections::BTreeMap;

use super::Record;
use crate::time::write_rfc3339;

/// `"attrs":{...},` as it stands in every record; empty without attributes.
pub(super) fn attributes(attrs: &BTreeMap<String, String>) -> Vec<u8> {
    let mut out = Vec::new();
    if attrs.is_empty() {
        return out;
    }
    out.extend_from_slice(b"\"attrs\":{");
    for (at, (key, value)) in attrs.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        string(key.as_bytes(), b"", &mut out);
        out.push(b':');
        string(value.as_bytes(), b"", &mut out);
    }
    out.extend_from_slice(b"},");
    out
}

/// Appends one record. Pieces of a line have no newline, save the last.
pub(super) fn append(record: &Record<'_>, attrs: &[u8], out: &mut Vec<u8>) {
    let end: &[u8] = if record.part.is_none_or(|part| part.last) { b"\n" } else { b"" };
    out.extend_from_slice(b"{\"log\":");
    string(record.line, end, out);
    out.extend_from_slice(b",\"stream\":\"");
    out.extend_from_slice(record.stream.name().as_bytes());
    out.extend_from_slice(b"\",");
    out.extend_from_slice(attrs);
    out.extend_from_slice(b"\"time\":\"");
    write_rfc3339(record.at_ns, out);
    out.extend_from_slice(b"\"}\n");
}

/// A JSON string as Go writes it: safe inside HTML, bytes that are no text replaced.
fn string(bytes: &[u8], end: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        text(chunk.valid(), out);
        if !chunk.invalid().is_empty() {
            // Go replaces each byte on its own.
            chunk.invalid().iter().for_each(|_| out.extend_from_slice(b"\\ufffd"));
        }
    }
    if end == b"\n" {
        out.extend_from_slice(b"\\n");
    }
    out.push(b'"');
}

fn text(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..=0x1f | b'<' | b'>' | b'&' => {
                let (high, low) = (usize::from(byte >> 4), usize::from(byte & 0xf));
                &[b'\\', b'u', b'0', b'0', HEX[high], HEX[low]]
            }
            // U+2028 and U+2029 begin so; they end lines in JavaScript.
            0xe2 if matches!(bytes.get(at..at + 3), Some([_, 0x80, 0xa8 | 0xa9])) => {
                out.extend_from_slice(&bytes[from..at]);
                out.extend_from_slice(b"\\u202");
                out.push(if bytes[at + 2] == 0xa8 { b'8' } else { b'9' });
                from = at + 3;
                continue;
            }
            _ => continue,
        };
        out.extend_from_slice(&bytes[from..at]);
        out.extend_from_slice(escape);
        from = at + 1;
    }
    out.extend_from_slice(&bytes[from..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_go_does() {
        let cases: [(&[u8], &str); 5] = [
            (b"plain", r#""plain""#),
            (b"\x1b[0m\t\r", r#""\u001b[0m\t\r""#),
            ("\u{2028}x\u{e9}".as_bytes(), "\"\\u2028x\u{e9}\""),
            (b"\xe2\x80", r#""\ufffd\ufffd""#),
            (b"a\\b", r#""a\\b""#),
        ];
        for (bytes, expected) in cases {
            let mut out = Vec::new();
            string(bytes, b"", &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
