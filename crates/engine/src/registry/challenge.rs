//! What a registry asks for in `WWW-Authenticate`. Pure.

use std::collections::BTreeMap;

/// Longest header that is looked at, in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// One way to authenticate that a server offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Lower case: `bearer`, `basic`.
    pub(super) scheme: String,
    /// Keys in lower case.
    pub(super) parameters: BTreeMap<String, String>,
}

impl Challenge {
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.parameters.get(key).map(String::as_str)
    }
}

/// Reads all challenges of one header's value. What makes no sense is left out.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header.get(..HEADER_BYTES_MAX).unwrap_or(header);
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            return challenges;
        }
        match after.trim_start().strip_prefix('=') {
            Some(after) => {
                let (value, after) = value(after.trim_start());
                if let Some(challenge) = challenges.last_mut() {
                    challenge.parameters.insert(word.to_ascii_lowercase(), value);
                }
                rest = after;
            }
            None => {
                let scheme = word.to_ascii_lowercase();
                challenges.push(Challenge { scheme, parameters: BTreeMap::new() });
                rest = after;
            }
        }
    }
}

fn token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_read_with_their_parameters() {
        let hub = parse(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push",error="insufficient_scope""#,
        );
        assert_eq!(hub.len(), 1);
        assert_eq!(hub[0].scheme, "bearer");
        assert_eq!(hub[0].get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(hub[0].get("scope"), Some("repository:library/x:pull,push"));
        assert_eq!(hub[0].get("error"), Some("insufficient_scope"));

        let two = parse(r#"Basic realm="a \"b\", c", Bearer Realm = plain , x=y"#);
        assert_eq!((two[0].scheme.as_str(), two[0].get("realm")), ("basic", Some(r#"a "b", c"#)));
        assert_eq!((two[1].get("realm"), two[1].get("x")), (Some("plain"), Some("y")));
        assert_eq!(
            parse("Negotiate"),
            [Challenge { scheme: "negotiate".into(), ..Challenge::default() }]
        );
        assert!(parse("").is_empty());
        assert!(parse("=x").is_empty());
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic_or_hang(text in "\\PC{0,200}") {
            parse(&text);
        }
    }
}
