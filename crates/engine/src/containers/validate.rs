//! Checks a request before anything is made, and fills in the defaults that depend on it.

mod limits;
mod options;

use std::net::IpAddr;

use docker_types::container::{ContainerConfig, HealthConfig, HostConfig, RestartPolicy};

use super::invalid::Invalid;
use super::signal::Signal;

pub(crate) use limits::{check_resources, merge_update};
pub(crate) use options::{LogDriver, SecurityOptions, capabilities, log_driver, security_options};

/// Longest hostname the kernel takes, in bytes (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES_MAX: usize = 64;
/// Shared memory of a container that asks for no size, in bytes, as in Docker.
const SHM_BYTES_DEFAULT: i64 = 64 * 1024 * 1024;
/// Shortest time in a health check, in nanoseconds.
const HEALTH_DURATION_MIN: i64 = 1_000_000;
/// Label and environment bytes of one container: they are kept in memory and written with each change.
const METADATA_BYTES_MAX: usize = 1024 * 1024;

/// Checks the portable half of a configuration.
pub(crate) fn check_config(config: &ContainerConfig) -> Result<(), Invalid> {
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(Invalid::WorkingDir { path: config.working_dir.clone() });
    }
    for text in config.env.iter().flatten() {
        if text.is_empty() || text.starts_with('=') || text.contains('\0') {
            return Err(Invalid::Environment { text: text.clone() });
        }
    }
    let words = [&config.cmd, &config.entrypoint];
    if words.into_iter().flatten().any(|words| words.0.iter().any(|word| word.contains('\0'))) {
        return Err(Invalid::NoCommand);
    }
    check_size("environment", config.env.iter().flatten().map(String::len).sum())?;
    let labels = config.labels.iter().flatten();
    check_size("labels", labels.map(|(key, value)| key.len() + value.len()).sum())?;
    if config.hostname.len() > HOSTNAME_BYTES_MAX
        || !config.hostname.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    {
        return Err(Invalid::Hostname { name: config.hostname.clone() });
    }
    if !config.stop_signal.is_empty() {
        Signal::parse(&config.stop_signal)?;
    }
    for port in config.exposed_ports.keys() {
        parse_port(port)?;
    }
    config.healthcheck.as_ref().map_or(Ok(()), check_health)
}

/// Checks how a container is tied to the host, and fills in Docker's defaults.
pub(crate) fn check_host(
    config: &ContainerConfig,
    host: &mut HostConfig,
) -> Result<Vec<String>, Invalid> {
    check_restart(&host.restart_policy)?;
    if host.auto_remove && !is_no_restart(&host.restart_policy) {
        return Err(Invalid::AutoRemoveRestart);
    }
    if !matches!(host.isolation.as_str(), "" | "default") {
        return Err(Invalid::Isolation { isolation: host.isolation.clone() });
    }
    if !matches!(host.userns_mode.as_str(), "" | "host") {
        return Err(Invalid::UserNamespace { mode: host.userns_mode.clone() });
    }
    check_hosts_and_dns(host)?;
    check_port_bindings(host)?;
    check_namespaces(config, host)?;
    options::check(host)?;
    let warnings = check_resources(host)?;
    if host.shm_size < 0 {
        return Err(Invalid::ShmSize);
    }
    if host.shm_size == 0 {
        host.shm_size = SHM_BYTES_DEFAULT;
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Invalid::OomScore { value: host.oom_score_adj });
    }
    Ok(warnings)
}

/// Checks a restart policy.
pub(crate) fn check_restart(policy: &RestartPolicy) -> Result<(), Invalid> {
    match policy.name.as_str() {
        "" | "no" | "always" | "unless-stopped" if policy.maximum_retry_count > 0 => {
            Err(Invalid::RestartCount)
        }
        "" | "no" | "always" | "unless-stopped" | "on-failure"
            if policy.maximum_retry_count < 0 =>
        {
            Err(Invalid::RestartCountNegative)
        }
        "" | "no" | "always" | "unless-stopped" | "on-failure" => Ok(()),
        name => Err(Invalid::RestartPolicy { name: name.to_owned() }),
    }
}

/// Whether a policy never restarts.
pub(crate) fn is_no_restart(policy: &RestartPolicy) -> bool {
    matches!(policy.name.as_str(), "" | "no")
}

/// A port of a container: `80/tcp`, or `80` for TCP.
pub(crate) fn parse_port(text: &str) -> Result<(u16, network::Protocol), Invalid> {
    let invalid = || Invalid::Port { text: text.to_owned() };
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => network::Protocol::Tcp,
        "udp" => network::Protocol::Udp,
        "sctp" => network::Protocol::Sctp,
        _ => return Err(invalid()),
    };
    match number.parse() {
        Ok(number) if number > 0 => Ok((number, protocol)),
        _ => Err(invalid()),
    }
}

