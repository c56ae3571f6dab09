//! Ways in for the fuzz targets, to what no other crate sees.

use crate::filters::Filters;

/// Reads the `filters` of a request.
pub fn filters(text: &str) {
    let Ok(filters) = Filters::parse(text) else { return };
    let _ = filters.check(&["label", "name"]);
    let _ = filters.flag("dangling");
    for (key, values) in filters.clone().into_map() {
        assert_eq!(filters.get(&key), values);
    }
}
