//! What a container has mounted: read from `-v`, `--mount`, `--tmpfs`, `--volumes-from` and the image, and
//! resolved into one list.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use docker_types::mount::{Mount, MountPoint};
use serde::{Deserialize, Serialize};

use super::invalid::{Invalid, MountFault};
use crate::names;

/// One mount of a container, with everything decided but where a volume lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountPlan {
    pub(crate) kind: Kind,
    /// The host's path of a bind mount; empty for the rest.
    pub(crate) source: String,
    /// The volume's name; empty until an anonymous one has been made.
    pub(crate) volume: String,
    /// Absolute and clean.
    pub(crate) destination: String,
    /// The mode's text after `-v`'s last colon, for `inspect`.
    pub(crate) mode: String,
    pub(crate) read_only: bool,
    pub(crate) propagation: String,
    pub(crate) non_recursive: bool,
    /// Whether a new volume begins with what the image has at this place.
    pub(crate) copy: bool,
    /// Whether a missing bind source is made, as `-v` does.
    pub(crate) create_source: bool,
    /// A directory within the volume.
    pub(crate) subpath: String,
    pub(crate) driver: String,
    pub(crate) driver_options: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Whether the volume has no name of its own and goes with the container (`rm -v`, `--rm`).
    pub(crate) is_anonymous: bool,
    /// Options of a tmpfs, as mount(8) takes them.
    pub(crate) tmpfs_options: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    #[default]
    Bind,
    Volume,
    Tmpfs,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Volume => "volume",
            Self::Tmpfs => "tmpfs",
        }
    }
}

impl MountPlan {
    /// As `inspect` and `ps` show it; `source` is where a volume lies.
    pub(crate) fn describe(&self, source: &str) -> MountPoint {
        MountPoint {
            r#type: self.kind.name().to_owned(),
            name: self.volume.clone(),
            source: source.to_owned(),
            destination: self.destination.clone(),
            driver: if self.kind == Kind::Volume {
                self.driver_name().to_owned()
            } else {
                String::new()
            },
            mode: self.mode.clone(),
            rw: !self.read_only,
            propagation: self.propagation.clone(),
        }
    }

    pub(crate) fn driver_name(&self) -> &str {
        if self.driver.is_empty() { "local" } else { &self.driver }
    }
}

/// Reads one `-v`: `[source:]destination[:mode]`.
pub(crate) fn parse_bind(text: &str) -> Result<MountPlan, Invalid> {
    let wrong = || Invalid::VolumeSpec { text: text.to_owned() };
    let fault = |reason| Invalid::VolumeSpecPart { text: text.to_owned(), reason };
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, mode) = match parts.as_slice() {
        [destination] => ("", *destination, ""),
        [source, destination] => (*source, *destination, ""),
        [source, destination, mode] => (*source, *destination, *mode),
        _ => return Err(wrong()),
    };
    if (parts.len() > 1 && source.is_empty()) || destination.is_empty() {
        return Err(wrong());
    }
    let mut plan = MountPlan {
        destination: clean_destination(destination).map_err(fault)?,
        mode: mode.to_owned(),
        copy: true,
        ..MountPlan::default()
    };
    if source.starts_with('/') {
        plan.kind = Kind::Bind;
        plan.source = clean(source);
        "rprivate".clone_into(&mut plan.propagation);
        plan.create_source = true;
        plan.copy = false;
    } else {
        plan.kind = Kind::Volume;
        check_volume_name(source)?;
        source.clone_into(&mut plan.volume);
        plan.is_anonymous = source.is_empty();
    }
    apply_mode(&mut plan, mode)?;
    Ok(plan)
}

