//! What a container may ask for, and the answers.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Seconds an answer may be kept. Tasks come and go, and nobody is told to forget.
const TTL: u32 = 0;

/// The names of one network: of each service, task and container what it is asked for by. Several may have one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    network: String,
    hosts: BTreeMap<String, Host>,
    /// In lower case; for each, the hosts that have it, and their addresses by it.
    names: BTreeMap<String, BTreeMap<String, BTreeSet<IpAddr>>>,
    /// Addresses, the hosts that have each, and the name it is told by.
    reverse: BTreeMap<IpAddr, BTreeMap<String, String>>,
}

/// What one service, task or container is asked for by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// In lower case, and the addresses behind each.
    names: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Addresses, and the name each is told by.
    pub reverse: BTreeMap<IpAddr, String>,
}

/// A zone that is changed while questions are answered from it.
pub type SharedZone = Arc<RwLock<Zone>>;

impl Host {
    /// Adds addresses to a name.
    pub fn add(&mut self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        self.names.entry(name.to_ascii_lowercase()).or_default().extend(addresses);
    }
}

impl Zone {
    /// Without hosts. `web.NETWORK` means `web` in it.
    pub fn new(network: &str) -> Self {
        Self { network: network.to_ascii_lowercase(), ..Self::default() }
    }

    /// From now on the host with this identifier has these names and no others.
    pub fn set(&mut self, id: &str, host: Host) {
        self.remove(id);
        for (name, addresses) in &host.names {
            let hosts = self.names.entry(name.clone()).or_default();
            hosts.insert(id.to_owned(), addresses.clone());
        }
        for (address, name) in &host.reverse {
            self.reverse.entry(*address).or_default().insert(id.to_owned(), name.clone());
        }
        self.hosts.insert(id.to_owned(), host);
    }

    /// Forgets a host.
    pub fn remove(&mut self, id: &str) {
        let Some(host) = self.hosts.remove(id) else { return };
        for name in host.names.into_keys() {
            remove_from(&mut self.names, name, id);
        }
        for address in host.reverse.into_keys() {
            remove_from(&mut self.reverse, address, id);
        }
    }

    fn find(&self, name: &str) -> Option<BTreeSet<IpAddr>> {
        let within = name.strip_suffix(&self.network).and_then(|name| name.strip_suffix('.'));
        let hosts = self.names.get(name).or_else(|| self.names.get(within?))?;
        Some(hosts.values().flatten().copied().collect())
    }
}

fn remove_from<Key: Ord, Value>(
    map: &mut BTreeMap<Key, BTreeMap<String, Value>>,
    key: Key,
    id: &str,
) {
    if let Entry::Occupied(mut hosts) = map.entry(key) {
        hosts.get_mut().remove(id);
        if hosts.get().is_empty() {
            hosts.remove();
        }
    }
}

/// Everything one container may ask for: the zones of its networks, in order.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub zones: Vec<SharedZone>,
    /// Whether nothing outside its networks is asked.
    pub is_internal: bool,
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Answer(Vec<u8>),
    /// The world may know.
    Forward,
    /// Not a question; nothing is said to it.
    Ignore,
}

impl Names {
    /// Answers a message as it came. `draw` gives a number below its argument: the order of addresses is left to it.
    pub fn answer(&self, question: &[u8], mut draw: impl FnMut(usize) -> usize) -> Reply {
        let Ok(message) = Message::from_vec(question) else { return Reply::Ignore };
        if message.metadata.message_type != MessageType::Query {
            return Reply::Ignore;
        }
        let [query] = &message.queries[..] else {
            return refuse(&message, ResponseCode::FormErr);
        };
        if message.metadata.op_code != OpCode::Query {
            return refuse(&message, ResponseCode::NotImp);
        }
        let name = query.name().to_ascii().to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        if query.query_type() == RecordType::PTR
            && let Some(known) = self.reverse(query.name())
        {
            let target = Name::from_ascii(format!("{known}.")).ok();
            let data = target.map(|target| RData::PTR(PTR(target)));
            return success(&message, data.into_iter().collect());
        }
        let Some(addresses) = self.find(|zone| zone.find(name)) else {
            return match self.is_internal {
                true => refuse(&message, ResponseCode::NXDomain),
                false => Reply::Forward,
            };
        };
        let mut data: Vec<_> = addresses
            .iter()
            .filter_map(|address| match (query.query_type(), address) {
                (RecordType::A, IpAddr::V4(address)) => Some(RData::A(A(*address))),
                (RecordType::AAAA, IpAddr::V6(address)) => Some(RData::AAAA(AAAA(*address))),
                _ => None,
            })
            .collect();
        for last in (1..data.len()).rev() {
            data.swap(last, draw(last + 1));
        }
        // A name that is known and has no such record is no error: other kinds may be asked for next.
        success(&message, data)
    }

    fn reverse(&self, name: &Name) -> Option<String> {
        let address = name.parse_arpa_name().ok()?.addr();
        self.find(|zone| zone.reverse.get(&address)?.values().next().cloned())
    }

