//! Finds containers by id, by name, and by the beginning of an id.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use super::container::Container;
use super::invalid::Invalid;
use crate::error::Error;
use crate::names;

/// Times a made-up name is tried; each adds a digit.
const INVENTIONS_MAX: u32 = 8;

#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    containers: BTreeMap<String, Arc<Container>>,
    /// Names and the ids they belong to, also of containers that are being made.
    names: HashMap<String, String>,
}

/// A name that is taken until this is dropped or kept.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    registry: &'a Registry,
    pub(crate) name: String,
    is_kept: bool,
}

impl Registry {
    /// The container that `name` means.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], or [`Error::AmbiguousId`].
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Container>, Error> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let missing = || Error::NoSuchContainer { name: name.to_owned() };
        let bare = name.strip_prefix('/').unwrap_or(name);
        if bare.is_empty() {
            return Err(missing());
        }
        if let Some(container) = inner.containers.get(bare) {
            return Ok(Arc::clone(container));
        }
        if let Some(id) = inner.names.get(bare) {
            return inner.containers.get(id).cloned().ok_or_else(missing);
        }
        let range = (Bound::Included(bare.to_owned()), Bound::Unbounded);
        let mut matching = inner.containers.range(range).take_while(|(id, _)| id.starts_with(bare));
        let (_, first) = matching.next().ok_or_else(missing)?;
        match matching.next() {
            Some(_) => Err(Error::AmbiguousId { prefix: bare.to_owned() }),
            None => Ok(Arc::clone(first)),
        }
    }

    /// All containers, by id.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.containers.values().cloned().collect()
    }

    /// Takes a name for the container `id`; without one, invents it.
    ///
    /// # Errors
    /// A name that is not allowed, or [`Error::NameTaken`].
    pub(crate) fn reserve(&self, name: Option<&str>, id: &str) -> Result<Reservation<'_>, Error> {
        let Some(name) = name else { return Ok(self.reserve_invented(id)) };
        let bare = name.strip_prefix('/').unwrap_or(name);
        if !names::is_valid(bare) {
            return Err(Invalid::Name { name: name.to_owned() }.into());
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = inner.names.get(bare) {
            return Err(Error::NameTaken { name: bare.to_owned(), id: owner.clone() });
        }
        inner.names.insert(bare.to_owned(), id.to_owned());
        Ok(Reservation { registry: self, name: bare.to_owned(), is_kept: false })
    }

    pub(crate) fn insert(&self, container: Arc<Container>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.names.insert(container.record().name.clone(), container.id.clone());
        inner.containers.insert(container.id.clone(), container);
    }

    /// Forgets a container and frees its name.
    pub(crate) fn remove(&self, container: &Container) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.containers.remove(&container.id);
        inner.names.retain(|_, id| *id != container.id);
    }

    /// Frees a name.
    pub(crate) fn release(&self, name: &str) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).names.remove(name);
    }

    fn reserve_invented(&self, id: &str) -> Reservation<'_> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let free = (0..INVENTIONS_MAX)
            .map(names::invented)
            .find(|name| !inner.names.contains_key(name))
            // An id of its own is always free.
            .unwrap_or_else(|| names::short(id).to_owned());
        inner.names.insert(free.clone(), id.to_owned());
        Reservation { registry: self, name: free, is_kept: false }
    }
}

impl Reservation<'_> {
    /// Leaves the name to its container.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.registry.release(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::Registry;
    use crate::containers::container::Container;
    use crate::containers::record::{Record, RunState};

    fn add(registry: &Registry, id: &str, name: &str) {
        let record = Record {
            id: id.into(),
            name: name.into(),
            created: Timestamp::UNIX_EPOCH,
            image_id: String::new(),
            path: String::new(),
            args: Vec::new(),
            config: Default::default(),
            host: Default::default(),
            networks: Default::default(),
            mounts: Vec::new(),
        };
        let container = Container::new(record, RunState::default(), PathBuf::new(), PathBuf::new());
        registry.insert(Arc::new(container));
    }

    #[test]
    fn a_container_is_found_by_id_name_and_unique_prefix() {
        let registry = Registry::default();
        add(&registry, "abc123", "web");
        add(&registry, "abd456", "ab");
        let find = |name: &str| match registry.find(name) {
            Ok(container) => container.id.clone(),
            Err(error) => error.to_string(),
        };
        assert_eq!(find("abc123"), "abc123");
        assert_eq!(find("/web"), "abc123");
        assert_eq!(find("abd"), "abd456");
        // A name wins over the beginning of an id.
        assert_eq!(find("ab"), "abd456");
        assert_eq!(find("a"), "multiple IDs found with provided prefix: a");
        assert_eq!(find("zzz"), "No such container: zzz");
        assert_eq!(find(""), "No such container: ");
    }

    #[test]
    fn a_reserved_name_is_free_again_unless_kept() {
        let registry = Registry::default();
        let reservation = registry.reserve(Some("web"), "id1").unwrap();
        assert_eq!(
            registry.reserve(Some("/web"), "id2").unwrap_err().to_string(),
            "Conflict. The container name \"/web\" is already in use by container \"id1\". You have to remove (or rename) that container to be able to reuse that name."
        );
        drop(reservation);
        registry.reserve(Some("web"), "id2").unwrap().keep();
        assert!(registry.reserve(Some("web"), "id3").is_err());
        assert_eq!(
            registry.reserve(Some("a b"), "id3").unwrap_err().to_string(),
            "Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        );
        assert!(!registry.reserve(None, "id3").unwrap().name.is_empty());
    }
}
