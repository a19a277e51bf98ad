use std::fs;

use runtime_v2_api::{Any, Payload, events, pack, topic};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;

fn entry(created: u64) -> Entry {
    Entry {
        stage: Stage::Live,
        created,
        after: 10,
        address: "/run/s".into(),
        shim: Some(Init { pid: 42, start_time: 4711 }),
        terminal: false,
        stdin: false,
        auto_remove: true,
        labels: Box::new([("key".into(), "value".into())]),
        launch: Box::new([Span(Step::Record, 1, 2)]),
        pid: 0,
        started: 0,
        exit: None,
        oom: false,
        deleted: false,
        phase: wire::Phase::UNKNOWN,
    }
}

fn open(folder: &Path) -> (Book, UnboundedReceiver<Arc<Name>>) {
    let (ended, removed) = mpsc::unbounded_channel();
    let places = Places { state: folder.join("state"), root: folder.join("root") };
    (Book::open(places, ended).unwrap(), removed)
}

fn envelope(topic: &str, event: &impl Payload) -> Envelope {
    let event: MessageField<Any> = MessageField::some(pack(event).unwrap());
    let (namespace, topic) = ("default".to_owned(), topic.to_owned());
    Envelope { namespace, topic, event, timestamp: timestamp(1_000_000_007), ..Default::default() }
}

fn exit(id: &str) -> Envelope {
    let event = events::TaskExit {
        container_id: "web-1".into(),
        id: id.into(),
        pid: 7,
        exit_status: 3,
        exited_at: timestamp(5_000_000_000),
        ..Default::default()
    };
    envelope(topic::TASK_EXIT, &event)
}

#[test]
fn names_are_containerds() {
    for id in ["web-1", "a", "a.b_c-d", &"x".repeat(76)] {
        assert!(Name::new("default", id).is_ok(), "{id}");
    }
    for id in ["", ".", "..", "a/b", "-a", "a-", "a--b", "a b", "ä", &"x".repeat(77)] {
        assert!(Name::new("default", id).is_err() && Name::new(id, "a").is_err(), "{id}");
    }
}

#[test]
fn an_entry_is_on_disk_before_it_is_in_memory_and_survives() {
    let folder = tempfile::tempdir().unwrap();
    let (book, _) = open(folder.path());
    let name = Name::new("default", "web-1").unwrap();
    book.add(&name, entry).unwrap();
    assert!(matches!(book.add(&name, entry), Err(AddError::Exists(_))));
    let added = book.look(&name, Clone::clone).unwrap();
    // Killed before a new entry took the place of the old one.
    fs::write(folder.path().join("state/book/default/web-1.json.new"), "{").unwrap();
    let (again, _) = open(folder.path());
    assert_eq!(again.look(&name, Clone::clone), Some(added));
    assert!(again.troubles().is_empty());

    // A folder in the way: what cannot be written has not happened.
    fs::create_dir_all(folder.path().join("state/book/default/web-1.json.new/x")).unwrap();
    assert!(again.change(&name, |entry| entry.pid = 7).is_err());
    assert_eq!(again.look(&name, |entry| entry.pid), Some(0));
    fs::remove_dir_all(folder.path().join("state/book/default/web-1.json.new")).unwrap();

    again.forget(&name).unwrap();
    again.forget(&name).unwrap();
    assert!(open(folder.path()).0.names().is_empty() && !folder.path().join("state/book/default").exists());
}

#[test]
fn a_broken_entry_is_kept_aside_and_named_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let (book, _) = open(folder.path());
    for id in ["good", "bad"] {
        book.add(&Name::new("default", id).unwrap(), entry).unwrap();
    }
    let path = folder.path().join("state/book/default/bad.json");
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        for _ in 0..2 {
            let (book, _) = open(folder.path());
            assert_eq!(book.names(), [Name::new("default", "good").unwrap()]);
            assert!(book.troubles().len() == 1 && book.troubles()[0].contains("bad.unreadable"));
        }
        assert_eq!(fs::read(path.with_extension("unreadable")).unwrap(), &whole[..length]);
        fs::remove_file(path.with_extension("unreadable")).unwrap();
    }
}

#[test]
fn events_are_written_down_once_and_those_of_an_earlier_container_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let (book, mut ended) = open(folder.path());
    let name = Name::new("default", "web-1").unwrap();
    book.add(&name, entry).unwrap();
    book.heard(10, &exit("web-1"));
    assert_eq!(book.look(&name, |entry| entry.exit), Some(None), "an event before its creation");

    let start =
        envelope(topic::TASK_START, &events::TaskStart { container_id: "web-1".into(), pid: 7, ..Default::default() });
    let story = [start, exit("an-exec"), exit("web-1")];
    for (number, event) in story.iter().enumerate() {
        book.heard(11 + number as u64, event);
        let phase = book.container(&name).unwrap().phase.enum_value_or_default();
        assert_eq!(phase, if number < 2 { wire::Phase::RUNNING } else { wire::Phase::STOPPED });
    }
    assert_eq!(ended.try_recv().unwrap(), name, "it removes itself");
    let heard = book.look(&name, Clone::clone).unwrap();
    assert_eq!((heard.pid, heard.started), (7, 1_000_000_007));
    assert_eq!(heard.exit, Some(Exit { status: 3, at: 5_000_000_000 }));

    // After a restart, and told the same again.
    let (again, _ended) = open(folder.path());
    for (number, event) in story.iter().enumerate() {
        again.heard(11 + number as u64, event);
    }
    again.told(&name, wire::Phase::CREATED, 9);
    let container = again.container(&name).unwrap();
    assert_eq!((container.exit_status, container.pid), (3, 0));
    assert_eq!(container.phase.enum_value_or_default(), wire::Phase::STOPPED);
}

#[test]
fn what_a_shim_has_done_for_a_client_is_known_before_its_event() {
    let folder = tempfile::tempdir().unwrap();
    let (book, _ended) = open(folder.path());
    let name = Name::new("default", "web-1").unwrap();
    book.add(&name, entry).unwrap();
    book.change(&name, |entry| entry.phase = wire::Phase::CREATED).unwrap();
    let phase = || book.container(&name).unwrap().phase.enum_value_or_default();
    for becomes in [wire::Phase::RUNNING, wire::Phase::PAUSED, wire::Phase::RUNNING] {
        book.became(&name, becomes);
        assert_eq!(phase(), becomes);
    }
    assert!(book.look(&name, |entry| entry.started).unwrap() > 0);
    // An end that was heard of before the answer came.
    book.heard(11, &exit("web-1"));
    book.became(&name, wire::Phase::RUNNING);
    assert_eq!(phase(), wire::Phase::STOPPED);
}
