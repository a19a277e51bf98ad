use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use tempfile::TempDir;

use super::*;

const WIDE: Bounds = Bounds { size: 64 << 20, age: Duration::from_secs(86400) };

fn open(dir: &Path, bounds: Bounds) -> Journal {
    Journal::open(dir, bounds, |_| true).unwrap().0
}

/// A journal with the events 1 to `count`, of one source, each with its number as text.
fn with(dir: &Path, bounds: Bounds, count: u64) -> Journal {
    let mut journal = open(dir, bounds);
    for number in 1..=count {
        let text = number.to_string();
        assert_eq!(journal.append(Some(("7-7", number)), text.as_bytes()).unwrap(), Appended::New(number));
    }
    journal
}

/// All that can be read behind a number: the numbers, and how many are lost.
fn read(journal: &Journal, after: u64) -> (Vec<u64>, u64) {
    let (mut cursor, mut lost) = journal.cursor(after);
    let mut numbers = Vec::new();
    loop {
        let batch = journal.read(&mut cursor).unwrap();
        lost += batch.lost;
        if batch.events.is_empty() {
            assert!(numbers.last().is_none_or(|last| *last <= cursor.number()));
            return (numbers, lost);
        }
        for event in batch.events {
            assert_eq!(
                std::str::from_utf8(&event.envelope).unwrap().split(' ').next(),
                Some(&*event.number.to_string())
            );
            numbers.push(event.number);
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn events_are_read_as_they_were_appended_also_by_the_next_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let journal = with(dir.path(), WIDE, 50);
    assert_eq!(read(&journal, 0), ((1..=50).collect(), 0));
    assert_eq!(read(&journal, 49), (vec![50], 0));
    drop(journal);
    let mut journal = open(dir.path(), WIDE);
    assert_eq!((journal.last(), read(&journal, 20)), (50, ((21..=50).collect(), 0)));
    assert_eq!(journal.append(None, b"51").unwrap(), Appended::New(51));
    assert_eq!(read(&journal, 50), (vec![51], 0));
    assert_eq!(journal.troubles(), Vec::<String>::new());
}

#[test]
fn a_cursor_finds_what_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let small = Bounds { size: 1600, ..WIDE };
    let mut journal = open(dir.path(), small);
    let mut cursor = Cursor::after(0);
    for number in 1..=30 {
        assert_eq!(journal.read(&mut cursor).unwrap(), Batch::default());
        journal.append(None, number.to_string().as_bytes()).unwrap();
        let events = journal.read(&mut cursor).unwrap().events;
        assert_eq!(events.iter().map(|event| event.number).collect::<Vec<_>>(), [number]);
        assert_eq!(cursor.number(), number);
    }
    assert!(files(dir.path()).len() > 2, "over several files");
}

#[test]
fn an_event_that_is_sent_again_is_known_in_every_later_file_and_run() {
    let dir = tempfile::tempdir().unwrap();
    // Each event has a file of its own, and few are kept.
    let tiny = Bounds { size: 400, ..WIDE };
    let mut journal = open(dir.path(), tiny);
    assert_eq!(journal.append(Some(("old", 3)), b"1").unwrap(), Appended::New(1));
    for number in 2..=40 {
        journal.append(None, number.to_string().as_bytes()).unwrap();
    }
    assert!(read(&journal, 0).1 > 20, "the event itself is long gone");
    for _ in 0..2 {
        for known in 1..=3 {
            assert_eq!(journal.append(Some(("old", known)), b"x").unwrap(), Appended::Known);
        }
        drop(journal);
        journal = open(dir.path(), tiny);
    }
    assert_eq!(journal.append(Some(("old", 4)), b"41").unwrap(), Appended::New(41));
}

#[test]
fn a_source_that_is_gone_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path(), Bounds { size: 0, ..WIDE }, |source| source == "live").unwrap();
    journal.append(Some(("dead", 1)), b"1").unwrap();
    journal.append(Some(("live", 1)), b"2").unwrap();
    journal.append(None, b"3").unwrap();
    assert_eq!(journal.sources.keys().collect::<Vec<_>>(), ["live"]);
}

#[test]
fn killed_at_any_byte_of_an_event_nothing_else_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let journal = with(dir.path(), WIDE, 3);
    let before = usize::try_from(journal.size()).unwrap();
    drop(journal);
    drop(with_more(dir.path(), 4));
    let file = files(dir.path()).remove(0);
    let whole = fs::read(&file).unwrap();
    for length in before..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        let (mut journal, damage) = Journal::open(dir.path(), WIDE, |_| true).unwrap();
        assert_eq!(damage, Vec::<String>::new(), "{length}");
        assert_eq!(read(&journal, 0), (vec![1, 2, 3], 0), "{length}");
        assert_eq!(fs::metadata(&file).unwrap().len(), before as u64, "cut");
        // Nobody was told that it was taken, so it comes again.
        assert_eq!(journal.append(Some(("7-7", 3)), b"3").unwrap(), Appended::Known);
        assert_eq!(journal.append(Some(("7-7", 4)), b"4").unwrap(), Appended::New(4));
        assert_eq!(read(&journal, 0), (vec![1, 2, 3, 4], 0), "{length}");
    }
}

