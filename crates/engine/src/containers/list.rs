//! `docker ps`: which containers, in which order, and one line for each.

use std::collections::BTreeMap;
use std::sync::Arc;

use docker_types::container::{
    ContainerConfig, ContainerSummary, SummaryHostConfig, SummaryNetworkSettings,
};
use jiff::Timestamp;

use super::container::Container;
use super::invalid::Invalid;
use super::mounts::Kind;
use super::ports::{port_list, published_targets};
use super::record::Record;
use super::status::{HealthState, Phase, Status};
use super::{Containers, Shared, blocking, health, validate};
use crate::error::Error;
use crate::networks::PREDEFINED;
use crate::volumes::has_label;

/// What a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Also containers that do not run.
    pub all: bool,
    /// Only the newest, running or not; zero and less is no limit.
    pub limit: i64,
    /// Measure file systems, which takes time.
    pub size: bool,
    pub filters: BTreeMap<String, Vec<String>>,
}

/// Filters, read once before any container is looked at.
#[derive(Debug, Default)]
struct Filter {
    values: BTreeMap<String, Vec<String>>,
    exit_codes: Vec<i64>,
    ancestors: Option<Vec<String>>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    shows_stopped: bool,
}

/// One container as a list looks at it.
struct Candidate {
    container: Arc<Container>,
    record: Arc<Record>,
    status: Status,
}

impl ListOptions {
    /// The moment that the filter `until` names: a time, or how long ago.
    pub(super) fn until(&self) -> Result<Option<Timestamp>, Error> {
        let Some(text) = self.filters.get("until").and_then(|values| values.first()) else {
            return Ok(None);
        };
        let parsed = crate::times::parse(text, Timestamp::now());
        let invalid = || Invalid::Filter { key: "until".to_owned(), value: text.clone() };
        Ok(Some(parsed.ok_or_else(invalid)?))
    }
}

impl Containers {
    /// The containers that fit, newest first.
    ///
    /// # Errors
    /// A filter with a value that means nothing.
    pub async fn list(&self, options: &ListOptions) -> Result<Vec<ContainerSummary>, Error> {
        let mut candidates = self.shared.candidates(options)?;
        if options.limit > 0 {
            candidates.truncate(usize::try_from(options.limit).unwrap_or(usize::MAX));
        }
        let now = Timestamp::now();
        let mut summaries: Vec<_> =
            candidates.iter().map(|candidate| self.shared.summary(candidate, now)).collect();
        if options.size {
            let images = self.shared.images.clone();
            summaries = blocking(move || {
                for summary in &mut summaries {
                    let sizes = images.rootfs_size(&summary.id)?;
                    summary.size_rw = i64::try_from(sizes.writable).ok();
                    summary.size_root_fs = i64::try_from(sizes.total).ok();
                }
                Ok(summaries)
            })
            .await?;
        }
        Ok(summaries)
    }

    /// How many containers run, are paused, and are neither.
    pub fn counts(&self) -> (usize, usize, usize) {
        let mut counts = (0, 0, 0);
        for container in self.shared.registry.all() {
            match container.phase() {
                Phase::Running | Phase::Restarting => counts.0 += 1,
                Phase::Paused => counts.1 += 1,
                _ => counts.2 += 1,
            }
        }
        counts
    }
}

impl Shared {
    fn candidates(&self, options: &ListOptions) -> Result<Vec<Candidate>, Error> {
        let filter = self.filter(options)?;
        let mut candidates: Vec<Candidate> = self
            .registry
            .all()
            .into_iter()
            .map(|container| Candidate {
                record: container.record(),
                status: container.status(),
                container,
            })
            .collect();
        // Of two from the same moment the order stays the same.
        candidates.sort_by(|a, b| {
            (b.record.created, &b.record.id).cmp(&(a.record.created, &a.record.id))
        });
        let shows_all = options.all || options.limit > 0 || filter.shows_stopped;
        candidates.retain(|candidate| {
            (shows_all || candidate.is_shown_by_default()) && filter.matches(self, candidate)
        });
        Ok(candidates)
    }

