//! Ways in for the fuzz targets, to what no other crate sees.

/// Reads frames that come in these pieces.
pub fn frames(pieces: &[Vec<u8>]) {
    crate::frames::fuzz(pieces);
}
