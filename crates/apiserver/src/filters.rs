//! The `filters` parameter: which keys were given, with which values.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::ApiError;

/// Filter keys and their values. No key means no restriction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filters {
    values: BTreeMap<String, Vec<String>>,
}

/// The two forms clients send: `{"label": {"a": true}}` since 1.22, `{"label": ["a"]}` before it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Set(BTreeMap<String, bool>),
    List(Vec<String>),
}

impl Filters {
    /// # Errors
    /// 400 `invalid filter` when the text is neither of the two forms.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let parsed: BTreeMap<String, Option<Values>> =
            serde_json::from_str(text).map_err(|_| ApiError::bad_request("invalid filter"))?;
        let values = parsed.into_iter().map(|(key, values)| {
            let values = match values {
                Some(Values::Set(set)) => set.into_keys().collect(),
                Some(Values::List(list)) => list,
                None => Vec::new(),
            };
            (key, values)
        });
        Ok(Self { values: values.collect() })
    }

    /// # Errors
    /// 400 `invalid filter 'x'` for the first key that is not in `accepted`.
    pub(crate) fn check(&self, accepted: &[&str]) -> Result<(), ApiError> {
        match self.values.keys().find(|key| !accepted.contains(&key.as_str())) {
            Some(key) => Err(ApiError::bad_request(format!("invalid filter '{key}'"))),
            None => Ok(()),
        }
    }

    /// The values of `key`; empty when it was not given.
    pub(crate) fn get(&self, key: &str) -> &[String] {
        self.values.get(key).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A filter that takes one boolean, such as `dangling`.
    ///
    /// # Errors
    /// 400 `invalid filter 'dangling=[x]'` for anything but one of `1`, `true`, `0`, `false`.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let values = match self.values.get(key) {
            None => return Ok(None),
            Some(values) => values,
        };
        match values.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["1" | "true"] => Ok(Some(true)),
            ["0" | "false"] => Ok(Some(false)),
            others => Err(Self::invalid(key, &others.join(" "))),
        }
    }

    /// Docker's refusal of one filter's value.
    pub(crate) fn invalid(key: &str, value: &str) -> ApiError {
        ApiError::bad_request(format!("invalid filter '{key}=[{value}]'"))
    }

    /// All keys and values, for a layer that does its own matching.
    pub(crate) fn into_map(self) -> BTreeMap<String, Vec<String>> {
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::Filters;

    #[test]
    fn both_forms_say_the_same() {
        let set = Filters::parse(r#"{"label":{"a":true,"b=c":true}}"#).unwrap();
        let list = Filters::parse(r#"{"label":["a","b=c"]}"#).unwrap();
        assert_eq!(set, list);
        assert_eq!(set.get("label"), ["a", "b=c"]);
        assert!(set.get("name").is_empty());
    }

    #[test]
    fn what_is_not_a_filter_is_refused() {
        for text in ["x", "[]", r#"{"label":3}"#, r#"{"label":{"a":"b"}}"#] {
            assert_eq!(Filters::parse(text).unwrap_err().message, "invalid filter", "{text}");
        }
        let unknown =
            Filters::parse(r#"{"colour":["red"]}"#).unwrap().check(&["label"]).unwrap_err();
        assert_eq!(unknown.message, "invalid filter 'colour'");
        let filters = Filters::parse(r#"{"dangling":["maybe"]}"#).unwrap();
        assert_eq!(
            filters.flag("dangling").unwrap_err().message,
            "invalid filter 'dangling=[maybe]'"
        );
    }
}