    fn filter(&self, options: &ListOptions) -> Result<Filter, Error> {
        let values = &options.filters;
        let get = |key: &str| values.get(key).map_or(&[][..], Vec::as_slice);
        let invalid = |key: &str, value: &str| {
            Error::from(Invalid::Filter { key: key.to_owned(), value: value.to_owned() })
        };
        let mut filter = Filter { values: values.clone(), ..Filter::default() };
        for text in get("exited") {
            filter.exit_codes.push(text.parse().map_err(|_| invalid("exited", text))?);
        }
        let states = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
        if let Some(text) = get("status").iter().find(|text| !states.contains(&text.as_str())) {
            return Err(invalid("status", text));
        }
        let verdicts = ["none", "starting", "healthy", "unhealthy"];
        if let Some(text) = get("health").iter().find(|text| !verdicts.contains(&text.as_str())) {
            return Err(invalid("health", text));
        }
        for text in get("is-task") {
            text.parse::<bool>().map_err(|_| invalid("is-task", text))?;
        }
        for key in ["expose", "publish"] {
            for text in get(key) {
                parse_port_range(text).ok_or_else(|| invalid(key, text))?;
            }
        }
        let moment = |key: &str| -> Result<Option<Timestamp>, Error> {
            let Some(name) = get(key).first() else { return Ok(None) };
            Ok(Some(self.registry.find(name)?.record().created))
        };
        filter.before = moment("before")?;
        filter.since = moment("since")?;
        filter.shows_stopped = values.contains_key("status") || values.contains_key("exited");
        if values.contains_key("ancestor") {
            filter.ancestors = Some(self.images_named(get("ancestor")));
        }
        Ok(filter)
    }

    /// The ids of the images that names or ids mean; what means none is left out.
    fn images_named(&self, names: &[String]) -> Vec<String> {
        names.iter().filter_map(|name| Some(self.images.find(name).ok()?.id.to_string())).collect()
    }

    fn summary(&self, candidate: &Candidate, now: Timestamp) -> ContainerSummary {
        let Candidate { container, record, status } = candidate;
        // Arguments of several words are quoted, the program is not: as Docker's list does.
        let quoted = |word: &String| match word.contains(' ') {
            true => format!("'{word}'"),
            false => word.clone(),
        };
        let mut command = vec![record.path.clone()];
        command.extend(record.args.iter().map(quoted));
        let is_up = status.phase.is_up();
        ContainerSummary {
            id: container.id.clone(),
            names: vec![format!("/{}", record.name)],
            image: self.image_shown(record),
            image_id: record.image_id.clone(),
            command: command.join(" "),
            created: record.created.as_second(),
            ports: if is_up { port_list(record, &container.ports()) } else { Vec::new() },
            labels: record.labels().clone(),
            state: status.phase.name().to_owned(),
            status: status.describe(now),
            host_config: SummaryHostConfig {
                network_mode: record.host.network_mode.clone(),
                annotations: record.host.annotations.clone(),
            },
            network_settings: SummaryNetworkSettings {
                networks: self.endpoints(container, record),
            },
            mounts: self.mount_points(record),
            ..ContainerSummary::default()
        }
    }

    /// The image as it was asked for, unless that name now means another one.
    fn image_shown(&self, record: &Record) -> String {
        match self.images.find(&record.config.image) {
            Ok(image) if image.id.to_string() == record.image_id => record.config.image.clone(),
            _ => record.image_id.clone(),
        }
    }
}

impl Candidate {
    fn is_shown_by_default(&self) -> bool {
        self.status.phase.is_up() || self.status.phase == Phase::Restarting
    }
}

impl Filter {
    fn matches(&self, shared: &Shared, candidate: &Candidate) -> bool {
        let (record, status) = (&candidate.record, &candidate.status);
        let any = |key: &str, fits: &dyn Fn(&str) -> bool| {
            self.values.get(key).is_none_or(|values| values.iter().any(|value| fits(value)))
        };
        let all = |key: &str, fits: &dyn Fn(&str) -> bool| {
            self.values.get(key).is_none_or(|values| values.iter().all(|value| fits(value)))
        };
        any("id", &|id| record.id.starts_with(id))
            && any("name", &|name| matches_name(&record.name, name))
            && all("label", &|label| has_label(record.labels(), label))
            && any("status", &|phase| status.phase.name() == phase)
            && any("health", &|verdict| health_word(record, status) == verdict)
            && any("is-task", &|wanted| is_task(record) == (wanted == "true"))
            && any("isolation", &|wanted| matches!(wanted, "" | "default"))
            && any("network", &|network| is_in_network(record, network))
            && any("volume", &|volume| has_volume(shared, record, volume))
            && any("expose", &|port| exposes(record, port))
            && any("publish", &|port| publishes(&candidate.container, port))
            && (self.exit_codes.is_empty()
                || (status.started_at.is_some()
                    && !status.phase.is_up()
                    && self.exit_codes.contains(&status.exit_code)))
            && self.ancestors.as_ref().is_none_or(|images| images.contains(&record.image_id))
            && self.before.is_none_or(|before| record.created < before)
            && self.since.is_none_or(|since| record.created > since)
    }
}