/// Reads one `--mount`.
pub(crate) fn parse_mount(mount: &Mount) -> Result<MountPlan, Invalid> {
    let fault = |reason| Invalid::Mount { kind: mount.r#type.clone(), reason };
    if mount.target.is_empty() {
        return Err(fault(MountFault::Missing { field: "Target" }));
    }
    let plan = MountPlan {
        destination: clean_destination(&mount.target).map_err(fault)?,
        read_only: mount.read_only,
        ..MountPlan::default()
    };
    let plan = match mount.r#type.as_str() {
        "bind" => bind_mount(plan, mount),
        "volume" => volume_mount(plan, mount),
        "tmpfs" => tmpfs_mount(plan, mount),
        _ => Err(MountFault::Kind),
    };
    let plan = plan.map_err(fault)?;
    if plan.kind == Kind::Volume {
        check_volume_name(&plan.volume)?;
    }
    Ok(plan)
}

/// Reads one `--tmpfs`: a destination and mount(8)'s options.
pub(crate) fn parse_tmpfs(destination: &str, options: &str) -> Result<MountPlan, Invalid> {
    let fault = |reason| Invalid::Mount { kind: "tmpfs".to_owned(), reason };
    let destination = clean_destination(destination).map_err(fault)?;
    let options: Vec<String> =
        options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    for option in &options {
        check_tmpfs_option(option)?;
    }
    let read_only = options.iter().any(|option| option == "ro");
    Ok(MountPlan {
        kind: Kind::Tmpfs,
        destination,
        read_only,
        tmpfs_options: options,
        ..MountPlan::default()
    })
}

/// Reads one `--volumes-from`: a container and whether its mounts are read-only here.
pub(crate) fn parse_volumes_from(text: &str) -> Result<(&str, Option<bool>), Invalid> {
    let (container, mode) = text.split_once(':').unwrap_or((text, ""));
    if container.is_empty() {
        return Err(Invalid::VolumesFrom { text: text.to_owned() });
    }
    let read_only = mode.split(',').find_map(|word| match word {
        "ro" => Some(true),
        "rw" => Some(false),
        _ => None,
    });
    Ok((container, read_only))
}

/// A volume an image or a client asks for by its place alone.
pub(crate) fn anonymous(destination: &str) -> Result<MountPlan, Invalid> {
    parse_bind(destination)
}

/// An absolute path without `.`, `..`, or doubled slashes.
pub(crate) fn clean(path: &str) -> String {
    let mut names: Vec<&std::ffi::OsStr> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                names.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let joined: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
    format!("/{}", joined.join("/"))
}

/// Whether a volume may have this name; empty is a volume without one.
pub(crate) fn check_volume_name(name: &str) -> Result<(), Invalid> {
    if name.is_empty() || names::is_valid(name) {
        return Ok(());
    }
    if name.len() == 1 {
        return Err(Invalid::VolumeNameShort);
    }
    Err(Invalid::VolumeName { name: name.to_owned() })
}

fn clean_destination(path: &str) -> Result<String, MountFault> {
    if !path.starts_with('/') {
        return Err(MountFault::Relative { path: path.to_owned() });
    }
    match clean(path) {
        path if path == "/" => Err(MountFault::Root),
        path => Ok(path),
    }
}

fn apply_mode(plan: &mut MountPlan, mode: &str) -> Result<(), Invalid> {
    let wrong = || Invalid::VolumeMode { mode: mode.to_owned() };
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => plan.read_only = true,
            "rw" => plan.read_only = false,
            "nocopy" if plan.kind == Kind::Volume => plan.copy = false,
            // SELinux relabelling and macOS's consistency mean nothing here, and are accepted as in Docker.
            "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            word if is_propagation(word) && plan.kind == Kind::Bind => {
                word.clone_into(&mut plan.propagation);
            }
            _ => return Err(wrong()),
        }
    }
    Ok(())
}

fn is_propagation(word: &str) -> bool {
    matches!(word, "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave")
}

