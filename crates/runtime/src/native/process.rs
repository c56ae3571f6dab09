//! The last steps of a new process: standard streams, limits, ids, capabilities, filter, program.
//!
//! The same code serves the first process and those brought in by exec, so that an exec'd process
//! can never be less confined than the container.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, accessat, fchown, fstat,
    openat2, stat,
};
use rustix::io::Errno;
use rustix::process::{
    Resource, Rlimit, Signal, fchdir, getcwd, getrlimit, set_parent_process_death_signal,
    setrlimit, umask,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::channel::Channel;
use super::root::Root;
use super::sys;
use crate::error::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, Step};
use crate::seccomp::Filter;
use crate::spec::{Capabilities, Process};
use crate::{Error, capability, defaults, errno_text};

/// Most bytes of a container's `/etc/passwd` that are looked at for a home directory.
const PASSWD_BYTES_MAX: u64 = 1024 * 1024;

/// Everything a process is confined by, worked out before anything is given up.
#[derive(Debug)]
pub(super) struct Confinement {
    pub(super) filter: Option<Filter>,
    pub(super) no_new_privileges: bool,
    pub(super) capabilities: Sets,
    /// Where an AppArmor profile for the next `execve` is written, and the profile.
    pub(super) profile: Option<(OwnedFd, String)>,
}

/// Capability sets as bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sets {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl Sets {
    pub(super) fn new(capabilities: Option<&Capabilities>) -> Result<Self, Error> {
        let none = Capabilities::default();
        let it = capabilities.unwrap_or(&none);
        Ok(Self {
            bounding: capability::mask(&it.bounding)?,
            effective: capability::mask(&it.effective)?,
            permitted: capability::mask(&it.permitted)?,
            inheritable: capability::mask(&it.inheritable)?,
            ambient: capability::mask(&it.ambient)?,
        })
    }
}

/// Makes the descriptors 0, 1 and 2.
pub(super) fn take_streams(
    stdin: impl AsFd,
    stdout: impl AsFd,
    stderr: impl AsFd,
) -> Result<(), Error> {
    let step = || "take standard streams".to_owned();
    dup2_stdin(stdin).step(step)?;
    dup2_stdout(stdout).step(step)?;
    dup2_stderr(stderr).step(step)
}

/// Lets the process's user reopen its streams as `/dev/stdout` and the like.
pub(super) fn own_streams(process: &Process) {
    let null = stat("/dev/null").map(|it| it.st_rdev).ok();
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for stream in streams {
        let Ok(stat) = fstat(stream) else { continue };
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        if is_device && Some(stat.st_rdev) == null || stat.st_uid == process.user.uid {
            continue;
        }
        // Files on read-only or foreign filesystems cannot be given away; that is no fault.
        let _ = fchown(stream, Some(Uid::from_raw(process.user.uid)), None);
    }
}

/// Sets the resource limits; those above what this host grants are cut, with a note.
pub(super) fn limit_resources(process: &Process, channel: &Channel) -> Result<(), Error> {
    for limit in &process.rlimits {
        let resource = resource(&limit.kind).ok_or_else(|| Error::InvalidSpec {
            reason: format!("unknown resource limit {:?}", limit.kind),
        })?;
        let value = |number: u64| (number != u64::MAX).then_some(number);
        let wanted = Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
        match setrlimit(resource, wanted) {
            Ok(()) => {}
            Err(Errno::PERM) => {
                let granted = cut(&wanted, getrlimit(resource).maximum);
                let step = || format!("set resource limit {}", limit.kind);
                setrlimit(resource, granted).step(step)?;
                channel.note(&format!(
                    "{} {}:{} is above what this host grants and was cut",
                    limit.kind, limit.soft, limit.hard
                ));
            }
            Err(errno) => {
                let step = format!("set resource limit {}", limit.kind);
                return Err(Error::Step { step, errno });
            }
        }
    }
    Ok(())
}

fn cut(wanted: &Rlimit, most: Option<u64>) -> Rlimit {
    let lower = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    Rlimit { current: lower(wanted.current, most), maximum: lower(wanted.maximum, most) }
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name.strip_prefix("RLIMIT_")? {
        "AS" => Resource::As,
        "CORE" => Resource::Core,
        "CPU" => Resource::Cpu,
        "DATA" => Resource::Data,
        "FSIZE" => Resource::Fsize,
        "LOCKS" => Resource::Locks,
        "MEMLOCK" => Resource::Memlock,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "NOFILE" => Resource::Nofile,
        "NPROC" => Resource::Nproc,
        "RSS" => Resource::Rss,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        "SIGPENDING" => Resource::Sigpending,
        "STACK" => Resource::Stack,
        _ => return None,
    })
}

