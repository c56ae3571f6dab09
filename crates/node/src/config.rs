//! The daemon's settings, read once from flags, file and environment, and checked.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::ToSocketAddrs;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use apiserver::{Listen, TlsFiles};
use clap::Parser;
use docker_types::container::{LogConfig, Ulimit};
use engine::registry::proxy::{Proxies, Proxy};
use network::Sealer;
use types::resources::Generic;

use crate::flags::Daemon;
use crate::tunnel;

/// Settings file that is read when there and no other is named.
const DEFAULT_CONFIG_FILE: &str = "/etc/skep/daemon.json";

/// The product's version, as `docker version` shows it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the daemon runs with.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) listen: Vec<Listen>,
    pub(crate) pidfile: Option<PathBuf>,
    pub(crate) log_filter: String,
    pub(crate) data_root: PathBuf,
    pub(crate) engine: engine::Config,
    pub(crate) generic_resources: BTreeMap<String, Generic>,
    pub(crate) tunnel: tunnel::Settings,
    /// Flags that were given and mean nothing here.
    pub(crate) ignored: Vec<String>,
}

impl Config {
    /// Lowers flags to settings. `arguments` are the flags as they were given, to be read again behind the file's.
    pub(crate) fn resolve(flags: Daemon, arguments: &[OsString]) -> anyhow::Result<Self> {
        Self::from_flags(&with_file(flags, arguments, Twice::Refused)?)
    }

    /// As [`Config::resolve`] for a daemon that has run already: its places are known, whatever the file says of them.
    pub(crate) fn resolve_again(flags: Daemon, arguments: &[OsString]) -> anyhow::Result<Self> {
        Self::from_flags(&with_file(flags, arguments, Twice::FlagWins)?)
    }

    fn from_flags(flags: &Daemon) -> anyhow::Result<Self> {
        let data_root = absolute(&flags.data_root)?;
        let exec_root = absolute(&flags.exec_root)?;
        let network = network_config(flags, &data_root, &exec_root)?;
        let engine = engine::Config {
            data_root: data_root.clone(),
            exec_root,
            program: std::env::current_exe().context("find this program's file")?,
            cgroup_parent: cgroup_parent(&flags.cgroup_parent)?,
            default_runtime: flags.default_runtime.clone(),
            default_ulimits: ulimits(&flags.default_ulimits)?,
            runtimes: runtimes(&flags.add_runtimes)?,
            log: LogConfig {
                r#type: flags.log_driver.clone(),
                config: Some(pairs("--log-opt", &flags.log_opts)?),
            },
            labels: flags.labels.clone(),
            version: VERSION.to_owned(),
            debug: flags.debug,
            network,
            images: engine::images::Config {
                data_root: data_root.clone(),
                registry: registry_config(flags)?,
            },
        };
        ensure!(
            flags.default_runtime == "native"
                || engine.runtimes.contains_key(&flags.default_runtime),
            "unknown --default-runtime {}: it is neither native, runc nor crun, nor added with --add-runtime",
            flags.default_runtime
        );
        pairs("--label", &flags.labels)?;
        Ok(Self {
            listen: listeners(flags)?,
            pidfile: flags.pidfile.clone(),
            log_filter: log_filter(flags)?,
            data_root,
            engine,
            generic_resources: generic_resources(&flags.node_generic_resources)?,
            tunnel: tunnel_settings(flags)?,
            ignored: ignored(flags),
        })
    }
}

fn tunnel_settings(flags: &Daemon) -> anyhow::Result<tunnel::Settings> {
    let sealer = match flags.tunnel.as_str() {
        "auto" => Sealer::Best,
        "kernel" => Sealer::Kernel,
        "process" => Sealer::Process,
        "off" => Sealer::Nobody,
        other => bail!("invalid --tunnel {other}: auto, kernel, process or off"),
    };
    let key_lifetime = flags.tunnel_key_lifetime.map_or(tunnel::KEY_LIFETIME, Duration::from_secs);
    Ok(tunnel::Settings { sealer, key_lifetime })
}

