//! House rules that compilers do not know: what every file begins with, how long it may be, who may depend on whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::host;

/// Lines of a source file beyond which it wants walls.
const FILE_LINES_MAX: usize = 800;

/// Which of our crates each may use: the list in ARCHITECTURE.md. Pure crates see no driver.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("store", &["types"]),
    ("planner", &["store", "types"]),
    ("dispatcher", &["store", "types"]),
    ("agent", &["types"]),
    ("docker-types", &["store", "types"]),
    ("runtime", &[]),
    ("shim", &["runtime"]),
    ("tunnel", &["runtime"]),
    ("network", &["tunnel"]),
    ("doctor", &["network"]),
    ("names", &[]),
    ("consensus", &["store", "types"]),
    ("ca", &["types"]),
    ("rpc", &["ca", "types"]),
    ("manager", &["ca", "consensus", "dispatcher", "planner", "rpc", "store", "types"]),
    ("engine", &["docker-types", "network", "runtime", "shim", "types"]),
    ("apiserver", &["ca", "docker-types", "engine", "manager", "network", "store", "types"]),
    (
        "node",
        &[
            "agent",
            "apiserver",
            "ca",
            "consensus",
            "docker-types",
            "doctor",
            "engine",
            "manager",
            "names",
            "network",
            "rpc",
            "shim",
            "store",
            "tunnel",
            "types",
        ],
    ),
    ("sim", &["agent", "consensus", "dispatcher", "planner", "store", "types"]),
    ("testbed", &[]),
    ("e2e", &["testbed"]),
];

/// Crates that decide and never do.
const PURE: &[&str] = &["types", "store", "planner", "dispatcher", "agent", "docker-types"];

/// What pure code may not touch: clocks, sockets, files, threads, the environment.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::thread",
    "std::process",
    "std::env",
    "SystemTime",
    "Instant::now",
    "tokio",
    "rustix",
    "libc",
    "Timestamp::now",
];

pub(crate) fn check() -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for file in sources(&host::root())? {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let name = file.strip_prefix(host::root()).unwrap_or(&file).display().to_string();
        check_file(&name, &text, &mut faults);
    }
    check_layers(&mut faults)?;
    if faults.is_empty() {
        return Ok(());
    }
    for fault in &faults {
        println!("{fault}");
    }
    bail!("{} untidy places", faults.len())
}

fn sources(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in
        std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?
    {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files.extend(sources(&path)?);
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn check_file(name: &str, text: &str, faults: &mut Vec<String>) {
    if !text.starts_with("//!") {
        faults.push(format!("{name}: begins without //! that says what the file is for"));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        faults.push(format!("{name}: {lines} lines, more than {FILE_LINES_MAX}"));
    }
    for (number, line) in text.lines().enumerate() {
        let is_marker = ["TODO", "FIXME", "XXX", "HACK"]
            .iter()
            .any(|word| line.contains(&format!("// {word}")));
        if is_marker {
            faults.push(format!("{name}:{}: leftover marker", number + 1));
        }
    }
    let pure = PURE.iter().any(|krate| name.starts_with(&format!("crates/{krate}/src/")));
    if pure {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if let Some(word) = IMPURE.iter().find(|word| code.contains(*word)) {
                faults.push(format!("{name}:{}: pure code uses {word}", number + 1));
            }
        }
    }
}

/// Compares each crate's dependencies on our own crates with [`LAYERS`].
fn check_layers(faults: &mut Vec<String>) -> anyhow::Result<()> {
    let layers: BTreeMap<_, BTreeSet<_>> =
        LAYERS.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    for (name, allowed) in &layers {
        let path = host::root().join("crates").join(name).join("Cargo.toml");
        let manifest =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let dependencies = manifest.split("[dev-dependencies]").next().unwrap_or("");
        let used = dependencies.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
        for used in used.filter(|used| layers.contains_key(used) && used != name) {
            if !allowed.contains(used) {
                faults.push(format!("crates/{name}: may not depend on {used}"));
            }
        }
    }
    Ok(())
}
