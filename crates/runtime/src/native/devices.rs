//! Device nodes, the links beside them, and the terminal.

use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Uid, chownat, makedev, mknodat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};

use super::mounts::{attach, clone_of};
use super::root::Root;
use crate::Error;
use crate::defaults;
use crate::error::Step;
use crate::spec::{Device, Spec};

/// Both ends of a container's terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

/// Makes all nodes and links, unless the user brought a `/dev` of their own.
pub(super) fn populate(root: &Root, spec: &Spec, user_namespace: bool) -> Result<(), Error> {
    let own_dev = spec.mounts.iter().any(|it| {
        it.destination.trim_end_matches('/') == "/dev"
            && (it.kind == "bind"
                || it.options.iter().any(|word| word == "bind" || word == "rbind"))
    });
    for device in &spec.linux.devices {
        make_node(root, device, user_namespace)?;
    }
    if own_dev {
        return Ok(());
    }
    for (name, major, minor) in defaults::DEVICES {
        let path = format!("/dev/{name}");
        if spec.linux.devices.iter().any(|device| device.path == path) {
            continue;
        }
        let device = Device {
            path,
            kind: "c".to_owned(),
            major: i64::from(major),
            minor: i64::from(minor),
            ..Device::default()
        };
        make_node(root, &device, user_namespace)?;
    }
    links(root)
}

fn links(root: &Root) -> Result<(), Error> {
    let dev = root.make_directory("/dev").step(|| "open /dev".to_owned())?;
    for (name, target) in defaults::DEVICE_LINKS {
        let step = || format!("link /dev/{name}");
        match symlinkat(target, &dev, name) {
            // A multiplexer in the image would belong to the host's terminals.
            Err(Errno::EXIST) if name == "ptmx" => {
                unlinkat(&dev, name, AtFlags::empty()).step(step)?;
                symlinkat(target, &dev, name).step(step)?;
            }
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::Step { step: step(), errno }),
        }
    }
    if root.resolve("/proc/kcore").is_ok() {
        match symlinkat("/proc/kcore", &dev, "core") {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::Step { step: "link /dev/core".into(), errno }),
        }
    }
    Ok(())
}

fn make_node(root: &Root, device: &Device, user_namespace: bool) -> Result<(), Error> {
    let step = || format!("make device {:?}", device.path);
    if user_namespace {
        return show_host_node(root, device);
    }
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        kind => {
            let reason = format!("device {:?} of type {kind:?}", device.path);
            return Err(Error::InvalidSpec { reason });
        }
    };
    let number = |it: i64| u32::try_from(it).map_err(|_| Errno::INVAL).step(step);
    let number = makedev(number(device.major)?, number(device.minor)?);
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    let (parent, name) = root.make_parent(&device.path).step(step)?;
    match mknodat(&parent, name, kind, mode, number) {
        Err(Errno::EXIST) => {
            // What the image has in this place is not the device asked for.
            unlinkat(&parent, name, AtFlags::empty()).step(step)?;
            mknodat(&parent, name, kind, mode, number).step(step)?;
        }
        other => other.step(step)?,
    }
    if device.uid.is_some() || device.gid.is_some() {
        let (uid, gid) = (device.uid.map(Uid::from_raw), device.gid.map(Gid::from_raw));
        chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(step)?;
    }
    Ok(())
}

/// A user namespace may not make nodes, but it may show those of the host.
fn show_host_node(root: &Root, device: &Device) -> Result<(), Error> {
    let step = || format!("show device {:?}", device.path);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, device.path.as_str(), flags).step(step)?;
    let target = root.make_file(&device.path).step(step)?;
    attach(&tree, &target).step(step)
}

/// Opens a terminal in the container's own devpts.
pub(super) fn open_terminal(root: &Root, spec: &Spec) -> Result<Terminal, Error> {
    let step = || "open terminal".to_owned();
    let has_devpts = spec.mounts.iter().any(|it| it.kind == "devpts");
    let master = if has_devpts {
        root.open_device("/dev/pts/ptmx").step(step)?
    } else {
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).step(step)?
    };
    rustix::pty::unlockpt(&master).step(step)?;
    if let Some(size) = spec.process.console_size {
        set_size(&master, size.height, size.width).step(step)?;
    }
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).step(step)?;
    Ok(Terminal { master, slave })
}

/// Shows the terminal as `/dev/console`.
pub(super) fn show_console(root: &Root, terminal: &Terminal) -> Result<(), Error> {
    let step = || "show terminal at /dev/console".to_owned();
    let target = root.make_file("/dev/console").step(step)?;
    let tree = clone_of(&terminal.slave, false).step(step)?;
    attach(&tree, &target).step(step)
}

/// Sets the size of a terminal in character cells.
pub(super) fn set_size(master: &OwnedFd, rows: u16, columns: u16) -> rustix::io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size)
}
