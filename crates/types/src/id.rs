//! Identifiers: 128 random bits, written as 25 base-36 digits, as Docker Swarm writes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Digits of an identifier's text form: the least number that holds 128 bits in base 36.
pub const ID_DIGITS: usize = 25;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// The text is not an identifier: wrong length, a digit outside `0-9a-z`, or more than 128 bits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid identifier {text:?}")]
pub struct ParseError {
    pub text: String,
}

/// Writes `value` in base 36, padded with zeros to 25 digits.
fn to_digits(mut value: u128) -> [u8; ID_DIGITS] {
    let mut digits = [b'0'; ID_DIGITS];
    for digit in digits.iter_mut().rev() {
        let rest = usize::try_from(value % 36).expect("a remainder of 36 fits any integer");
        *digit = DIGITS[rest];
        value /= 36;
    }
    digits
}

fn from_digits(text: &str) -> Result<u128, ParseError> {
    let invalid = || ParseError { text: text.chars().take(64).collect() };
    if text.len() != ID_DIGITS {
        return Err(invalid());
    }
    text.bytes().try_fold(0u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return Err(invalid()),
        };
        let shifted = value.checked_mul(36).ok_or_else(invalid)?;
        shifted.checked_add(u128::from(digit)).ok_or_else(invalid)
    })
}

macro_rules! identifiers {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// An identifier of these random bits.
            pub const fn from_random(bits: u128) -> Self {
                Self(bits)
            }

            /// The random bits themselves.
            pub const fn bits(self) -> u128 {
                self.0
            }

            /// The least identifier; a lower bound for range scans.
            pub const MIN: Self = Self(0);
            /// The greatest identifier; an upper bound for range scans.
            pub const MAX: Self = Self(u128::MAX);
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let digits = to_digits(self.0);
                f.pad(std::str::from_utf8(&digits).expect("base-36 digits are ASCII"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                from_digits(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0.to_be_bytes())
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(de::Error::custom)
                } else {
                    let bytes = serde_bytes::ByteArray::<16>::deserialize(deserializer)?;
                    Ok(Self(u128::from_be_bytes(bytes.into_array())))
                }
            }
        }
    )*};
}

identifiers! {
    /// Names a cluster; the O field of every certificate.
    ClusterId
    /// Names a node; the CN field of its certificate.
    NodeId
    ServiceId
    TaskId
    NetworkId
    SecretId
    ConfigId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_survives_its_text_form() {
        for bits in [0, 1, 35, 36, u128::MAX, 0x0123_4567_89ab_cdef] {
            let id = TaskId::from_random(bits);
            assert_eq!(id.to_string().len(), ID_DIGITS);
            assert_eq!(id.to_string().parse::<TaskId>(), Ok(id));
        }
    }

    #[test]
    fn text_order_is_numeric_order() {
        let (low, high) = (TaskId::from_random(35), TaskId::from_random(36));
        assert!(low < high && low.to_string() < high.to_string());
    }

    #[test]
    fn what_is_not_an_identifier_is_refused() {
        for text in ["", "abc", &"z".repeat(25), &"A".repeat(25), &"0".repeat(26)] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
    }
}
