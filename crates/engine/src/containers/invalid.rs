//! Refusals of a wrong request, in Docker's words: people search for them and scripts match on them.

use crate::names::NAME_PATTERN;

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("config cannot be empty in order to create a container")]
    NoConfig,
    #[error("no command specified")]
    NoCommand,
    #[error("no exec command specified")]
    NoExecCommand,
    #[error("Invalid container name ({name}), only {NAME_PATTERN} are allowed")]
    Name { name: String },
    #[error("neither old nor new names may be empty")]
    EmptyName,
    #[error("the working directory '{path}' is invalid, it needs to be an absolute path")]
    WorkingDir { path: String },
    #[error("invalid environment variable: {text}")]
    Environment { text: String },
    #[error("invalid signal: {text}")]
    Signal { text: String },
    #[error("Container limit of {what}: {length} is longer than {max} bytes")]
    TooLong { what: &'static str, length: usize, max: usize },
    #[error("invalid hostname: {name:?}")]
    Hostname { name: String },

    #[error("can't create 'AutoRemove' container with restart policy")]
    AutoRemoveRestart,
    #[error(
        "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
    )]
    RestartPolicy { name: String },
    #[error("invalid restart policy: maximum retry count can only be used with 'on-failure'")]
    RestartCount,
    #[error("invalid restart policy: maximum retry count cannot be negative")]
    RestartCountNegative,
    #[error("Restart policy cannot be updated because AutoRemove is enabled for the container")]
    RestartAutoRemove,

    #[error("{what} in Healthcheck cannot be less than 1ms")]
    HealthDuration { what: &'static str },
    #[error("Retries in Healthcheck cannot be negative")]
    HealthRetries,

    #[error("bad format for add-host: {text:?}")]
    ExtraHost { text: String },
    #[error("invalid IP address in add-host: {address:?}")]
    ExtraHostAddress { address: String },
    #[error("invalid port specification: {text:?}")]
    Port { text: String },
    #[error("bad parameter: invalid DNS address {text:?}")]
    Dns { text: String },
    #[error("conflicting options: {what}")]
    Conflicting { what: &'static str },
    #[error("user specified IP address is supported on user defined networks only")]
    StaticAddress,
    #[error("invalid network mode: {mode}")]
    NetworkMode { mode: String },
    #[error("invalid {namespace} mode: {mode}")]
    NamespaceMode { namespace: &'static str, mode: String },

    #[error("invalid {field}: unknown capability: {name:?}")]
    Capability { field: &'static str, name: String },
    #[error("invalid --security-opt 1: {text:?}")]
    SecurityOptForm { text: String },
    #[error("invalid --security-opt 2: {text:?}")]
    SecurityOpt { text: String },
    #[error("Decoding seccomp profile failed: {reason}")]
    Seccomp { reason: String },
    #[error("invalid sysctl {name:?}: not in a namespace of the container")]
    Sysctl { name: String },
    #[error("sysctl '{name}' not allowed in host network namespace")]
    SysctlHost { name: String },
    #[error("invalid ulimit {name:?}")]
    Ulimit { name: String },
    #[error("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")]
    UlimitOrder { soft: i64, hard: i64 },
    #[error("error gathering device information while adding custom device \"{path}\": {reason}")]
    Device { path: String, reason: String },
    #[error("invalid device cgroup rule format: '{rule}'")]
    DeviceRule { rule: String },
    #[error("could not select device driver \"{driver}\" with capabilities: {capabilities}")]
    DeviceRequest { driver: String, capabilities: String },
    #[error("unknown or invalid runtime name: {name}")]
    Runtime { name: String },
    #[error("invalid isolation '{isolation}' on linux")]
    Isolation { isolation: String },
    #[error("user namespaces are not enabled: userns mode {mode:?}")]
    UserNamespace { mode: String },
    #[error("unable to find user {name}: no matching entries in passwd file")]
    User { name: String },
    #[error("Unable to find group {name}")]
    Group { name: String },
    #[error("logger: no log driver named '{driver}' is registered")]
    LogDriver { driver: String },
    #[error("unknown log opt '{option}' for {driver} log driver")]
    LogOption { option: String, driver: String },
    #[error("invalid value for log opt {option}: {value:?}")]
    LogOptionValue { option: String, value: String },

    #[error("Minimum memory limit allowed is 6MB")]
    MemoryMin,
    #[error("Minimum memoryswap limit should be larger than memory limit, see usage")]
    MemorySwapMin,
    #[error("You should always set the Memory limit when using Memoryswap limit, see usage")]
    MemorySwapAlone,
    #[error(
        "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
    )]
    MemoryAboveSwap,
    #[error("Invalid value: {value}, valid memory swappiness range is 0-100")]
    Swappiness { value: i64 },
    #[error("Minimum memory reservation allowed is 6MB")]
    ReservationMin,
    #[error("Minimum memory limit can not be less than memory reservation limit, see usage")]
    ReservationAboveLimit,
    #[error("Conflicting options: Nano CPUs and CPU Period cannot both be set")]
    NanoCpusPeriod,
    #[error("Conflicting options: Nano CPUs and CPU Quota cannot both be set")]
    NanoCpusQuota,
    #[error("Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available")]
    NanoCpus { cpus: usize },
    #[error("shares: invalid argument")]
    CpuShares,
    #[error("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")]
    CpuPeriod,
    #[error("CPU cfs quota can not be less than 1ms (i.e. 1000)")]
    CpuQuota,
    #[error("Invalid value {value} for cpuset {kind}")]
    Cpuset { kind: &'static str, value: String },
    #[error("Requested CPUs are not available - requested {requested}, available: {available}")]
    CpusetAbsent { requested: String, available: String },
    #[error("Range of blkio weight is from 10 to 1000")]
    BlkioWeight,
    #[error("Invalid value {value}, range for oom score adj is [-1000, 1000]")]
    OomScore { value: i64 },
    #[error("SHM size can not be less than 0")]
    ShmSize,

    #[error("invalid mount config for type \"{kind}\": {reason}")]
    Mount { kind: String, reason: MountFault },
    #[error("invalid volume specification: '{text}'")]
    VolumeSpec { text: String },
    #[error("invalid volume specification: '{text}': {reason}")]
    VolumeSpecPart { text: String, reason: MountFault },
    #[error("invalid mode: {mode}")]
    VolumeMode { mode: String },
    #[error("Duplicate mount point: {destination}")]
    DuplicateMount { destination: String },
    #[error("malformed volumes-from: {text:?}")]
    VolumesFrom { text: String },
    #[error("invalid tmpfs option [\"{option}\"]")]
    TmpfsOption { option: String },
    #[error("volume name is too short, names should be at least two alphanumeric characters")]
    VolumeNameShort,
    #[error(
        "{name:?} includes invalid characters for a local volume name, only {NAME_PATTERN:?} are allowed. If you intended to pass a host directory, use absolute path"
    )]
    VolumeName { name: String },
    #[error("invalid option: {option:?}")]
    VolumeOption { option: String },
    #[error("missing device in volume options")]
    VolumeDevice,

    #[error("invalid filter '{key}={value}'")]
    Filter { key: String, value: String },
    #[error("invalid condition: {condition:?}")]
    WaitCondition { condition: String },
    #[error("Unknown character: '{keys}'")]
    DetachKeys { keys: String },
    #[error("Bad parameters: you must choose at least one stream")]
    NoStream,
    #[error("bad parameters: cannot use {options:?} for ps")]
    PsArguments { options: String },
    #[error("bad parameter: path cannot be empty")]
    EmptyPath,
}

/// What is wrong with one mount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountFault {
    #[error("mount type unknown")]
    Kind,
    #[error("field {field} must not be empty")]
    Missing { field: &'static str },
    #[error("field {field} must not be specified")]
    Extra { field: &'static str },
    #[error("invalid specification: destination can't be '/'")]
    Root,
    #[error("invalid mount path: '{path}' mount path must be absolute")]
    Relative { path: String },
    #[error("bind source path does not exist: {path}")]
    NoSource { path: String },
    #[error("must not set ReadOnly mode when using anonymous volumes")]
    ReadOnlyAnonymous,
    #[error("invalid propagation mode: {mode}")]
    Propagation { mode: String },
    #[error("subpath must be a relative path within the volume")]
    Subpath,
    #[error("mount options are not supported: {what}")]
    Unsupported { what: &'static str },
}
