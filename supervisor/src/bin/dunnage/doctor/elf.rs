//! Whether a program is whole in itself.

/// How a program file gets its libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Linkage {
    /// All of it is in the file.
    Static,
    /// The kernel starts a loader for it (`PT_INTERP`), which must be on the machine, and libraries.
    Dynamic,
    /// Not a 64-bit little-endian ELF file, which all our machines have.
    Foreign,
}

/// Reads the program headers (elf(5)) at the beginning of a file.
pub(super) fn linkage(file: &[u8]) -> Linkage {
    const PT_INTERP: u32 = 3;
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Linkage::Foreign;
    }
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(file.get(at..)?.first_chunk().copied()?)));
    // e_phoff, e_phentsize, e_phnum.
    let offset = file.get(32..).and_then(|rest| rest.first_chunk()).map(|bytes| u64::from_le_bytes(*bytes));
    let (Some(offset), Some(size), Some(count)) = (offset.and_then(|n| n.try_into().ok()), half(54), half(56)) else {
        return Linkage::Foreign;
    };
    let headers = file.get::<std::ops::RangeFrom<usize>>(offset..).unwrap_or_default();
    // The type is the first word of a header.
    let kind = |header: &[u8]| header.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    match headers.chunks(size.max(1)).take(count).any(|header| kind(header) == Some(PT_INTERP)) {
        true => Linkage::Dynamic,
        false => Linkage::Static,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header, and program headers of these types behind it.
    fn program(types: &[u32]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        file[32] = 64;
        file[54] = 56;
        file[56] = types.len() as u8;
        for kind in types {
            file.extend(kind.to_le_bytes());
            file.resize(file.len() + 52, 0);
        }
        file
    }

    #[test]
    fn only_an_interpreter_makes_it_dynamic() {
        assert_eq!(linkage(&program(&[1, 1, 6])), Linkage::Static);
        assert_eq!(linkage(&program(&[6, 3, 1])), Linkage::Dynamic);
        assert_eq!(linkage(b"#!/bin/sh\n"), Linkage::Foreign);
        assert_eq!(linkage(b"\x7fELF\x02\x01"), Linkage::Foreign);
    }

    #[test]
    fn headers_beyond_what_was_read_are_not_looked_at() {
        let mut file = program(&[3]);
        file.truncate(64);
        assert_eq!(linkage(&file), Linkage::Static);
        file[32..40].fill(0xff);
        assert_eq!(linkage(&file), Linkage::Static);
    }
}