/// What becomes of a setting that both a flag and the file name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twice {
    Refused,
    FlagWins,
}

/// Reads the settings file, whose keys are the flags' long names. What is named in both places is refused, as by Docker.
fn with_file(flags: Daemon, arguments: &[OsString], twice: Twice) -> anyhow::Result<Daemon> {
    let path = match &flags.config_file {
        Some(path) => path.clone(),
        None if Path::new(DEFAULT_CONFIG_FILE).exists() => DEFAULT_CONFIG_FILE.into(),
        None => return Ok(flags),
    };
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let settings: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text)
        .with_context(|| format!("{}: invalid JSON", path.display()))?;
    let mut all = vec![OsString::from("daemon")];
    let mut both = Vec::new();
    for (key, value) in settings {
        let name = flag_name(&key);
        match given_flag(arguments, name) {
            Some(flag) => both.push(format!("{key}: (from flag: {flag}, from file: {value})")),
            None => all.extend(file_flags(&key, name, value)?.into_iter().map(OsString::from)),
        }
    }
    // Docker's words.
    ensure!(
        both.is_empty() || twice == Twice::FlagWins,
        "unable to configure the Docker daemon with file {}: the following directives are specified both as a flag and in the configuration file: {}",
        path.display(),
        both.join(", ")
    );
    all.extend(arguments.iter().cloned());
    Daemon::try_parse_from(all).map_err(|error| anyhow!("{}: {error}", path.display()))
}

/// The value of a flag that was given; the empty text for one without.
fn given_flag(arguments: &[OsString], name: &str) -> Option<String> {
    let mut arguments = arguments.iter().map(|argument| argument.to_string_lossy());
    while let Some(argument) = arguments.next() {
        let Some(rest) = argument.strip_prefix("--").and_then(|flag| flag.strip_prefix(name))
        else {
            continue;
        };
        if let Some(value) = rest.strip_prefix('=') {
            return Some(value.to_owned());
        }
        if rest.is_empty() {
            let next = arguments.next().filter(|next| !next.starts_with('-'));
            return Some(next.unwrap_or_default().into_owned());
        }
    }
    None
}

/// The file names lists in the plural.
fn flag_name(key: &str) -> &str {
    match key {
        "hosts" => "host",
        "labels" => "label",
        "log-opts" => "log-opt",
        "insecure-registries" => "insecure-registry",
        "registry-mirrors" => "registry-mirror",
        "node-generic-resources" => "node-generic-resource",
        "runtimes" => "add-runtime",
        "default-ulimits" => "default-ulimit",
        key => key,
    }
}

fn file_flags(key: &str, name: &str, value: serde_json::Value) -> anyhow::Result<Vec<String>> {
    use serde_json::Value;
    let flag = |value: &str| format!("--{name}={value}");
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(flag(text)),
        Value::Bool(_) | Value::Number(_) => Ok(flag(&value.to_string())),
        _ => Err(anyhow!("setting {key:?} holds something else than texts and numbers")),
    };
    match &value {
        Value::Array(values) => values.iter().map(scalar).collect(),
        Value::Object(pairs) => pairs
            .iter()
            .map(|(inner, value)| {
                let limits = (value.get("Soft"), value.get("Hard"));
                if let (Some(soft), Some(hard)) = limits {
                    return Ok(flag(&format!("{inner}={soft}:{hard}")));
                }
                let value = value.get("path").unwrap_or(value);
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                Ok(flag(&format!("{inner}={text}")))
            })
            .collect(),
        value => Ok(vec![scalar(value)?]),
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("resolve {}", path.display()))
}

fn cgroup_parent(text: &str) -> anyhow::Result<String> {
    let path = format!("/{}", text.trim_matches('/'));
    let sound = !path.split('/').any(|part| part == ".." || part == ".");
    ensure!(sound, "--cgroup-parent {text} must not leave the hierarchy");
    Ok(path)
}

