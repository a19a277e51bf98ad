//! What is typed, as keys. crossterm could read them, but its reader goes round and round in a terminal that has hung up.

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    /// The selection moves by so many lines; by more than there are, it stops at the first or the last.
    Move(isize),
    Page(isize),
    Sort(super::model::Sort),
    Reverse,
    /// Those that have ended come, or go.
    Ended,
    /// The screen is drawn anew: something else has written to it.
    Redraw,
}

/// The keys in what one read brought. A terminal sends the bytes of one key together; what is no key of ours is nothing.
pub(super) fn keys(mut typed: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let [first, rest @ ..] = typed {
        typed = rest;
        let key = match (first, rest) {
            // ECMA-48, 5.4: a control sequence ends with the first byte of 0x40 or above. SS3 is its one-letter sister.
            (0x1b, [b'[' | b'O', sequence @ ..]) => {
                let end =
                    sequence.iter().position(|byte| (0x40..=0x7e).contains(byte)).map_or(sequence.len(), |at| at + 1);
                let (sequence, after) = sequence.split_at(end);
                typed = after;
                special(sequence)
            }
            (plain, _) => letter(*plain),
        };
        keys.extend(key);
    }
    keys
}

fn special(sequence: &[u8]) -> Option<Key> {
    match sequence {
        b"A" => Some(Key::Move(-1)),
        b"B" => Some(Key::Move(1)),
        b"5~" => Some(Key::Page(-1)),
        b"6~" => Some(Key::Page(1)),
        b"H" | b"1~" | b"7~" => Some(Key::Move(isize::MIN)),
        b"F" | b"4~" | b"8~" => Some(Key::Move(isize::MAX)),
        _ => None,
    }
}

fn letter(letter: u8) -> Option<Key> {
    use super::model::Sort;
    match letter {
        // Control-C is a byte like others in raw mode.
        b'q' | 0x03 => Some(Key::Quit),
        b'k' => Some(Key::Move(-1)),
        b'j' => Some(Key::Move(1)),
        b'c' => Some(Key::Sort(Sort::Cpu)),
        b'm' => Some(Key::Sort(Sort::Memory)),
        b'p' => Some(Key::Sort(Sort::Pids)),
        b'd' => Some(Key::Sort(Sort::Disk)),
        b'n' => Some(Key::Sort(Sort::Name)),
        b'r' => Some(Key::Reverse),
        b'a' => Some(Key::Ended),
        0x0c => Some(Key::Redraw),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::model::Sort, *};

    #[test]
    fn one_read_may_bring_many_keys() {
        let typed = b"\x1b[Bj\x1bOA\x1b[5~xm\x1b[1;5C\x1b[F\x03";
        let expected = [
            Key::Move(1),
            Key::Move(1),
            Key::Move(-1),
            Key::Page(-1),
            Key::Sort(Sort::Memory),
            Key::Move(isize::MAX),
            Key::Quit,
        ];
        assert_eq!(keys(typed), expected);
    }

    #[test]
    fn half_a_key_is_none() {
        for typed in [&b"\x1b"[..], b"\x1b[", b"\x1b[1;", b"\x1bO", b"\xff\xfe"] {
            assert_eq!(keys(typed), [], "{typed:?}");
        }
    }
}
