//! Against a bus made up here, which speaks as much D-Bus as it takes and misbehaves in the ways that matter.

#![expect(clippy::disallowed_methods, reason = "the bus is another thread; nothing here forks")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};

use zbus::ObjectPath;
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{LE, to_bytes};

use super::*;

/// What the bus does with a call.
enum Act {
    /// Answers with a job.
    Job(&'static str),
    /// Answers with nothing.
    Void,
    /// Refuses.
    Error(&'static str),
    /// Says that a job has ended, of this unit, with this result; then does the next.
    Ended(&'static str, &'static str, &'static str),
    /// Says nothing any more.
    Silence,
    /// Closes the connection.
    Close,
    /// Sends this.
    Bytes(&'static [u8]),
}

struct Bus {
    folder: tempfile::TempDir,
    thread: JoinHandle<Vec<String>>,
}

/// A bus for one connection: for each call by name, what to do. Its thread returns the calls that came.
fn bus(greeting: &'static str, script: Vec<(&'static str, Vec<Act>)>) -> Bus {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("bus")).unwrap();
    let thread = thread::spawn(move || serve(listener.accept().unwrap().0, greeting, script));
    Bus { folder, thread }
}

fn serve(mut stream: UnixStream, greeting: &str, script: Vec<(&'static str, Vec<Act>)>) -> Vec<String> {
    let (mut calls, mut script) = (Vec::new(), script.into_iter());
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..3 {
        reader.read_until(b'\n', &mut Vec::new()).unwrap();
    }
    stream.write_all(greeting.as_bytes()).unwrap();
    while let Some((serial, member)) = next_call(&mut reader) {
        calls.push(member.clone());
        let mut acts = match member.as_str() {
            "Hello" | "AddMatch" | "Subscribe" => vec![Act::Void],
            "Get" => {
                stream.write_all(&message(2, serial, None, &(Variant::from("v252.1-x"),))).unwrap();
                continue;
            }
            other => match script.next() {
                Some((expected, acts)) => {
                    assert_eq!(other, expected);
                    acts
                }
                None => panic!("{other} was not expected"),
            },
        };
        for act in acts.drain(..) {
            let bytes = match act {
                Act::Job(path) => message(2, serial, None, &(ObjectPath::try_from(path).unwrap(),)),
                Act::Void => message(2, serial, None, &("",)),
                Act::Error(name) => message(3, serial, Some((4, name)), &("in words",)),
                Act::Ended(job, unit, result) => {
                    message(4, 0, Some((3, "JobRemoved")), &(1_u32, ObjectPath::try_from(job).unwrap(), unit, result))
                }
                Act::Silence => {
                    // Until the other side has lost its patience.
                    drop(reader.read_to_end(&mut Vec::new()));
                    return calls;
                }
                Act::Close => return calls,
                Act::Bytes(bytes) => bytes.to_vec(),
            };
            stream.write_all(&bytes).unwrap();
        }
    }
    calls
}

/// The serial and the method of the next call.
fn next_call(reader: &mut impl Read) -> Option<(u32, String)> {
    let mut fixed = [0; 16];
    reader.read_exact(&mut fixed).ok()?;
    let number = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().unwrap());
    let (body, serial, fields) = (number(4) as usize, number(8), number(12) as usize);
    let mut rest = vec![0; (16 + fields).next_multiple_of(8) - 16 + body];
    reader.read_exact(&mut rest).unwrap();
    let bytes = [&fixed[..], &rest[..fields]].concat();
    type Header<'h> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'h>)>);
    let data = Data::new(bytes.as_slice(), Context::new(LE, 0));
    let (header, _): (Header<'_>, usize) = data.deserialize().unwrap();
    let member = header.6.into_iter().find_map(|field| match field {
        (3, Variant::Str(member)) => Some(member.to_string()),
        _ => None,
    });
    Some((serial, member.unwrap()))
}

fn message<B: Serialize + DynamicType>(kind: u8, to: u32, name: Option<(u8, &str)>, body: &B) -> Vec<u8> {
    let context = Context::new(LE, 0);
    let mut fields: Vec<(u8, Variant<'_>)> = vec![(5, to.into())];
    fields.extend(name.map(|(field, name)| (field, name.into())));
    let signature = body.signature().to_string_no_parens();
    fields.push((8, zbus::Signature::try_from(signature.as_str()).unwrap().into()));
    let body = to_bytes(context, body).unwrap();
    let header = (b'l', kind, 0_u8, 1_u8, body.len() as u32, 1_u32, fields);
    let mut bytes = to_bytes(context, &header).unwrap().bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(body.bytes());
    bytes
}

const UNIT: &str = "x.scope";
const OK: &str = "DATA\r\nOK 0123456789abcdef\r\n";

impl Bus {
    /// What `call` makes, for this bus, with more patience than a busy machine needs.
    fn call(&self, call: impl Fn(&SavedUnit) -> Call) -> Call {
        let mut call = call(&SavedUnit { name: UNIT.to_owned(), manager: super::super::Manager::System });
        call.addresses = vec![Address::of_bus(self.folder.path().join("bus").to_str().unwrap())];
        call.patience = Duration::from_secs(120);
        call
    }

    fn asked(self, call: impl Fn(&SavedUnit) -> Call) -> (Result<(), String>, Vec<String>) {
        let asked = self.call(call).wait().map_err(|error| error.to_string());
        (asked, self.thread.join().unwrap())
    }

    /// What is said when patience ends as soon as the call has come so far.
    fn stalls(&self, call: impl Fn(&SavedUnit) -> Call, so_far: impl Fn(&Call) -> bool) -> String {
        let mut call = self.call(call);
        while !so_far(&call) {
            assert!(!call.advance().unwrap());
            let left = call.deadline().saturating_duration_since(Instant::now());
            match call.fd() {
                _ if so_far(&call) => {}
                Some(fd) => drop(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::try_from(left).unwrap())),
                None => thread::sleep(left),
            }
        }
        call.patience = call.begun.elapsed();
        call.wait().unwrap_err().to_string()
    }
}

fn start(unit: &SavedUnit) -> Call {
    let old = Property::new("Delegate", true);
    let new = Property { since: 253, ..Property::new("OOMPolicy", "kill") };
    Call::new(unit, Want::Start { properties: vec![old, new], pid: Some(Pid::this()), again: true })
}

const BEFORE: [&str; 4] = ["Hello", "AddMatch", "Subscribe", "Get"];

#[test]
fn a_unit_is_started_when_its_job_is_done() {
    let acts = vec![Act::Ended("/job/6", "y.scope", "done"), Act::Job("/job/7"), Act::Ended("/job/7", UNIT, "done")];
    let (started, calls) = bus(OK, vec![("StartTransientUnit", acts)]).asked(start);
    assert_eq!(started, Ok(()));
    assert_eq!(calls, [&BEFORE[..], &["StartTransientUnit"]].concat());
}

#[test]
fn the_end_of_a_job_may_come_before_its_name() {
    let acts = vec![Act::Ended("/job/7", UNIT, "done"), Act::Job("/job/7")];
    assert_eq!(bus(OK, vec![("StartTransientUnit", acts)]).asked(start).0, Ok(()));
}

#[test]
fn a_failed_unit_of_that_name_is_forgotten_once() {
    let exists = || ("StartTransientUnit", vec![Act::Error(UNIT_EXISTS)]);
    let started = vec![Act::Job("/job/7"), Act::Ended("/job/7", UNIT, "done")];
    let reset = ("ResetFailedUnit", vec![Act::Void]);
    let (done, _) = bus(OK, vec![exists(), reset, ("StartTransientUnit", started)]).asked(start);
    assert_eq!(done, Ok(()));
    let refused = ("ResetFailedUnit", vec![Act::Error(NO_SUCH_UNIT)]);
    let (taken, _) = bus(OK, vec![exists(), refused, exists()]).asked(start);
    let text = taken.unwrap_err();
    assert!(text.starts_with("cannot start the unit x.scope: systemd refuses: in words (org."), "{text}");
    assert!(text.ends_with("choose another linux.cgroupsPath"), "{text}");
}

#[test]
fn a_job_that_fails_is_an_error_and_leaves_no_failed_unit() {
    let acts = vec![Act::Job("/job/7"), Act::Ended("/job/7", UNIT, "failed")];
    let script = vec![("StartTransientUnit", acts), ("ResetFailedUnit", vec![Act::Void])];
    let (failed, calls) = bus(OK, script).asked(start);
    assert!(failed.unwrap_err().contains("ended as \"failed\""));
    assert_eq!(calls.last().unwrap(), "ResetFailedUnit");
}

#[test]
fn a_unit_is_stopped_and_forgotten_and_one_that_is_gone_is_fine() {
    let acts = vec![Act::Job("/job/7"), Act::Ended("/job/7", UNIT, "done")];
    let script = vec![("StopUnit", acts), ("ResetFailedUnit", vec![Act::Error(NO_SUCH_UNIT)])];
    assert_eq!(bus(OK, script).asked(Call::stop).0, Ok(()));
    let gone = vec![("StopUnit", vec![Act::Error(NO_SUCH_UNIT)])];
    assert_eq!(bus(OK, gone).asked(Call::stop).0, Ok(()));
}

#[test]
fn properties_are_changed() {
    let (done, calls) = bus(OK, vec![("SetUnitProperties", vec![Act::Void])]).asked(set);
    assert_eq!((done, calls.last().unwrap().as_str()), (Ok(()), "SetUnitProperties"));
    let denied = vec![("SetUnitProperties", vec![Act::Error("org.freedesktop.DBus.Error.AccessDenied")])];
    assert!(bus(OK, denied).asked(set).0.unwrap_err().contains("an ordinary user has a systemd of his own"));
}

#[test]
fn silence_has_an_end_and_the_error_says_what_was_waited_for() {
    let no_answer = vec![("StartTransientUnit", vec![Act::Silence])];
    let no_end = vec![("StartTransientUnit", vec![Act::Job("/job/7"), Act::Silence])];
    let at_answer = |call: &Call| matches!(call.at, At::Answer(_));
    let at_job = |call: &Call| matches!(call.at, At::Job(_));
    for (script, so_far, what) in
        [(no_answer, &at_answer as &dyn Fn(&Call) -> bool, "the answer"), (no_end, &at_job, "the end of the job")]
    {
        let text = bus(OK, script).stalls(start, so_far);
        assert!(text.contains(" within ") && text.contains(&format!("while waiting for {what};")), "{text}");
    }
    // Nobody takes the connection up.
    let folder = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(folder.path().join("bus")).unwrap();
    let idle = Bus { folder, thread: thread::spawn(Vec::new) };
    let text = idle.stalls(start, |call| matches!(call.at, At::Greeting));
    assert!(text.contains("while waiting for the greeting;"), "{text}");
}

/// A bus that has no room for the first `times` connections.
fn full_bus(times: usize) -> Bus {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("bus")).unwrap();
    let thread = thread::spawn(move || {
        for _ in 0..times {
            // Whoever has lost his patience meanwhile is gone.
            refuse(listener.accept().unwrap().0).ok();
        }
        serve(listener.accept().unwrap().0, OK, vec![("SetUnitProperties", vec![Act::Void])])
    });
    Bus { folder, thread }
}

