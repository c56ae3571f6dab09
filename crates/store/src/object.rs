//! The closed set of things the store holds.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use types::{
    Cluster, Config, ConfigId, ContainerAttachment, Meta, Network, NetworkId, Node, NodeId, Secret,
    SecretId, Service, ServiceId, Task, TaskId, TaskTemplate,
};

/// Names one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    Cluster,
    Node(NodeId),
    Service(ServiceId),
    Template(ServiceId, u64),
    Task(TaskId),
    Network(NetworkId),
    Secret(SecretId),
    Config(ConfigId),
    Attachment(TaskId),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    Cluster(Arc<Cluster>),
    Node(Arc<Node>),
    Service(Arc<Service>),
    Template(Arc<TaskTemplate>),
    Task(Arc<Task>),
    Network(Arc<Network>),
    Secret(Arc<Secret>),
    Config(Arc<Config>),
    Attachment(Arc<ContainerAttachment>),
}

impl Object {
    pub fn key(&self) -> Key {
        match self {
            Self::Cluster(_) => Key::Cluster,
            Self::Node(node) => Key::Node(node.id),
            Self::Service(service) => Key::Service(service.id),
            Self::Template(template) => Key::Template(template.service, template.version),
            Self::Task(task) => Key::Task(task.id),
            Self::Network(network) => Key::Network(network.id),
            Self::Secret(secret) => Key::Secret(secret.id),
            Self::Config(config) => Key::Config(config.id),
            Self::Attachment(attachment) => Key::Attachment(attachment.id),
        }
    }

    /// Version of the change set that wrote the object. Templates never change: theirs is the version they define.
    pub fn version(&self) -> u64 {
        match self {
            Self::Cluster(object) => object.meta.version,
            Self::Node(object) => object.meta.version,
            Self::Service(object) => object.meta.version,
            Self::Template(object) => object.version,
            Self::Task(object) => object.meta.version,
            Self::Network(object) => object.meta.version,
            Self::Secret(object) => object.meta.version,
            Self::Config(object) => object.meta.version,
            Self::Attachment(object) => object.meta.version,
        }
    }

    /// The object's bookkeeping, where it has any.
    pub(crate) fn meta(&self) -> Option<&Meta> {
        match self {
            Self::Cluster(object) => Some(&object.meta),
            Self::Node(object) => Some(&object.meta),
            Self::Service(object) => Some(&object.meta),
            Self::Template(_) => None,
            Self::Task(object) => Some(&object.meta),
            Self::Network(object) => Some(&object.meta),
            Self::Secret(object) => Some(&object.meta),
            Self::Config(object) => Some(&object.meta),
            Self::Attachment(object) => Some(&object.meta),
        }
    }

    /// Gives `write` the object's bookkeeping, where it has any.
    pub(crate) fn with_meta(&mut self, write: impl FnOnce(&mut Meta)) {
        match self {
            Self::Cluster(object) => write(&mut Arc::make_mut(object).meta),
            Self::Node(object) => write(&mut Arc::make_mut(object).meta),
            Self::Service(object) => write(&mut Arc::make_mut(object).meta),
            Self::Template(_) => {}
            Self::Task(object) => write(&mut Arc::make_mut(object).meta),
            Self::Network(object) => write(&mut Arc::make_mut(object).meta),
            Self::Secret(object) => write(&mut Arc::make_mut(object).meta),
            Self::Config(object) => write(&mut Arc::make_mut(object).meta),
            Self::Attachment(object) => write(&mut Arc::make_mut(object).meta),
        }
    }
}

macro_rules! into_object {
    ($($type:ident => $variant:ident),* $(,)?) => {$(
        impl From<$type> for Object {
            fn from(object: $type) -> Self {
                Self::$variant(Arc::new(object))
            }
        }
    )*};
}

into_object! {
    Cluster => Cluster,
    Node => Node,
    Service => Service,
    TaskTemplate => Template,
    Task => Task,
    Network => Network,
    Secret => Secret,
    Config => Config,
    ContainerAttachment => Attachment,
}
