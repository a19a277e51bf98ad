//! Numbers of system calls by name, for every ABI that a container on x86-64 or arm64 can call.
//!
//! The table is text of fixed width so that it stays where the linker put it, in the read-only part of the file: a slice of
//! `&str` would be relocated at start-up and become private memory of every shim. Its numbers come from the kernel's
//! `asm/unistd*.h` (6.1, and what 6.2 to 6.17 added at one number for all); a test holds it against libseccomp's.

use oci_spec::runtime::Arch;

/// One line a call: the name, then its number on x86_64, x86, x32 (without the x32 bit), aarch64 and arm.
const TABLE: &str = include_str!("syscalls.tbl");
const LINE: usize = 52;
const NAME: usize = 28;
/// Where each ABI's column ends; they follow one another in the order of [`Abi`].
const COLUMNS: [usize; 6] = [NAME, 32, 36, 40, 44, 51];

/// Set in the number of every x32 call; how the kernel tells them from x86-64's, which have the same architecture.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// A system call table of the kernel, with the registers that go with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abi {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit x86 with 32-bit pointers; shares x86-64's architecture number.
    X32,
    /// 64-bit Arm.
    Aarch64,
    /// 32-bit Arm, EABI.
    Arm,
}

impl Abi {
    /// The ABI this program was built for, or `None` where it has no table.
    pub const NATIVE: Option<Self> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
        Some(Self::X86_64)
    } else if cfg!(target_arch = "aarch64") {
        Some(Self::Aarch64)
    } else {
        None
    };

    /// Each ABI, x86-64 before x32.
    pub(super) const ALL: [Self; 5] = [Self::X86_64, Self::X86, Self::X32, Self::Aarch64, Self::Arm];

    /// The ABI of a profile's architecture on a machine whose own is `self`. `None` for architectures that this kernel has no
    /// way to enter, so that rules for them can never apply.
    pub(super) fn of(self, arch: Arch) -> Option<Self> {
        let abi = match arch {
            Arch::ScmpArchNative => self,
            Arch::ScmpArchX86_64 => Self::X86_64,
            Arch::ScmpArchX86 => Self::X86,
            Arch::ScmpArchX32 => Self::X32,
            Arch::ScmpArchAarch64 => Self::Aarch64,
            Arch::ScmpArchArm => Self::Arm,
            _ => return None,
        };
        (abi.is_arm() == self.is_arm()).then_some(abi)
    }

    fn is_arm(self) -> bool {
        matches!(self, Self::Aarch64 | Self::Arm)
    }

    /// `AUDIT_ARCH_*` of <linux/audit.h>, as `seccomp_data.arch` has it.
    pub(super) fn audit_arch(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments are 64 bits wide. The upper half of an x32 argument means nothing.
    pub(super) fn is_64_bit(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }
}

/// A system call some ABI knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Syscall(&'static [u8; LINE]);

impl Syscall {
    pub(super) fn named(name: &str) -> Option<Self> {
        let mut padded = [b' '; NAME];
        padded.get_mut(..name.len()).filter(|_| !name.contains(' '))?.copy_from_slice(name.as_bytes());
        let lines = TABLE.as_bytes().as_chunks::<LINE>().0;
        let found = lines.binary_search_by(|line| line[..NAME].cmp(&padded)).ok()?;
        Some(Self(&lines[found]))
    }

    /// Its number, as the kernel reports it in `seccomp_data.nr`.
    pub(super) fn number(self, abi: Abi) -> Option<u32> {
        let column = &self.0[COLUMNS[abi as usize]..COLUMNS[abi as usize + 1]];
        let number: u32 = str::from_utf8(column).ok()?.trim_start().parse().ok()?;
        Some(if abi == Abi::X32 { number | X32_BIT } else { number })
    }
}

#[cfg(test)]
mod tests {
    use libseccomp::{ScmpArch, ScmpSyscall};

    use super::*;

    #[test]
    fn every_line_has_its_width_and_its_place() {
        assert!(TABLE.lines().all(|line| line.len() + 1 == LINE));
        assert!(TABLE.lines().map(|line| line[..NAME].trim_end()).is_sorted_by(|a, b| a < b));
        for line in TABLE.lines() {
            let columns: Vec<&str> = COLUMNS.windows(2).map(|c| line[c[0]..c[1]].trim()).collect();
            assert_eq!(line[NAME..].split_whitespace().collect::<Vec<_>>(), columns, "{line}");
            assert!(columns.iter().all(|c| *c == "-" || c.parse::<u32>().is_ok()), "{line}");
        }
    }

    #[test]
    fn this_machine_agrees() {
        for (name, number) in [("read", libc::SYS_read), ("clone3", libc::SYS_clone3), ("mseal", libc::SYS_mseal)] {
            let ours = Syscall::named(name).and_then(|call| call.number(Abi::NATIVE?));
            assert_eq!(ours.map(i64::from), Some(number), "{name}");
        }
        assert_eq!(Syscall::named("read").and_then(|call| call.number(Abi::X32)), Some(X32_BIT));
        for unknown in ["", " ", "open_by_hand", "read ", "sched_rr_get_interval_time64_and_more"] {
            assert!(Syscall::named(unknown).is_none(), "{unknown:?}");
        }
    }

    const ARCHS: [ScmpArch; 5] = [ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32, ScmpArch::Aarch64, ScmpArch::Arm];

    /// Whether libseccomp finds this number under this name; it has several names for some.
    fn is_known(name: &str, number: u32, arch: ScmpArch) -> bool {
        let by_name = ScmpSyscall::from_name_by_arch(name, arch).map(ScmpSyscall::as_raw_syscall);
        let by_number = ScmpSyscall::from_raw_syscall(number as i32).get_name_by_arch(arch);
        by_name.is_ok_and(|found| found == number as i32) || by_number.is_ok_and(|found| found == name)
    }

    #[test]
    fn libseccomp_has_our_numbers() {
        for line in TABLE.lines() {
            let name = line[..NAME].trim_end();
            for (abi, arch) in Abi::ALL.into_iter().zip(ARCHS) {
                let Some(number) = Syscall::named(name).and_then(|call| call.number(abi)) else { continue };
                let is_newer =
                    ScmpSyscall::from_name(name).is_err() && (number & !X32_BIT >= 451 || name == "uretprobe");
                // The kernel's header has two names for this one.
                let is_alias = (name, abi) == ("sync_file_range2", Abi::Arm);
                assert!(is_known(name, number, arch) || is_newer || is_alias, "{name} is not {number} on {abi:?}");
            }
        }
    }

    #[test]
    fn we_have_libseccomps_numbers() {
        for (abi, arch) in Abi::ALL.into_iter().zip(ARCHS) {
            let bit = if abi == Abi::X32 { X32_BIT } else { 0 };
            let mut known = 0;
            for number in (0..1000).chain(0xf_0000..0xf_0010).map(|number| number | bit) {
                let Ok(name) = ScmpSyscall::from_raw_syscall(number as i32).get_name_by_arch(arch) else { continue };
                assert_eq!(Syscall::named(&name).and_then(|call| call.number(abi)), Some(number), "{name} on {abi:?}");
                known += 1;
            }
            assert!(known > 300, "{known} on {abi:?}");
        }
    }
}
