//! One immutable state of the whole cluster. Copies are cheap; changes share what they do not touch.

use std::sync::Arc;

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};
use serde::{Deserialize, Serialize};
use types::{
    Cluster, Config, ConfigId, ContainerAttachment, Network, NetworkId, Node, NodeId, Secret,
    SecretId, Service, ServiceId, Task, TaskId, TaskTemplate,
};

use crate::{Key, Object};

/// All objects and their indexes as of one change set.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Number of change sets applied so far.
    pub(crate) sequence: u64,
    cluster: Option<Arc<Cluster>>,
    nodes: RedBlackTreeMapSync<NodeId, Arc<Node>>,
    services: RedBlackTreeMapSync<ServiceId, Arc<Service>>,
    templates: RedBlackTreeMapSync<(ServiceId, u64), Arc<TaskTemplate>>,
    tasks: RedBlackTreeMapSync<TaskId, Arc<Task>>,
    networks: RedBlackTreeMapSync<NetworkId, Arc<Network>>,
    secrets: RedBlackTreeMapSync<SecretId, Arc<Secret>>,
    configs: RedBlackTreeMapSync<ConfigId, Arc<Config>>,
    attachments: RedBlackTreeMapSync<TaskId, Arc<ContainerAttachment>>,
    service_names: RedBlackTreeMapSync<String, ServiceId>,
    tasks_by_service: RedBlackTreeSetSync<(ServiceId, TaskId)>,
    tasks_by_node: RedBlackTreeSetSync<(NodeId, TaskId)>,
    attachments_by_node: RedBlackTreeSetSync<(NodeId, TaskId)>,
}

/// Equal when they hold the same objects at the same sequence; indexes follow from those.
impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence && self.objects().eq(other.objects())
    }
}

/// A snapshot as it is stored and sent: the objects without the indexes.
#[derive(Serialize, Deserialize)]
struct Stored {
    sequence: u64,
    objects: Vec<Object>,
}

impl Serialize for Snapshot {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Stored { sequence: self.sequence, objects: self.objects().collect() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Snapshot {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = Stored::deserialize(deserializer)?;
        let mut snapshot = Self { sequence: stored.sequence, ..Self::default() };
        for object in stored.objects {
            snapshot.put(object);
        }
        Ok(snapshot)
    }
}

impl Snapshot {
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(&id)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn service_count(&self) -> usize {
        self.services.size()
    }

    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.service_names.get(name).and_then(|id| self.services.get(id))
    }

    pub fn template(&self, service: ServiceId, version: u64) -> Option<&Arc<TaskTemplate>> {
        self.templates.get(&(service, version))
    }

    /// The template a task was made from. It outlives the service, as long as a task names it.
    pub fn template_of(&self, task: &Task) -> Option<&Arc<TaskTemplate>> {
        self.template(task.service, task.template_version)
    }

    pub fn templates(&self) -> impl Iterator<Item = &Arc<TaskTemplate>> {
        self.templates.values()
    }

    pub fn templates_of(&self, service: ServiceId) -> impl Iterator<Item = &Arc<TaskTemplate>> {
        self.templates.range((service, 0)..=(service, u64::MAX)).map(|(_, template)| template)
    }

    pub fn task(&self, id: TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(&id)
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    pub fn task_count(&self) -> usize {
        self.tasks.size()
    }

    pub fn tasks_of(&self, service: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_by_service
            .range((service, TaskId::MIN)..=(service, TaskId::MAX))
            .filter_map(|(_, id)| self.tasks.get(id))
    }

    pub fn tasks_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_by_node
            .range((node, TaskId::MIN)..=(node, TaskId::MAX))
            .filter_map(|(_, id)| self.tasks.get(id))
    }

    pub fn network(&self, id: NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(&id)
    }

