//! Assembles decisions into classic BPF: one section per architecture, each a binary search.

use super::{Decision, INSTRUCTIONS_MAX};
use crate::Error;
use crate::spec::{Operator, SyscallArg};

use super::arch::X32_BIT;

/// One instruction, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// Operand.
    pub k: u32,
}

pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQ: u16 = 0x15;
pub(super) const JUMP_GT: u16 = 0x25;
pub(super) const JUMP_GE: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

/// Offsets in the kernel's `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// How wide the arguments of an architecture are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Bits32,
    Bits64,
}

/// All decisions of one architecture.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) audit: u32,
    pub(super) x32: bool,
    pub(super) width: Width,
    pub(super) ranges: Vec<(u32, Decision)>,
}

const fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, k }
}

/// The whole program; a foreign architecture is killed.
pub(super) fn program(sections: &[Section]) -> Result<Vec<Instruction>, Error> {
    let mut program = vec![plain(LOAD, OFFSET_ARCH)];
    for section in sections.iter().filter(|section| !section.x32) {
        let x32 = sections.iter().find(|other| other.x32 && other.audit == section.audit);
        let body = section_body(section, x32)?;
        program.push(Instruction { code: JUMP_EQ, jump_true: 1, jump_false: 0, k: section.audit });
        program.push(plain(JUMP, length(&body)));
        program.extend(body);
    }
    program.push(plain(RETURN, libc::SECCOMP_RET_KILL_THREAD));
    if program.len() > INSTRUCTIONS_MAX {
        let reason = format!("{} instructions, at most {INSTRUCTIONS_MAX}", program.len());
        return Err(Error::Seccomp { reason });
    }
    Ok(program)
}

/// x86-64 and x32 share an audit number and differ by a bit of the call number.
fn section_body(section: &Section, x32: Option<&Section>) -> Result<Vec<Instruction>, Error> {
    const AUDIT_X86_64: u32 = 0xc000_003e;
    let search = search(&section.ranges, section.width)?;
    let mut body = vec![plain(LOAD, OFFSET_NUMBER)];
    if section.audit == AUDIT_X86_64 {
        let other = match x32 {
            Some(x32) => {
                let mut other = vec![plain(AND, !X32_BIT)];
                other.extend(self::search(&x32.ranges, x32.width)?);
                other
            }
            None => vec![plain(RETURN, libc::SECCOMP_RET_KILL_THREAD)],
        };
        // -1 is how a tracer cancels a call; it has the bit as well and is no call of x32.
        body.push(Instruction { code: JUMP_GE, jump_true: 0, jump_false: 1, k: X32_BIT });
        body.push(plain(JUMP, length(&search)));
        body.extend(search);
        body.extend(other);
    } else {
        body.extend(search);
    }
    Ok(body)
}

/// Finds the range of the number in the accumulator and runs its leaf.
fn search(ranges: &[(u32, Decision)], width: Width) -> Result<Vec<Instruction>, Error> {
    if let [(_, decision)] = ranges {
        return leaf(decision, width);
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let below = search(lower, width)?;
    let above = search(upper, width)?;
    let mut code = Vec::with_capacity(below.len() + above.len() + 2);
    let k = upper[0].0;
    match u8::try_from(below.len()) {
        Ok(skip) => {
            code.push(Instruction { code: JUMP_GE, jump_true: skip, jump_false: 0, k });
        }
        Err(_) => {
            code.push(Instruction { code: JUMP_GE, jump_true: 0, jump_false: 1, k });
            code.push(plain(JUMP, length(&below)));
        }
    }
    code.extend(below);
    code.extend(above);
    Ok(code)
}

fn leaf(decision: &Decision, width: Width) -> Result<Vec<Instruction>, Error> {
    let mut code = Vec::new();
    for (conditions, action) in &decision.alternatives {
        code.extend(alternative(conditions, *action, width)?);
    }
    code.push(plain(RETURN, decision.otherwise));
    Ok(code)
}

/// Where a comparison goes on a given outcome.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Go {
    /// To the next instruction.
    Next,
    /// Past the rest of this condition, which holds.
    Holds,
    /// Past this alternative, which does not apply.
    Fails,
}