/// Gives up everything the process shall not have and becomes the program.
pub(super) fn become_program(
    process: &Process,
    confinement: &Confinement,
) -> Result<Infallible, Error> {
    let env = environment(process)?;
    let args: Vec<CString> =
        process.args.iter().map(|it| c_string(it)).collect::<Result<_, _>>()?;
    let entered = match enter(&process.cwd) {
        Ok(()) => true,
        // The user may be allowed where root, on a network filesystem, is not.
        Err(Errno::ACCESS) => false,
        Err(errno) => return Err(cwd_fault(process, errno)),
    };
    if confinement.no_new_privileges {
        set_no_new_privs(true).step(|| "set no_new_privs".to_owned())?;
    } else {
        // Needs CAP_SYS_ADMIN, which is about to go.
        load(confinement)?;
    }
    drop_ids_and_capabilities(process, confinement.capabilities)?;
    if !entered {
        enter(&process.cwd).map_err(|errno| cwd_fault(process, errno))?;
    }
    check_cwd()?;
    let program = find_program(&process.args[0], &env)?;
    if let Some((fd, profile)) = &confinement.profile {
        rustix::io::write(fd, format!("exec {profile}").as_bytes())
            .step(|| format!("set apparmor profile {profile:?}"))?;
    }
    if confinement.no_new_privileges {
        load(confinement)?;
    }
    // The kernel forgets this on a change of ids, hence here.
    set_parent_process_death_signal(Some(Signal::KILL)).step(|| "tie to shim".to_owned())?;
    sys::close_on_exec_from(3).step(|| "close descriptors".to_owned())?;
    let errno = sys::execve(&program, &args, &env);
    let exit_code = if errno == Errno::NOENT { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE };
    let text = format!("exec {}: {}", program.to_string_lossy(), errno_text(errno));
    Err(Error::Init { text, exit_code })
}

fn load(confinement: &Confinement) -> Result<(), Error> {
    match &confinement.filter {
        Some(filter) => sys::load_filter(filter).step(|| "load seccomp filter".to_owned()),
        None => Ok(()),
    }
}

/// Enters a directory by name. Links of procfs such as `/proc/self/fd/7` are refused: they could
/// name something of the host that is still open at this point.
fn enter(cwd: &str) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    fchdir(openat2(CWD, cwd, flags, Mode::empty(), resolve)?)
}

fn cwd_fault(process: &Process, errno: Errno) -> Error {
    let text = format!(
        "chdir to cwd ({:?}) set in config.json failed: {}",
        process.cwd,
        errno_text(errno)
    );
    Error::Init { text, exit_code: crate::EXIT_NOT_STARTED }
}

/// A working directory that does not hang below `/` would be a way out of the container.
fn check_cwd() -> Result<(), Error> {
    let inside = getcwd(Vec::new()).is_ok_and(|path| path.as_bytes().starts_with(b"/"));
    if inside {
        return Ok(());
    }
    let text = "current working directory is outside of container mount namespace root".to_owned();
    Err(Error::Init { text, exit_code: crate::EXIT_NOT_STARTED })
}

fn drop_ids_and_capabilities(process: &Process, sets: Sets) -> Result<(), Error> {
    for number in (0..64).filter(|number| sets.bounding & 1 << number == 0) {
        let bit = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(bit) {
            Ok(()) => {}
            // The kernel's last capability is passed.
            Err(Errno::INVAL) => break,
            Err(errno) => {
                return Err(Error::Step { step: "drop bounding capabilities".into(), errno });
            }
        }
    }
    umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
    set_keep_capabilities(true).step(|| "keep capabilities".to_owned())?;
    set_ids(process)?;
    set_keep_capabilities(false).step(|| "keep capabilities".to_owned())?;
    let bits = CapabilitySet::from_bits_retain;
    let own = CapabilitySets {
        effective: bits(sets.effective),
        permitted: bits(sets.permitted),
        inheritable: bits(sets.inheritable),
    };
    set_capabilities(None, own).step(|| "set capabilities".to_owned())?;
    clear_ambient_capability_set().step(|| "clear ambient capabilities".to_owned())?;
    for number in (0..64).filter(|number| sets.ambient & 1 << number != 0) {
        configure_capability_in_ambient_set(bits(1 << number), true)
            .step(|| format!("raise ambient capability {number}"))?;
    }
    Ok(())
}

