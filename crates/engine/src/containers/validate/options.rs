//! Security, logging, devices and kernel settings of a container.

use std::collections::{BTreeMap, BTreeSet};

use docker_types::container::{HostConfig, LogConfig, Ulimit};
use docker_types::words::Words;
use runtime::capability;

use crate::containers::invalid::Invalid;

/// What a container has unless it asks for more or less: Docker's list.
const CAPABILITIES_DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// System settings that belong to the IPC namespace, and so to a container of its own.
const SYSCTLS_IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Longest line a log entry may have before it is split is the shim's affair; this bounds how many old files
/// a container may ask for.
const LOG_FILES_MAX: u32 = 1000;
/// Docker's default is no rotation, which fills disks; ours is generous, but bounded.
const LOG_FILE_BYTES_DEFAULT: u64 = 100 * 1024 * 1024;
const LOG_FILES_DEFAULT: u32 = 2;

/// What `--security-opt` said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SecurityOptions {
    pub(crate) no_new_privileges: bool,
    /// `None` is the default profile; `Some("unconfined")` none; else a profile in JSON.
    pub(crate) seccomp: Option<String>,
    pub(crate) apparmor: Option<String>,
    /// `systempaths=unconfined`: nothing masked or read-only under `/proc` and `/sys`.
    pub(crate) paths_unconfined: bool,
}

/// Where output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogDriver {
    /// Nowhere but to attached clients.
    None,
    JsonFile(JsonFile),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JsonFile {
    /// A file that has grown beyond this is rotated.
    pub(crate) file_bytes_max: u64,
    /// Files kept, the current one included.
    pub(crate) files_max: u32,
    /// Whether rotated files are compressed.
    pub(crate) compress: bool,
    /// Keys of labels and of environment variables that each entry carries.
    pub(crate) labels: Vec<String>,
    pub(crate) env: Vec<String>,
}

/// Checks all that this file knows of.
pub(crate) fn check(host: &HostConfig) -> Result<(), Invalid> {
    capabilities(host)?;
    security_options(host)?;
    if !host.log_config.r#type.is_empty() {
        log_driver(&host.log_config)?;
    }
    for ulimit in host.ulimits.iter().flatten() {
        check_ulimit(ulimit)?;
    }
    for name in host.sysctls.keys() {
        check_sysctl(name, host)?;
    }
    for rule in host.device_cgroup_rules.iter().flatten() {
        check_device_rule(rule)?;
    }
    match host.device_requests.iter().flatten().next() {
        Some(request) => Err(Invalid::DeviceRequest {
            driver: request.driver.clone(),
            capabilities: format!("{:?}", request.capabilities.clone().unwrap_or_default())
                .replace('"', ""),
        }),
        None => Ok(()),
    }
}

/// The capabilities a container ends up with, each as `CAP_X`, in the kernel's order.
pub(crate) fn capabilities(host: &HostConfig) -> Result<Vec<String>, Invalid> {
    let add = named_capabilities("CapAdd", host.cap_add.as_ref())?;
    let drop = named_capabilities("CapDrop", host.cap_drop.as_ref())?;
    let all = || capability::NAMES.into_iter().collect::<BTreeSet<_>>();
    let mut have: BTreeSet<&str> = match () {
        () if host.privileged || add.contains("ALL") => all(),
        () if drop.contains("ALL") => BTreeSet::new(),
        () => CAPABILITIES_DEFAULT.into_iter().collect(),
    };
    if !host.privileged {
        if !(add.contains("ALL") && drop.contains("ALL")) {
            have.retain(|name| !drop.contains(*name));
        }
        have.extend(capability::NAMES.into_iter().filter(|name| add.contains(*name)));
    }
    Ok(capability::NAMES
        .into_iter()
        .filter(|name| have.contains(name))
        .map(|name| format!("CAP_{name}"))
        .collect())
}