/// The host's side of a port: empty or `0` for any, a number, or a range to choose from.
pub(crate) fn parse_host_port(
    text: &str,
) -> Result<Option<std::ops::RangeInclusive<u16>>, Invalid> {
    let invalid = || Invalid::Port { text: text.to_owned() };
    let text_of_number = text.split('/').next().unwrap_or_default();
    if matches!(text_of_number, "" | "0") {
        return Ok(None);
    }
    let (first, last) = text_of_number.split_once('-').unwrap_or((text_of_number, text_of_number));
    let first: u16 = first.parse().map_err(|_| invalid())?;
    let last: u16 = last.parse().map_err(|_| invalid())?;
    if first == 0 || last < first {
        return Err(invalid());
    }
    Ok(Some(first..=last))
}

/// An entry for `/etc/hosts`: `name:address` or `name=address`.
pub(crate) fn parse_extra_host(text: &str) -> Result<(&str, &str), Invalid> {
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| Invalid::ExtraHost { text: text.to_owned() })?;
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    if bare == "host-gateway" || bare.parse::<IpAddr>().is_ok() {
        return Ok((name, bare));
    }
    Err(Invalid::ExtraHostAddress { address: address.to_owned() })
}

fn check_size(what: &'static str, length: usize) -> Result<(), Invalid> {
    if length <= METADATA_BYTES_MAX {
        return Ok(());
    }
    Err(Invalid::TooLong { what, length, max: METADATA_BYTES_MAX })
}

fn check_health(health: &HealthConfig) -> Result<(), Invalid> {
    for (what, duration) in [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ] {
        if duration != 0 && duration < HEALTH_DURATION_MIN {
            return Err(Invalid::HealthDuration { what });
        }
    }
    if health.retries < 0 {
        return Err(Invalid::HealthRetries);
    }
    Ok(())
}

fn check_hosts_and_dns(host: &HostConfig) -> Result<(), Invalid> {
    for text in host.extra_hosts.iter().flatten() {
        parse_extra_host(text)?;
    }
    for text in host.dns.iter().flatten() {
        if text.parse::<IpAddr>().is_err() {
            return Err(Invalid::Dns { text: text.clone() });
        }
    }
    Ok(())
}

fn check_port_bindings(host: &HostConfig) -> Result<(), Invalid> {
    for (port, bindings) in host.port_bindings.iter().flatten() {
        parse_port(port)?;
        for binding in bindings.iter().flatten() {
            parse_host_port(&binding.host_port)?;
            if !binding.host_ip.is_empty() && binding.host_ip.parse::<IpAddr>().is_err() {
                return Err(Invalid::Port {
                    text: format!("{}:{}", binding.host_ip, binding.host_port),
                });
            }
        }
    }
    Ok(())
}

/// Which options cannot go with a namespace that belongs to someone else.
fn check_namespaces(config: &ContainerConfig, host: &mut HostConfig) -> Result<(), Invalid> {
    if matches!(host.network_mode.as_str(), "" | "default") {
        "bridge".clone_into(&mut host.network_mode);
    }
    let conflict = |what| Err(Invalid::Conflicting { what });
    let shares_network = host.network_mode.starts_with("container:");
    if shares_network && !config.hostname.is_empty() {
        return conflict("hostname and the network mode");
    }
    if host.uts_mode == "host" && !config.hostname.is_empty() {
        return conflict("hostname and the UTS mode");
    }
    if shares_network && host.dns.as_ref().is_some_and(|dns| !dns.is_empty()) {
        return conflict("dns and the network mode");
    }
    if shares_network && host.extra_hosts.as_ref().is_some_and(|hosts| !hosts.is_empty()) {
        return conflict("custom host-to-IP mapping and the network mode");
    }
    let publishes =
        host.publish_all_ports || host.port_bindings.as_ref().is_some_and(|map| !map.is_empty());
    if shares_network && publishes {
        return conflict("port publishing and the container type network mode");
    }
    let has_links = host.links.as_ref().is_some_and(|links| !links.is_empty());
    if has_links && (shares_network || host.network_mode == "host") {
        return conflict(
            "host type networking can't be used with links. This would result in undefined behavior",
        );
    }
    if host.ipc_mode.is_empty() {
        "private".clone_into(&mut host.ipc_mode);
    }
    if host.cgroupns_mode.is_empty() {
        let is_unified = super::cgroup::is_unified();
        if is_unified { "private" } else { "host" }.clone_into(&mut host.cgroupns_mode);
    }
    check_mode("PID", &host.pid_mode, &["", "host"])?;
    check_mode("IPC", &host.ipc_mode, &["none", "private", "shareable", "host"])?;
    check_mode("UTS", &host.uts_mode, &["", "host"])?;
    check_mode("cgroup namespace", &host.cgroupns_mode, &["private", "host"])
}