fn set_ids(process: &Process) -> Result<(), Error> {
    let groups: Vec<Gid> =
        process.user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match set_thread_groups(&groups) {
        // A user namespace may forbid it; then there are no groups to drop either.
        Err(Errno::PERM) if groups.is_empty() => {}
        other => other.step(|| "set supplementary groups".to_owned())?,
    }
    let gid = Gid::from_raw(process.user.gid);
    set_thread_res_gid(gid, gid, gid).step(|| format!("set group id {}", process.user.gid))?;
    let uid = Uid::from_raw(process.user.uid);
    set_thread_res_uid(uid, uid, uid).step(|| format!("set user id {}", process.user.uid))
}

fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::InvalidSpec {
        reason: format!("zero byte in argument or variable {text:?}"),
    })
}

/// The environment with `HOME` filled in from the container's `/etc/passwd`.
fn environment(process: &Process) -> Result<Vec<CString>, Error> {
    let mut env: Vec<CString> =
        process.env.iter().map(|it| c_string(it)).collect::<Result<_, _>>()?;
    let is_home = |it: &CString| it.as_bytes().starts_with(b"HOME=") && it.as_bytes().len() > 5;
    if !env.iter().any(is_home) {
        env.retain(|it| !it.as_bytes().starts_with(b"HOME="));
        env.push(c_string(&format!("HOME={}", home_of(process.user.uid)))?);
    }
    Ok(env)
}

fn home_of(uid: u32) -> String {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let passwd = rustix::fs::open("/", flags | OFlags::CLOEXEC, Mode::empty())
        .and_then(|root| Root::new(root).open_read("/etc/passwd"));
    let mut text = String::new();
    if let Ok(passwd) = passwd {
        let _ = std::fs::File::from(passwd).take(PASSWD_BYTES_MAX).read_to_string(&mut text);
    }
    home_in(&text, uid).unwrap_or("/").to_owned()
}

fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).and_then(|it| it.parse().ok()) == Some(uid))
        .and_then(|fields| fields.get(5).copied())
        .filter(|home| !home.is_empty())
}

/// Where the program is, in the words of Go's `exec.LookPath`, which Docker's users know.
fn find_program(name: &str, env: &[CString]) -> Result<CString, Error> {
    if name.contains('/') {
        return match look_at(name) {
            Ok(()) => c_string(name),
            Err(Errno::NOENT) => {
                let text = format!("exec: {name:?}: stat {name}: {}", errno_text(Errno::NOENT));
                Err(Error::Init { text, exit_code: EXIT_NOT_FOUND })
            }
            Err(errno) => {
                let text = format!("exec: {name:?}: {}", errno_text(errno));
                let not_found = errno == Errno::NOTDIR;
                let exit_code = if not_found { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE };
                Err(Error::Init { text, exit_code })
            }
        };
    }
    let path = env
        .iter()
        .find_map(|it| it.as_bytes().strip_prefix(b"PATH="))
        .map_or(defaults::PATH.into(), String::from_utf8_lossy);
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{name}");
        if !name.is_empty() && look_at(&candidate).is_ok() {
            return c_string(&candidate);
        }
    }
    let text = format!("exec: {name:?}: executable file not found in $PATH");
    Err(Error::Init { text, exit_code: EXIT_NOT_FOUND })
}

fn look_at(path: &str) -> rustix::io::Result<()> {
    let found = stat(path)?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    if found.st_mode & 0o111 == 0 {
        return Err(Errno::ACCESS);
    }
    match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        Err(Errno::ACCESS) => Err(Errno::ACCESS),
        // Older kernels and filters without faccessat2: execve will tell.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_found_by_user_id() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/srv:/bin/false\n\
                      bare:x:44:44:::\n";
        let cases = [(0, Some("/root")), (33, Some("/srv")), (44, None), (55, None)];
        for (uid, home) in cases {
            assert_eq!(home_in(passwd, uid), home, "{uid}");
        }
    }

    #[test]
    fn a_missing_program_is_told_from_one_that_may_not_run() {
        let cases = [
            (
                "no-such-program",
                "exec: \"no-such-program\": executable file not found in $PATH",
                127,
            ),
            ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory", 127),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied", 126),
            ("/etc", "exec: \"/etc\": is a directory", 126),
        ];
        for (name, text, code) in cases {
            let error = find_program(name, &[]).unwrap_err();
            assert_eq!((error.text().as_str(), error.exit_code()), (text, code));
        }
        assert_eq!(find_program("sh", &[]).unwrap().to_bytes().last(), Some(&b'h'));
    }

    #[test]
    fn a_limit_is_cut_to_what_the_host_grants() {
        let wanted = Rlimit { current: Some(10), maximum: None };
        let granted = cut(&wanted, Some(5));
        assert_eq!((granted.current, granted.maximum), (Some(5), Some(5)));
    }
}
