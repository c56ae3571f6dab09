//! `docker images`: which images there are, filtered, newest first.

use std::collections::BTreeSet;
use std::sync::Arc;

use docker_types::image::ImageSummary;

use super::error::Error;
use super::glob;
use super::reference::Reference;
use super::state::{Image, State};
use super::store::Images;

/// Which images are wanted. Filters of one kind are alternatives, but all labels must match.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Also images that only serve as parents of others.
    pub all: bool,
    /// Whether to compute how much each image shares with others.
    pub shared_size: bool,
    /// Only images made before this one.
    pub before: Option<String>,
    /// Only images made after this one.
    pub since: Option<String>,
    /// Only images without tag, or only images with one.
    pub dangling: Option<bool>,
    /// `key` or `key=value`.
    pub labels: Vec<String>,
    /// `key` or `key=value` that an image must not have.
    pub labels_not: Vec<String>,
    /// Patterns of names, as a shell has them.
    pub references: Vec<String>,
    /// Seconds since 1970; only images made before.
    pub until: Option<i64>,
}

impl Images {
    /// The images that match, newest first.
    ///
    /// # Errors
    /// When an image named in `before` or `since` is not there.
    pub fn list(&self, options: &ListOptions) -> Result<Vec<ImageSummary>, Error> {
        let state = self.state();
        let times = Times::of(&state, options)?;
        let mut images: Vec<&Arc<Image>> =
            state.images.values().filter(|image| times.admit(image)).collect();
        images.retain(|image| has_labels(image, options));
        images.sort_by_key(|image| std::cmp::Reverse(image.config.created_unix()));
        Ok(images.into_iter().filter_map(|image| summary(&state, image, options)).collect())
    }

    /// Bytes of all unpacked layers, each once.
    pub fn layers_size(&self) -> u64 {
        self.state().layers.values().map(|layer| layer.bytes).sum()
    }

    /// The number of images that `docker info` shows.
    pub fn count(&self) -> usize {
        self.state().images.len()
    }
}

/// The moments between which an image must have been made, in seconds since 1970.
pub(super) struct Times {
    after: Option<i64>,
    before: Option<i64>,
    until: Option<i64>,
}

impl Times {
    fn of(state: &State, options: &ListOptions) -> Result<Self, Error> {
        let created = |name: &Option<String>| -> Result<Option<i64>, Error> {
            let Some(name) = name else { return Ok(None) };
            Ok(Some(state.find(name)?.config.created_unix()))
        };
        Ok(Self {
            after: created(&options.since)?,
            before: created(&options.before)?,
            until: options.until,
        })
    }

    fn admit(&self, image: &Image) -> bool {
        let created = image.config.created_unix();
        self.after.is_none_or(|t| created > t)
            && self.before.is_none_or(|t| created < t)
            && self.until.is_none_or(|t| created <= t)
    }
}

/// Whether an image has all labels that are wanted and none that are not.
pub(super) fn has_labels(image: &Image, options: &ListOptions) -> bool {
    let has = |wanted: &String| {
        let labels = &image.config.config.labels;
        match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
            None => labels.contains_key(wanted),
        }
    };
    options.labels.iter().all(has) && !options.labels_not.iter().any(has)
}

fn summary(state: &State, image: &Image, options: &ListOptions) -> Option<ImageSummary> {
    let mut references = state.references_of(&image.id);
    if !options.references.is_empty() {
        references.retain(|r| options.references.iter().any(|p| matches_pattern(p, r)));
        if references.is_empty() {
            return None;
        }
    }
    let (tags, digests): (Vec<_>, Vec<_>) =
        references.iter().partition(|reference| reference.tag().is_some());
    if references.is_empty() {
        let is_parent = !state.children_of(&image.id).is_empty();
        if options.dangling == Some(false) || (is_parent && !options.all) {
            return None;
        }
    }
    if options.dangling == Some(true) && !tags.is_empty() {
        return None;
    }
    let labels = &image.config.config.labels;
    let shared = options.shared_size.then(|| signed(state.shared_size(image)));
    Some(ImageSummary {
        containers: -1,
        created: image.config.created_unix(),
        id: image.id.to_string(),
        labels: (!labels.is_empty()).then(|| labels.clone()),
        parent_id: image.record.parent.map(|p| p.to_string()).unwrap_or_default(),
        repo_digests: digests.into_iter().map(Reference::familiar).collect(),
        repo_tags: tags.into_iter().map(Reference::familiar).collect(),
        shared_size: shared.unwrap_or(-1),
        size: signed(image.record.size),
        virtual_size: None,
    })
}

