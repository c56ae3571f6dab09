//! Amounts a node offers and a task needs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Upper bounds on what a task may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Billionths of a core; 0 is no limit.
    pub nano_cpus: i64,
    /// Bytes; 0 is no limit.
    pub memory_bytes: i64,
    /// Processes; 0 is no limit.
    pub pids: i64,
}

/// What a node has, or what a task reserves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub nano_cpus: i64,
    pub memory_bytes: i64,
    pub generic: BTreeMap<String, Generic>,
}

/// A resource the operator declared: a count, or a set of named units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Generic {
    Discrete(i64),
    Named(BTreeSet<String>),
}

impl Generic {
    /// How many units this is.
    pub fn count(&self) -> i64 {
        match self {
            Self::Discrete(count) => *count,
            Self::Named(names) => i64::try_from(names.len()).unwrap_or(i64::MAX),
        }
    }
}

/// What a task may use and what is kept free for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requirements {
    pub limits: Option<Limits>,
    pub reservations: Option<Resources>,
    /// Bytes of swap beyond memory; -1 is unlimited.
    pub swap_bytes: Option<i64>,
    /// 0 to 100, or -1 for the kernel's default.
    pub memory_swappiness: Option<i64>,
}