fn with_more(dir: &Path, number: u64) -> Journal {
    let mut journal = open(dir, WIDE);
    journal.append(Some(("7-7", number)), number.to_string().as_bytes()).unwrap();
    journal
}

#[test]
fn killed_at_any_byte_of_a_new_file_it_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    // So large that three events fill a file, and two files are kept.
    let bounds = Bounds { size: 16 * 100, ..WIDE };
    drop(with(dir.path(), bounds, 3));
    let mut journal = open(dir.path(), bounds);
    journal.append(Some(("7-7", 4)), b"4").unwrap();
    drop(journal);
    let [_, file] = &*files(dir.path()) else { panic!("{:?}", files(dir.path())) };
    let whole = fs::read(file).unwrap();
    for length in 0..whole.len() {
        fs::write(file, &whole[..length]).unwrap();
        let (mut journal, damage) = Journal::open(dir.path(), bounds, |_| true).unwrap();
        assert_eq!((damage, read(&journal, 0)), (vec![], (vec![1, 2, 3], 0)), "{length}");
        assert_eq!(journal.append(Some(("7-7", 3)), b"3").unwrap(), Appended::Known, "{length}");
        assert_eq!(journal.append(Some(("7-7", 4)), b"4").unwrap(), Appended::New(4), "{length}");
        assert_eq!(read(&journal, 0), (vec![1, 2, 3, 4], 0), "{length}");
    }
}

#[test]
fn any_damaged_byte_costs_one_event_which_is_named_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let journal = with(dir.path(), WIDE, 5);
    let begin = usize::try_from(journal.segments[0].begin).unwrap();
    drop(journal);
    let file = files(dir.path()).remove(0);
    let whole = fs::read(&file).unwrap();
    let event = (whole.len() - begin) / 5;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&file, &bytes).unwrap();
        let (mut journal, damage) = Journal::open(dir.path(), WIDE, |_| true).unwrap();
        let hit = at.checked_sub(begin).map(|at| at / event + 1);
        let left: Vec<u64> = (1..=5).filter(|number| Some(*number as usize) != hit).collect();
        // The length of the last record, made longer, is just how a record looks whose writer was killed.
        let as_if_torn = hit == Some(5) && damage.is_empty();
        if !as_if_torn {
            assert!(
                matches!(&*damage, [what] if what.contains("is damaged") && what.contains(".journal")),
                "{at} {damage:?}"
            );
            assert_eq!(fs::read(&file).unwrap(), bytes, "the file is as it was");
        }
        let (numbers, lost) = read(&journal, 0);
        assert_eq!(numbers, left, "{at}");
        assert_eq!(lost, hit.map_or(0, |hit| u64::from(hit < 5)), "{at}");
        // A number that somebody may have seen is not given again.
        let Appended::New(next) = journal.append(None, format!("{} again", journal.last() + 1).as_bytes()).unwrap()
        else {
            panic!("known")
        };
        assert!(next > 5 || as_if_torn, "{at} {next}");
        let (numbers, lost) = read(&journal, 4);
        assert_eq!(numbers.last(), Some(&next), "{at}");
        assert!(lost >= u64::from(hit == Some(5) && !as_if_torn), "{at}");
        drop(journal);
        files(dir.path()).iter().filter(|other| **other != file).for_each(|other| fs::remove_file(other).unwrap());
    }
}

#[test]
fn a_file_of_rubbish_does_not_keep_the_others_from_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { size: 16 * 50 * 3, ..WIDE };
    drop(with(dir.path(), bounds, 12));
    let all = files(dir.path());
    assert!(all.len() >= 3);
    fs::write(&all[1], vec![b'#'; 5000]).unwrap();
    let (journal, damage) = Journal::open(dir.path(), WIDE, |_| true).unwrap();
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert_eq!(journal.troubles(), damage);
    let (numbers, lost) = read(&journal, 0);
    assert_eq!((numbers.first(), numbers.last()), (Some(&1), Some(&12)));
    assert_eq!(numbers.len() as u64 + lost, 12);
}

