//! What joins the hosts of a cluster: a switch, or a router with a subnet for each.

use testbed::{Error, Router, Switch};

/// What the hosts' cables lead to.
#[derive(Debug)]
pub(crate) enum Middle {
    Switch(Switch),
    Router { router: Router, narrow: Option<Narrow> },
}

/// A host that is behind a link that takes less than its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Narrow {
    pub(crate) number: u8,
    /// What a packet may have there.
    pub(crate) bytes: u16,
}

impl Middle {
    pub(crate) fn namespace(&self) -> &str {
        match self {
            Self::Switch(switch) => switch.namespace(),
            Self::Router { router, .. } => router.namespace(),
        }
    }

    /// The address of the machine of this number.
    pub(crate) fn address(&self, number: u8) -> String {
        match self {
            Self::Switch(_) => format!("10.99.0.{number}"),
            Self::Router { .. } => Router::address(number),
        }
    }

    pub(crate) fn create(&self) -> Result<(), Error> {
        match self {
            Self::Switch(switch) => switch.create(),
            Self::Router { router, .. } => router.create(),
        }
    }

    /// Lays a cable to a machine's namespace.
    pub(crate) fn connect(&self, port: &str, namespace: &str, number: u8) -> Result<(), Error> {
        match self {
            Self::Switch(switch) => {
                switch.connect(port, namespace, &format!("{}/24", self.address(number)))
            }
            Self::Router { router, narrow: Some(narrow) } if narrow.number == number => {
                router.connect_far(port, namespace, number, narrow.bytes)
            }
            Self::Router { router, .. } => router.connect(port, namespace, number),
        }
    }

    /// Takes a cable out.
    pub(crate) fn disconnect(&self, port: &str) -> Result<(), Error> {
        match self {
            Self::Switch(switch) => switch.disconnect(port),
            Self::Router { router, .. } => router.disconnect(port),
        }
    }

    pub(crate) fn cut(&self, port: &str) -> Result<(), Error> {
        match self {
            Self::Switch(switch) => switch.cut(port),
            Self::Router { router, .. } => router.cut(port),
        }
    }

    pub(crate) fn heal(&self, port: &str) -> Result<(), Error> {
        match self {
            Self::Switch(switch) => switch.heal(port),
            Self::Router { router, .. } => router.heal(port),
        }
    }

    /// Has the routers on the narrow way tell nobody of packets that are too long for it, and pass on no parts of packets.
    pub(crate) fn hush(&self) -> Result<(), Error> {
        match self {
            Self::Router { router, narrow: Some(narrow) } => router.hush(narrow.number),
            _ => Ok(()),
        }
    }

    pub(crate) fn remove(&self) -> Result<(), Error> {
        match self {
            Self::Switch(switch) => switch.remove(),
            Self::Router { router, .. } => router.remove(),
        }
    }
}
