//! Names and ids: what they look like, and made-up ones for containers that were given none.

use rand::RngExt;

/// Characters of a container's id.
pub const ID_LENGTH: usize = 64;
/// Characters of the short form that people see.
pub const SHORT_ID_LENGTH: usize = 12;

/// What names consist of, as Docker's messages quote it.
pub(crate) const NAME_PATTERN: &str = "[a-zA-Z0-9][a-zA-Z0-9_.-]";

const LEFT: [&str; 40] = [
    "amber", "brave", "bright", "busy", "calm", "careful", "clear", "clever", "daring", "eager",
    "early", "fair", "fleet", "gentle", "glad", "golden", "honest", "humble", "keen", "kind",
    "lively", "lucky", "mellow", "merry", "mild", "neat", "nimble", "patient", "placid", "proud",
    "quick", "quiet", "ready", "steady", "sunny", "swift", "tidy", "warm", "wise", "young",
];

const RIGHT: [&str; 40] = [
    "acacia", "alder", "apiary", "aster", "bloom", "borage", "bramble", "briar", "clover", "comb",
    "crocus", "daisy", "drone", "fern", "forager", "foxglove", "garden", "hazel", "heather",
    "hive", "honey", "hyssop", "lavender", "linden", "mallow", "meadow", "mint", "nectar",
    "orchard", "pollen", "poppy", "rosemary", "sage", "sedum", "swarm", "thistle", "thyme",
    "violet", "willow", "yarrow",
];

/// A new id: 32 random bytes in hex. Never all digits in its short form, which would pass for a number.
pub fn new_id() -> String {
    loop {
        let bytes: [u8; ID_LENGTH / 2] = rand::rng().random();
        let id = const_hex::encode(bytes);
        if id[..SHORT_ID_LENGTH].bytes().any(|byte| byte.is_ascii_alphabetic()) {
            return id;
        }
    }
}

/// A name of two words, with a number when `attempt` shows that plain ones were taken.
pub fn invented(attempt: u32) -> String {
    let mut random = rand::rng();
    let (left, right) =
        (LEFT[random.random_range(..LEFT.len())], RIGHT[random.random_range(..RIGHT.len())]);
    if attempt == 0 {
        return format!("{left}_{right}");
    }
    format!("{left}_{right}{}", random.random_range(0..10_u32.saturating_pow(attempt.min(9))))
}

/// Whether a container or volume may have this name: at least two characters of the pattern.
pub(crate) fn is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() >= 2
        && bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// The first twelve characters.
pub fn short(id: &str) -> &str {
    id.get(..SHORT_ID_LENGTH).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::{ID_LENGTH, invented, is_valid, new_id};

    #[test]
    fn names_follow_dockers_pattern() {
        for name in ["ab", "web.1", "a_b-c", "0x"] {
            assert!(is_valid(name), "{name}");
        }
        for name in ["", "a", "_ab", "-ab", "a b", "a/b", "ä1", "a\n"] {
            assert!(!is_valid(name), "{name}");
        }
        assert!(is_valid(&invented(0)) && is_valid(&invented(3)));
        assert_eq!(new_id().len(), ID_LENGTH);
    }
}