fn check_mode(namespace: &'static str, mode: &str, accepted: &[&str]) -> Result<(), Invalid> {
    let shares = matches!(namespace, "PID" | "IPC")
        && mode.strip_prefix("container:").is_some_and(|id| !id.is_empty());
    if shares || accepted.contains(&mode) {
        return Ok(());
    }
    Err(Invalid::NamespaceMode { namespace, mode: mode.to_owned() })
}

#[cfg(test)]
mod tests {
    use docker_types::container::{ContainerConfig, HostConfig};

    use super::{check_config, check_host, parse_extra_host, parse_host_port, parse_port};

    fn refusal(config: &str, host: &str) -> String {
        let config: ContainerConfig = serde_json::from_str(config).unwrap();
        let mut host: HostConfig = serde_json::from_str(host).unwrap();
        check_config(&config).and_then(|()| check_host(&config, &mut host)).unwrap_err().to_string()
    }

    #[test]
    fn wrong_requests_are_refused_in_dockers_words() {
        for (config, host, text) in [
            (
                r#"{"WorkingDir":"srv"}"#,
                "{}",
                "the working directory 'srv' is invalid, it needs to be an absolute path",
            ),
            (r#"{"Env":["=x"]}"#, "{}", "invalid environment variable: =x"),
            (r#"{"StopSignal":"SIGFOO"}"#, "{}", "invalid signal: SIGFOO"),
            (
                r#"{"Healthcheck":{"Interval":5}}"#,
                "{}",
                "Interval in Healthcheck cannot be less than 1ms",
            ),
            (
                "{}",
                r#"{"RestartPolicy":{"Name":"sometimes"}}"#,
                "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            ),
            (
                "{}",
                r#"{"RestartPolicy":{"Name":"always"},"AutoRemove":true}"#,
                "can't create 'AutoRemove' container with restart policy",
            ),
            ("{}", r#"{"PortBindings":{"x/tcp":[]}}"#, "invalid port specification: \"x/tcp\""),
            ("{}", r#"{"Memory":1000}"#, "Minimum memory limit allowed is 6MB"),
            (
                "{}",
                r#"{"Memory":10000000,"MemorySwap":9000000}"#,
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ),
            (
                "{}",
                r#"{"NanoCpus":1,"CpuQuota":5000}"#,
                "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
            ),
            ("{}", r#"{"CapAdd":["FLY"]}"#, "invalid CapAdd: unknown capability: \"CAP_FLY\""),
            ("{}", r#"{"SecurityOpt":["x"]}"#, "invalid --security-opt 1: \"x\""),
            ("{}", r#"{"SecurityOpt":["x=y"]}"#, "invalid --security-opt 2: \"x=y\""),
            (
                "{}",
                r#"{"LogConfig":{"Type":"splunk"}}"#,
                "logger: no log driver named 'splunk' is registered",
            ),
            ("{}", r#"{"ExtraHosts":["x"]}"#, "bad format for add-host: \"x\""),
            (
                r#"{"Hostname":"h"}"#,
                r#"{"NetworkMode":"container:x"}"#,
                "conflicting options: hostname and the network mode",
            ),
            ("{}", r#"{"PidMode":"other"}"#, "invalid PID mode: other"),
            (
                "{}",
                r#"{"OomScoreAdj":2000}"#,
                "Invalid value 2000, range for oom score adj is [-1000, 1000]",
            ),
        ] {
            assert_eq!(refusal(config, host), text);
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let mut host: HostConfig = serde_json::from_str(r#"{"Memory":10000000}"#).unwrap();
        check_host(&ContainerConfig::default(), &mut host).unwrap();
        assert_eq!(host.network_mode, "bridge");
        assert_eq!(host.ipc_mode, "private");
        assert_eq!(host.shm_size, 64 * 1024 * 1024);
        assert_eq!(host.memory_swap, 20_000_000);
        assert_eq!(host.log_config.r#type, "");
    }

    #[test]
    fn ports_and_hosts_are_read() {
        assert_eq!(parse_port("53/udp").unwrap(), (53, network::Protocol::Udp));
        assert_eq!(parse_port("80").unwrap(), (80, network::Protocol::Tcp));
        assert!(parse_port("0/tcp").is_err() && parse_port("80/icmp").is_err());
        assert_eq!(parse_host_port("").unwrap(), None);
        assert_eq!(parse_host_port("8080-8090").unwrap(), Some(8080..=8090));
        assert!(parse_host_port("9-8").is_err());
        assert_eq!(parse_extra_host("a:10.0.0.1").unwrap(), ("a", "10.0.0.1"));
        assert_eq!(parse_extra_host("a=[::1]").unwrap(), ("a", "::1"));
        assert_eq!(parse_extra_host("a:host-gateway").unwrap(), ("a", "host-gateway"));
    }
}
