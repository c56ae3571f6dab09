//! What happened on this node, as `docker events` tells it: a bounded history and whoever follows it.
//!
//! Followers read the same ring as history does, by sequence number, so there is no queue to overflow: one
//! that falls behind by more than the ring loses the oldest events and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use docker_types::event::{EventActor, EventMessage};
use futures::Stream;
use jiff::Timestamp;
use tokio::sync::watch;

/// Events kept for `--since` and for slow followers. A container's life is about eight events, so this covers
/// a burst of 250 containers; Docker keeps 256 events.
pub const HISTORY_EVENTS_MAX: usize = 2048;

/// The events of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    /// The sequence number the next event will have.
    next: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The sequence number of the first event in `events`.
    first: u64,
    events: VecDeque<Arc<EventMessage>>,
}

/// What a client wants to see.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// History from this moment on; without it there is none.
    pub since: Option<Timestamp>,
    /// The stream ends here.
    pub until: Option<Timestamp>,
    /// Filter keys and their values, any of which may match.
    pub filters: BTreeMap<String, Vec<String>>,
}

impl Default for Events {
    fn default() -> Self {
        let shared = Shared { ring: Mutex::default(), next: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }
}

impl Events {
    /// Records an event of this node.
    pub fn publish(
        &self,
        kind: &str,
        action: &str,
        id: &str,
        attributes: BTreeMap<String, String>,
    ) {
        self.publish_scoped("local", kind, action, id, attributes);
    }

    /// Records an event of `scope` `local` or `swarm`.
    pub fn publish_scoped(
        &self,
        scope: &str,
        kind: &str,
        action: &str,
        id: &str,
        attributes: BTreeMap<String, String>,
    ) {
        let now = Timestamp::now();
        // Clients before 1.52 read these three, which Docker fills for containers and images alone.
        let has_legacy_fields = matches!(kind, "container" | "image");
        let legacy = |text: &str| if has_legacy_fields { text.to_owned() } else { String::new() };
        let from = if kind == "container" { attributes.get("image").cloned() } else { None };
        let message = EventMessage {
            status: legacy(action),
            id: legacy(id),
            from: from.unwrap_or_default(),
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: EventActor { id: id.to_owned(), attributes },
            scope: scope.to_owned(),
            time: now.as_second(),
            time_nano: i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX),
        };
        let next = {
            let mut ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
            if ring.events.len() == HISTORY_EVENTS_MAX {
                ring.events.pop_front();
                ring.first += 1;
            }
            ring.events.push_back(Arc::new(message));
            ring.first + ring.events.len() as u64
        };
        self.shared.next.send_replace(next);
    }

    /// History from `since`, then events as they happen until `until`.
    pub fn follow(
        &self,
        query: EventQuery,
    ) -> impl Stream<Item = Arc<EventMessage>> + Send + use<> {
        let mut changed = self.shared.next.subscribe();
        let start = if query.since.is_some() { 0 } else { *changed.borrow_and_update() };
        let until = query.until;
        let follower = Follower { shared: Arc::clone(&self.shared), changed, next: start, query };
        let ready = futures::stream::unfold(follower, move |mut follower| async move {
            let batch = follower.batch(until).await?;
            Some((futures::stream::iter(batch), follower))
        });
        futures::StreamExt::flatten(ready)
    }

    /// How many clients follow.
    pub fn followers(&self) -> usize {
        self.shared.next.receiver_count()
    }
}

struct Follower {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    next: u64,
    query: EventQuery,
}

impl Follower {
    /// The next events that match; `None` when `until` has come.
    async fn batch(&mut self, until: Option<Timestamp>) -> Option<Vec<Arc<EventMessage>>> {
        loop {
            self.changed.borrow_and_update();
            let batch = self.read();
            if !batch.is_empty() {
                return Some(batch);
            }
            let Some(until) = until else {
                self.changed.changed().await.ok()?;
                continue;
            };
            let left =
                std::time::Duration::try_from(until.duration_since(Timestamp::now())).ok()?;
            tokio::time::timeout(left, self.changed.changed()).await.ok()?.ok()?;
        }
    }

    fn read(&mut self) -> Vec<Arc<EventMessage>> {
        let ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = usize::try_from(self.next.saturating_sub(ring.first)).unwrap_or(usize::MAX);
        self.next = ring.first + ring.events.len() as u64;
        ring.events.iter().skip(skip).filter(|event| self.query.matches(event)).cloned().collect()
    }
}

impl EventQuery {
    fn matches(&self, event: &EventMessage) -> bool {
        let at = i128::from(event.time_nano);
        self.since.is_none_or(|since| at >= since.as_nanosecond())
            && self.until.is_none_or(|until| at <= until.as_nanosecond())
            && self
                .filters
                .iter()
                .all(|(key, values)| values.is_empty() || matches_key(event, key, values))
    }
}

