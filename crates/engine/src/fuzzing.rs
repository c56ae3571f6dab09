//! Ways in for the fuzz targets, to what no other crate sees.

use std::path::Path;

use crate::containers::fuzzing as containers;
use crate::logs;

/// Reads a log of these bytes from its beginning and from its end.
pub fn log(folder: &Path, bytes: &[u8]) {
    logs::fuzz(folder, bytes);
}

/// Reads one text as everything a container may be asked for by text.
pub fn container_texts(text: &str) {
    containers::texts(text);
}