/// Daemons that share a host tell their kernel objects apart by where they keep their state.
fn network_config(
    flags: &Daemon,
    data_root: &Path,
    exec_root: &Path,
) -> anyhow::Result<network::Config> {
    let is_default = exec_root == Path::new("/run/skep");
    let instance = if is_default { "main".to_owned() } else { short_hash(exec_root) };
    let bridge = match &flags.bridge {
        Some(bridge) => bridge.clone(),
        None if is_default => "skep0".to_owned(),
        None => format!("sk{instance}"),
    };
    ensure!(
        (1..=15).contains(&bridge.len()) && !bridge.contains(['/', ' ']),
        "--bridge {bridge} is no name of a link: at most 15 characters, no slash or space"
    );
    let subnet = flags.bip.as_ref().map(|text| {
        text.parse().with_context(|| format!("--bip {text} is not an address with a prefix length"))
    });
    Ok(network::Config {
        instance,
        bridge,
        subnet: subnet.transpose()?,
        run_dir: exec_root.join("network"),
        state_dir: data_root.join("network"),
    })
}

/// Eight digits that tell paths apart (FNV-1a).
fn short_hash(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let hash = bytes
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

fn pairs(flag: &str, texts: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let split = |text: &String| {
        let (key, value) =
            text.split_once('=').ok_or_else(|| anyhow!("{flag} {text}: expected KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(split).collect()
}

fn ulimits(texts: &[String]) -> anyhow::Result<Vec<Ulimit>> {
    let limit = |text: &String| {
        let (name, limits) = text.split_once('=')?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard): (i64, i64) = (soft.parse().ok()?, hard.parse().ok()?);
        (hard == -1 || soft <= hard).then(|| Ulimit { name: name.to_owned(), hard, soft })
    };
    let limits = texts.iter().map(|text| {
        limit(text).ok_or_else(|| anyhow!("--default-ulimit {text}: expected NAME=SOFT[:HARD]"))
    });
    limits.collect()
}

/// runc and crun are there under their names wherever the host has them.
fn runtimes(added: &[String]) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut runtimes = BTreeMap::new();
    for name in ["runc", "crun", "runsc"] {
        let directories =
            ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        let found = directories
            .iter()
            .map(|directory| Path::new(directory).join(name))
            .find(|path| path.exists());
        runtimes.extend(found.map(|path| (name.to_owned(), path)));
    }
    for (name, path) in pairs("--add-runtime", added)? {
        ensure!(name != "native", "--add-runtime {name}: the name is the built-in runtime's");
        runtimes.insert(name, path.into());
    }
    Ok(runtimes)
}

fn registry_config(flags: &Daemon) -> anyhow::Result<engine::registry::Config> {
    let insecure = flags.insecure_registries.iter();
    let insecure =
        insecure.map(|text| text.parse().with_context(|| format!("--insecure-registry {text}")));
    Ok(engine::registry::Config {
        mirrors: flags.registry_mirrors.clone(),
        insecure: insecure.collect::<Result<_, _>>()?,
        certs_dir: Some("/etc/docker/certs.d".into()),
        proxies: Proxies {
            http: proxy(flags.http_proxy.as_deref(), "HTTP_PROXY")?,
            https: proxy(flags.https_proxy.as_deref(), "HTTPS_PROXY")?,
            exempt: given(flags.no_proxy.as_deref(), "NO_PROXY")
                .unwrap_or_default()
                .parse()
                .unwrap_or_else(|never| match never {}),
        },
    })
}

fn proxy(flag: Option<&str>, variable: &str) -> anyhow::Result<Option<Proxy>> {
    let text = given(flag, variable).filter(|text| !text.is_empty());
    text.map(|text| text.parse().with_context(|| variable.to_owned())).transpose()
}

/// A flag, or the variable that all programs take in its place, in capitals or not.
#[expect(clippy::disallowed_methods, reason = "this module alone reads the environment")]
fn given(flag: Option<&str>, variable: &str) -> Option<String> {
    let flag = flag.map(str::to_owned);
    flag.or_else(|| std::env::var(variable).ok())
        .or_else(|| std::env::var(variable.to_ascii_lowercase()).ok())
}

fn listeners(flags: &Daemon) -> anyhow::Result<Vec<Listen>> {
    let default = [format!("unix://{}", flags.exec_root.join("docker.sock").display())];
    let hosts = if flags.hosts.is_empty() { &default[..] } else { &flags.hosts };
    let mut listeners = Vec::new();
    for host in hosts {
        listeners.extend(listener(host, flags)?);
    }
    Ok(listeners)
}

fn listener(host: &str, flags: &Daemon) -> anyhow::Result<Vec<Listen>> {
    if let Some(path) = host.strip_prefix("unix://") {
        ensure!(!path.is_empty(), "-H {host}: the socket's path is missing");
        return Ok(vec![Listen::Unix {
            path: absolute(Path::new(path))?,
            group: flags.group.clone(),
        }]);
    }
    if host.starts_with("fd://") {
        return inherited();
    }
    let Some(address) = host.strip_prefix("tcp://") else {
        bail!("-H {host}: expected unix://PATH, tcp://ADDRESS:PORT or fd://");
    };
    let has_tls = flags.tls || flags.tlsverify;
    let port = if has_tls { 2376 } else { 2375 };
    let address = match address {
        "" => format!("127.0.0.1:{port}"),
        address if address.contains(':') => address.to_owned(),
        address => format!("{address}:{port}"),
    };
    let tls = has_tls.then(|| TlsFiles {
        certificate: flags.tlscert.clone(),
        key: flags.tlskey.clone(),
        client_ca: flags.tlsverify.then(|| flags.tlscacert.clone()),
    });
    let resolved = address.to_socket_addrs().with_context(|| format!("-H {host}"))?;
    Ok(resolved.take(1).map(|address| Listen::Tcp { address, tls: tls.clone() }).collect())
}

/// The sockets a service manager opened for us (`sd_listen_fds(3)`): from descriptor 3 on.
#[expect(clippy::disallowed_methods, reason = "this module alone reads the environment")]
#[expect(unsafe_code, reason = "the service manager hands descriptors over by number")]
fn inherited() -> anyhow::Result<Vec<Listen>> {
    let ours = std::env::var("LISTEN_PID").ok() == Some(std::process::id().to_string());
    let count = std::env::var("LISTEN_FDS").ok().filter(|_| ours);
    let count: i32 = count.and_then(|count| count.parse().ok()).unwrap_or(0);
    ensure!(count > 0, "-H fd://: no socket was passed by a service manager");
    // SAFETY: LISTEN_PID names this process, so these descriptors are ours and nobody else's.
    let descriptors = (3..3 + count).map(|fd| unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) });
    Ok(descriptors.map(Listen::Inherited).collect())
}

