//! DNS messages as they are on the wire (RFC 1035, section 4): one question is read, its answer is written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of the header.
const HEADER: usize = 12;

/// Bytes of a datagram whose sender has not said that it takes more (RFC 1035, 4.2.1).
const DATAGRAM_LEAST: usize = 512;

/// Bytes of the longest name, with the lengths of its labels.
const NAME_MAX: usize = 255;
const LABEL_MAX: usize = 63;

/// Seconds an answer may be kept. Tasks come and go, and nobody is told to forget.
const TTL: [u8; 4] = [0; 4];

/// Where the question's name stands: what answers are about is told by pointing there.
const NAME_OF_QUESTION: [u8; 2] = [0xc0, 12];

/// Flags in the third byte.
const IS_RESPONSE: u8 = 0x80;
const OPERATION: u8 = 0x78;
const IS_CUT: u8 = 0x02;
const WANTS_RECURSION: u8 = 0x01;
/// Flag in the fourth byte.
const OFFERS_RECURSION: u8 = 0x80;

const INTERNET: u16 = 1;

/// Types of records.
pub(crate) const A: u16 = 1;
pub(crate) const PTR: u16 = 12;
pub(crate) const AAAA: u16 = 28;
const OPT: u16 = 41;

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
}

/// How a message came, which says how long its answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    Question(Question<'a>),
    /// A question that cannot be answered, and why.
    Wrong(Code),
    Nothing,
}

/// One question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Question<'a> {
    /// Header and question.
    message: &'a [u8],
    /// In lower case, its labels joined by dots.
    pub(crate) name: String,
    pub(crate) kind: u16,
    class: u16,
    /// Bytes that the answer may have.
    room: usize,
}

/// A record to be told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Record {
    Address(IpAddr),
    Name(String),
}

/// Reads a message as it came.
pub(crate) fn read(message: &[u8], transport: Transport) -> Heard<'_> {
    let Some(header) = message.first_chunk::<HEADER>() else { return Heard::Nothing };
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if header[2] & IS_RESPONSE != 0 {
        return Heard::Nothing;
    }
    if header[2] & OPERATION != 0 {
        return Heard::Wrong(Code::NotImp);
    }
    if count(4) != 1 {
        return Heard::Wrong(Code::FormErr);
    }
    let Some((name, end)) = read_name(message) else { return Heard::Nothing };
    let Some((kind, class)) = pair(message, end) else { return Heard::Nothing };
    let (question, rest) = message.split_at(end + 4);
    let has_others = count(6) != 0 || count(8) != 0;
    let room = match transport {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp if has_others || count(10) == 0 => DATAGRAM_LEAST,
        Transport::Udp => offered(rest).unwrap_or(DATAGRAM_LEAST).max(DATAGRAM_LEAST),
    };
    Heard::Question(Question { message: question, name, kind, class, room })
}

/// The name that begins behind the header, and where it ends.
fn read_name(message: &[u8]) -> Option<(String, usize)> {
    let (mut name, mut at) = (String::with_capacity(64), HEADER);
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        // More would be a pointer, and there is nothing before to point to.
        if length > LABEL_MAX || at + length - HEADER > NAME_MAX {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        let label = message.get(at..at + length)?;
        // A name with other characters is nobody's here, whatever it becomes.
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        at += length;
    }
}

fn pair(message: &[u8], at: usize) -> Option<(u16, u16)> {
    let [a, b, c, d] = message.get(at..at + 4)?.try_into().ok()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// What the sender takes in a datagram, if it says so first of all (RFC 6891, 6.1.2).
fn offered(additional: &[u8]) -> Option<usize> {
    let (kind, bytes) = pair(additional, 1)?;
    (additional[0] == 0 && kind == OPT).then_some(bytes.into())
}

/// Says nothing but what became of a question.
pub(crate) fn refuse(message: &[u8], code: Code) -> Option<Vec<u8>> {
    let mut answer = message.get(..HEADER)?.to_vec();
    set_flags(&mut answer, code);
    answer[4..].fill(0);
    Some(answer)
}

impl Question<'_> {
    /// The answer, with as many of the records as there is room for.
    pub(crate) fn answer(&self, code: Code, records: &[Record]) -> Vec<u8> {
        let mut answer = Vec::with_capacity(self.message.len() + 28 * records.len());
        answer.extend_from_slice(self.message);
        set_flags(&mut answer, code);
        // Only the question itself is repeated.
        answer[6..HEADER].fill(0);
        let mut count: u16 = 0;
        for record in records {
            let before = answer.len();
            write(&mut answer, record);
            if answer.len() > self.room {
                answer.truncate(before);
                answer[2] |= IS_CUT;
                break;
            }
            count += 1;
        }
        answer[6..8].copy_from_slice(&count.to_be_bytes());
        answer
    }

    /// Whether it is about what we have names for.
    pub(crate) fn is_internet(&self) -> bool {
        self.class == INTERNET
    }

    /// The address that is asked for backwards.
    pub(crate) fn reverse(&self) -> Option<IpAddr> {
        if let Some(octets) = self.name.strip_suffix(".in-addr.arpa") {
            let mut parts = octets.rsplit('.').map(str::parse::<u8>);
            let mut next = || parts.next()?.ok();
            let address = Ipv4Addr::new(next()?, next()?, next()?, next()?);
            return parts.next().is_none().then_some(address.into());
        }
        let nibbles = self.name.strip_suffix(".ip6.arpa")?;
        let mut address: u128 = 0;
        let mut count = 0;
        for nibble in nibbles.rsplit('.') {
            let digit = nibble.chars().next().filter(|_| nibble.len() == 1)?.to_digit(16)?;
            address = address << 4 | u128::from(digit);
            count += 1;
        }
        (count == 32).then(|| Ipv6Addr::from_bits(address).into())
    }
}

fn set_flags(answer: &mut [u8], code: Code) {
    answer[2] = IS_RESPONSE | answer[2] & (OPERATION | WANTS_RECURSION);
    answer[3] = OFFERS_RECURSION | code as u8;
}

fn write(answer: &mut Vec<u8>, record: &Record) {
    let mut head = |kind: u16, length: usize| {
        let length = u16::try_from(length).expect("names and addresses are short");
        answer.extend_from_slice(&NAME_OF_QUESTION);
        for number in [kind, INTERNET] {
            answer.extend_from_slice(&number.to_be_bytes());
        }
        answer.extend_from_slice(&TTL);
        answer.extend_from_slice(&length.to_be_bytes());
    };
    match record {
        Record::Address(IpAddr::V4(address)) => {
            head(A, 4);
            answer.extend_from_slice(&address.octets());
        }
        Record::Address(IpAddr::V6(address)) => {
            head(AAAA, 16);
            answer.extend_from_slice(&address.octets());
        }
        Record::Name(name) => {
            let name = encode_name(name);
            head(PTR, name.len());
            answer.extend_from_slice(&name);
        }
    }
}

/// What is too long for the wire is cut.
fn encode_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(LABEL_MAX)];
        if bytes.len() + label.len() + 2 > NAME_MAX {
            break;
        }
        bytes.push(u8::try_from(label.len()).expect("cut just now"));
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes
}
