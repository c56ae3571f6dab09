//! Signals by name or number, as Docker's clients write them.

use std::fmt;

use super::invalid::Invalid;

/// First and last real-time signal that programs may use.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

const NAMES: [(&str, i32); 33] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
];

/// A signal's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal(pub(crate) i32);

impl Signal {
    pub(crate) const KILL: Self = Self(9);
    pub(crate) const TERM: Self = Self(15);

    /// Reads `SIGTERM`, `term`, `RTMIN+3` or `15`.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::Signal { text: text.to_owned() };
        if let Ok(number) = text.parse::<i32>() {
            return if (1..=RTMAX).contains(&number) { Ok(Self(number)) } else { Err(invalid()) };
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let realtime = |rest: &str, base: i32, sign: i32| match rest {
            "" => Some(base),
            rest => {
                rest.trim_start_matches(['+', '-']).parse::<i32>().ok().map(|n| base + sign * n)
            }
        };
        let number = match name {
            "XFSZ" => Some(25),
            name => NAMES
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, number)| *number)
                .or_else(|| name.strip_prefix("RTMIN").and_then(|rest| realtime(rest, RTMIN, 1)))
                .or_else(|| name.strip_prefix("RTMAX").and_then(|rest| realtime(rest, RTMAX, -1)))
                .filter(|number| (1..=RTMAX).contains(number)),
        };
        number.map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::Signal;

    #[test]
    fn signals_are_read_by_name_and_number() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("KILL", 9),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("xfsz", 25),
        ] {
            assert_eq!(Signal::parse(text), Ok(Signal(number)), "{text}");
        }
        for text in ["", "0", "65", "SIG", "FOO", "RTMIN+40", "-1"] {
            assert!(Signal::parse(text).is_err(), "{text}");
        }
    }
}
