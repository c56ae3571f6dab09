//! Device rules of version 2: an eBPF program the kernel asks on each open and mknod of a device.

#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::fs::File;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::LazyLock;

use rustix::io::Errno;

use super::files;
use crate::Error;
use crate::spec::DeviceRule;

/// Commands and constants of linux/bpf.h.
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

const ACCESS_MKNOD: u32 = 1;
const ACCESS_READ: u32 = 2;
const ACCESS_WRITE: u32 = 4;
const KIND_BLOCK: i32 = 1;
const KIND_CHAR: i32 = 2;

/// Rules that hold for every container: its own nodes may be used, any node may be made.
static ALWAYS_ALLOWED: LazyLock<Vec<DeviceRule>> =
    LazyLock::new(|| crate::defaults::device_rules().into_iter().filter(|it| it.allow).collect());

/// The rules of a specification and those added after them, as other runtimes add them.
pub(super) fn with_always_allowed(rules: &[DeviceRule]) -> Vec<&DeviceRule> {
    rules.iter().chain(ALWAYS_ALLOWED.iter()).collect()
}

/// One eBPF instruction, laid out as the kernel's `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

/// Loads a word of the context into a register.
const LOAD_WORD: u8 = 0x61;
const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE_REGISTER_32: u8 = 0xbc;
const AND_IMMEDIATE_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// The program: the last rule that matches decides, so rules are asked from the last to the first.
fn program(rules: &[&DeviceRule]) -> Vec<Instruction> {
    // r2 = kind, r3 = access, r4 = major, r5 = minor.
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(AND_IMMEDIATE_32, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0),
        instruction(SHIFT_RIGHT_32, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let code = rule_code(rule);
        let decides_all = !code.iter().any(is_jump);
        program.extend(code);
        if decides_all {
            // The kernel refuses a program with instructions that are never reached.
            return program;
        }
    }
    program.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// Skips to the end when the rule does not match, otherwise answers.
fn rule_code(rule: &DeviceRule) -> Vec<Instruction> {
    let mut tests: Vec<Instruction> = Vec::new();
    match rule.kind.as_str() {
        "c" => tests.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, KIND_CHAR)),
        "b" => tests.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, KIND_BLOCK)),
        _ => {}
    }
    let access = access_bits(&rule.access);
    if access != ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE {
        // An allowance must cover every access asked for, a refusal any of them.
        let bits = i32::try_from(access).expect("three bits");
        tests.push(instruction(MOVE_REGISTER_32, 1, 3, 0, 0));
        tests.push(instruction(AND_IMMEDIATE_32, 1, 0, 0, bits));
        if rule.allow {
            tests.push(instruction(JUMP_NOT_EQUAL_REGISTER, 1, 3, 0, 0));
        } else {
            const JUMP_EQUAL: u8 = 0x15;
            tests.push(instruction(JUMP_EQUAL, 1, 0, 0, 0));
        }
    }
    for (register, number) in [(4, rule.major), (5, rule.minor)] {
        if let Some(number) = number.and_then(|it| i32::try_from(it).ok()).filter(|it| *it >= 0) {
            tests.push(instruction(JUMP_NOT_EQUAL, register, 0, 0, number));
        }
    }
    let length = tests.len() + 2;
    for (at, test) in tests.iter_mut().enumerate() {
        if is_jump(test) {
            test.offset = i16::try_from(length - at - 1).expect("a rule is a few instructions");
        }
    }
    tests.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, i32::from(rule.allow)));
    tests.push(instruction(EXIT, 0, 0, 0, 0));
    tests
}

fn is_jump(it: &Instruction) -> bool {
    const CLASS: u8 = 0x07;
    const CLASS_JUMP: u8 = 0x05;
    it.code & CLASS == CLASS_JUMP && it.code != EXIT
}

fn access_bits(access: &str) -> u32 {
    let letters = if access.is_empty() { "rwm" } else { access };
    letters.chars().fold(0, |bits, letter| {
        bits | match letter {
            'r' => ACCESS_READ,
            'w' => ACCESS_WRITE,
            'm' => ACCESS_MKNOD,
            _ => 0,
        }
    })
}

