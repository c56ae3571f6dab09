//! What happens to images, for `docker events`.

use std::collections::BTreeMap;

/// Events kept for a subscriber that is slow; it learns how many it missed.
pub const EVENTS_MAX: usize = 1024;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageAction {
    Pull,
    Push,
    Tag,
    Untag,
    Delete,
    Load,
    Import,
    Save,
    Prune,
}

impl ImageAction {
    /// The word that the Docker API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Tag => "tag",
            Self::Untag => "untag",
            Self::Delete => "delete",
            Self::Load => "load",
            Self::Import => "import",
            Self::Save => "save",
            Self::Prune => "prune",
        }
    }
}

/// One thing done to one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEvent {
    pub action: ImageAction,
    /// Actor id: the image's id, or its reference for pull and push, or empty for prune.
    pub id: String,
    /// Actor attributes: the image's labels and `name`; for prune `reclaimed`.
    pub attributes: BTreeMap<String, String>,
}
