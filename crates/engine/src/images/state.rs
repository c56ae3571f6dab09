//! What the image store knows: images, references, layers, and who needs them.
//!
//! All of it is in memory; the database holds the same without holds and pins. Garbage is decided
//! here, by what nothing refers to, and removed elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::config::ImageConfig;
use super::digest::Digest;
use super::manifest::Descriptor;
use super::reference::Reference;

/// An image of this node.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the configuration document.
    pub id: Digest,
    pub config: ImageConfig,
    /// What stays of the image besides its configuration.
    pub record: ImageRecord,
}

/// The stored part of an image; the configuration is a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image this one was made from here, by commit.
    #[serde(default)]
    pub parent: Option<Digest>,
    /// The manifest it was pulled or loaded with, kept so that a push sends the same bytes.
    #[serde(default)]
    pub manifest: Option<Descriptor>,
    /// The layers' archives as they came, bottom first; one for each diff id.
    pub layers: Vec<Descriptor>,
    /// Sum of the unpacked layers' sizes, in bytes.
    pub size: u64,
    /// RFC 3339; when a reference was last pointed here.
    #[serde(default)]
    pub last_tagged: Option<String>,
}

/// An unpacked layer, shared by all images whose lowest layers are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub diff_id: Digest,
    /// Chain id of the layer beneath.
    pub parent: Option<Digest>,
    /// The archive it came from.
    pub blob: Digest,
    /// Name of its directory; short, since the mount's options must fit a page.
    pub dir: String,
    /// Sum of the files' sizes.
    pub bytes: u64,
    /// The boot of the kernel that unpacked it, until its files are known to be on disk. After a
    /// crash of the machine such a layer is unpacked again.
    pub unsynced_boot: Option<String>,
    /// Whether the directory is whole. Not stored: found at start.
    #[serde(skip)]
    pub is_unpacked: bool,
}

/// A container's claim on its image and layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub image: Digest,
    /// Chain id of the image's top layer; an image may have none.
    pub top: Option<Digest>,
}

/// Layers and blobs that nothing needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Chain ids and directories.
    pub layers: Vec<(Digest, String)>,
    pub blobs: Vec<Digest>,
}

/// The store's memory.
#[derive(Debug, Default)]
pub struct State {
    pub images: BTreeMap<Digest, Arc<Image>>,
    /// Each has a tag or a digest, not both.
    pub references: BTreeMap<Reference, Digest>,
    /// By chain id.
    pub layers: HashMap<Digest, Layer>,
    /// By container id.
    pub holds: BTreeMap<String, Hold>,
    /// Chain ids and blobs that running operations need, with the number of those.
    pub pins: HashMap<Digest, usize>,
}

impl State {
    /// All references to an image, tags before digests within a repository.
    pub fn references_of(&self, id: &Digest) -> Vec<Reference> {
        self.references.iter().filter(|(_, i)| *i == id).map(|(r, _)| r.clone()).collect()
    }

    /// Images made from this one.
    pub fn children_of(&self, id: &Digest) -> Vec<Digest> {
        let children = self.images.values().filter(|i| i.record.parent.as_ref() == Some(id));
        children.map(|i| i.id).collect()
    }

    /// Containers that hold an image.
    pub fn holders_of<'a>(&'a self, id: &'a Digest) -> impl Iterator<Item = &'a str> {
        self.holds.iter().filter(move |(_, h)| h.image == *id).map(|(c, _)| c.as_str())
    }

    /// The layers from `top` down.
    pub fn chain(&self, top: Option<Digest>) -> impl Iterator<Item = (Digest, &Layer)> {
        let find = |chain: Digest| self.layers.get(&chain).map(|layer| (chain, layer));
        std::iter::successors(top.and_then(find), move |(_, layer)| layer.parent.and_then(find))
    }

    /// Chain ids that something needs.
    pub fn live_layers(&self) -> BTreeSet<Digest> {
        let tops = self.images.values().filter_map(|i| i.config.chain_ids().last().copied());
        let holds = self.holds.values().filter_map(|h| h.top);
        let pins = self.pins.keys().copied();
        let mut live = BTreeSet::new();
        for top in tops.chain(holds).chain(pins) {
            for (chain, _) in self.chain(Some(top)) {
                if !live.insert(chain) {
                    break;
                }
            }
        }
        live
    }