    fn find<T>(&self, find: impl Fn(&Zone) -> Option<T>) -> Option<T> {
        let mut zones = self.zones.iter();
        zones.find_map(|zone| find(&zone.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// A failure to be told instead of silence, when the world does not answer.
pub(crate) fn failure(question: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(question).ok()?;
    match refuse(&message, ResponseCode::ServFail) {
        Reply::Answer(bytes) => Some(bytes),
        _ => None,
    }
}

fn success(question: &Message, data: Vec<RData>) -> Reply {
    let mut answer = begin(question, ResponseCode::NoError);
    if let Some(query) = question.queries.first() {
        let name = query.name();
        answer.answers =
            data.into_iter().map(|data| Record::from_rdata(name.clone(), TTL, data)).collect();
    }
    finish(&answer)
}

fn refuse(question: &Message, code: ResponseCode) -> Reply {
    finish(&begin(question, code))
}

fn begin(question: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.queries.clone_from(&question.queries);
    answer
}

fn finish(answer: &Message) -> Reply {
    answer.to_vec().map_or(Reply::Ignore, Reply::Answer)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    fn names(is_internal: bool) -> Names {
        let mut zone = Zone::new("Blue");
        let mut web = host(&[("Web", &["10.0.1.9"]), ("tasks.web", &["10.0.1.2", "10.0.1.3"])]);
        web.reverse.insert("10.0.1.2".parse().unwrap(), "web.1.abc.blue".into());
        zone.set("service", web);
        zone.set("container", host(&[("six", &["fd00::2"])]));
        Names { zones: vec![Arc::new(RwLock::new(zone))], is_internal }
    }

    fn host(names: &[(&str, &[&str])]) -> Host {
        let mut host = Host::default();
        for (name, addresses) in names {
            host.add(name, addresses.iter().map(|address| address.parse().unwrap()));
        }
        host
    }

    /// What the answer says: its code and its records, in order.
    fn ask(names: &Names, name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
        let mut message = Message::query();
        message.queries.push(Query::query(Name::from_ascii(name).unwrap(), kind));
        match names.answer(&message.to_vec().unwrap(), |_| 0) {
            Reply::Answer(bytes) => {
                let answer = Message::from_vec(&bytes).unwrap();
                assert_eq!(answer.metadata.id, message.metadata.id);
                let records = answer.answers.iter().map(|record| record.data.to_string());
                let mut records: Vec<_> = records.collect();
                records.sort();
                Some((answer.metadata.response_code, records))
            }
            Reply::Forward => None,
            Reply::Ignore => panic!("a question was ignored"),
        }
    }

    #[test]
    fn names_are_found_whatever_their_case_and_with_or_without_the_network() {
        let names = names(false);
        let found = |records: &[&str]| {
            let records = records.iter().map(|record| (*record).to_owned()).collect();
            Some((ResponseCode::NoError, records))
        };
        for (name, kind, expected) in [
            ("web.", RecordType::A, found(&["10.0.1.9"])),
            ("WEB.", RecordType::A, found(&["10.0.1.9"])),
            ("web.blue.", RecordType::A, found(&["10.0.1.9"])),
            ("tasks.web.", RecordType::A, found(&["10.0.1.2", "10.0.1.3"])),
            ("six.", RecordType::AAAA, found(&["fd00::2"])),
            ("web.", RecordType::AAAA, found(&[])),
            ("web.", RecordType::MX, found(&[])),
            ("2.1.0.10.in-addr.arpa.", RecordType::PTR, found(&["web.1.abc.blue."])),
            ("example.org.", RecordType::A, None),
            ("web.red.", RecordType::A, None),
        ] {
            assert_eq!(ask(&names, name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn a_name_is_known_as_long_as_anybody_has_it() {
        let mut zone = Zone::new("blue");
        let text = |found: Option<BTreeSet<IpAddr>>| {
            found.map(|found| found.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" "))
        };
        zone.set("one", host(&[("db", &["10.0.1.2"]), ("one", &["10.0.1.2"])]));
        zone.set("two", host(&[("db", &["10.0.1.3"])]));
        assert_eq!(text(zone.find("db")).as_deref(), Some("10.0.1.2 10.0.1.3"));
        zone.set("one", host(&[("db", &[])]));
        assert_eq!(text(zone.find("db")).as_deref(), Some("10.0.1.3"), "it has another now");
        assert_eq!(text(zone.find("one")), None, "it has that name no more");
        zone.remove("two");
        assert_eq!(text(zone.find("db")).as_deref(), Some(""), "known, and nowhere");
        zone.remove("one");
        assert_eq!(zone, Zone::new("blue"), "nothing is left");
    }

    #[test]
    fn from_an_internal_network_nobody_outside_is_asked() {
        let answer = ask(&names(true), "example.org.", RecordType::A);
        assert_eq!(answer, Some((ResponseCode::NXDomain, vec![])));
    }

    #[test]
    fn what_is_no_question_is_ignored() {
        let reply = Message::response(1, OpCode::Query).to_vec().unwrap();
        for bytes in [&b""[..], b"garbage", &[0; 11], &reply] {
            assert_eq!(names(false).answer(bytes, |_| 0), Reply::Ignore);
        }
    }
}
