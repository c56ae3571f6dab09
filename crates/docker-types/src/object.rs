//! The rules that all objects of the API share.

use serde::{Deserialize, Deserializer};

/// Reads `null` as the type's default, as Go does.
///
/// # Errors
/// Whatever the type's own deserializer refuses.
pub fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Declares an object of the API: PascalCase keys, absent and `null` fields as defaults.
#[macro_export]
macro_rules! object {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident : $type:ty ),* $(,)?
        }
    )*) => { $(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        pub struct $name {
            $( $(#[$field_meta])* #[serde(deserialize_with = "crate::nullable")] pub $field: $type ),*
        }
    )* };
}

/// `{}`: the value of Go's sets. Whatever stands there on input counts as present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Empty {}

impl serde::Serialize for Empty {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        serializer.serialize_map(Some(0))?.end()
    }
}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer)?;
        Ok(Self {})
    }
}

/// Writes a number as Go does: a whole one without a fraction.
///
/// # Errors
/// Whatever the serializer refuses.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn number_as_go<S: serde::Serializer>(
    number: &f32,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if number.fract() == 0.0 && number.abs() < 1e6 {
        #[expect(clippy::cast_possible_truncation, reason = "whole and small")]
        return serializer.serialize_i64(*number as i64);
    }
    serializer.serialize_f32(*number)
}

/// Whether a value is its type's zero value, which Go's `omitempty` leaves out.
pub fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
