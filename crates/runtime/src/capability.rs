//! Names and numbers of Linux capabilities.

use crate::Error;

/// Names by number, without `CAP_`, from linux/capability.h of kernel 6.18.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability given as `CAP_CHOWN`.
pub fn number(name: &str) -> Option<u32> {
    let short = name.strip_prefix("CAP_")?;
    let index = NAMES.iter().position(|known| *known == short)?;
    u32::try_from(index).ok()
}

/// A bit for each named capability.
///
/// # Errors
/// [`Error::UnknownCapability`] with the first name that is none.
pub fn mask(names: &[String]) -> Result<u64, Error> {
    names.iter().try_fold(0, |mask, name| match number(name) {
        Some(number) => Ok(mask | 1 << number),
        None => Err(Error::UnknownCapability { name: name.clone() }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_bit_of_each_name() {
        let names = ["CAP_CHOWN", "CAP_KILL", "CAP_CHECKPOINT_RESTORE"].map(str::to_owned);
        assert_eq!(mask(&names).unwrap(), 1 | 1 << 5 | 1 << 40);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(mask(&["CAP_FLY".to_owned()]).is_err());
        assert!(mask(&["CHOWN".to_owned()]).is_err());
    }
}