/// First members of the kernel's `union bpf_attr` for loading a program.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// First members of the kernel's `union bpf_attr` for attaching one.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target_fd: u32,
    program_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Loads the rules and attaches them to the group; they go when the group goes.
pub(super) fn attach(directory: &Path, rules: &[DeviceRule]) -> Result<(), Error> {
    if rules.is_empty() {
        return Ok(());
    }
    let fault = |action, errno| Error::Cgroup { action, path: directory.to_owned(), errno };
    let program = load(&program(&with_always_allowed(rules)))
        .map_err(|errno| fault("load device rules of", errno))?;
    let group = File::open(directory).map_err(|error| files::fault("open", directory, &error))?;
    let unsigned = |fd: i32| u32::try_from(fd).expect("open descriptors are not negative");
    let attributes = AttachAttributes {
        target_fd: unsigned(group.as_raw_fd()),
        program_fd: unsigned(program.as_raw_fd()),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map_err(|errno| fault("attach device rules to", errno))?;
    Ok(())
}

fn load(program: &[Instruction]) -> rustix::io::Result<OwnedFd> {
    let licence = c"Apache-2.0";
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: program.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: The kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<A>(command: u32, attributes: &A) -> rustix::io::Result<i32> {
    // SAFETY: `attributes` is a prefix of the kernel's union for this command, of the given size,
    // and the pointers in it outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>())
    };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(i32::try_from(result).expect("descriptors fit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the handful of instructions the compiler emits.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> i64 {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0i64; 11];
        let mut at = 0usize;
        loop {
            let it = program[at];
            at += 1;
            let to = usize::from(it.registers & 0xf);
            let from = usize::from(it.registers >> 4);
            let jump = match it.code {
                LOAD_WORD => {
                    registers[to] = i64::from(context[usize::try_from(it.offset / 4).unwrap()]);
                    false
                }
                AND_IMMEDIATE_32 => {
                    registers[to] &= i64::from(it.immediate);
                    false
                }
                SHIFT_RIGHT_32 => {
                    registers[to] >>= it.immediate;
                    false
                }
                MOVE_IMMEDIATE => {
                    registers[to] = i64::from(it.immediate);
                    false
                }
                MOVE_REGISTER_32 => {
                    registers[to] = registers[from];
                    false
                }
                JUMP_NOT_EQUAL => registers[to] != i64::from(it.immediate),
                JUMP_NOT_EQUAL_REGISTER => registers[to] != registers[from],
                0x15 => registers[to] == i64::from(it.immediate),
                EXIT => return registers[0],
                code => panic!("instruction {code:#x} is not ours"),
            };
            if jump {
                at += usize::try_from(it.offset).unwrap();
            }
        }
    }

    #[test]
    fn the_default_rules_allow_what_docker_allows() {
        let rules = crate::defaults::device_rules();
        let program = program(&rules.iter().collect::<Vec<_>>());
        let (block, char) = (1, 2);
        let read_write = ACCESS_READ | ACCESS_WRITE;
        let cases = [
            ("open /dev/null", char, read_write, 1, 3, 1),
            ("read /dev/mem", char, ACCESS_READ, 1, 1, 0),
            ("make any node", block, ACCESS_MKNOD, 8, 0, 1),
            ("make and read a disk", block, ACCESS_MKNOD | ACCESS_READ, 8, 0, 0),
            ("read a disk", block, ACCESS_READ, 8, 0, 0),
            ("open a pty", char, read_write, 136, 77, 1),
            ("open /dev/kmsg", char, ACCESS_READ, 1, 11, 0),
        ];
        for (what, kind, access, major, minor, result) in cases {
            assert_eq!(run(&program, kind, access, major, minor), result, "{what}");
        }
    }

    #[test]
    fn the_last_matching_rule_decides() {
        let rule = |allow, access: &str| DeviceRule {
            allow,
            kind: "c".to_owned(),
            major: Some(10),
            minor: Some(200),
            access: access.to_owned(),
        };
        let rules = [rule(true, "rwm"), rule(false, "w")];
        let program = program(&rules.iter().collect::<Vec<_>>());
        assert_eq!(run(&program, 2, ACCESS_READ, 10, 200), 1);
        assert_eq!(run(&program, 2, ACCESS_READ | ACCESS_WRITE, 10, 200), 0);
    }
}