/// Everything of ours; the libraries beneath tell every frame and ping, which nobody reads.
const DEBUG: &str = "debug,h2=info,hyper=info,hyper_util=info,rustls=info";

fn log_filter(flags: &Daemon) -> anyhow::Result<String> {
    let level = match flags.log_level.as_str() {
        _ if flags.debug => DEBUG,
        "debug" => DEBUG,
        "info" => "info",
        "warn" => "warn",
        "error" | "fatal" => "error",
        other => bail!("--log-level {other}: expected debug, info, warn, error or fatal"),
    };
    Ok(level.to_owned())
}

/// `gpu=2` is a count, `gpu=UUID1` a named unit; several of one kind add up.
fn generic_resources(texts: &[String]) -> anyhow::Result<BTreeMap<String, Generic>> {
    let mut all: BTreeMap<String, Generic> = BTreeMap::new();
    for text in texts.iter().flat_map(|text| text.split(',')) {
        let (kind, value) = text
            .split_once('=')
            .filter(|(kind, value)| !kind.is_empty() && !value.is_empty())
            .ok_or_else(|| anyhow!("--node-generic-resource {text}: expected KIND=AMOUNT"))?;
        match (value.parse::<i64>(), all.get_mut(kind)) {
            (Ok(amount), None) => drop(all.insert(kind.to_owned(), Generic::Discrete(amount))),
            (Err(_), None) => {
                let names = std::iter::once(value.to_owned()).collect();
                all.insert(kind.to_owned(), Generic::Named(names));
            }
            (Err(_), Some(Generic::Named(names))) => drop(names.insert(value.to_owned())),
            _ => bail!("--node-generic-resource {text}: mixed discrete and named resources"),
        }
    }
    Ok(all)
}

