//! Ways in for the fuzz targets.

use super::attach::{DetachKeys, parse_keys};
use super::{mounts, validate};

pub(crate) fn texts(text: &str) {
    let _ = validate::parse_port(text);
    let _ = validate::parse_host_port(text);
    let _ = validate::parse_extra_host(text);
    if let Ok(plan) = mounts::parse_bind(text) {
        assert!(plan.destination.starts_with('/'), "{plan:?}");
    }
    let _ = mounts::parse_volumes_from(text);
    let _ = mounts::check_volume_name(text);
    let cleaned = mounts::clean(text);
    assert_eq!(mounts::clean(&cleaned), cleaned);
    assert!(!cleaned.split('/').any(|part| part == ".." && text.starts_with('/')), "{cleaned}");
    if let Some((destination, options)) = text.split_once('\n') {
        let _ = mounts::parse_tmpfs(destination, options);
    }
    if let Ok(mount) = serde_json::from_str(text) {
        let _ = mounts::parse_mount(&mount);
    }
    if let Ok(keys) = parse_keys(text) {
        let (passed, _) = DetachKeys::new(keys).filter(text.as_bytes());
        assert!(passed.len() <= text.len());
    }
}
