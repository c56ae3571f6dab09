//! What a new container runs: the client's configuration, completed by its image's.

use std::collections::BTreeMap;

use docker_types::container::{ContainerConfig, HealthConfig};
use docker_types::words::Words;

use super::invalid::Invalid;

/// Completes `config` from the image's own, which has the same fields.
pub(crate) fn complete(config: &mut ContainerConfig, image: ContainerConfig) {
    for (port, empty) in image.exposed_ports {
        config.exposed_ports.entry(port).or_insert(empty);
    }
    complete_env(config, image.env.unwrap_or_default());
    complete_labels(config, image.labels.unwrap_or_default());
    complete_command(config, image.entrypoint, image.cmd);
    complete_health(config, image.healthcheck);
    take_if_empty(&mut config.user, image.user);
    take_if_empty(&mut config.working_dir, image.working_dir);
    take_if_empty(&mut config.stop_signal, image.stop_signal);
    config.stop_timeout = config.stop_timeout.or(image.stop_timeout);
    if let Some(volumes) = image.volumes.filter(|volumes| !volumes.is_empty()) {
        config.volumes.get_or_insert_default().extend(volumes);
    }
}

/// The program and its arguments.
///
/// # Errors
/// [`Invalid::NoCommand`] when neither an entrypoint nor a command is left.
pub(crate) fn command_line(config: &ContainerConfig) -> Result<(String, Vec<String>), Invalid> {
    let words = |list: &Option<Words>| list.as_ref().map_or(&[][..], |words| &words.0).to_vec();
    let mut line = words(&config.entrypoint);
    line.extend(words(&config.cmd));
    if line.is_empty() {
        return Err(Invalid::NoCommand);
    }
    let path = line.remove(0);
    Ok((path, line))
}

fn complete_env(config: &mut ContainerConfig, image: Vec<String>) {
    let env = config.env.get_or_insert_default();
    for pair in image {
        let name = pair.split('=').next().unwrap_or_default();
        let is_set = env.iter().any(|own| own.split('=').next() == Some(name));
        if !is_set {
            env.push(pair);
        }
    }
}

fn complete_labels(config: &mut ContainerConfig, image: BTreeMap<String, String>) {
    let labels = config.labels.get_or_insert_default();
    for (key, value) in image {
        labels.entry(key).or_insert(value);
    }
}

/// An entrypoint of one's own drops the image's command; an empty one drops both.
fn complete_command(config: &mut ContainerConfig, entrypoint: Option<Words>, cmd: Option<Words>) {
    let is_empty = |list: &Option<Words>| list.as_ref().is_none_or(|words| words.0.is_empty());
    if is_empty(&config.entrypoint) {
        if is_empty(&config.cmd) {
            config.cmd = cmd;
        }
        if config.entrypoint.is_none() {
            config.entrypoint = entrypoint;
        }
    }
    // `--entrypoint ""` is sent as one empty word.
    if config.entrypoint.as_ref().is_some_and(|words| words.0 == [""]) {
        config.entrypoint = None;
    }
}

fn complete_health(config: &mut ContainerConfig, image: Option<HealthConfig>) {
    let Some(image) = image else { return };
    let Some(own) = &mut config.healthcheck else {
        config.healthcheck = Some(image);
        return;
    };
    if own.test.is_empty() {
        own.test = image.test;
    }
    for (own, image) in [
        (&mut own.interval, image.interval),
        (&mut own.timeout, image.timeout),
        (&mut own.start_period, image.start_period),
        (&mut own.start_interval, image.start_interval),
        (&mut own.retries, image.retries),
    ] {
        if *own == 0 {
            *own = image;
        }
    }
}

fn take_if_empty(own: &mut String, image: String) {
    if own.is_empty() {
        *own = image;
    }
}

#[cfg(test)]
mod tests {
    use docker_types::container::ContainerConfig;

    use super::{command_line, complete};

    fn config(json: &str) -> ContainerConfig {
        serde_json::from_str(json).unwrap()
    }

    fn line(own: &str, image: &str) -> String {
        let mut own = config(own);
        complete(&mut own, config(image));
        match command_line(&own) {
            Ok((path, args)) => [vec![path], args].concat().join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_command_line_follows_dockers_rules() {
        let image = r#"{"Entrypoint":["/entry"],"Cmd":["serve","-x"]}"#;
        assert_eq!(line("{}", image), "/entry serve -x");
        assert_eq!(line(r#"{"Cmd":["other"]}"#, image), "/entry other");
        assert_eq!(line(r#"{"Entrypoint":["sh"]}"#, image), "sh");
        assert_eq!(line(r#"{"Entrypoint":[""],"Cmd":["date"]}"#, image), "date");
        assert_eq!(line(r#"{"Entrypoint":[]}"#, image), "serve -x");
        assert_eq!(line("{}", "{}"), "no command specified");
    }

    #[test]
    fn what_the_client_says_wins_and_the_rest_comes_from_the_image() {
        let mut own = config(
            r#"{"Env":["A=1","GONE"],"Labels":{"a":"own"},"User":"me",
                "Healthcheck":{"Interval":5},"Volumes":{"/own":{}}}"#,
        );
        complete(
            &mut own,
            config(
                r#"{"Env":["A=2","B=3","GONE=x"],"Labels":{"a":"image","b":"image"},"User":"root",
                    "WorkingDir":"/srv","Healthcheck":{"Test":["CMD","true"],"Interval":9,"Retries":2},
                    "Volumes":{"/data":{}},"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT"}"#,
            ),
        );
        assert_eq!(own.env.unwrap(), ["A=1", "GONE", "B=3"]);
        assert_eq!(own.labels.unwrap().into_values().collect::<Vec<_>>(), ["own", "image"]);
        assert_eq!((own.user.as_str(), own.working_dir.as_str()), ("me", "/srv"));
        let health = own.healthcheck.unwrap();
        assert_eq!((health.test.len(), health.interval, health.retries), (2, 5, 2));
        assert_eq!(own.volumes.unwrap().into_keys().collect::<Vec<_>>(), ["/data", "/own"]);
        assert_eq!(own.stop_signal, "SIGQUIT");
    }
}
