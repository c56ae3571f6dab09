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
