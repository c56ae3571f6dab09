//! System call tables of the architectures a filter can meet on x86-64 and ARM64 hosts.

use syscalls::{aarch64, arm, x86, x86_64};

use super::bpf::Width;
use crate::Error;

/// Bit that marks a call of the x32 ABI, from asm/unistd.h.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Calls whose x32 number is not the 64-bit number plus [`X32_BIT`]; from 512 upwards in order.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];
const X32_OWN_FIRST: u32 = 512;

/// Private calls of 32-bit ARM, from its asm/unistd.h.
const ARM_PRIVATE: [(u32, &str); 3] =
    [(0xf_0001, "breakpoint"), (0xf_0002, "cacheflush"), (0xf_0005, "set_tls")];

/// An architecture whose calls the kernel may deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arch {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

#[cfg(target_arch = "x86_64")]
const NATIVE: Arch = Arch::X86_64;
#[cfg(target_arch = "aarch64")]
const NATIVE: Arch = Arch::Aarch64;

/// The native architecture and those of `names` this machine can run, native first.
pub(super) fn selected(names: &[String]) -> Result<Vec<Arch>, Error> {
    let mut selected = vec![NATIVE];
    for name in names {
        let arch = match name.as_str() {
            "SCMP_ARCH_X86_64" => Arch::X86_64,
            "SCMP_ARCH_X86" => Arch::X86,
            "SCMP_ARCH_X32" => Arch::X32,
            "SCMP_ARCH_AARCH64" => Arch::Aarch64,
            "SCMP_ARCH_ARM" => Arch::Arm,
            // The other architectures of the specification cannot occur on this machine.
            other if other.starts_with("SCMP_ARCH_") => continue,
            other => {
                let reason = format!("unknown architecture {other}");
                return Err(Error::Seccomp { reason });
            }
        };
        if arch.runs_on(NATIVE) && !selected.contains(&arch) {
            selected.push(arch);
        }
    }
    Ok(selected)
}

impl Arch {
    fn runs_on(self, native: Self) -> bool {
        let is_arm = |arch| matches!(arch, Self::Aarch64 | Self::Arm);
        is_arm(self) == is_arm(native)
    }

    /// The AUDIT_ARCH_* number, from linux/audit.h.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    pub(super) fn is_x32(self) -> bool {
        self == Self::X32
    }

    pub(super) fn width(self) -> Width {
        match self {
            Self::X86 | Self::Arm => Width::Bits32,
            Self::X86_64 | Self::X32 | Self::Aarch64 => Width::Bits64,
        }
    }

    /// Calls `each` with every call of the table: number (without [`X32_BIT`]) and name.
    pub(super) fn for_each(self, mut each: impl FnMut(u32, &'static str)) {
        match self {
            Self::X86_64 => x86_64_table(&mut each),
            Self::X86 => x86_table(&mut each),
            Self::Aarch64 => aarch64_table(&mut each),
            Self::Arm => {
                arm_table(&mut each);
                ARM_PRIVATE.iter().for_each(|(number, name)| each(*number, name));
            }
            Self::X32 => {
                x86_64_table(&mut |number, name| {
                    if !X32_OWN.contains(&name) {
                        each(number, name);
                    }
                });
                (X32_OWN_FIRST..).zip(X32_OWN).for_each(|(number, name)| each(number, name));
            }
        }
    }
}

macro_rules! table {
    ($function:ident, $table:ident) => {
        fn $function(each: &mut dyn FnMut(u32, &'static str)) {
            // The crate's own iterator leaves the last call out, hence the walk by number.
            for number in 0..=$table::Sysno::last().id().min(TABLE_NUMBER_MAX) {
                let id = usize::try_from(number).expect("numbers start at zero");
                if let Some(call) = $table::Sysno::new(id) {
                    each(u32::try_from(number).expect("numbers start at zero"), call.name());
                }
            }
        }
    };
}

/// No generic call number is near this; ARM's private ones are listed above.
const TABLE_NUMBER_MAX: i32 = 1023;

table!(x86_64_table, x86_64);
table!(x86_table, x86);
table!(aarch64_table, aarch64);
table!(arm_table, arm);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_hold_well_known_numbers() {
        let cases = [
            (Arch::X86_64, 0, "read"),
            (Arch::X86_64, 435, "clone3"),
            (Arch::X86, 11, "execve"),
            (Arch::X32, 520, "execve"),
            (Arch::X32, 0, "read"),
            (Arch::Aarch64, 221, "execve"),
            (Arch::Arm, 0xf_0002, "cacheflush"),
        ];
        for (arch, number, name) in cases {
            let mut found = false;
            arch.for_each(|n, s| found |= n == number && s == name);
            assert!(found, "{arch:?} {number} {name}");
        }
    }
}