    /// Networks are few: looked for one by one.
    pub fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks.values().find(|network| network.name() == name)
    }

    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }

    pub fn secret(&self, id: SecretId) -> Option<&Arc<Secret>> {
        self.secrets.get(&id)
    }

    pub fn configs(&self) -> impl Iterator<Item = &Arc<Config>> {
        self.configs.values()
    }

    pub fn config(&self, id: ConfigId) -> Option<&Arc<Config>> {
        self.configs.get(&id)
    }

    pub fn attachment(&self, id: TaskId) -> Option<&Arc<ContainerAttachment>> {
        self.attachments.get(&id)
    }

    pub fn attachments(&self) -> impl Iterator<Item = &Arc<ContainerAttachment>> {
        self.attachments.values()
    }

    pub fn attachments_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<ContainerAttachment>> {
        self.attachments_by_node
            .range((node, TaskId::MIN)..=(node, TaskId::MAX))
            .filter_map(|(_, id)| self.attachments.get(id))
    }

    /// Any object by its key.
    pub fn get(&self, key: Key) -> Option<Object> {
        match key {
            Key::Cluster => self.cluster.clone().map(Object::Cluster),
            Key::Node(id) => self.nodes.get(&id).cloned().map(Object::Node),
            Key::Service(id) => self.services.get(&id).cloned().map(Object::Service),
            Key::Template(id, version) => {
                self.templates.get(&(id, version)).cloned().map(Object::Template)
            }
            Key::Task(id) => self.tasks.get(&id).cloned().map(Object::Task),
            Key::Network(id) => self.networks.get(&id).cloned().map(Object::Network),
            Key::Secret(id) => self.secrets.get(&id).cloned().map(Object::Secret),
            Key::Config(id) => self.configs.get(&id).cloned().map(Object::Config),
            Key::Attachment(id) => self.attachments.get(&id).cloned().map(Object::Attachment),
        }
    }

    /// Every object, in the order of the keys.
    pub fn objects(&self) -> impl Iterator<Item = Object> + '_ {
        let cluster = self.cluster.iter().cloned().map(Object::Cluster);
        let nodes = self.nodes.values().cloned().map(Object::Node);
        let services = self.services.values().cloned().map(Object::Service);
        let templates = self.templates.values().cloned().map(Object::Template);
        let tasks = self.tasks.values().cloned().map(Object::Task);
        let networks = self.networks.values().cloned().map(Object::Network);
        let secrets = self.secrets.values().cloned().map(Object::Secret);
        let configs = self.configs.values().cloned().map(Object::Config);
        let attachments = self.attachments.values().cloned().map(Object::Attachment);
        let rest = tasks.chain(networks).chain(secrets).chain(configs).chain(attachments);
        cluster.chain(nodes).chain(services).chain(templates).chain(rest)
    }

    /// Stores `object` and keeps the indexes true.
    pub(crate) fn put(&mut self, object: Object) {
        match object {
            Object::Cluster(cluster) => self.cluster = Some(cluster),
            Object::Node(node) => self.nodes.insert_mut(node.id, node),
            Object::Service(service) => {
                self.service_names.insert_mut(service.name().to_owned(), service.id);
                self.services.insert_mut(service.id, service);
            }
            Object::Template(template) => {
                self.templates.insert_mut((template.service, template.version), template);
            }
            Object::Task(task) => self.put_task(task),
            Object::Network(network) => self.networks.insert_mut(network.id, network),
            Object::Secret(secret) => self.secrets.insert_mut(secret.id, secret),
            Object::Config(config) => self.configs.insert_mut(config.id, config),
            // A container never changes its node.
            Object::Attachment(attachment) => {
                self.attachments_by_node.insert_mut((attachment.node, attachment.id));
                self.attachments.insert_mut(attachment.id, attachment);
            }
        }
    }

    fn put_task(&mut self, task: Arc<Task>) {
        let known = self.tasks.get(&task.id).map(|known| known.node);
        let known_node = known.flatten();
        if known.is_none() {
            self.tasks_by_service.insert_mut((task.service, task.id));
        }
        if known_node != task.node {
            if let Some(left) = known_node {
                self.tasks_by_node.remove_mut(&(left, task.id));
            }
            if let Some(node) = task.node {
                self.tasks_by_node.insert_mut((node, task.id));
            }
        }
        self.tasks.insert_mut(task.id, task);
    }

    pub(crate) fn remove(&mut self, key: Key) {
        match key {
            Key::Cluster => self.cluster = None,
            Key::Node(id) => drop(self.nodes.remove_mut(&id)),
            Key::Service(id) => {
                // The name may be another's by now.
                if let Some(service) = self.services.get(&id)
                    && self.service_names.get(service.name()) == Some(&id)
                {
                    self.service_names.remove_mut(service.name());
                }
                self.services.remove_mut(&id);
            }
            Key::Template(id, version) => drop(self.templates.remove_mut(&(id, version))),
            Key::Task(id) => {
                if let Some(task) = self.tasks.get(&id) {
                    self.tasks_by_service.remove_mut(&(task.service, id));
                    if let Some(node) = task.node {
                        self.tasks_by_node.remove_mut(&(node, id));
                    }
                }
                self.tasks.remove_mut(&id);
            }
            Key::Network(id) => drop(self.networks.remove_mut(&id)),
            Key::Secret(id) => drop(self.secrets.remove_mut(&id)),
            Key::Config(id) => drop(self.configs.remove_mut(&id)),
            Key::Attachment(id) => {
                if let Some(attachment) = self.attachments.get(&id) {
                    self.attachments_by_node.remove_mut(&(attachment.node, id));
                }
                self.attachments.remove_mut(&id);
            }
        }
    }
}
