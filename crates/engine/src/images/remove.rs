//! `docker rmi` and `docker image prune`: names first, then the image when nothing needs it.

use docker_types::image::DeleteItem;

use super::digest::Digest;
use super::error::Error;
use super::event::{ImageAction, ImageEvent};
use super::list::{ListOptions, has_labels};
use super::reference::{AnyReference, Reference};
use super::state::State;
use super::store::{Images, stored_form};

/// How to remove an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveOptions {
    /// Although it has several names, or stopped containers use it.
    pub force: bool,
    /// Without removing untagged parents.
    pub no_prune: bool,
}

/// Whether a container is running.
pub type IsRunning<'a> = &'a dyn Fn(&str) -> bool;

/// What a prune did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pruned {
    pub items: Vec<DeleteItem>,
    /// Bytes of the removed layers, unpacked.
    pub bytes: u64,
}

/// Reasons against a removal. The hard ones hold even by force.
#[derive(Clone, Copy, Debug)]
struct Checks {
    references: bool,
    stopped: bool,
}

/// A reason against a removal.
struct Objection {
    is_hard: bool,
    /// Whether a container needs the image.
    is_used: bool,
    message: String,
}

impl Images {
    /// Removes the name, and the image with its layers when this was its last name.
    ///
    /// # Errors
    /// [`Error::Conflict`] in Docker's words, and nothing is changed.
    pub fn remove(
        &self,
        name: &str,
        options: RemoveOptions,
        is_running: IsRunning<'_>,
    ) -> Result<Vec<DeleteItem>, Error> {
        let mut items = Vec::new();
        let mut removal = Removal { images: self, is_running, items: &mut items };
        {
            let mut state = self.state();
            removal.remove(&mut state, name, options)?;
        }
        if items.iter().any(|item| !item.deleted.is_empty()) {
            items.extend(self.collect_garbage()?.iter().map(deleted));
        }
        Ok(items)
    }