#[test]
fn what_is_over_the_bounds_goes_and_its_readers_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { size: 4000, ..WIDE };
    let mut journal = with(dir.path(), bounds, 500);
    assert!(journal.size() <= bounds.size + 400, "{}", journal.size());
    let on_disk: u64 = files(dir.path()).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert_eq!(journal.size(), on_disk);
    let (numbers, lost) = read(&journal, 0);
    assert_eq!((lost + 1, numbers.last()), (numbers[0], Some(&500)));
    assert_eq!(numbers.len() as u64, 500 - lost, "without a gap");

    // One who was reading what has gone by the time he reads on.
    let mut slow = journal.cursor(numbers[0]).0;
    assert!(!journal.read(&mut slow).unwrap().events.is_empty());
    let at = slow.number();
    for number in 501..=1000 {
        journal.append(None, number.to_string().as_bytes()).unwrap();
    }
    let batch = journal.read(&mut slow).unwrap();
    assert_eq!(batch.events[0].number, at + batch.lost + 1);
    assert!(batch.lost > 0);
}

#[test]
fn what_is_too_old_goes_and_the_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    drop(with(dir.path(), WIDE, 9));
    let mut journal = open(dir.path(), Bounds { age: Duration::ZERO, ..WIDE });
    assert_eq!(read(&journal, 4), (vec![], 5));
    assert_eq!((files(dir.path()).len(), journal.last()), (1, 9));
    assert_eq!(journal.append(Some(("7-7", 9)), b"9").unwrap(), Appended::Known);
    assert_eq!(journal.append(None, b"10").unwrap(), Appended::New(10));
}

#[test]
fn another_boot_gives_no_number_twice_and_counts_none_as_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path(), WIDE);
    journal.boot = "an earlier one".to_owned();
    journal.append(Some(("7-7", 5)), b"1").unwrap();
    journal.append(None, b"2").unwrap();
    drop(journal);
    let mut journal = open(dir.path(), WIDE);
    assert_eq!(journal.last(), 2 * BOOT_STEP);
    // The same name, but another process.
    let first = 2 * BOOT_STEP + 1;
    assert_eq!(journal.append(Some(("7-7", 1)), first.to_string().as_bytes()).unwrap(), Appended::New(first));
    assert_eq!(read(&journal, 0), (vec![1, 2, first], 0));
    // Of one who has seen events that went down with the machine.
    assert_eq!(read(&journal, 17), (vec![first], 0));
    drop(journal);
    assert_eq!(read(&open(dir.path(), WIDE), 2), (vec![first], 0));
}

#[test]
fn a_batch_is_small_whatever_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path(), WIDE);
    for number in 1..=400 {
        journal
            .append(None, format!("{number} {}", "x".repeat(if number == 200 { 3 << 20 } else { 1000 })).as_bytes())
            .unwrap();
    }
    let mut cursor = Cursor::after(0);
    let mut read = 0;
    while let events = journal.read(&mut cursor).unwrap().events
        && !events.is_empty()
    {
        let bytes: usize = events.iter().map(|event| event.envelope.len()).sum();
        let largest = events.iter().map(|event| event.envelope.len()).max().unwrap();
        assert!(bytes < BATCH + largest, "{bytes}");
        read += events.len();
    }
    assert_eq!(read, 400);
    let too_large = journal.append(None, &vec![0; MAX_EVENT + 1]).unwrap_err();
    assert!(too_large.get_ref().is_some_and(|error| error.is::<Unfit>()), "{too_large}");
    for source in ["", "a/b", "ü", &"x".repeat(65)] {
        assert!(journal.append(Some((source, 1)), b"x").is_err(), "{source}");
    }
    assert_eq!(journal.last(), 400);
}

/// A file system of 64 KiB, gone with this.
struct Small(TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let small = Self(tempfile::tempdir().unwrap());
        let must = std::env::var_os("ROOT_TESTS").is_some_and(|must| must == "must");
        let mounted = small.size(MsFlags::empty(), "size=64k");
        assert!(mounted.is_ok() || !must, "cannot be tested: it needs to mount a tmpfs");
        if mounted.is_err() {
            eprintln!("skipped: it needs to mount a tmpfs");
            return None;
        }
        Some(small)
    }

    /// By the system call: another test of this process may collect our children.
    fn size(&self, flags: MsFlags, size: &str) -> nix::Result<()> {
        mount(Some("none"), self.0.path(), Some("tmpfs"), flags, Some(size))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a child that another test makes has our files open until it executes its program. EPERM: it was not
        // mounted.
        let unmounted = umount2(self.0.path(), MntFlags::MNT_DETACH);
        assert!(matches!(unmounted, Ok(()) | Err(Errno::EPERM)), "{unmounted:?}");
    }
}

