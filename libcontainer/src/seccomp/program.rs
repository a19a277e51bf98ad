//! From tables of verdicts to one BPF program.
//!
//! For each architecture the whole range of numbers is cut where the verdict changes, and the pieces are the leaves of a
//! binary search. Docker's profile has some hundred pieces for x86-64, so `read` is decided after about ten instructions
//! instead of up to four hundred. No leaf falls through and every path to an unconditional verdict only compares `nr` and `arch`:
//! from Linux 5.11 the kernel sees at load time which calls are always allowed and runs no filter for them.

use seccompiler::{BackendError, BpfProgram, sock_filter};

use super::rules::{Table, Verdict};
use super::syscalls::{Abi, X32_BIT};

// <linux/bpf_common.h>
const LOAD: u16 = 0x20; // ld | w | abs
const JUMP: u16 = 0x05; // jmp | ja
const JUMP_IF_EQUAL: u16 = 0x15; // jmp | jeq | k
const JUMP_IF_AT_LEAST: u16 = 0x35; // jmp | jge | k
const RETURN: u16 = 0x06; // ret | k

// `struct seccomp_data` of <linux/seccomp.h>
const NR: u32 = 0;
const ARCH: u32 = 4;

/// Calls of an architecture that the profile does not list; libseccomp's choice.
const WRONG_ARCH: u32 = libc::SECCOMP_RET_KILL_THREAD;

fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// Runs `above` for numbers from `at` on and `below` for lower ones. Both leave the program at their end.
fn split(at: u32, below: BpfProgram, above: BpfProgram) -> BpfProgram {
    let mut program = Vec::with_capacity(below.len() + above.len() + 2);
    match u8::try_from(below.len()) {
        Ok(jt) => program.push(sock_filter { code: JUMP_IF_AT_LEAST, jt, jf: 0, k: at }),
        // Conditional jumps reach 255 instructions, unconditional ones any number.
        Err(_) => program.extend([
            sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: at },
            instruction(JUMP, below.len() as u32),
        ]),
    }
    program.extend(below);
    program.extend(above);
    program
}

/// The range of numbers from `from` up to the next piece.
struct Piece {
    from: u32,
    verdict: Verdict,
    abi: Abi,
}

/// Pieces in ascending order, the first from number zero.
#[derive(Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    /// From this number on, this verdict; nothing changes if it was so before.
    fn cut(&mut self, from: u32, abi: Abi, verdict: Verdict) {
        if self.0.last().is_none_or(|last| last.verdict != verdict || last.abi.is_64_bit() != abi.is_64_bit()) {
            self.0.push(Piece { from, verdict, abi });
        }
    }

    /// A whole table from its lowest possible number on.
    fn table(&mut self, table: Table, default: u32, beyond: Option<u32>) {
        let Table { abi, highest, calls } = table;
        let mut next = if abi == Abi::X32 { X32_BIT } else { 0 };
        if next > 0 && self.0.is_empty() {
            self.cut(0, Abi::X86_64, Verdict::Return(WRONG_ARCH)); // x32 listed, x86-64 neither listed nor native
        }
        for (number, verdict) in calls {
            if number > next {
                self.cut(next, abi, Verdict::Return(default));
            }
            self.cut(number, abi, verdict);
            next = number + 1;
        }
        let beyond = beyond.filter(|_| highest > 0);
        if beyond.is_none() || next <= highest {
            self.cut(next, abi, Verdict::Return(default));
        }
        if let Some(beyond) = beyond {
            self.cut(highest + 1, abi, Verdict::Return(beyond));
        }
    }

    fn search(pieces: &[Piece], default: u32) -> Result<BpfProgram, BackendError> {
        match pieces {
            [] => Ok(vec![instruction(RETURN, default)]),
            [piece] => piece.leaf(default),
            _ => {
                let (below, above) = pieces.split_at(pieces.len() / 2);
                Ok(split(above[0].from, Self::search(below, default)?, Self::search(above, default)?))
            }
        }
    }
}

impl Piece {
    fn leaf(&self, default: u32) -> Result<BpfProgram, BackendError> {
        let rules = match &self.verdict {
            Verdict::Return(action) => return Ok(vec![instruction(RETURN, *action)]),
            Verdict::FirstOf(rules) => rules,
        };
        let mut program = BpfProgram::new();
        for rule in rules {
            // A compiled rule goes on behind its end if it holds, and one instruction further if not.
            program.extend(BpfProgram::from(rule.compiled(self.abi)?));
            program.push(instruction(RETURN, rule.action));
        }
        program.push(instruction(RETURN, default));
        Ok(program)
    }
}

/// Joins the tables into one program, in which the architecture of the first table is tried first.
///
/// `beyond` is the answer to calls newer than any the profile speaks of, for each table that wants one. A table for x32 must
/// come after x86-64's, whose range of numbers ends where x32's begins.
pub(super) fn join(tables: Vec<(Table, Option<u32>)>, default: u32) -> Result<BpfProgram, BackendError> {
    let x32 = tables.iter().any(|(table, _)| table.abi == Abi::X32);
    let mut archs: Vec<(u32, Pieces)> = Vec::new();
    for (mut table, beyond) in tables {
        table.arrange();
        let abi = table.abi;
        let arch = abi.audit_arch();
        let at = archs.iter().position(|(known, _)| *known == arch).unwrap_or(archs.len());
        if at == archs.len() {
            archs.push((arch, Pieces::default()));
        }
        let pieces = &mut archs[at].1;
        pieces.table(table, default, beyond);
        if abi == Abi::X86_64 && !x32 {
            pieces.cut(X32_BIT, abi, Verdict::Return(WRONG_ARCH));
            // Tracers skip a call by setting its number to -1.
            pieces.cut(u32::MAX, abi, Verdict::Return(default));
        }
    }
    let mut program = vec![instruction(LOAD, ARCH)];
    for (arch, pieces) in archs {
        let section = Pieces::search(&pieces.0, default)?;
        program.extend([
            sock_filter { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: arch },
            instruction(JUMP, section.len() as u32 + 1),
            instruction(LOAD, NR),
        ]);
        program.extend(section);
    }
    program.push(instruction(RETURN, WRONG_ARCH));
    Ok(program)
}
