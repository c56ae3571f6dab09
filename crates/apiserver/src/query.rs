//! Query strings as Docker's handlers read them.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::error::ApiError;
use crate::filters::Filters;

/// The parameters of a request, in their order. Repeated keys are kept (`names=a&names=b`).
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(crate) fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Self { pairs: pairs.collect() }
    }

    /// The first value of `key`; an absent key is the empty text, as in Docker.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.pairs.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }

    /// The first value of `key` when it is there and not empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        Some(self.text(key)).filter(|value| !value.is_empty())
    }

    /// Every value of a repeated key.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Whether `key` stands in the query at all.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|(k, _)| k == key)
    }

    /// Docker's convention: empty, `0`, `no`, `false` and `none` are false, all else is true.
    pub(crate) fn flag(&self, key: &str) -> bool {
        let value = self.text(key).trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// As [`Query::flag`], with another answer for an absent key.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> bool {
        if self.has(key) { self.flag(key) } else { default }
    }

    /// A whole number.
    ///
    /// # Errors
    /// 400 in the words of Go's `strconv`, which is what clients are used to.
    pub(crate) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| {
            ApiError::bad_request(format!("strconv.Atoi: parsing {value:?}: invalid syntax"))
        })
    }

    /// The `filters` parameter, with every key checked against `accepted`.
    ///
    /// # Errors
    /// 400 `invalid filter 'x'`.
    pub(crate) fn filters(&self, accepted: &[&str]) -> Result<Filters, ApiError> {
        let filters = Filters::parse(self.text("filters"))?;
        filters.check(accepted)?;
        Ok(filters)
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or("")))
    }
}

/// Percent decoding with `+` as space. A broken escape is kept as it stands.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (byte, used) = match bytes[at] {
            b'+' => (b' ', 1),
            b'%' => match escape(&bytes[at + 1..]) {
                Some(byte) => (byte, 3),
                None => (b'%', 1),
            },
            byte => (byte, 1),
        };
        out.push(byte);
        at += used;
    }
    String::from_utf8(out)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn escape(bytes: &[u8]) -> Option<u8> {
    let high = char::from(*bytes.first()?).to_digit(16)?;
    let low = char::from(*bytes.get(1)?).to_digit(16)?;
    u8::try_from(high * 16 + low).ok()
}

#[cfg(test)]
mod tests {
    use super::Query;

    #[test]
    fn booleans_follow_dockers_convention() {
        let query = Query::parse("a=1&b=0&c=no&d=false&e=None&f=&g=yes&h");
        let read: String = "abcdefgh"
            .chars()
            .map(|k| if query.flag(&k.to_string()) { '1' } else { '0' })
            .collect();
        assert_eq!(read, "10000010");
        assert!(query.flag_or("absent", true));
        assert!(!query.flag_or("b", true));
    }

    #[test]
    fn text_is_percent_decoded_and_broken_escapes_are_kept() {
        let query = Query::parse("a=x%2Fy+z&b=%zz&c=%e4&names=1&names=2&&=");
        assert_eq!(query.text("a"), "x/y z");
        assert_eq!(query.text("b"), "%zz");
        assert_eq!(query.text("c"), "\u{fffd}");
        assert_eq!(query.all("names").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.get("absent"), None);
    }

    #[test]
    fn a_number_that_is_none_is_refused_in_gos_words() {
        let error = Query::parse("t=abc").number::<i64>("t").unwrap_err();
        assert_eq!(error.message, "strconv.Atoi: parsing \"abc\": invalid syntax");
        assert_eq!(Query::parse("t=-5").number::<i64>("t"), Ok(Some(-5)));
    }
}
