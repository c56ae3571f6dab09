//! Device nodes of a container, and which it may open.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use docker_types::container::{DeviceMapping, HostConfig};
use runtime::defaults;
use runtime::spec::{Device, DeviceRule};

use crate::containers::invalid::Invalid;

/// Directories of `/dev` that hold no devices for containers: they have their own.
const NOT_DEVICES: [&str; 8] =
    ["pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"];
/// How deep a directory given as a device is searched.
const DEPTH_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Devices {
    pub(super) nodes: Vec<Device>,
    pub(super) rules: Vec<DeviceRule>,
}

/// # Errors
/// A device that is not there.
pub(super) fn devices(host: &HostConfig) -> Result<Devices, Invalid> {
    let mut devices = Devices::default();
    if host.privileged {
        devices.rules.push(rule("a", None, None, "rwm"));
        collect(Path::new("/dev"), Path::new("/dev"), &mut devices.nodes, 0);
    } else {
        devices.rules = defaults::device_rules();
    }
    for mapping in host.devices.iter().flatten() {
        add_mapping(mapping, &mut devices)?;
    }
    for text in host.device_cgroup_rules.iter().flatten() {
        devices.rules.extend(parse_rule(text));
    }
    Ok(devices)
}

fn add_mapping(mapping: &DeviceMapping, devices: &mut Devices) -> Result<(), Invalid> {
    let source = Path::new(&mapping.path_on_host);
    let inside = if mapping.path_in_container.is_empty() {
        &mapping.path_on_host
    } else {
        &mapping.path_in_container
    };
    let access =
        if mapping.cgroup_permissions.is_empty() { "rwm" } else { &mapping.cgroup_permissions };
    let failed = |reason: String| Invalid::Device { path: mapping.path_on_host.clone(), reason };
    let metadata = fs::metadata(source).map_err(|error| {
        failed(match error.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            _ => error.to_string(),
        })
    })?;
    let mut nodes = Vec::new();
    if metadata.is_dir() {
        collect(source, Path::new(inside), &mut nodes, 0);
    } else {
        nodes.push(node(&metadata, inside).ok_or_else(|| failed("not a device node".to_owned()))?);
    }
    for node in &nodes {
        devices.rules.push(rule(&node.kind, Some(node.major), Some(node.minor), access));
    }
    devices.nodes.extend(nodes);
    Ok(())
}

/// All device nodes beneath a directory of the host, as they shall lie beneath `inside`.
fn collect(directory: &Path, inside: &Path, nodes: &mut Vec<Device>, depth: usize) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_skipped = NOT_DEVICES.iter().any(|skip| name == *skip);
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if is_skipped {
            continue;
        }
        if metadata.is_dir() && depth < DEPTH_MAX {
            collect(&entry.path(), &inside.join(&name), nodes, depth + 1);
        } else if let Some(node) = node(&metadata, &inside.join(&name).to_string_lossy()) {
            nodes.push(node);
        }
    }
}

fn node(metadata: &fs::Metadata, path: &str) -> Option<Device> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    Some(Device {
        path: path.to_owned(),
        kind: kind.to_owned(),
        major: i64::from(rustix::fs::major(metadata.rdev())),
        minor: i64::from(rustix::fs::minor(metadata.rdev())),
        file_mode: Some(metadata.mode() & 0o7777),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
    })
}

/// `c 1:3 rwm`, checked when the container was made.
fn parse_rule(text: &str) -> Option<DeviceRule> {
    let mut fields = text.split(' ');
    let (kind, numbers, access) = (fields.next()?, fields.next()?, fields.next()?);
    let (major, minor) = numbers.split_once(':')?;
    Some(rule(kind, major.parse().ok(), minor.parse().ok(), access))
}

fn rule(kind: &str, major: Option<i64>, minor: Option<i64>, access: &str) -> DeviceRule {
    DeviceRule { allow: true, kind: kind.to_owned(), major, minor, access: access.to_owned() }
}

#[cfg(test)]
mod tests {
    use docker_types::container::HostConfig;

    use super::devices;

    #[test]
    fn a_device_is_mapped_with_its_rule_and_a_missing_one_refused() {
        let host = |json: &str| serde_json::from_str::<HostConfig>(json).unwrap();
        let mapped = devices(&host(
            r#"{"Devices":[{"PathOnHost":"/dev/null","PathInContainer":"/dev/x","CgroupPermissions":"r"}],
                "DeviceCgroupRules":["c 10:* rw"]}"#,
        ))
        .unwrap();
        assert_eq!((mapped.nodes[0].path.as_str(), mapped.nodes[0].major), ("/dev/x", 1));
        let last: Vec<_> =
            mapped.rules.iter().rev().take(2).map(|rule| rule.access.as_str()).collect();
        assert_eq!(last, ["rw", "r"]);
        let missing = devices(&host(r#"{"Devices":[{"PathOnHost":"/dev/none"}]}"#)).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "error gathering device information while adding custom device \"/dev/none\": no such file or directory"
        );
        assert!(devices(&host(r#"{"Privileged":true}"#)).unwrap().nodes.len() > 3);
    }
}
