//! What a container may ask for, and the answers.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use crate::message::{A, AAAA, Code, Heard, PTR, Question, Record, Transport, read, refuse};

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

    /// Names, with the addresses behind each.
    pub fn all(&self) -> impl Iterator<Item = (&str, BTreeSet<IpAddr>)> {
        let addresses =
            |hosts: &BTreeMap<_, BTreeSet<_>>| hosts.values().flatten().copied().collect();
        self.names.iter().map(move |(name, hosts)| (name.as_str(), addresses(hosts)))
    }

    /// The addresses of that kind behind a name; none at all for one that is not known.
    fn records(&self, name: &str, kind: u16) -> Option<Vec<Record>> {
        let within = name.strip_suffix(&self.network).and_then(|name| name.strip_suffix('.'));
        let hosts = self.names.get(name).or_else(|| self.names.get(within?))?;
        let addresses = hosts.values().flatten().filter(|address| match address {
            IpAddr::V4(_) => kind == A,
            IpAddr::V6(_) => kind == AAAA,
        });
        let mut records: Vec<_> = addresses.map(|address| Record::Address(*address)).collect();
        // Several may have the name, and an address by it.
        if hosts.len() > 1 {
            records.sort_unstable();
            records.dedup();
        }
        Some(records)
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

impl PartialEq for Names {
    /// Whether both hold the very same zones.
    fn eq(&self, other: &Self) -> bool {
        let is_same = |(one, other): (&SharedZone, &SharedZone)| Arc::ptr_eq(one, other);
        self.is_internal == other.is_internal
            && self.zones.len() == other.zones.len()
            && self.zones.iter().zip(&other.zones).all(is_same)
    }
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
    pub fn answer(
        &self,
        message: &[u8],
        transport: Transport,
        draw: impl FnMut(usize) -> usize,
    ) -> Reply {
        match read(message, transport) {
            Heard::Question(question) => self.reply(&question, draw),
            Heard::Wrong(code) => refuse(message, code).map_or(Reply::Ignore, Reply::Answer),
            Heard::Nothing => Reply::Ignore,
        }
    }

    fn reply(&self, question: &Question<'_>, mut draw: impl FnMut(usize) -> usize) -> Reply {
        let answer = |records: &[Record]| Reply::Answer(question.answer(Code::NoError, records));
        if question.kind == PTR
            && let Some(name) = self.reverse(question)
        {
            return answer(&[Record::Name(name)]);
        }
        let known = || self.find(|zone| zone.records(&question.name, question.kind));
        let Some(mut records) = question.is_internet().then(known).flatten() else {
            return match self.is_internal {
                true => Reply::Answer(question.answer(Code::NxDomain, &[])),
                false => Reply::Forward,
            };
        };
        for last in (1..records.len()).rev() {
            records.swap(last, draw(last + 1));
        }
        // A name that is known and has no such record is no error: other kinds may be asked for next.
        answer(&records)
    }

    fn reverse(&self, question: &Question<'_>) -> Option<String> {
        let address = question.reverse()?;
        self.find(|zone| zone.reverse.get(&address)?.values().next().cloned())
    }

    fn find<T>(&self, find: impl Fn(&Zone) -> Option<T>) -> Option<T> {
        let mut zones = self.zones.iter();
        zones.find_map(|zone| find(&zone.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// A failure to be told instead of silence, when the world does not answer.
pub(crate) fn failure(message: &[u8]) -> Option<Vec<u8>> {
    match read(message, Transport::Tcp) {
        Heard::Question(question) => Some(question.answer(Code::ServFail, &[])),
        Heard::Wrong(code) => refuse(message, code),
        Heard::Nothing => None,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    fn names(is_internal: bool) -> Names {
        let mut zone = Zone::new("Blue");
        let mut web = host(&[("Web", &["10.0.1.9"]), ("tasks.web", &["10.0.1.2", "10.0.1.3"])]);
        let told = ["10.0.1.2", "fd00::2"];
        web.reverse.extend(told.map(|it| (it.parse().unwrap(), "web.1.abc.blue".to_owned())));
        zone.set("service", web);
        zone.set("container", host(&[("six", &["fd00::2"]), ("nobody", &[])]));
        let many: Vec<_> = (0..100).map(|last| format!("10.0.2.{last}")).collect();
        zone.set("many", host(&[("many", &many.iter().map(String::as_str).collect::<Vec<_>>())]));
        Names { zones: vec![Arc::new(RwLock::new(zone))], is_internal }
    }

    fn host(names: &[(&str, &[&str])]) -> Host {
        let mut host = Host::default();
        for (name, addresses) in names {
            host.add(name, addresses.iter().map(|address| address.parse().unwrap()));
        }
        host
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.queries.push(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    /// What another reads in the answer.
    fn ask(names: &Names, message: &Message, transport: Transport) -> Option<Message> {
        match names.answer(&message.to_vec().unwrap(), transport, |_| 0) {
            Reply::Answer(bytes) => {
                let answer = Message::from_vec(&bytes).unwrap();
                assert_eq!(answer.metadata.id, message.metadata.id);
                assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
                assert_eq!(answer.queries, message.queries);
                Some(answer)
            }
            Reply::Forward => None,
            Reply::Ignore => panic!("a question was ignored"),
        }
    }

    /// Its code and its records, in order of text.
    fn told(names: &Names, name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
        let answer = ask(names, &question(name, kind), Transport::Udp)?;
        let mut records: Vec<_> = answer
            .answers
            .iter()
            .map(|record| {
                assert_eq!(record.name.to_ascii(), name, "the record is about what was asked");
                record.data.to_string()
            })
            .collect();
        records.sort();
        Some((answer.metadata.response_code, records))
    }

    #[test]
    fn names_are_found_whatever_their_case_and_with_or_without_the_network() {
        let names = names(false);
        let found = |records: &[&str]| {
            let records = records.iter().map(|record| (*record).to_owned()).collect();
            Some((ResponseCode::NoError, records))
        };
        let backwards = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.";
        for (name, kind, expected) in [
            ("web.", RecordType::A, found(&["10.0.1.9"])),
            ("WEB.", RecordType::A, found(&["10.0.1.9"])),
            ("web.blue.", RecordType::A, found(&["10.0.1.9"])),
            ("tasks.web.", RecordType::A, found(&["10.0.1.2", "10.0.1.3"])),
            ("six.", RecordType::AAAA, found(&["fd00::2"])),
            ("web.", RecordType::AAAA, found(&[])),
            ("web.", RecordType::MX, found(&[])),
            ("nobody.", RecordType::A, found(&[])),
            ("2.1.0.10.in-addr.arpa.", RecordType::PTR, found(&["web.1.abc.blue."])),
            (backwards, RecordType::PTR, found(&["web.1.abc.blue."])),
            ("3.2.1.0.10.in-addr.arpa.", RecordType::PTR, None),
            ("x.ip6.arpa.", RecordType::PTR, None),
            ("example.org.", RecordType::A, None),
            ("web.red.", RecordType::A, None),
            (".", RecordType::A, None),
        ] {
            assert_eq!(told(&names, name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn from_an_internal_network_nobody_outside_is_asked() {
        let answer = told(&names(true), "example.org.", RecordType::A);
        assert_eq!(answer, Some((ResponseCode::NXDomain, vec![])));
    }

    #[test]
    fn a_datagram_holds_what_its_reader_takes_and_says_when_that_is_not_all() {
        let names = names(false);
        let plain = question("many.", RecordType::A);
        let mut roomy = plain.clone();
        let mut edns = Edns::new();
        edns.set_max_payload(4_096);
        roomy.edns = Some(edns);
        for (message, transport, is_whole) in [
            (&plain, Transport::Udp, false),
            (&roomy, Transport::Udp, true),
            (&plain, Transport::Tcp, true),
        ] {
            let answer = ask(&names, message, transport).unwrap();
            assert_eq!(answer.metadata.truncation, !is_whole);
            assert_eq!(answer.answers.len() == 100, is_whole);
            assert!(is_whole || answer.to_vec().unwrap().len() <= 512);
        }
    }

    #[test]
    fn what_is_no_question_is_ignored() {
        let reply = Message::response(1, OpCode::Query).to_vec().unwrap();
        let whole = question("web.", RecordType::A).to_vec().unwrap();
        let mut pointing = whole.clone();
        pointing[12] = 0xc0;
        for bytes in [&b""[..], b"garbage", &[0; 11], &reply, &whole[..whole.len() - 1], &pointing]
        {
            assert_eq!(names(false).answer(bytes, Transport::Udp, |_| 0), Reply::Ignore);
        }
    }

    #[test]
    fn a_question_of_another_kind_is_told_so() {
        let mut update = question("web.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        let mut two = question("web.", RecordType::A);
        two.queries.push(two.queries[0].clone());
        for (message, code) in [(update, ResponseCode::NotImp), (two, ResponseCode::FormErr)] {
            let message = message.to_vec().unwrap();
            let Reply::Answer(bytes) = names(false).answer(&message, Transport::Udp, |_| 0) else {
                panic!("is answered");
            };
            assert_eq!(Message::from_vec(&bytes).unwrap().metadata.response_code, code);
        }
    }

    #[test]
    fn a_name_is_known_as_long_as_anybody_has_it() {
        let mut zone = Zone::new("blue");
        let text = |found: Option<Vec<Record>>| {
            let text = |record: &Record| match record {
                Record::Address(address) => address.to_string(),
                Record::Name(name) => name.clone(),
            };
            found.map(|found| found.iter().map(text).collect::<Vec<_>>().join(" "))
        };
        zone.set("one", host(&[("db", &["10.0.1.2"]), ("one", &["10.0.1.2"])]));
        zone.set("two", host(&[("db", &["10.0.1.3"])]));
        assert_eq!(text(zone.records("db", A)).as_deref(), Some("10.0.1.2 10.0.1.3"));
        zone.set("one", host(&[("db", &[])]));
        assert_eq!(text(zone.records("db", A)).as_deref(), Some("10.0.1.3"), "it has another now");
        assert_eq!(text(zone.records("one", A)), None, "it has that name no more");
        zone.remove("two");
        assert_eq!(text(zone.records("db", A)).as_deref(), Some(""), "known, and nowhere");
        zone.remove("one");
        assert_eq!(zone, Zone::new("blue"), "nothing is left");
    }
}
