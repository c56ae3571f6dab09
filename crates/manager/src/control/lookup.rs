//! Finds objects by what users type: a whole identifier, an exact name, or the beginning of one identifier.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use store::Snapshot;
use types::id::ID_DIGITS;
use types::{Node, Service, Task};

use crate::error::{Code, Error};

/// The service that `reference` names.
///
/// # Errors
/// Not found, or ambiguous, in Docker's words.
pub fn service(snapshot: &Snapshot, reference: &str) -> Result<Arc<Service>, Error> {
    let by_id = parse(reference).and_then(|id| snapshot.service(id));
    let exact = by_id.or_else(|| snapshot.service_by_name(reference));
    match exact {
        Some(service) => Ok(service.clone()),
        None => unique("service", reference, snapshot.services(), |service| service.id),
    }
}

/// The node that `reference` names; `self` is left to callers that know who they are.
pub fn node(snapshot: &Snapshot, reference: &str) -> Result<Arc<Node>, Error> {
    if let Some(node) = parse(reference).and_then(|id| snapshot.node(id)) {
        return Ok(node.clone());
    }
    let named: Vec<_> =
        snapshot.nodes().filter(|node| node.description.hostname == reference).collect();
    match named[..] {
        [] => unique("node", reference, snapshot.nodes(), |node| node.id),
        [node] => Ok(node.clone()),
        _ => Err(ambiguous("node", reference, named.len())),
    }
}

/// The task that `reference` names by its identifier.
pub fn task(snapshot: &Snapshot, reference: &str) -> Result<Arc<Task>, Error> {
    if let Some(task) = parse(reference).and_then(|id| snapshot.task(id)) {
        return Ok(task.clone());
    }
    unique("task", reference, snapshot.tasks(), |task| task.id)
}

fn parse<T: FromStr>(reference: &str) -> Option<T> {
    if reference.len() == ID_DIGITS { reference.parse().ok() } else { None }
}

fn unique<'a, T: 'a, I: Display>(
    kind: &str,
    reference: &str,
    objects: impl Iterator<Item = &'a Arc<T>>,
    id: impl Fn(&T) -> I,
) -> Result<Arc<T>, Error> {
    let begins =
        |object: &&Arc<T>| !reference.is_empty() && id(object).to_string().starts_with(reference);
    let found: Vec<_> = objects.filter(begins).collect();
    match found[..] {
        [object] => Ok(object.clone()),
        [] => Err(Error::plain(Code::NotFound, format!("{kind} {reference} not found"))),
        _ => Err(ambiguous(kind, reference, found.len())),
    }
}

fn ambiguous(kind: &str, reference: &str, matches: usize) -> Error {
    let desc = format!("{kind} {reference} is ambiguous ({matches} matches found)");
    Error::plain(Code::InvalidArgument, desc)
}