    /// Removes images that no container uses: those without tag, or all when
    /// `options.dangling` is `false`. Filters as in [`ListOptions`].
    ///
    /// # Errors
    /// Images in use are no error; they stay.
    pub fn prune(&self, options: &ListOptions, is_running: IsRunning<'_>) -> Result<Pruned, Error> {
        let before = self.layers_size();
        let mut items = Vec::new();
        for name in self.prunable(options) {
            match self.remove(&name, RemoveOptions::default(), is_running) {
                Ok(removed) => items.extend(removed),
                Err(Error::Conflict(_) | Error::NoSuchImage(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let bytes = before.saturating_sub(self.layers_size());
        self.emit_raw(ImageEvent {
            action: ImageAction::Prune,
            id: String::new(),
            attributes: [("reclaimed".to_owned(), bytes.to_string())].into(),
        });
        Ok(Pruned { items, bytes })
    }

    /// What to remove in turn: names, or ids of images that have none.
    fn prunable(&self, options: &ListOptions) -> Vec<String> {
        let only_dangling = options.dangling != Some(false);
        let state = self.state();
        let heads = state.heads();
        let mut names = Vec::new();
        for image in state.images.values() {
            let references = state.references_of(&image.id);
            let is_head = heads.contains(&image.id);
            let is_old = options.until.is_none_or(|t| image.config.created_unix() <= t);
            if !is_old
                || !has_labels(image, options)
                || (!is_head && (only_dangling || references.is_empty()))
            {
                continue;
            }
            if references.is_empty() {
                names.push(image.id.hex());
            } else if !only_dangling || references.iter().all(|r| r.tag().is_none()) {
                names.extend(references.iter().map(Reference::to_string));
            }
        }
        names
    }
}

/// One removal, under the store's lock.
struct Removal<'a> {
    images: &'a Images,
    is_running: IsRunning<'a>,
    items: &'a mut Vec<DeleteItem>,
}

impl Removal<'_> {
    fn remove(
        &mut self,
        state: &mut State,
        name: &str,
        options: RemoveOptions,
    ) -> Result<(), Error> {
        let image = state.find(name)?;
        let references = state.references_of(&image.id);
        let named = match AnyReference::parse(name)? {
            AnyReference::Named(reference) => Some(stored_form(&reference)),
            AnyReference::Digest(_) => None,
        };
        let named = named.filter(|reference| references.contains(reference));
        let mut quiet = false;
        match named {
            Some(reference) => {
                self.check_last_name(state, name, &image.id, &references, options)?;
                if !self.untag_one(state, &image.id, &reference)?.is_empty() {
                    return Ok(());
                }
                quiet = true;
            }
            None if is_single(&references) => {
                let checks = Checks { references: false, stopped: !options.force };
                if let Some(objection) = self.objection(state, &image.id, checks) {
                    return Err(objection.into_error(&image.id));
                }
                self.untag(state, &image.id, &references)?;
            }
            None => {}
        }
        self.delete(state, image.id, options.force, options.no_prune, quiet)
    }

    /// A name that is the last one of an image in use is not taken, since the image would dangle.
    fn check_last_name(
        &self,
        state: &State,
        name: &str,
        id: &Digest,
        references: &[Reference],
        options: RemoveOptions,
    ) -> Result<(), Error> {
        if options.force || !is_single(references) {
            return Ok(());
        }
        let holder = state.holders_of(id).next();
        let Some(holder) = holder else { return Ok(()) };
        Err(Error::Conflict(format!(
            "remove repository reference {name:?} (must force) - container {} is using its referenced image {}",
            short(holder),
            id.short()
        )))
    }

    /// Removes one name; with the last tag of a repository its digests go too. Returns what names
    /// remain.
    fn untag_one(
        &mut self,
        state: &mut State,
        id: &Digest,
        reference: &Reference,
    ) -> Result<Vec<Reference>, Error> {
        self.untag(state, id, std::slice::from_ref(reference))?;
        let remaining = state.references_of(id);
        let (same, other): (Vec<_>, Vec<_>) =
            remaining.iter().cloned().partition(|r| r.name() == reference.name());
        let has_tag = same.iter().any(|r| r.tag().is_some());
        if reference.digest().is_some() || has_tag {
            return Ok(remaining);
        }
        self.untag(state, id, &same)?;
        Ok(other)
    }

    fn untag(
        &mut self,
        state: &mut State,
        id: &Digest,
        references: &[Reference],
    ) -> Result<(), Error> {
        self.images.forget(state, references, None)?;
        for reference in references {
            self.items.push(DeleteItem { untagged: reference.familiar(), ..DeleteItem::default() });
            if let Some(image) = state.images.get(id) {
                self.images.emit(ImageAction::Untag, image, &id.to_string());
            }
        }
        Ok(())
    }

    /// Deletes the image and, where nobody wants them, the untagged ones that it was made from.
    fn delete(
        &mut self,
        state: &mut State,
        id: Digest,
        force: bool,
        no_prune: bool,
        quiet: bool,
    ) -> Result<(), Error> {
        let (mut id, mut force, mut quiet) = (id, force, quiet);
        loop {
            let checks = Checks { references: !force, stopped: !force };
            if let Some(objection) = self.objection(state, &id, checks) {
                let is_dangling = state.references_of(&id).is_empty();
                return match quiet && (!is_dangling || objection.is_used) {
                    true => Ok(()),
                    false => Err(objection.into_error(&id)),
                };
            }
            let Some(image) = state.images.get(&id).cloned() else { return Ok(()) };
            let references = state.references_of(&id);
            self.untag(state, &id, &references)?;
            self.images.forget(state, &[], Some(&id))?;
            self.images.emit(ImageAction::Delete, &image, &id.to_string());
            self.items.push(deleted(&id));
            match image.record.parent {
                Some(parent) if !no_prune => (id, force, quiet) = (parent, false, true),
                _ => return Ok(()),
            }
        }
    }

    fn objection(&self, state: &State, id: &Digest, checks: Checks) -> Option<Objection> {
        let object = |is_hard, is_used, message| Some(Objection { is_hard, is_used, message });
        if !state.children_of(id).is_empty() {
            return object(true, false, "image has dependent child images".to_owned());
        }
        let holders: Vec<&str> = state.holders_of(id).collect();
        if let Some(container) = holders.iter().find(|c| (self.is_running)(c)) {
            let container = short(container);
            return object(
                true,
                true,
                format!("image is being used by running container {container}"),
            );
        }
        if checks.references && !state.references_of(id).is_empty() {
            return object(false, false, "image is referenced in multiple repositories".to_owned());
        }
        match holders.first() {
            Some(container) if checks.stopped => {
                let container = short(container);
                object(false, true, format!("image is being used by stopped container {container}"))
            }
            _ => None,
        }
    }
}

impl Objection {
    fn into_error(self, id: &Digest) -> Error {
        let force = if self.is_hard { "cannot be forced" } else { "must be forced" };
        Error::Conflict(format!("delete {} ({force}) - {}", id.short(), self.message))
    }
}

fn deleted(id: &Digest) -> DeleteItem {
    DeleteItem { deleted: id.to_string(), ..DeleteItem::default() }
}

/// Whether all names are one: a tag with its digests, or a few digests of one repository.
fn is_single(references: &[Reference]) -> bool {
    let tags = references.iter().filter(|r| r.tag().is_some()).count();
    let one_repository = references.windows(2).all(|pair| pair[0].name() == pair[1].name());
    references.len() <= 1 || (tags <= 1 && one_repository)
}

/// The first twelve characters of a container's id.
fn short(container: &str) -> &str {
    container.get(..12).unwrap_or(container)
}

#[cfg(test)]
mod tests;