/// Whether any of a filter's values fits the event.
fn matches_key(event: &EventMessage, key: &str, values: &[String]) -> bool {
    let attribute = |name: &str| event.actor.attributes.get(name).map_or("", String::as_str);
    values.iter().any(|value| match key {
        "event" => matches_action(&event.action, value),
        "type" => event.kind == *value,
        "scope" => event.scope == *value,
        "label" => matches_label(&event.actor.attributes, value),
        "image" => matches_image(event, value),
        // The rest name a kind of object, and its id, the beginning of its id, or its name.
        _ => {
            event.kind == key
                && (event.actor.id.starts_with(value.as_str())
                    || attribute("name").starts_with(value.as_str()))
        }
    })
}

/// `exec_create: ls` is also found as `exec_create`.
fn matches_action(action: &str, wanted: &str) -> bool {
    action == wanted || action.split_once(':').is_some_and(|(verb, _)| verb == wanted)
}

fn matches_label(attributes: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => attributes.get(key).is_some_and(|have| have == value),
        None => attributes.contains_key(wanted),
    }
}

fn matches_image(event: &EventMessage, wanted: &str) -> bool {
    let named = match event.kind.as_str() {
        "container" => event.actor.attributes.get("image"),
        "image" => event.actor.attributes.get("name"),
        _ => return false,
    };
    let is = |text: &str| text == wanted || without_tag(text) == wanted;
    is(&event.actor.id) || named.is_some_and(|name| is(name))
}

/// `registry:5000/web:1` without its tag; a port is no tag.
fn without_tag(reference: &str) -> &str {
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => reference,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::StreamExt;
    use jiff::{Timestamp, ToSpan};

    use super::{EventQuery, Events, HISTORY_EVENTS_MAX};

    type Wanted<'a> = &'a [(&'a str, &'a [&'a str])];

    fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn history(filters: &[(&str, &[&str])]) -> EventQuery {
        let filters = filters.iter().map(|(key, values)| {
            ((*key).to_owned(), values.iter().map(|v| (*v).to_owned()).collect())
        });
        EventQuery {
            since: Some(Timestamp::UNIX_EPOCH),
            until: Some(Timestamp::now()),
            filters: filters.collect(),
        }
    }

    async fn actions(events: &Events, query: EventQuery) -> Vec<String> {
        events.follow(query).map(|event| event.action.clone()).collect().await
    }

    #[tokio::test]
    async fn each_filter_finds_its_events() {
        let events = Events::default();
        let web = attributes(&[("image", "nginx:1.27"), ("name", "web"), ("tier", "front")]);
        events.publish("container", "create", "abcdef", web.clone());
        events.publish("container", "exec_create: ls", "abcdef", web);
        events.publish("volume", "mount", "data", attributes(&[("driver", "local")]));
        events.publish_scoped("swarm", "service", "update", "svc1", attributes(&[("name", "api")]));
        let cases: [(Wanted, &str); 11] = [
            (&[], "create,exec_create: ls,mount,update"),
            (&[("type", &["volume", "service"])], "mount,update"),
            (&[("event", &["exec_create"])], "exec_create: ls"),
            (&[("container", &["abc"]), ("event", &["create"])], "create"),
            (&[("container", &["web"])], "create,exec_create: ls"),
            (&[("label", &["tier=front"])], "create,exec_create: ls"),
            (&[("label", &["tier=back"])], ""),
            (&[("image", &["nginx"]), ("event", &["create"])], "create"),
            (&[("scope", &["swarm"])], "update"),
            (&[("service", &["api"])], "update"),
            (&[("volume", &["data"])], "mount"),
        ];
        for (filters, expected) in cases {
            assert_eq!(actions(&events, history(filters)).await.join(","), expected, "{filters:?}");
        }
    }

    #[tokio::test]
    async fn the_history_is_bounded_and_a_follower_sees_what_comes() {
        let events = Events::default();
        for n in 0..HISTORY_EVENTS_MAX + 10 {
            events.publish("image", &n.to_string(), "", BTreeMap::new());
        }
        let kept = actions(&events, history(&[])).await;
        assert_eq!((kept.len(), kept[0].as_str()), (HISTORY_EVENTS_MAX, "10"));

        let mut live = Box::pin(events.follow(EventQuery::default()));
        events.publish("image", "later", "", BTreeMap::new());
        assert_eq!(live.next().await.unwrap().action, "later");
    }

    #[tokio::test]
    async fn a_stream_ends_at_until() {
        let events = Events::default();
        let until = Timestamp::now().checked_add(5.milliseconds()).unwrap();
        let query = EventQuery { until: Some(until), ..EventQuery::default() };
        assert_eq!(events.follow(query).count().await, 0);
    }
}
