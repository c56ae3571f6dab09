//! What a node says of itself to its managers.

use std::collections::BTreeMap;

use types::node::{Description, Platform, TlsInfo};
use types::resources::{Generic, Resources};

use crate::config::VERSION;

/// This host, as it is now.
pub(crate) fn describe(
    labels: &[String],
    generic: &BTreeMap<String, Generic>,
    tls: TlsInfo,
) -> Description {
    let uname = rustix::system::uname();
    let pairs = labels.iter().filter_map(|label| label.split_once('='));
    let plugins = [
        ("Log", "json-file"),
        ("Log", "local"),
        ("Network", "bridge"),
        ("Network", "host"),
        ("Network", "null"),
        ("Volume", "local"),
    ];
    Description {
        hostname: uname.nodename().to_string_lossy().into_owned(),
        platform: Platform {
            architecture: uname.machine().to_string_lossy().into_owned(),
            os: "linux".into(),
        },
        resources: Resources {
            nano_cpus: cpus().saturating_mul(1_000_000_000),
            memory_bytes: memory_bytes(),
            generic: generic.clone(),
        },
        engine_version: VERSION.to_owned(),
        engine_labels: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        plugins: plugins.map(|(kind, name)| (kind.to_owned(), name.to_owned())).to_vec(),
        tls,
        tunnel_keys: Vec::new(),
    }
}

fn cpus() -> i64 {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn memory_bytes() -> i64 {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram.saturating_mul(info.mem_unit.into());
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