/// Reads `--security-opt`.
pub(crate) fn security_options(host: &HostConfig) -> Result<SecurityOptions, Invalid> {
    let mut options = SecurityOptions::default();
    for text in host.security_opt.iter().flatten() {
        if text == "no-new-privileges" {
            options.no_new_privileges = true;
            continue;
        }
        if text == "disable" {
            continue;
        }
        let (key, value) = text
            .split_once('=')
            .or_else(|| text.split_once(':'))
            .ok_or_else(|| Invalid::SecurityOptForm { text: text.clone() })?;
        match (key, value) {
            // SELinux labels mean nothing on a host without SELinux, as in Docker.
            ("label", _) => {}
            ("apparmor", profile) => options.apparmor = Some(profile.to_owned()),
            ("seccomp", "builtin") => options.seccomp = None,
            ("seccomp", "unconfined") => options.seccomp = Some(value.to_owned()),
            ("seccomp", profile) => {
                let parsed = serde_json::from_str::<serde_json::Value>(profile);
                if let Some(error) = parsed.err() {
                    return Err(Invalid::Seccomp { reason: error.to_string() });
                }
                options.seccomp = Some(profile.to_owned());
            }
            ("no-new-privileges", "true" | "1" | "t" | "TRUE" | "True") => {
                options.no_new_privileges = true
            }
            ("no-new-privileges", "false" | "0" | "f" | "FALSE" | "False") => {
                options.no_new_privileges = false;
            }
            ("systempaths", "unconfined") => options.paths_unconfined = true,
            _ => return Err(Invalid::SecurityOpt { text: text.clone() }),
        }
    }
    Ok(options)
}

/// Reads a logging configuration.
pub(crate) fn log_driver(config: &LogConfig) -> Result<LogDriver, Invalid> {
    let empty = BTreeMap::new();
    let options = config.config.as_ref().unwrap_or(&empty);
    let driver = config.r#type.as_str();
    match driver {
        "none" => Ok(LogDriver::None),
        // `local` is Docker's own file format; what it promises (small, rotated, readable) this one keeps too.
        "" | "json-file" | "local" => json_file(driver, options).map(LogDriver::JsonFile),
        other => Err(Invalid::LogDriver { driver: other.to_owned() }),
    }
}

fn json_file(driver: &str, options: &BTreeMap<String, String>) -> Result<JsonFile, Invalid> {
    let driver = if driver.is_empty() { "json-file" } else { driver };
    let mut file = JsonFile {
        file_bytes_max: LOG_FILE_BYTES_DEFAULT,
        files_max: LOG_FILES_DEFAULT,
        compress: driver == "local",
        labels: Vec::new(),
        env: Vec::new(),
    };
    let list = |value: &str| value.split(',').map(|key| key.trim().to_owned()).collect();
    for (option, value) in options {
        let wrong = || Invalid::LogOptionValue { option: option.clone(), value: value.clone() };
        match option.as_str() {
            "max-size" => file.file_bytes_max = parse_size(value).ok_or_else(wrong)?,
            "max-file" => {
                file.files_max = value
                    .parse()
                    .ok()
                    .filter(|n| (1..=LOG_FILES_MAX).contains(n))
                    .ok_or_else(wrong)?;
            }
            "compress" => file.compress = value.parse().map_err(|_| wrong())?,
            "labels" => file.labels = list(value),
            "env" => file.env = list(value),
            // Delivery mode and tags are about how messages leave the daemon; output goes from the shim
            // straight to the file, where neither has a meaning.
            "mode" | "max-buffer-size" | "tag" | "labels-regex" | "env-regex" => {}
            _ => {
                return Err(Invalid::LogOption {
                    option: option.clone(),
                    driver: driver.to_owned(),
                });
            }
        }
    }
    Ok(file)
}

