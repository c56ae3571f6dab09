//! Errors as the control API words them: scripts match on `rpc error: code = … desc = …`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// gRPC's status codes, as far as the control API uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    Unknown,
    InvalidArgument,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    FailedPrecondition,
    Unimplemented,
    Unavailable,
    Internal,
    /// The request is for the leader, which this manager is not. Managers pass it on; no user sees it.
    NotLeader,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A refusal of the control API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    pub code: Code,
    pub desc: String,
    /// Whether the text is shown without the gRPC prefix, as Docker does for what its daemon decides itself.
    pub is_plain: bool,
}

impl Error {
    pub fn new(code: Code, desc: impl Into<String>) -> Self {
        Self { code, desc: desc.into(), is_plain: false }
    }

    pub fn plain(code: Code, desc: impl Into<String>) -> Self {
        Self { code, desc: desc.into(), is_plain: true }
    }

    pub(crate) fn invalid(desc: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, desc)
    }

    /// The object was changed by somebody else since the caller read it.
    pub(crate) fn out_of_sequence() -> Self {
        Self::new(Code::Unknown, "update out of sequence")
    }

    pub(crate) fn not_leader() -> Self {
        Self::new(Code::NotLeader, "this manager does not lead")
    }

    /// Whether the request was not looked at, because another manager leads.
    pub fn is_not_leader(&self) -> bool {
        self.code == Code::NotLeader
    }

    pub(crate) fn unexpected_answer() -> Self {
        Self::new(
            Code::Internal,
            "the leader answered another question: are all managers of one version?",
        )
    }

    pub(crate) fn stopped() -> Self {
        Self::new(Code::Unavailable, "the manager is stopping")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_plain {
            return f.write_str(&self.desc);
        }
        write!(f, "rpc error: code = {} desc = {}", self.code, self.desc)
    }
}

impl std::error::Error for Error {}

impl From<consensus::Error> for Error {
    fn from(error: consensus::Error) -> Self {
        match error {
            consensus::Error::Rejected(_) => Self::out_of_sequence(),
            consensus::Error::NotLeader { .. } => Self::not_leader(),
            consensus::Error::NoLeader | consensus::Error::LostLeadership => {
                Self::new(Code::Unknown, error.to_string())
            }
            consensus::Error::QuorumLoss
            | consensus::Error::MembershipBusy
            | consensus::Error::UnknownMember(_)
            | consensus::Error::DiskFull => Self::new(Code::FailedPrecondition, error.to_string()),
            consensus::Error::Busy(_) | consensus::Error::Stopped => {
                Self::new(Code::Unavailable, error.to_string())
            }
            consensus::Error::EntryTooLarge { .. } => Self::invalid(error.to_string()),
            other => Self::new(Code::Internal, chain(&other)),
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl From<ca::Error> for Error {
    fn from(error: ca::Error) -> Self {
        Self::new(Code::Internal, chain(&error))
    }
}
