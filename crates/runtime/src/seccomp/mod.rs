//! Compiles a seccomp profile to the classic BPF program the kernel runs on each system call.
//!
//! The decisions are those of libseccomp as runc drives it, so that a profile means the same under
//! both: rules equal to the default are dropped, an unconditional rule of a call beats conditional
//! ones, several conditions on one argument are alternatives, a foreign architecture is killed, and
//! a call newer than every call of the profile gets ENOSYS instead of EPERM, so that C libraries
//! fall back to the older call.

mod arch;
mod bpf;
#[cfg(test)]
mod interpreter;

use std::collections::BTreeMap;

pub use bpf::Instruction;

use crate::Error;
#[cfg(test)]
use crate::spec::Operator;
use crate::spec::{Action, Seccomp, SyscallArg, SyscallRule};
use arch::Arch;

/// Largest program the kernel takes (BPF_MAXINSNS).
pub const INSTRUCTIONS_MAX: usize = 4096;

/// Error number of a call that a filter refuses without saying how: EPERM.
const ERRNO_DEFAULT: u32 = 1;
/// Error number of a call the profile could not have known.
const ENOSYS: u32 = 38;

/// A filter ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The program.
    pub instructions: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*` bits for seccomp(2).
    pub flags: u32,
}

/// What one system call of one architecture meets: alternatives in order, then a fallback.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decision {
    alternatives: Vec<(Vec<SyscallArg>, u32)>,
    otherwise: u32,
}

impl Decision {
    fn always(action: u32) -> Self {
        Self { alternatives: Vec::new(), otherwise: action }
    }
}

/// Compiles `profile` for the architecture this program was built for.
///
/// # Errors
/// [`Error::Seccomp`] for unknown flags or architectures, argument numbers above 5, or a program
/// above [`INSTRUCTIONS_MAX`].
pub fn compile(profile: &Seccomp) -> Result<Filter, Error> {
    let arches = arch::selected(&profile.architectures)?;
    let default = action_value(profile.default_action, profile.default_errno_ret);
    let rules = index_rules(profile, default)?;
    let sections: Vec<bpf::Section> = arches
        .iter()
        .map(|arch| bpf::Section {
            audit: arch.audit(),
            x32: arch.is_x32(),
            width: arch.width(),
            ranges: ranges(*arch, &rules, default),
        })
        .collect();
    let instructions = bpf::program(&sections)?;
    Ok(Filter { instructions, flags: flags(&profile.flags)? })
}

/// Loads the filter for the calling thread, for good. The thread has `CAP_SYS_ADMIN` or has given up new privileges.
///
/// # Errors
/// That of the kernel.
pub fn load(filter: &Filter) -> rustix::io::Result<()> {
    crate::native::load_filter(filter)
}

type Rules<'a> = BTreeMap<&'a str, Vec<&'a SyscallRule>>;

fn index_rules(profile: &Seccomp, default: u32) -> Result<Rules<'_>, Error> {
    let mut rules = Rules::new();
    for rule in &profile.syscalls {
        if let Some(bad) = rule.args.iter().find(|arg| arg.index > 5) {
            let reason = format!("argument {} of {:?} does not exist", bad.index, rule.names);
            return Err(Error::Seccomp { reason });
        }
        if action_value(rule.action, rule.errno_ret) == default {
            continue;
        }
        for name in &rule.names {
            rules.entry(name.as_str()).or_default().push(rule);
        }
    }
    Ok(rules)
}

/// The decisions of one architecture: each holds from its number up to the next entry's.
fn ranges(arch: Arch, rules: &Rules<'_>, default: u32) -> Vec<(u32, Decision)> {
    let mut numbered: Vec<(u32, Decision)> = Vec::with_capacity(rules.len());
    arch.for_each(|number, name| {
        if let Some(rules) = rules.get(name) {
            numbered.push((number, decide(rules, default)));
        }
    });
    numbered.sort_by_key(|(number, _)| *number);
    let newest = numbered.last().map_or(0, |(number, _)| *number);
    let mut ranges = vec![(0, Decision::always(default))];
    for (number, decision) in numbered {
        push_range(&mut ranges, number, decision);
        push_range(&mut ranges, number + 1, Decision::always(default));
    }
    if default == action_value(Action::Errno, None) {
        let unknown = Decision::always(action_value(Action::Errno, Some(ENOSYS)));
        push_range(&mut ranges, newest + 1, unknown);
    }
    ranges
}

/// Appends a range, merging it with equal neighbours and replacing an empty one.
fn push_range(ranges: &mut Vec<(u32, Decision)>, start: u32, decision: Decision) {
    if ranges.last().is_some_and(|(last, _)| *last == start) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|(_, last)| *last != decision) {
        ranges.push((start, decision));
    }
}

fn decide(rules: &[&SyscallRule], default: u32) -> Decision {
    if let Some(rule) = rules.iter().find(|rule| rule.args.is_empty()) {
        return Decision::always(action_value(rule.action, rule.errno_ret));
    }
    let mut alternatives = Vec::new();
    for rule in rules {
        let action = action_value(rule.action, rule.errno_ret);
        if repeats_an_argument(&rule.args) {
            alternatives.extend(rule.args.iter().map(|arg| (vec![*arg], action)));
        } else {
            alternatives.push((rule.args.clone(), action));
        }
    }
    Decision { alternatives, otherwise: default }
}

/// runc reads several conditions on one argument as alternatives, since libseccomp once did.
fn repeats_an_argument(args: &[SyscallArg]) -> bool {
    args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|prior| prior.index == arg.index))
}

/// The kernel's value for an action, from linux/seccomp.h.
fn action_value(action: Action, errno: Option<u32>) -> u32 {
    let data = errno.unwrap_or(ERRNO_DEFAULT) & 0xffff;
    match action {
        Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::Trap => libc::SECCOMP_RET_TRAP,
        Action::Errno => libc::SECCOMP_RET_ERRNO | data,
        Action::Trace => libc::SECCOMP_RET_TRACE | data,
        Action::Log => libc::SECCOMP_RET_LOG,
        Action::Allow => libc::SECCOMP_RET_ALLOW,
    }
}

fn flags(names: &[String]) -> Result<u32, Error> {
    names.iter().try_fold(0, |bits, name| {
        // TSYNC is left out on purpose: the process has one thread when the filter is loaded.
        let bit = match name.as_str() {
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            _ => return Err(Error::Seccomp { reason: format!("unknown flag {name}") }),
        };
        Ok(bits | u32::try_from(bit).expect("flags are small bits"))
    })
}

/// Whether `value` satisfies one condition; the meaning the compiled code must have.
#[cfg(test)]
fn holds(arg: &SyscallArg, value: u64) -> bool {
    match arg.op {
        Operator::NotEqual => value != arg.value,
        Operator::Less => value < arg.value,
        Operator::LessEqual => value <= arg.value,
        Operator::Equal => value == arg.value,
        Operator::GreaterEqual => value >= arg.value,
        Operator::Greater => value > arg.value,
        Operator::MaskedEqual => value & arg.value == arg.value_two,
    }
}

#[cfg(test)]
mod tests;