/// A pattern may mean the name with tag or digest, or the name alone.
fn matches_pattern(pattern: &str, reference: &Reference) -> bool {
    glob::matches(pattern, &reference.familiar())
        || glob::matches(pattern, &reference.familiar_name())
}

/// Sizes are signed in the API.
pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl State {
    /// Images that no other one was made from.
    pub(super) fn heads(&self) -> BTreeSet<super::digest::Digest> {
        let parents: BTreeSet<_> = self.images.values().filter_map(|i| i.record.parent).collect();
        self.images.keys().filter(|id| !parents.contains(id)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::progress::Reporter;
    use crate::images::testing::{Tar, config_of, docker_archive, open};

    fn add(images: &Images, name: &str, created: &str, labels: serde_json::Value) {
        let layer = vec![Tar::default().file(name, b"x").finish()];
        let mut config = config_of(&layer, &serde_json::json!({ "Labels": labels }));
        config["created"] = created.into();
        let archive = docker_archive(&config, &layer, &[name]);
        images.load(archive.as_slice(), None, &Reporter::silent()).unwrap();
    }

    #[test]
    fn each_filter_selects_its_images_newest_first() {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path());
        add(&images, "one:1", "2024-01-01T00:00:00Z", serde_json::json!({ "a": "1" }));
        add(&images, "two:1", "2024-01-02T00:00:00Z", serde_json::json!({ "a": "2", "b": "" }));
        add(&images, "x.io/y/three:3", "2024-01-03T00:00:00Z", serde_json::json!(null));
        // The second image loses its name.
        add(&images, "lost:1", "2024-01-04T00:00:00Z", serde_json::json!(null));
        add(&images, "lost:1", "2024-01-05T00:00:00Z", serde_json::json!(null));
        let list = |options: ListOptions| -> Vec<String> {
            let found = images.list(&options).unwrap().into_iter();
            found.map(|s| s.repo_tags.first().cloned().unwrap_or("<none>".to_owned())).collect()
        };
        let text = |t: &str| Some(t.to_owned());
        let texts = |t: &str| vec![t.to_owned()];
        let all = ListOptions::default();
        assert_eq!(list(all.clone()), ["lost:1", "<none>", "x.io/y/three:3", "two:1", "one:1"]);
        for (options, expected) in [
            (ListOptions { dangling: Some(true), ..all.clone() }, &["<none>"][..]),
            (
                ListOptions { dangling: Some(false), before: text("two:1"), ..all.clone() },
                &["one:1"],
            ),
            (ListOptions { since: text("x.io/y/three:3"), ..all.clone() }, &["lost:1", "<none>"]),
            (ListOptions { labels: texts("a"), ..all.clone() }, &["two:1", "one:1"]),
            (ListOptions { labels: texts("a=1"), ..all.clone() }, &["one:1"]),
            (ListOptions { labels: texts("a"), labels_not: texts("b"), ..all.clone() }, &["one:1"]),
            (
                ListOptions { references: texts("*:1"), ..all.clone() },
                &["lost:1", "two:1", "one:1"],
            ),
            (ListOptions { references: texts("x.io/*/three"), ..all.clone() }, &["x.io/y/three:3"]),
            (ListOptions { references: texts("three"), ..all.clone() }, &[]),
            (ListOptions { until: Some(1_704_153_600), ..all.clone() }, &["two:1", "one:1"]),
        ] {
            assert_eq!(list(options.clone()), expected, "{options:?}");
        }
        let missing = ListOptions { before: text("none"), ..all };
        assert_eq!(images.list(&missing).unwrap_err().to_string(), "No such image: none:latest");
    }
}