fn bind_mount(mut plan: MountPlan, mount: &Mount) -> Result<MountPlan, MountFault> {
    if mount.source.is_empty() {
        return Err(MountFault::Missing { field: "Source" });
    }
    if mount.volume_options.is_some() {
        return Err(MountFault::Extra { field: "VolumeOptions" });
    }
    if mount.tmpfs_options.is_some() {
        return Err(MountFault::Extra { field: "TmpfsOptions" });
    }
    if !mount.source.starts_with('/') {
        return Err(MountFault::Relative { path: mount.source.clone() });
    }
    let options = mount.bind_options.clone().unwrap_or_default();
    if !options.propagation.is_empty() && !is_propagation(&options.propagation) {
        return Err(MountFault::Propagation { mode: options.propagation });
    }
    plan.kind = Kind::Bind;
    plan.source = clean(&mount.source);
    plan.create_source = options.create_mountpoint;
    plan.non_recursive = options.non_recursive;
    plan.propagation =
        if options.propagation.is_empty() { "rprivate".to_owned() } else { options.propagation };
    if !plan.create_source && !Path::new(&plan.source).exists() {
        return Err(MountFault::NoSource { path: plan.source });
    }
    Ok(plan)
}

fn volume_mount(mut plan: MountPlan, mount: &Mount) -> Result<MountPlan, MountFault> {
    if mount.bind_options.is_some() {
        return Err(MountFault::Extra { field: "BindOptions" });
    }
    if mount.tmpfs_options.is_some() {
        return Err(MountFault::Extra { field: "TmpfsOptions" });
    }
    if mount.source.is_empty() && mount.read_only {
        return Err(MountFault::ReadOnlyAnonymous);
    }
    let options = mount.volume_options.clone().unwrap_or_default();
    if options.subpath.starts_with('/') || options.subpath.split('/').any(|name| name == "..") {
        return Err(MountFault::Subpath);
    }
    let driver = options.driver_config.unwrap_or_default();
    plan.kind = Kind::Volume;
    plan.volume.clone_from(&mount.source);
    plan.is_anonymous = mount.source.is_empty();
    plan.copy = !options.no_copy;
    plan.subpath = options.subpath;
    plan.labels = options.labels;
    plan.driver = driver.name;
    plan.driver_options = driver.options;
    // The mode Docker shows for every volume mounted this way.
    "z".clone_into(&mut plan.mode);
    Ok(plan)
}

fn tmpfs_mount(mut plan: MountPlan, mount: &Mount) -> Result<MountPlan, MountFault> {
    if mount.bind_options.is_some() {
        return Err(MountFault::Extra { field: "BindOptions" });
    }
    if mount.volume_options.is_some() {
        return Err(MountFault::Extra { field: "VolumeOptions" });
    }
    if !mount.source.is_empty() {
        return Err(MountFault::Extra { field: "Source" });
    }
    let options = mount.tmpfs_options.clone().unwrap_or_default();
    plan.kind = Kind::Tmpfs;
    if plan.read_only {
        plan.tmpfs_options.push("ro".to_owned());
    }
    if options.size_bytes > 0 {
        plan.tmpfs_options.push(format!("size={}", options.size_bytes));
    }
    if options.mode != 0 {
        plan.tmpfs_options.push(format!("mode={:o}", options.mode));
    }
    for option in options.options {
        let option = option.join("=");
        check_tmpfs_option(&option)
            .map_err(|_| MountFault::Unsupported { what: "tmpfs option" })?;
        plan.tmpfs_options.push(option);
    }
    Ok(plan)
}

fn check_tmpfs_option(option: &str) -> Result<(), Invalid> {
    let known = [
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "sync",
        "async",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "mode",
        "uid",
        "gid",
        "nr_inodes",
        "nr_blocks",
        "size",
        "mpol",
        "defaults",
    ];
    let name = option.split('=').next().unwrap_or_default();
    if known.contains(&name) {
        return Ok(());
    }
    Err(Invalid::TmpfsOption { option: option.to_owned() })
}

#[cfg(test)]
mod tests {
    use docker_types::mount::Mount;

    use super::{Kind, clean, parse_bind, parse_mount, parse_tmpfs, parse_volumes_from};

