//! A tiny interpreter of classic BPF, the judge of the compiler's tests.

use super::bpf::{AND, Instruction, JUMP, JUMP_EQ, JUMP_GE, JUMP_GT, LOAD, RETURN};

/// One system call as the kernel describes it to a filter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) arch: u32,
    pub(super) args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let mut data = Vec::with_capacity(64);
        data.extend(self.number.to_le_bytes());
        data.extend(self.arch.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        self.args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
        let at = usize::try_from(offset).unwrap();
        u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
    }
}

/// What the program returns for the call.
pub(super) fn run(program: &[Instruction], call: &Call) -> u32 {
    let mut at = 0;
    let mut accumulator = 0;
    loop {
        let instruction = program[at];
        at += 1;
        let test = match instruction.code {
            LOAD => {
                accumulator = call.word(instruction.k);
                continue;
            }
            AND => {
                accumulator &= instruction.k;
                continue;
            }
            JUMP => {
                at += usize::try_from(instruction.k).unwrap();
                continue;
            }
            RETURN => return instruction.k,
            JUMP_EQ => accumulator == instruction.k,
            JUMP_GT => accumulator > instruction.k,
            JUMP_GE => accumulator >= instruction.k,
            code => panic!("instruction {code:#x} is not ours"),
        };
        let skip = if test { instruction.jump_true } else { instruction.jump_false };
        at += usize::from(skip);
    }
}