#[test]
fn a_full_disk_refuses_events_says_so_and_takes_them_later() {
    let Some(small) = Small::mount() else { return };
    let dir = small.0.path().join("journal");
    let mut journal = open(&dir, WIDE);
    let event = |number: u64| format!("{number} {}", "x".repeat(500));
    let mut number = 0;
    let error = loop {
        number += 1;
        match journal.append(Some(("7-7", number)), event(number).as_bytes()) {
            Ok(appended) => assert_eq!(appended, Appended::New(number)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(matches!(&*journal.troubles(), [what] if what.contains("takes no events")), "{:?}", journal.troubles());
    let (numbers, lost) = read(&journal, 0);
    assert_eq!((numbers, lost), ((1..number).collect(), 0));
    // Also the next supervisor begins on a full disk.
    drop(journal);
    let mut journal = open(&dir, WIDE);
    assert_eq!((journal.last(), journal.troubles()), (number - 1, vec![]));
    assert!(journal.append(Some(("7-7", number)), event(number).as_bytes()).is_err());

    drop(journal);
    small.size(MsFlags::MS_REMOUNT, "size=256k").unwrap();
    let mut journal = open(&dir, WIDE);
    for number in number..number + 20 {
        journal.append(Some(("7-7", number)), event(number).as_bytes()).unwrap();
    }
    assert_eq!((journal.troubles(), read(&journal, 0)), (vec![], ((1..number + 20).collect(), 0)));
    drop(journal);
}

/// Numbers without a pattern, the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn killed_again_and_again_every_event_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut kills = 0;
    // Of each source: the next number it has to send. What it was not told of it sends again.
    let mut next = [1u64; 5];
    let mut seen = BTreeSet::new();
    let mut cursor = Cursor::after(0);
    while kills < 200 {
        let mut journal = open(dir.path(), Bounds { size: 16 * 600, ..WIDE });
        for _ in 0..random.below(40) {
            let source = random.below(5);
            let number = next[source as usize];
            let appended =
                journal.append(Some((&format!("s{source}"), number)), format!("{source} {number}").as_bytes());
            assert!(appended.is_ok());
            // Some answers get lost.
            next[source as usize] += u64::from(random.below(4) > 0);
        }
        // A subscriber that reads all there is, and resumes by number alone.
        let (mut resumed, lost) = journal.cursor(cursor.number());
        assert_eq!(lost, 0);
        while let batch = journal.read(&mut resumed).unwrap()
            && !batch.events.is_empty()
        {
            assert_eq!(batch.lost, 0);
            for event in batch.events {
                assert!(seen.insert(event.envelope), "an event came twice");
            }
        }
        cursor = resumed;
        // Killed inside of the next write: any part of a record is left behind.
        let last = journal.last();
        let (source, mut torn) = (random.below(5), Vec::new());
        Record::Event { number: journal.last() + 1, time: 1, source: Some(("s0", 1)), envelope: &[source as u8; 30] }
            .write(&mut torn);
        let segment = journal.segments.back().cloned();
        if let Some(segment) = segment {
            let file = OpenOptions::new().append(true).open(segment.path(dir.path())).unwrap();
            io::Write::write_all(&mut &file, &torn[..random.below(torn.len() as u64) as usize]).unwrap();
        }
        drop(journal);
        let journal = open(dir.path(), Bounds { size: 16 * 600, ..WIDE });
        assert_eq!((journal.last(), journal.troubles()), (last, vec![]));
        kills += 1;
    }
    let sent: BTreeSet<Vec<u8>> = (0..5)
        .flat_map(|source: usize| (1..next[source]).map(move |number| format!("{source} {number}").into_bytes()))
        .collect();
    let missing: Vec<_> = sent.difference(&seen).collect();
    println!("{kills} kills, {} events, {} lost", seen.len(), missing.len());
    assert!(missing.is_empty());
}

#[test]
fn how_fast_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = open(dir.path(), WIDE);
    let envelope = vec![7; 250];
    let (count, start) = (50_000u64, Instant::now());
    for number in 1..=count {
        journal.append(Some(("1234-567890", number)), &envelope).unwrap();
    }
    let appended = start.elapsed();
    let (start, mut cursor, mut read) = (Instant::now(), Cursor::after(0), 0);
    while let events = journal.read(&mut cursor).unwrap().events.len()
        && events > 0
    {
        read += events as u64;
    }
    assert_eq!(read, count);
    let read = start.elapsed();
    drop(journal);
    let start = Instant::now();
    let journal = open(dir.path(), WIDE);
    assert_eq!(journal.last(), count);
    let rate = |time: Duration| (count as f64 / time.as_secs_f64()) as u64;
    println!(
        "appended {}/s, read {}/s, opened {} MiB in {:?}",
        rate(appended),
        rate(read),
        journal.size() >> 20,
        start.elapsed()
    );
}