    /// Takes what nothing needs out of the state. `blobs` are those on disk.
    pub fn take_garbage(&mut self, blobs: Vec<Digest>) -> Garbage {
        let live = self.live_layers();
        let dead: Vec<Digest> =
            self.layers.keys().filter(|chain| !live.contains(chain)).copied().collect();
        let layers = dead
            .into_iter()
            .filter_map(|chain| self.layers.remove(&chain).map(|layer| (chain, layer.dir)))
            .collect();
        let mut needed: BTreeSet<Digest> = self.pins.keys().copied().collect();
        needed.extend(self.layers.values().map(|layer| layer.blob));
        for image in self.images.values() {
            needed.insert(image.id);
            needed.extend(image.record.manifest.as_ref().map(|m| m.digest));
            needed.extend(image.record.layers.iter().map(|l| l.digest));
        }
        let blobs = blobs.into_iter().filter(|blob| !needed.contains(blob)).collect();
        Garbage { layers, blobs }
    }

    /// Bytes of each layer that is used by more than one image, counted once for each image.
    pub fn shared_size(&self, image: &Image) -> u64 {
        let chains = image.config.chain_ids();
        let others = self.images.values().filter(|other| other.id != image.id);
        let used: BTreeSet<Digest> = others.flat_map(|other| other.config.chain_ids()).collect();
        let shared = chains.iter().filter(|chain| used.contains(chain));
        shared.filter_map(|chain| self.layers.get(chain)).map(|layer| layer.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::config::RootFs;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn image(name: &str, diff_ids: &[&str]) -> Arc<Image> {
        let rootfs = RootFs {
            kind: "layers".to_owned(),
            diff_ids: diff_ids.iter().map(|d| digest(d)).collect(),
        };
        let layers = diff_ids.iter().map(|d| Descriptor::new("", digest(&format!("blob {d}")), 1));
        Arc::new(Image {
            id: digest(name),
            record: ImageRecord {
                parent: None,
                manifest: None,
                layers: layers.collect(),
                size: 0,
                last_tagged: None,
            },
            config: ImageConfig { rootfs, ..ImageConfig::default() },
        })
    }

    fn add(state: &mut State, image: Arc<Image>) {
        let mut parent = None;
        for (diff_id, chain) in image.config.rootfs.diff_ids.iter().zip(image.config.chain_ids()) {
            let blob = image.record.layers.iter().find(|_| true).unwrap().digest;
            let layer = Layer {
                diff_id: *diff_id,
                parent,
                blob,
                dir: chain.short(),
                bytes: 10,
                unsynced_boot: None,
                is_unpacked: true,
            };
            state.layers.insert(chain, layer);
            parent = Some(chain);
        }
        state.images.insert(image.id, image);
    }

    #[test]
    fn garbage_is_what_neither_image_nor_container_nor_operation_needs() {
        let mut state = State::default();
        let (one, two) = (image("one", &["base", "a"]), image("two", &["base", "b"]));
        add(&mut state, Arc::clone(&one));
        add(&mut state, Arc::clone(&two));
        assert_eq!(state.take_garbage(Vec::new()), Garbage::default());
        assert_eq!(state.shared_size(&one), 10);

        let top = two.config.chain_ids()[1];
        state.images.remove(&two.id);
        state.holds.insert("c1".to_owned(), Hold { image: two.id, top: Some(top) });
        assert_eq!(state.take_garbage(Vec::new()), Garbage::default());
        assert_eq!(state.holders_of(&two.id).collect::<Vec<_>>(), ["c1"]);

        state.holds.clear();
        state.pins.insert(digest("stray"), 1);
        let garbage = state.take_garbage(vec![digest("stray"), digest("lost"), one.id]);
        assert_eq!(garbage.layers, [(top, top.short())]);
        assert_eq!(garbage.blobs, [digest("lost")]);
        assert_eq!(state.layers.len(), 2);
    }
}
