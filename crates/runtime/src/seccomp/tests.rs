//! The compiled program decides as the profile says, for any call.

use proptest::prelude::*;

use super::arch::X32_BIT;
use super::interpreter::{Call, run};
use super::*;
use crate::defaults;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// What the profile says in plain words, without any of the compiler's structures.
fn expected(profile: &Seccomp, arch: Arch, call: &Call) -> u32 {
    let default = action_value(profile.default_action, profile.default_errno_ret);
    let mut name = None;
    let mut newest = 0;
    let listed = |name: &str| {
        profile.syscalls.iter().any(|rule| {
            action_value(rule.action, rule.errno_ret) != default
                && rule.names.iter().any(|listed| listed == name)
        })
    };
    let number = if arch.is_x32() { call.number & !X32_BIT } else { call.number };
    arch.for_each(|known, text| {
        if known == number {
            name = Some(text);
        }
        if listed(text) {
            newest = newest.max(known);
        }
    });
    if number > newest && default == libc::SECCOMP_RET_ERRNO | 1 {
        return libc::SECCOMP_RET_ERRNO | ENOSYS;
    }
    let Some(name) = name else { return default };
    let rules: Vec<&SyscallRule> = profile
        .syscalls
        .iter()
        .filter(|rule| rule.names.iter().any(|listed| listed == name))
        .filter(|rule| action_value(rule.action, rule.errno_ret) != default)
        .collect();
    let value = |arg: &SyscallArg| match arch.width() {
        bpf::Width::Bits32 => call.args[arg.index as usize] & 0xffff_ffff,
        bpf::Width::Bits64 => call.args[arg.index as usize],
    };
    let cut = |arg: &SyscallArg| match arch.width() {
        bpf::Width::Bits32 => SyscallArg {
            value: arg.value & 0xffff_ffff,
            value_two: arg.value_two & 0xffff_ffff,
            ..*arg
        },
        bpf::Width::Bits64 => *arg,
    };
    if let Some(rule) = rules.iter().find(|rule| rule.args.is_empty()) {
        return action_value(rule.action, rule.errno_ret);
    }
    for rule in rules {
        let mut results = rule.args.iter().map(|arg| holds(&cut(arg), value(arg)));
        let applies = if repeats_an_argument(&rule.args) {
            results.any(|holds| holds)
        } else {
            results.all(|holds| holds)
        };
        if applies {
            return action_value(rule.action, rule.errno_ret);
        }
    }
    default
}

fn interesting_word() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..64,
        Just(u64::from(u32::MAX)),
        Just(u64::MAX),
        Just(0x7e02_0000),
        Just(0x0002_0008),
        (0u32..64).prop_map(|bit| 1 << bit),
        any::<u64>(),
    ]
}

fn operator() -> impl Strategy<Value = Operator> {
    prop_oneof![
        Just(Operator::NotEqual),
        Just(Operator::Less),
        Just(Operator::LessEqual),
        Just(Operator::Equal),
        Just(Operator::GreaterEqual),
        Just(Operator::Greater),
        Just(Operator::MaskedEqual),
    ]
}

fn condition() -> impl Strategy<Value = SyscallArg> {
    (0u32..6, interesting_word(), interesting_word(), operator())
        .prop_map(|(index, value, value_two, op)| SyscallArg { index, value, value_two, op })
}

fn rule() -> impl Strategy<Value = SyscallRule> {
    let names = ["read", "write", "socket", "clone", "clone3", "personality", "futex_time64"];
    let action = prop_oneof![
        Just((Action::Allow, None)),
        Just((Action::Errno, Some(38))),
        Just((Action::KillProcess, None)),
        Just((Action::Errno, None)),
    ];
    let names = proptest::sample::subsequence(names.to_vec(), 1..4);
    (names, action, proptest::collection::vec(condition(), 0..3)).prop_map(
        |(names, (action, errno_ret), args)| SyscallRule {
            names: names.into_iter().map(str::to_owned).collect(),
            action,
            errno_ret,
            args,
        },
    )
}

fn arches() -> Vec<String> {
    ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
        .map(str::to_owned)
        .to_vec()
}

fn check(profile: &Seccomp, number: u32, args: [u64; 6]) {
    let filter = compile(profile).unwrap();
    for arch in arch::selected(&profile.architectures).unwrap() {
        let number = if arch.is_x32() { number | X32_BIT } else { number };
        let call = Call { number, arch: arch.audit(), args };
        let got = run(&filter.instructions, &call);
        assert_eq!(got, expected(profile, arch, &call), "{arch:?} {call:?}");
    }
}

proptest! {
    #[test]
    fn any_profile_is_compiled_to_its_meaning(
        rules in proptest::collection::vec(rule(), 0..8),
        number in prop_oneof![0u32..6, 40u32..60, Just(135), Just(435), Just(436), Just(422), 0u32..600],
        args in prop::array::uniform6(interesting_word()),
    ) {
        let profile = Seccomp {
            default_action: Action::Errno,
            default_errno_ret: None,
            architectures: arches(),
            flags: Vec::new(),
            syscalls: rules,
        };
        check(&profile, number, args);
    }

    #[test]
    fn the_default_profile_is_compiled_to_its_meaning(
        number in 0u32..600,
        args in prop::array::uniform6(interesting_word()),
    ) {
        check(&defaults::seccomp(&[]), number, args);
    }
}

#[test]
fn every_call_number_of_the_default_profile_is_decided_as_written() {
    let mut profile = defaults::seccomp(&["CAP_SYS_ADMIN".to_owned()]);
    profile.architectures = arches();
    for number in 0..700 {
        check(&profile, number, [0; 6]);
    }
}

#[test]
fn a_foreign_architecture_is_killed() {
    let filter = compile(&defaults::seccomp(&[])).unwrap();
    let call = Call { number: 0, arch: 0x1234, args: [0; 6] };
    assert_eq!(run(&filter.instructions, &call), libc::SECCOMP_RET_KILL_THREAD);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn docker_default_decisions_hold() {
    let filter = compile(&defaults::seccomp(&[])).unwrap();
    let decide = |number, first| {
        let call = Call { number, arch: 0xc000_003e, args: [first, 0, 0, 0, 0, 0] };
        run(&filter.instructions, &call)
    };
    let eperm = libc::SECCOMP_RET_ERRNO | 1;
    let enosys = libc::SECCOMP_RET_ERRNO | 38;
    let cases = [
        ("read", 0, 0, ALLOW),
        ("mount", 165, 0, eperm),
        ("keyctl", 250, 0, eperm),
        ("open_by_handle_at", 304, 0, eperm),
        ("clone3", 435, 0, enosys),
        ("clone of a thread", 56, 0x3d0f00, ALLOW),
        ("clone of a user namespace", 56, 0x1000_0000, eperm),
        ("socket AF_INET", 41, 2, ALLOW),
        ("socket AF_ALG", 41, 38, eperm),
        ("socket AF_VSOCK", 41, 40, eperm),
        ("personality ADDR_NO_RANDOMIZE", 135, 0x0004_0000, eperm),
        ("personality query", 135, 0xffff_ffff, ALLOW),
        ("io_uring_setup", 425, 0, eperm),
        ("a call of the future", 9000, 0, enosys),
    ];
    for (what, number, first, result) in cases {
        assert_eq!(decide(number, first), result, "{what}");
    }
}

#[test]
fn the_default_profile_stays_far_below_the_kernels_limit() {
    let length = compile(&defaults::seccomp(&[])).unwrap().instructions.len();
    assert!(length < INSTRUCTIONS_MAX / 2, "{length}");
}