    fn bind_refusal(text: &str) -> String {
        parse_bind(text).unwrap_err().to_string()
    }

    fn mount_refusal(json: &str) -> String {
        let mount: Mount = serde_json::from_str(json).unwrap();
        parse_mount(&mount).unwrap_err().to_string()
    }

    #[test]
    fn binds_name_a_host_path_a_volume_or_nothing() {
        let bind = parse_bind("/srv//a/../b:/data/:ro,rslave").unwrap();
        assert_eq!(
            (bind.kind, bind.source.as_str(), bind.destination.as_str()),
            (Kind::Bind, "/srv/b", "/data")
        );
        assert!(bind.read_only && bind.create_source);
        assert_eq!(bind.propagation, "rslave");
        let volume = parse_bind("db:/data:nocopy").unwrap();
        assert_eq!((volume.kind, volume.volume.as_str(), volume.copy), (Kind::Volume, "db", false));
        assert!(parse_bind("/data").unwrap().is_anonymous);
    }

    #[test]
    fn wrong_binds_are_refused_in_dockers_words() {
        assert_eq!(bind_refusal("a:b:c:d"), "invalid volume specification: 'a:b:c:d'");
        assert_eq!(
            bind_refusal("/a:/"),
            "invalid volume specification: '/a:/': invalid specification: destination can't be '/'"
        );
        assert_eq!(bind_refusal("/a:/b:sideways"), "invalid mode: sideways");
        assert!(
            bind_refusal("./a:/b")
                .ends_with("If you intended to pass a host directory, use absolute path")
        );
        assert!(bind_refusal("/a:b").contains("mount path must be absolute"));
    }

    #[test]
    fn wrong_mounts_are_refused_in_dockers_words() {
        for (json, text) in [
            (
                r#"{"Type":"bind","Source":"/no/such/place","Target":"/x"}"#,
                "invalid mount config for type \"bind\": bind source path does not exist: /no/such/place",
            ),
            (
                r#"{"Type":"bind","Target":"/x"}"#,
                "invalid mount config for type \"bind\": field Source must not be empty",
            ),
            (
                r#"{"Type":"volume","Source":"a1"}"#,
                "invalid mount config for type \"volume\": field Target must not be empty",
            ),
            (
                r#"{"Type":"volume","Target":"x"}"#,
                "invalid mount config for type \"volume\": invalid mount path: 'x' mount path must be absolute",
            ),
            (
                r#"{"Type":"tmpfs","Source":"s","Target":"/x"}"#,
                "invalid mount config for type \"tmpfs\": field Source must not be specified",
            ),
            (
                r#"{"Type":"floppy","Target":"/x"}"#,
                "invalid mount config for type \"floppy\": mount type unknown",
            ),
        ] {
            assert_eq!(mount_refusal(json), text);
        }
    }

    #[test]
    fn tmpfs_options_are_checked() {
        assert_eq!(parse_tmpfs("/run", "rw,size=1m").unwrap().tmpfs_options, ["rw", "size=1m"]);
        assert_eq!(
            parse_tmpfs("/run", "colour=red").unwrap_err().to_string(),
            "invalid tmpfs option [\"colour=red\"]"
        );
        let mount: Mount = serde_json::from_str(
            r#"{"Type":"tmpfs","Target":"/x","TmpfsOptions":{"SizeBytes":4096,"Mode":448}}"#,
        )
        .unwrap();
        assert_eq!(parse_mount(&mount).unwrap().tmpfs_options, ["size=4096", "mode=700"]);
    }

    #[test]
    fn paths_are_cleaned_without_leaving_the_root() {
        for (path, cleaned) in
            [("/", "/"), ("/a/./b//c", "/a/b/c"), ("/../../a", "/a"), ("/a/..", "/")]
        {
            assert_eq!(clean(path), cleaned);
        }
        assert_eq!(parse_volumes_from("web:ro").unwrap(), ("web", Some(true)));
        assert_eq!(parse_volumes_from("web").unwrap(), ("web", None));
    }
}