/// As dbus-daemon does with one connection too many: answers Hello with an error, and then closes.
fn refuse(mut stream: UnixStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    for _ in 0..3 {
        reader.read_until(b'\n', &mut Vec::new())?;
    }
    stream.write_all(OK.as_bytes())?;
    let Some((serial, member)) = next_call(&mut reader) else { return Ok(()) };
    assert_eq!(member, "Hello");
    stream.write_all(&message(3, serial, Some((4, NO_ROOM)), &("in words",)))?;
    // What else was said is read, so that the answer is not lost to a reset.
    reader.read_to_end(&mut Vec::new()).map(drop)
}

fn set(unit: &SavedUnit) -> Call {
    Call::set(unit, vec![Property::new("TasksMax", 7_u64)])
}

#[test]
fn a_bus_without_room_is_asked_again_and_meanwhile_the_next_one_is() {
    let (done, calls) = full_bus(3).asked(set);
    assert_eq!((done, calls.last().unwrap().as_str()), (Ok(()), "SetUnitProperties"));
    // systemd's own socket needs no Hello, and counts nobody.
    let (full, direct) = (full_bus(1), bus(OK, vec![("SetUnitProperties", vec![Act::Void])]));
    let mut call = set(&SavedUnit { name: UNIT.to_owned(), manager: super::super::Manager::System });
    let path = |bus: &Bus| bus.folder.path().join("bus").to_str().unwrap().to_owned();
    call.addresses = vec![Address::of_bus(path(&full)), Address::of_systemd(path(&direct))];
    call.wait().unwrap();
    assert_eq!(direct.thread.join().unwrap(), ["Subscribe", "Get", "SetUnitProperties"]);
    // There is an end to it.
    let text = full_bus(usize::MAX).stalls(set, |call| call.crowded);
    assert!(text.contains("while waiting for room among the connections that the bus gives each user;"), "{text}");
}