/// Names of the given flags that mean nothing here, from their debug form: one field, one flag.
fn ignored(flags: &Daemon) -> Vec<String> {
    let text = format!("{:#?}", flags.unused);
    let given = text.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(": "));
    given
        .filter(|(name, value)| !name.starts_with(' ') && !matches!(*value, "None," | "[],"))
        .map(|(name, _)| format!("--{}", name.replace('_', "-")))
        .collect()
}

/// The daemon that commands talk to where they are told of none.
#[expect(clippy::disallowed_methods, reason = "this module alone reads the environment")]
pub(crate) fn docker_host() -> String {
    let named = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    named.unwrap_or_else(|| "unix:///run/skep/docker.sock".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(arguments: &[&str]) -> anyhow::Result<Config> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let all = std::iter::once(OsString::from("daemon")).chain(arguments.clone());
        Config::resolve(Daemon::try_parse_from(all)?, &arguments)
    }

    #[test]
    fn flags_of_dockerd_that_mean_nothing_are_taken_and_named() {
        let config =
            resolve(&["--containerd", "/x.sock", "--userland-proxy=false", "--storage-opt", "a=b"]);
        assert_eq!(config.unwrap().ignored, ["--containerd", "--storage-opt", "--userland-proxy"]);
        assert!(resolve(&[]).unwrap().ignored.is_empty());
    }

    #[test]
    fn daemons_with_other_roots_have_other_names_in_the_kernel() {
        let main = resolve(&[]).unwrap().engine.network;
        let other = resolve(&["--exec-root", "/tmp/x"]).unwrap().engine.network;
        assert_eq!(main.bridge, "skep0");
        assert_ne!(main.bridge, other.bridge);
        assert_ne!(main.instance, other.instance);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (arguments, expected) in [
            (["-H", "http://x"], "-H http://x: expected"),
            (["--node-generic-resource", "gpu"], "--node-generic-resource gpu"),
            (["--log-level", "loud"], "--log-level loud"),
            (["--default-runtime", "kata"], "unknown --default-runtime kata"),
            (["--label", "x"], "--label x: expected KEY=VALUE"),
            (["--bridge", "a-name-that-is-too-long"], "--bridge a-name"),
        ] {
            let error = resolve(&arguments).unwrap_err().to_string();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn a_setting_is_named_in_the_file_or_by_a_flag_and_strange_ones_are_refused() {
        let directory = std::env::temp_dir().join(format!("skep-config-{}", std::process::id()));
        std::fs::write(&directory, r#"{"labels": ["a=b"], "debug": true, "data-root": "/file"}"#)
            .unwrap();
        let path = directory.to_str().unwrap();
        let config = resolve(&["--config-file", path]).unwrap();
        assert_eq!(config.engine.labels, ["a=b"]);
        assert_eq!((config.data_root.to_str().unwrap(), config.engine.debug), ("/file", true));
        let both =
            resolve(&["--config-file", path, "--data-root", "/flag"]).unwrap_err().to_string();
        assert!(both.contains("data-root: (from flag: /flag, from file: \"/file\")"), "{both}");
        std::fs::write(&directory, r#"{"colour": "red"}"#).unwrap();
        assert!(resolve(&["--config-file", path]).unwrap_err().to_string().contains("--colour"));
        std::fs::remove_file(&directory).unwrap();
    }
}