/// `10m`, `1g`, `500k`, `4096`: bytes in powers of 1024. Unlimited (`-1`) is the largest number.
fn parse_size(text: &str) -> Option<u64> {
    if text == "-1" {
        return Some(u64::MAX);
    }
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(['b', 'i']);
    let (digits, factor) = match digits.as_bytes().last()? {
        b'k' => (&digits[..digits.len() - 1], 1 << 10),
        b'm' => (&digits[..digits.len() - 1], 1 << 20),
        b'g' => (&digits[..digits.len() - 1], 1 << 30),
        _ => (digits, 1),
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(factor).filter(|bytes| *bytes > 0)
}

fn named_capabilities(
    field: &'static str,
    words: Option<&Words>,
) -> Result<BTreeSet<String>, Invalid> {
    let mut names = BTreeSet::new();
    for word in words.map_or(&[][..], |words| &words.0) {
        let upper = word.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name != "ALL" && !capability::NAMES.contains(&name) {
            return Err(Invalid::Capability { field, name: format!("CAP_{name}") });
        }
        names.insert(name.to_owned());
    }
    Ok(names)
}

fn check_ulimit(ulimit: &Ulimit) -> Result<(), Invalid> {
    if !ULIMITS.contains(&ulimit.name.as_str()) {
        return Err(Invalid::Ulimit { name: ulimit.name.clone() });
    }
    if ulimit.hard != -1 && (ulimit.soft > ulimit.hard || ulimit.soft == -1) {
        return Err(Invalid::UlimitOrder { soft: ulimit.soft, hard: ulimit.hard });
    }
    Ok(())
}

fn check_sysctl(name: &str, host: &HostConfig) -> Result<(), Invalid> {
    if name.starts_with("net.") {
        if host.network_mode == "host" {
            return Err(Invalid::SysctlHost { name: name.to_owned() });
        }
        return Ok(());
    }
    let is_ipc = SYSCTLS_IPC.contains(&name) || name.starts_with("fs.mqueue.");
    let is_uts = name == "kernel.domainname";
    if (is_ipc && host.ipc_mode != "host") || (is_uts && host.uts_mode != "host") {
        return Ok(());
    }
    Err(Invalid::Sysctl { name: name.to_owned() })
}

/// `c 1:3 rwm`, where numbers may be `*`.
fn check_device_rule(rule: &str) -> Result<(), Invalid> {
    let is_number = |text: &str| text == "*" || text.parse::<u32>().is_ok();
    let is_valid = || {
        let mut fields = rule.split(' ');
        let (kind, numbers, access) = (fields.next()?, fields.next()?, fields.next()?);
        let (major, minor) = numbers.split_once(':')?;
        let fits = matches!(kind, "a" | "b" | "c")
            && is_number(major)
            && is_number(minor)
            && (1..=3).contains(&access.len())
            && access.bytes().all(|byte| b"rwm".contains(&byte))
            && fields.next().is_none();
        fits.then_some(())
    };
    is_valid().ok_or_else(|| Invalid::DeviceRule { rule: rule.to_owned() })
}

#[cfg(test)]
mod tests {
    use docker_types::container::{HostConfig, LogConfig};

    use super::{
        LogDriver, capabilities, check_device_rule, log_driver, parse_size, security_options,
    };

    fn host(json: &str) -> HostConfig {
        serde_json::from_str(json).unwrap()
    }

    fn count(json: &str) -> usize {
        capabilities(&host(json)).unwrap().len()
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_in_docker() {
        assert_eq!(count("{}"), 14);
        assert_eq!(count(r#"{"Privileged":true}"#), 41);
        assert_eq!(count(r#"{"CapDrop":["ALL"]}"#), 0);
        assert_eq!(count(r#"{"CapAdd":["ALL"]}"#), 41);
        assert_eq!(count(r#"{"CapAdd":["ALL"],"CapDrop":["SYS_ADMIN"]}"#), 40);
        assert_eq!(count(r#"{"CapDrop":["all"],"CapAdd":["net_admin"]}"#), 1);
        let own = capabilities(&host(r#"{"CapAdd":["CAP_SYS_TIME"],"CapDrop":["KILL"]}"#)).unwrap();
        assert!(own.contains(&"CAP_SYS_TIME".to_owned()) && !own.contains(&"CAP_KILL".to_owned()));
    }

    #[test]
    fn security_options_are_read() {
        let options = security_options(&host(
            r#"{"SecurityOpt":["no-new-privileges","seccomp=unconfined","label=disable"]}"#,
        ))
        .unwrap();
        assert!(options.no_new_privileges);
        assert_eq!(options.seccomp.as_deref(), Some("unconfined"));
        let broken = security_options(&host(r#"{"SecurityOpt":["seccomp={"]}"#)).unwrap_err();
        assert!(broken.to_string().starts_with("Decoding seccomp profile failed: "));
    }

    #[test]
    fn log_options_are_read_and_unknown_ones_refused() {
        let config = |options: &str| LogConfig {
            r#type: "json-file".into(),
            config: serde_json::from_str(options).unwrap(),
        };
        let LogDriver::JsonFile(file) =
            log_driver(&config(r#"{"max-size":"10m","max-file":"3","labels":"a,b"}"#)).unwrap()
        else {
            panic!("not a file")
        };
        assert_eq!((file.file_bytes_max, file.files_max, file.labels.len()), (10 << 20, 3, 2));
        let unknown = log_driver(&config(r#"{"colour":"red"}"#)).unwrap_err();
        assert_eq!(unknown.to_string(), "unknown log opt 'colour' for json-file log driver");
        assert!(log_driver(&config(r#"{"max-file":"0"}"#)).is_err());
        assert_eq!(parse_size("1.5m"), None);
        assert_eq!(parse_size("2KB"), Some(2048));
    }

    #[test]
    fn device_rules_have_three_fields() {
        for rule in ["c 1:3 rwm", "a *:* m", "b 8:* r"] {
            assert!(check_device_rule(rule).is_ok(), "{rule}");
        }
        for rule in ["", "c 1:3", "x 1:3 r", "c 1 r", "c 1:3 rwx", "c 1:3 r w"] {
            assert!(check_device_rule(rule).is_err(), "{rule}");
        }
    }
}