#[test]
fn an_empty_unit_is_not_waited_for_as_one_that_is_to_run() {
    let unit = SavedUnit { name: UNIT.to_owned(), manager: super::super::Manager::System };
    assert!(Call::stop(&unit).patience * 5 < set(&unit).patience);
}

#[test]
fn what_breaks_is_said() {
    let closed = bus(OK, vec![("StartTransientUnit", vec![Act::Close])]).asked(start).0.unwrap_err();
    assert!(closed.contains("the connection was closed"), "{closed}");
    let noise = bus(OK, vec![("StartTransientUnit", vec![Act::Bytes(&[0; 32]), Act::Silence])]).asked(start).0;
    assert!(noise.unwrap_err().contains("no message of D-Bus"));
    let rejected = bus("REJECTED EXTERNAL\r\n", vec![]).asked(start).0.unwrap_err();
    assert!(rejected.contains("rejects this user"), "{rejected}");
    let other = bus("HTTP/1.1 400\r\n", vec![]).asked(start).0.unwrap_err();
    assert!(other.contains("its greeting is \"HTTP/1.1 400\""), "{other}");
    let folder = tempfile::tempdir().unwrap();
    let nobody = Bus { folder, thread: thread::spawn(Vec::new) }.asked(start).0.unwrap_err();
    assert!(nobody.contains("no systemd to ask (") && nobody.contains("/bus: ENOENT"), "{nobody}");
}

#[test]
fn an_older_systemd_is_not_told_what_it_does_not_know() {
    let mut call = start(&SavedUnit { name: UNIT.to_owned(), manager: super::super::Manager::System });
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    call.connection = Some(Connection::over(ours.into()));
    let mut asked = |version| {
        call.version = version;
        call.request().unwrap();
        let mut bytes = vec![0; 4096];
        let count = theirs.read(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        assert!(text.contains("Delegate") && text.contains("PIDs"));
        text.contains("OOMPolicy")
    };
    assert!(!asked(252));
    assert!(asked(253));
}

#[test]
fn versions_are_read_however_distributions_write_them() {
    for (text, version) in [("252", 252), ("v245.4-1.fc32", 245), ("252.30-1~deb12u2", 252), ("257~rc1", 257)] {
        assert_eq!(read_version(&Variant::from(text)), Some(version), "{text}");
    }
    assert_eq!(read_version(&Variant::from("?")), None);
}
