//! Manifests and configurations of images, as a registry or an archive gives them.
#![no_main]

use engine::images::config::ImageConfig;
use engine::images::manifest::Document;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Document::parse(bytes);
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(bytes) {
        let layers = config.rootfs.diff_ids.len();
        assert_eq!(config.chain_ids().len(), layers);
        let _ = config.created_unix();
    }
});