enum Piece {
    Plain(Instruction),
    Compare { code: u16, k: u32, yes: Go, no: Go },
}

/// All conditions in turn, then the action; any failure skips the whole.
fn alternative(
    conditions: &[SyscallArg],
    action: u32,
    width: Width,
) -> Result<Vec<Instruction>, Error> {
    let mut pieces: Vec<(Piece, usize)> = Vec::new();
    for condition in conditions {
        let own = pieces_of(condition, width);
        let end = pieces.len() + own.len();
        pieces.extend(own.into_iter().map(|piece| (piece, end)));
    }
    // The action stands right after the pieces, and a failed alternative goes on after it.
    let fails = pieces.len() + 1;
    let mut code = Vec::with_capacity(fails);
    for (at, (piece, holds)) in pieces.into_iter().enumerate() {
        let offset = |go| {
            let target = match go {
                Go::Next => at + 1,
                Go::Holds => holds,
                Go::Fails => fails,
            };
            u8::try_from(target - at - 1)
                .map_err(|_| Error::Seccomp { reason: "rule with too many conditions".into() })
        };
        code.push(match piece {
            Piece::Plain(instruction) => instruction,
            Piece::Compare { code, k, yes, no } => {
                Instruction { code, jump_true: offset(yes)?, jump_false: offset(no)?, k }
            }
        });
    }
    code.push(plain(RETURN, action));
    Ok(code)
}

/// The comparison of one 64-bit argument, upper word first; 32-bit callers have no upper word.
fn pieces_of(arg: &SyscallArg, width: Width) -> Vec<Piece> {
    use Go::{Fails, Holds, Next};
    let low_at = OFFSET_ARGS + 8 * arg.index;
    let load = |offset| Piece::Plain(plain(LOAD, offset));
    let compare = |code, k, yes, no| Piece::Compare { code, k, yes, no };
    let (high, low) = words(arg.value);
    let wide = width == Width::Bits64;
    let mut pieces = Vec::with_capacity(6);
    match arg.op {
        Operator::Equal | Operator::MaskedEqual => {
            let (mask, value) = match arg.op {
                Operator::Equal => (u64::MAX, arg.value),
                _ => (arg.value, arg.value_two),
            };
            let (mask_high, mask_low) = words(mask);
            let (value_high, value_low) = words(value);
            if wide {
                pieces.extend([load(low_at + 4), Piece::Plain(plain(AND, mask_high))]);
                pieces.push(compare(JUMP_EQ, value_high, Next, Fails));
            }
            pieces.extend([load(low_at), Piece::Plain(plain(AND, mask_low))]);
            pieces.push(compare(JUMP_EQ, value_low, Holds, Fails));
        }
        Operator::NotEqual => {
            if wide {
                pieces.extend([load(low_at + 4), compare(JUMP_EQ, high, Next, Holds)]);
            }
            pieces.extend([load(low_at), compare(JUMP_EQ, low, Fails, Holds)]);
        }
        Operator::Greater | Operator::GreaterEqual => {
            if wide {
                pieces.extend([load(low_at + 4), compare(JUMP_GT, high, Holds, Next)]);
                pieces.push(compare(JUMP_EQ, high, Next, Fails));
            }
            let code = if arg.op == Operator::Greater { JUMP_GT } else { JUMP_GE };
            pieces.extend([load(low_at), compare(code, low, Holds, Fails)]);
        }
        Operator::Less | Operator::LessEqual => {
            if wide {
                pieces.extend([load(low_at + 4), compare(JUMP_GT, high, Fails, Next)]);
                pieces.push(compare(JUMP_EQ, high, Next, Holds));
            }
            let code = if arg.op == Operator::Less { JUMP_GE } else { JUMP_GT };
            pieces.extend([load(low_at), compare(code, low, Fails, Holds)]);
        }
    }
    pieces
}

fn words(value: u64) -> (u32, u32) {
    let high = u32::try_from(value >> 32).expect("32 bits are left");
    let low = u32::try_from(value & 0xffff_ffff).expect("32 bits are left");
    (high, low)
}

fn length(code: &[Instruction]) -> u32 {
    u32::try_from(code.len()).expect("programs are bounded far below this")
}
