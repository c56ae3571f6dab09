//! Placeholders that services may use in host names, environment and mounts: `{{.Service.Name}}` and its kin.

use types::task::Slot;
use types::{NodeId, Task, TaskTemplate};

/// What placeholders stand for, for one task.
#[derive(Debug)]
pub(crate) struct Values {
    pairs: Vec<(&'static str, String)>,
    service_labels: std::collections::BTreeMap<String, String>,
}

impl Values {
    pub(crate) fn new(task: &Task, template: &TaskTemplate, node: NodeId, hostname: &str) -> Self {
        let name = task.container_name(&template.service_name);
        let slot = match task.slot {
            Slot::Replica(number) => number.to_string(),
            Slot::Node(node) => node.to_string(),
        };
        let pairs = vec![
            (".Service.ID", task.service.to_string()),
            (".Service.Name", template.service_name.clone()),
            (".Node.ID", node.to_string()),
            (".Node.Hostname", hostname.to_owned()),
            (".Node.Platform.OS", "linux".to_owned()),
            (".Node.Platform.Architecture", std::env::consts::ARCH.to_owned()),
            (".Task.ID", task.id.to_string()),
            (".Task.Name", name),
            (".Task.Slot", slot),
        ];
        Self { pairs, service_labels: template.service_labels.clone() }
    }

    /// `text` with its placeholders filled in.
    ///
    /// # Errors
    /// A placeholder nobody knows, or one without an end.
    pub(crate) fn expand(&self, text: &str) -> Result<String, String> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("{{") {
            let (before, from) = rest.split_at(start);
            let end = from.find("}}").ok_or_else(|| format!("template without end: {text}"))?;
            out.push_str(before);
            out.push_str(&self.value(from[2..end].trim())?);
            rest = &from[end + 2..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn value(&self, expression: &str) -> Result<String, String> {
        if let Some((_, value)) = self.pairs.iter().find(|(name, _)| *name == expression) {
            return Ok(value.clone());
        }
        let label = expression
            .strip_prefix("index .Service.Labels ")
            .map(|quoted| quoted.trim().trim_matches('"'))
            .or_else(|| expression.strip_prefix(".Service.Labels."));
        match label {
            Some(label) => Ok(self.service_labels.get(label).cloned().unwrap_or_default()),
            None => Err(format!("unknown placeholder {{{{{expression}}}}}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values {
            pairs: vec![(".Task.Slot", "3".into()), (".Service.Name", "web".into())],
            service_labels: [("zone".to_owned(), "east".to_owned())].into(),
        }
    }

    #[test]
    fn placeholders_are_filled_in() {
        for (text, expected) in [
            ("plain", "plain"),
            ("{{.Service.Name}}-{{ .Task.Slot }}", "web-3"),
            ("{{index .Service.Labels \"zone\"}}", "east"),
            ("{{.Service.Labels.none}}", ""),
        ] {
            assert_eq!(values().expand(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        assert!(values().expand("{{.Secret.Sauce}}").is_err());
        assert!(values().expand("{{.Task.Slot").is_err());
    }
}
