//! Mount options as words, and what the kernel calls them.

use rustix::mount::{MountFlags, MountPropagationFlags};

use super::sys::{
    MOUNT_ATTR_ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME,
    MountAttributes,
};

/// The options of one mount, sorted out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// Flags asked for.
    pub(super) set: MountFlags,
    /// Flags asked away.
    pub(super) clear: MountFlags,
    /// Whether an existing tree is shown again.
    pub(super) bind: bool,
    /// Whether mounts beneath a bound directory come along.
    pub(super) recursive: bool,
    /// Whether read-only reaches mounts beneath.
    pub(super) recursive_read_only: bool,
    /// Propagation, and whether mounts beneath get it too.
    pub(super) propagation: Option<(MountPropagationFlags, bool)>,
    /// What the filesystem itself shall read, joined by commas.
    pub(super) data: String,
}

/// Words that set a flag, and their opposites.
const FLAGS: [(&str, &str, MountFlags); 8] = [
    ("ro", "rw", MountFlags::RDONLY),
    ("nosuid", "suid", MountFlags::NOSUID),
    ("nodev", "dev", MountFlags::NODEV),
    ("noexec", "exec", MountFlags::NOEXEC),
    ("sync", "async", MountFlags::SYNCHRONOUS),
    ("noatime", "atime", MountFlags::NOATIME),
    ("nodiratime", "diratime", MountFlags::NODIRATIME),
    ("relatime", "norelatime", MountFlags::RELATIME),
];

pub(super) fn parse(words: &[String]) -> Options {
    let mut options = Options {
        set: MountFlags::empty(),
        clear: MountFlags::empty(),
        bind: false,
        recursive: false,
        recursive_read_only: false,
        propagation: None,
        data: String::new(),
    };
    for word in words {
        parse_word(word, &mut options);
    }
    options
}

fn parse_word(word: &str, options: &mut Options) {
    for (on, off, flag) in FLAGS {
        if word == on {
            options.set |= flag;
            options.clear -= flag;
            return;
        }
        if word == off {
            options.clear |= flag;
            options.set -= flag;
            return;
        }
    }
    match word {
        "defaults" | "remount" | "nostrictatime" | "mand" | "nomand" | "tmpcopyup" => {}
        "strictatime" => options.set |= MountFlags::STRICTATIME,
        "dirsync" => options.set |= MountFlags::DIRSYNC,
        "bind" => options.bind = true,
        "rbind" => {
            options.bind = true;
            options.recursive = true;
        }
        "rro" => {
            options.set |= MountFlags::RDONLY;
            options.recursive_read_only = true;
        }
        word => match propagation(word) {
            Some(propagation) => options.propagation = Some(propagation),
            None => {
                if !options.data.is_empty() {
                    options.data.push(',');
                }
                options.data.push_str(word);
            }
        },
    }
}

/// A word of mount(8) for propagation; whether mounts beneath get it too.
pub(super) fn propagation(word: &str) -> Option<(MountPropagationFlags, bool)> {
    let (kind, recursive) = match word.strip_prefix('r') {
        Some(kind) => (kind, true),
        None => (word, false),
    };
    let flag = match kind {
        "private" => MountPropagationFlags::PRIVATE,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "shared" => MountPropagationFlags::SHARED,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some((flag, recursive))
}

impl Options {
    /// Whether the container could write through this mount.
    pub(super) fn is_writable(&self) -> bool {
        !self.set.contains(MountFlags::RDONLY)
    }

    /// What mount_setattr(2) changes on a bound tree. Restrictions of the source stay unless
    /// their opposite is asked for.
    pub(super) fn attributes(&self) -> MountAttributes {
        const PAIRS: [(MountFlags, u64); 5] = [
            (MountFlags::RDONLY, MOUNT_ATTR_RDONLY),
            (MountFlags::NOSUID, MOUNT_ATTR_NOSUID),
            (MountFlags::NODEV, MOUNT_ATTR_NODEV),
            (MountFlags::NOEXEC, MOUNT_ATTR_NOEXEC),
            (MountFlags::NODIRATIME, MOUNT_ATTR_NODIRATIME),
        ];
        let bits = |flags: MountFlags| {
            PAIRS.iter().filter(|(flag, _)| flags.contains(*flag)).fold(0, |all, (_, it)| all | it)
        };
        // "rw" is what a bind has when nothing is said; a read-only source stays read-only.
        let clear = bits(self.clear - MountFlags::RDONLY);
        let mut attributes =
            MountAttributes { set: bits(self.set), clear, ..MountAttributes::default() };
        for (flag, value) in [
            (MountFlags::NOATIME, MOUNT_ATTR_NOATIME),
            (MountFlags::STRICTATIME, MOUNT_ATTR_STRICTATIME),
            (MountFlags::RELATIME, 0),
        ] {
            if self.set.contains(flag) {
                attributes.set |= value;
                attributes.clear |= MOUNT_ATTR_ATIME;
            }
        }
        attributes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Options {
        parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_flags_propagation_and_data() {
        let options = parsed("nosuid ro mode=755 size=64k rprivate");
        assert_eq!(options.set, MountFlags::NOSUID | MountFlags::RDONLY);
        assert_eq!(options.propagation, Some((MountPropagationFlags::PRIVATE, true)));
        assert_eq!(options.data, "mode=755,size=64k");
        assert!(!options.bind);
    }

    #[test]
    fn the_last_of_two_opposites_counts() {
        assert!(parsed("ro rw").is_writable());
        assert!(!parsed("rw ro").is_writable());
    }

    #[test]
    fn a_bind_keeps_the_restrictions_of_its_source() {
        let attributes = parsed("rbind rw").attributes();
        assert_eq!((attributes.set, attributes.clear), (0, 0));
        let attributes = parsed("bind ro noatime").attributes();
        assert_eq!(attributes.set, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME);
        assert_eq!(attributes.clear, MOUNT_ATTR_ATIME);
    }
}
