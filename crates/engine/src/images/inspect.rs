//! `docker image inspect` and `docker history`.

use std::collections::BTreeMap;

use docker_types::container::{ContainerConfig, GraphDriver};
use docker_types::image::{HistoryItem, ImageInspect, ImageMetadata, RootFs};
use docker_types::words::Words;

use super::config::{History, RunConfig};
use super::error::Error;
use super::list::signed;
use super::reference::Reference;
use super::state::{Image, State};
use super::store::Images;

/// What clients know our storage by; scripts compare it.
const DRIVER: &str = "overlay2";
/// Id of a step whose image is not here.
const MISSING: &str = "<missing>";

impl Images {
    /// All there is to know of an image.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`].
    pub fn inspect(&self, name: &str) -> Result<ImageInspect, Error> {
        let state = self.state();
        let image = state.find(name)?;
        let config = &image.config;
        let references = state.references_of(&image.id);
        let (tags, digests): (Vec<_>, Vec<_>) = references.iter().partition(|r| r.tag().is_some());
        let tagged =
            image.record.last_tagged.as_deref().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        Ok(ImageInspect {
            id: image.id.to_string(),
            repo_tags: tags.into_iter().map(Reference::familiar).collect(),
            repo_digests: digests.into_iter().map(Reference::familiar).collect(),
            parent: image.record.parent.map(|p| p.to_string()).unwrap_or_default(),
            comment: config.comment.clone(),
            created: config.created.clone(),
            docker_version: config.docker_version.clone(),
            author: config.author.clone(),
            config: container_config(&config.config),
            architecture: config.architecture.clone(),
            variant: config.variant.clone().unwrap_or_default(),
            os: config.os.clone(),
            os_version: config.os_version.clone().unwrap_or_default(),
            size: signed(image.record.size),
            virtual_size: None,
            graph_driver: self.graph_driver(&state, &image),
            root_fs: RootFs {
                kind: "layers".to_owned(),
                layers: config.rootfs.diff_ids.iter().map(ToString::to_string).collect(),
            },
            metadata: ImageMetadata { last_tag_time: tagged.into() },
        })
    }

    /// How an image was made, last step first.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`].
    pub fn history(&self, name: &str) -> Result<Vec<HistoryItem>, Error> {
        let state = self.state();
        let image = state.find(name)?;
        let mut sizes = image
            .config
            .chain_ids()
            .into_iter()
            .map(|chain| state.layers.get(&chain).map_or(0, |layer| signed(layer.bytes)));
        let mut items: Vec<HistoryItem> = Vec::new();
        for step in &image.config.history {
            let size = if step.empty_layer { 0 } else { sizes.next().unwrap_or(0) };
            items.push(history_item(step, size));
        }
        // Layers that no step accounts for, in images made without Docker.
        items.extend(sizes.map(|size| history_item(&History::default(), size)));
        items.reverse();
        name_steps(&state, &image, &mut items);
        Ok(items)
    }

    fn graph_driver(&self, state: &State, image: &Image) -> GraphDriver {
        let top = image.config.chain_ids().last().copied();
        let dirs: Vec<String> = state
            .chain(top)
            .map(|(_, layer)| self.0.layers_dir.join(&layer.dir).display().to_string())
            .collect();
        let mut data = BTreeMap::new();
        if let Some((upper, lower)) = dirs.split_first() {
            data.insert("UpperDir".to_owned(), upper.clone());
            if !lower.is_empty() {
                data.insert("LowerDir".to_owned(), lower.join(":"));
            }
        }
        GraphDriver { data: Some(data), name: DRIVER.to_owned() }
    }
}

/// The last step made the image itself; earlier ones are known where a commit made them here.
fn name_steps(state: &State, image: &Image, items: &mut [HistoryItem]) {
    let mut current = Some(image.id);
    for item in items {
        let Some(id) = current else { return };
        let Some(image) = state.images.get(&id) else { return };
        let tags: Vec<String> = state
            .references_of(&id)
            .iter()
            .filter(|r| r.tag().is_some())
            .map(Reference::familiar)
            .collect();
        item.id = id.to_string();
        item.tags = (!tags.is_empty()).then_some(tags);
        current = image.record.parent;
    }
}

fn history_item(step: &History, size: i64) -> HistoryItem {
    let created = step.created.as_deref().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    HistoryItem {
        comment: step.comment.clone(),
        created: created.map_or(0, jiff::Timestamp::as_second),
        created_by: step.created_by.clone(),
        id: MISSING.to_owned(),
        size,
        tags: None,
    }
}

fn container_config(config: &RunConfig) -> ContainerConfig {
    let words = |list: &Option<Vec<String>>| list.clone().map(Words);
    ContainerConfig {
        user: config.user.clone(),
        exposed_ports: config.exposed_ports.clone(),
        env: Some(config.env.clone()),
        cmd: words(&config.cmd),
        healthcheck: config.healthcheck.clone(),
        volumes: (!config.volumes.is_empty()).then(|| config.volumes.clone()),
        working_dir: config.working_dir.clone(),
        entrypoint: words(&config.entrypoint),
        on_build: (!config.on_build.is_empty()).then(|| config.on_build.clone()),
        labels: (!config.labels.is_empty()).then(|| config.labels.clone()),
        stop_signal: config.stop_signal.clone().unwrap_or_default(),
        stop_timeout: config.stop_timeout,
        shell: words(&config.shell),
        ..ContainerConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::testing::{Tar, load, open};

    #[test]
    fn an_image_is_described_with_its_names_and_layers() {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path());
        let layers =
            [Tar::default().file("a", b"123").finish(), Tar::default().file("b", b"4").finish()];
        let image = load(&images, &layers, &["app:1", "x.io/app:2"]);
        let inspect = images.inspect("app:1").unwrap();
        assert_eq!(inspect.id, image.id.to_string());
        assert_eq!(inspect.repo_tags, ["app:1", "x.io/app:2"]);
        assert_eq!((inspect.size, inspect.root_fs.layers.len()), (4, 2));
        assert_eq!(inspect.config.cmd, Some(vec!["/bin/sh".to_owned()].into()));
        assert!(!inspect.metadata.last_tag_time.is_zero());
        assert_eq!(inspect.graph_driver.data.unwrap().len(), 2);
    }

    #[test]
    fn history_goes_from_the_last_step_to_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let images = open(dir.path());
        let layers =
            [Tar::default().file("a", b"123").finish(), Tar::default().file("b", b"4").finish()];
        let image = load(&images, &layers, &["app:1"]);
        let history = images.history("app:1").unwrap();
        let shown: Vec<(&str, i64)> = history.iter().map(|i| (i.id.as_str(), i.size)).collect();
        assert_eq!(shown, [(image.id.to_string().as_str(), 1), (MISSING, 3)]);
        assert_eq!(history[0].tags.as_deref(), Some(&["app:1".to_owned()][..]));
        assert_eq!(history[1].created, 1_704_164_645);
        assert_eq!(history[1].tags, None);
    }
}