/// Docker reads a name filter as a regular expression. What people write is a part of a name, or one with
/// `^` and `$` at its ends, and with a leading slash or without.
fn matches_name(name: &str, wanted: &str) -> bool {
    let (wanted, at_start) = wanted.strip_prefix('^').map_or((wanted, false), |rest| (rest, true));
    let (wanted, at_end) = wanted.strip_suffix('$').map_or((wanted, false), |rest| (rest, true));
    let wanted = wanted.strip_prefix('/').unwrap_or(wanted);
    match (at_start, at_end) {
        (true, true) => name == wanted,
        (true, false) => name.starts_with(wanted),
        (false, true) => name.ends_with(wanted),
        (false, false) => name.contains(wanted),
    }
}

fn health_word(record: &Record, status: &Status) -> &'static str {
    if !health::is_checked(&record.config) {
        return "none";
    }
    status.health.map_or("unhealthy", HealthState::name)
}

/// Whether the swarm made this container.
pub(super) fn is_task(record: &Record) -> bool {
    is_task_config(&record.config)
}

pub(super) fn is_task_config(config: &ContainerConfig) -> bool {
    let labels = config.labels.as_ref();
    labels.is_some_and(|labels| labels.contains_key("com.docker.swarm.task.id"))
}

fn is_in_network(record: &Record, wanted: &str) -> bool {
    record.networks.iter().any(|(name, settings)| {
        let predefined = PREDEFINED.contains(&name.as_str());
        let id = match predefined {
            true => crate::networks::predefined_id(name),
            false => settings.network_id.clone(),
        };
        name == wanted || (!wanted.is_empty() && id.starts_with(wanted))
    })
}

fn has_volume(shared: &Shared, record: &Record, wanted: &str) -> bool {
    record.mounts.iter().any(|plan| match plan.kind {
        Kind::Volume => {
            plan.volume == wanted
                || plan.destination == wanted
                || shared.volumes.data_dir(&plan.volume).to_string_lossy() == wanted
        }
        Kind::Bind | Kind::Tmpfs => plan.source == wanted || plan.destination == wanted,
    })
}

fn exposes(record: &Record, wanted: &str) -> bool {
    let Some((range, protocol)) = parse_port_range(wanted) else { return false };
    record.config.exposed_ports.keys().any(|port| {
        validate::parse_port(port).is_ok_and(|(number, own)| {
            range.contains(&number) && super::ports::protocol_name(own) == protocol
        })
    })
}

fn publishes(container: &Container, wanted: &str) -> bool {
    let Some((range, protocol)) = parse_port_range(wanted) else { return false };
    published_targets(&container.ports())
        .iter()
        .any(|((_, own), ports)| *own == protocol && ports.iter().any(|port| range.contains(port)))
}

/// `80`, `80/udp`, `8000-8010/tcp`.
fn parse_port_range(text: &str) -> Option<(std::ops::RangeInclusive<u16>, &str)> {
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let is_known = matches!(protocol, "tcp" | "udp" | "sctp");
    let range = first.parse().ok()?..=last.parse().ok()?;
    is_known.then_some((range, protocol))
}

#[cfg(test)]
mod tests {
    use super::{matches_name, parse_port_range};

    #[test]
    fn names_match_in_part_or_as_a_whole() {
        for (wanted, fits) in [
            ("web", true),
            ("eb.", true),
            ("^web$", false),
            ("^web.1$", true),
            ("^/web.1$", true),
            ("^eb", false),
            ("1$", true),
            ("/web", true),
            ("", true),
            ("x", false),
        ] {
            assert_eq!(matches_name("web.1", wanted), fits, "{wanted}");
        }
    }

    #[test]
    fn port_ranges_are_read() {
        assert_eq!(parse_port_range("80"), Some((80..=80, "tcp")));
        assert_eq!(parse_port_range("80-90/udp"), Some((80..=90, "udp")));
        assert_eq!(parse_port_range("x"), None);
        assert_eq!(parse_port_range("80/icmp"), None);
    }
}
