//! Streams of frames in a body: four bytes of length, big-endian, then the frame.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// Bytes of one frame: a log entry of the largest size and what stands around it.
pub const FRAME_BYTES_MAX: usize = types::limits::ENTRY_BYTES_MAX + (1 << 20);

pub(crate) const HEADER_BYTES: usize = 4;

/// Why a stream of frames ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is larger than allowed")]
    TooLarge(usize),
    #[error("the stream ended within a frame")]
    Truncated,
    #[error("the stream broke: {0}")]
    Broken(String),
    /// Only on pipes: the other side's own words.
    #[error("{0}")]
    Refused(String),
}

/// The frames one after another.
pub(crate) fn encode(frames: &[Bytes]) -> Bytes {
    let length = frames.iter().map(|frame| HEADER_BYTES + frame.len()).sum();
    let mut bytes = BytesMut::with_capacity(length);
    for frame in frames {
        bytes.put_u32(u32::try_from(frame.len()).expect("frames are bounded"));
        bytes.extend_from_slice(frame);
    }
    bytes.freeze()
}

/// Reads frames as they come.
#[derive(Debug)]
pub struct Frames {
    body: Incoming,
    buffer: BytesMut,
}

impl Frames {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next frame; `None` at the end of the stream.
    ///
    /// # Errors
    /// When the stream breaks, ends within a frame, or a frame is too large.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(frame) = take(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(FrameError::Truncated),
                Some(Err(error)) => return Err(FrameError::Broken(error.to_string())),
                Some(Ok(part)) => {
                    if let Ok(data) = part.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// Takes a whole frame off the buffer, if there is one.
pub(crate) fn take(buffer: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes(*header) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge(length));
    }
    if buffer.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// Reads frames from pieces: none is lost, and none is larger than allowed.
#[cfg(fuzzing)]
pub(crate) fn fuzz(pieces: &[Vec<u8>]) {
    let mut buffer = BytesMut::new();
    let (mut received, mut taken) = (0, 0);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        received += piece.len();
        loop {
            match take(&mut buffer) {
                Ok(Some(frame)) => taken += HEADER_BYTES + frame.len(),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert_eq!(taken + buffer.len(), received);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_the_bytes_arrive() {
        let bytes = encode(&[&b"one"[..], b"", b"three"].map(Bytes::from_static));
        for step in 1..bytes.len() {
            let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
            for part in bytes.chunks(step) {
                buffer.extend_from_slice(part);
                while let Some(frame) = take(&mut buffer).expect("well formed") {
                    found.push(frame);
                }
            }
            assert_eq!(found, [&b"one"[..], b"", b"three"], "in steps of {step}");
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 1][..]);
        assert_eq!(take(&mut buffer), Err(FrameError::TooLarge(0xffff_ffff)));
    }
}
