//! What is asked of systemd, as a machine that never waits.

use std::fs;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use serde::Serialize;
use zbus::wire::DynamicType;
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

use super::bus::{Address, Broken, Connection};
use super::properties::{self, Property};
use super::wire::{self, Message, Method};
use super::{Manager, SavedUnit, Unit};

/// How long systemd may take. It answers in a millisecond, but not while it reloads the units of a large host.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to stop a unit that is empty, to which systemd comes by itself as well. The shim's `delete` has 5 s
/// from containerd for all it does, and is killed then.
const PATIENCE_TO_STOP: Duration = Duration::from_secs(2);
/// When to try again to connect to a server whose queue is full, or that has enough of this user's connections.
const KNOCK_AGAIN: Duration = Duration::from_millis(10);

const SYSTEMD: Method = Method {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
    member: "",
};
const BUS: Method = Method {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
    member: "",
};
/// The only news we want.
const JOB_REMOVED: &str =
    "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
/// The bus gives each user so many connections (256, unless its configuration says another number), root too.
const NO_ROOM: &str = "org.freedesktop.DBus.Error.LimitsExceeded";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// What systemd did not do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the unit {unit}: {why}")]
pub struct SystemdError {
    what: &'static str,
    unit: String,
    why: Why,
}

impl SystemdError {
    /// The reason, for those who say themselves what could not be done.
    pub fn why(&self) -> &Why {
        &self.why
    }
}

/// Why systemd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// There is nobody to ask.
    #[error("there is no systemd to ask ({0}); where it does not run the host, turn the systemd cgroup driver off")]
    Unreachable(String),
    /// It does not answer.
    #[error(
        "no answer on {address} within {seconds} s, while waiting for {what}; systemd or its message bus is stuck or \
         overloaded"
    )]
    Stalled {
        /// Where it was asked.
        address: String,
        /// How long we waited.
        seconds: f32,
        /// For what.
        what: &'static str,
    },
    /// The connection broke.
    #[error("connection to systemd on {address}: {why}")]
    Broken {
        /// Where it was asked.
        address: String,
        /// How.
        why: String,
    },
    /// It says no.
    #[error("systemd refuses: {text} ({name}){hint}")]
    Refused {
        /// The error's name on D-Bus.
        name: String,
        /// In its words.
        text: String,
        /// What to do, if we know: starts with a semicolon.
        hint: &'static str,
    },
    /// It has tried.
    #[error("the job ended as {0:?} (org.freedesktop.systemd1(5), JobRemoved); see the journal of the unit")]
    Failed(String),
}

/// One request to systemd, on its way.
///
/// Whoever drives it waits until [`Call::fd`] is readable or [`Call::deadline`] has passed, and calls [`Call::advance`];
/// or calls [`Call::wait`], if there is nothing else to do.
#[derive(Debug)]
pub struct Call {
    unit: String,
    want: Want,
    addresses: Vec<Address>,
    /// So many of them, the first, have no room for one more connection of this user's.
    full: usize,
    /// The last answer was that.
    crowded: bool,
    connection: Option<Connection>,
    at: At,
    patience: Duration,
    begun: Instant,
    knock: Option<Instant>,
    /// The version of systemd.
    version: u16,
    /// Jobs that have ended, as path and result.
    ended: Vec<(String, String)>,
    finished: bool,
}

#[derive(Debug)]
enum Want {
    Start { properties: Vec<Property>, pid: Option<Pid>, again: bool },
    Set(Vec<Property>),
    Stop,
}

/// What it waits for.
#[derive(Debug)]
enum At {
    /// To be let in.
    Door,
    /// The answer to who we are.
    Greeting,
    /// The answer to this question about the version.
    Version(u32),
    /// The answer to the request itself.
    Answer(u32),
    /// The end of this job.
    Job(String),
    /// The answer to the request to forget a failure, and then to start the unit again.
    Reset(u32),
    /// The same, after which all is done, or this is to be reported.
    Last(u32, Option<SystemdError>),
}

impl Call {
    /// Starts the unit, with the process in it.
    pub fn start(unit: &Unit, pid: Pid) -> Call {
        let mut properties = unit.properties().to_vec();
        if !unit.devices().is_empty() {
            // Without it only devices of unknown kinds are lost, which systemd would refuse until it is told of them.
            let known = fs::read_to_string("/proc/devices").unwrap_or_default();
            properties.push(properties::devices(unit.devices(), &known));
        }
        let pid = (!unit.is_slice()).then_some(pid);
        Call::new(&unit.saved(), Want::Start { properties, pid, again: true })
    }

    /// Puts a process into a new scope of the user's systemd, in which it may make cgroups as it likes.
    pub fn enclose(name: &str, description: &str, pid: Pid) -> Call {
        let unit = SavedUnit { name: name.to_owned(), manager: Manager::User };
        let properties = properties::of_enclosure(description, Manager::User.slice());
        Call::new(&unit, Want::Start { properties, pid: Some(pid), again: true })
    }

    /// Changes properties of a unit, until it ends.
    pub fn set(unit: &SavedUnit, properties: Vec<Property>) -> Call {
        Call::new(unit, Want::Set(properties))
    }

    /// Stops a unit, whose processes have ended, and has it forgotten. One that is gone is no error.
    pub fn stop(unit: &SavedUnit) -> Call {
        Call::new(unit, Want::Stop)
    }

    fn new(unit: &SavedUnit, want: Want) -> Call {
        Call {
            unit: unit.name.clone(),
            patience: if matches!(want, Want::Stop) { PATIENCE_TO_STOP } else { PATIENCE },
            want,
            addresses: Address::all(unit.manager),
            full: 0,
            crowded: false,
            connection: None,
            at: At::Door,
            begun: Instant::now(),
            knock: None,
            version: 0,
            ended: Vec::new(),
            finished: false,
        }
    }

    /// What to wait on, once it is connected.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(Connection::fd)
    }

    /// When to look again at the latest.
    pub fn deadline(&self) -> Instant {
        self.knock.unwrap_or(self.begun + self.patience)
    }

    /// Goes on as far as it can without waiting; true when it is done.
    ///
    /// # Errors
    /// When systemd cannot be asked, refuses, fails, or does not answer in time. It may still do what was asked, then:
    /// a unit whose process has ended is none it starts.
    pub fn advance(&mut self) -> Result<bool, SystemdError> {
        loop {
            let (done, waits) = match std::mem::replace(&mut self.at, At::Door) {
                At::Door => self.knock()?,
                At::Greeting => self.greet()?,
                at => self.hear(at)?,
            };
            if done {
                self.finished = true;
                return Ok(true);
            }
            if waits {
                break;
            }
        }
        if self.begun.elapsed() < self.patience { Ok(false) } else { Err(self.stalled()) }
    }

    /// systemd has taken it on, and will carry it out even if we do not stay.
    pub fn has_begun(&self) -> bool {
        matches!(self.at, At::Job(_)) || self.finished
    }

    /// Waits until it is done.
    ///
    /// # Errors
    /// As [`Call::advance`].
    pub fn wait(mut self) -> Result<(), SystemdError> {
        while !self.advance()? {
            let left = self.deadline().saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds: Vec<PollFd<'_>> = self.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).into_iter().collect();
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.broken(&Broken::Call("poll", errno))),
            }
        }
        Ok(())
    }

    fn knock(&mut self) -> Result<(bool, bool), SystemdError> {
        let mut tried = Vec::new();
        for address in self.addresses.iter().skip(self.full) {
            match Connection::open(address) {
                Ok(connection) => {
                    (self.connection, self.knock, self.at) = (Some(connection), None, At::Greeting);
                    return Ok((false, false));
                }
                // The queue is full.
                Err(Errno::EAGAIN) => {
                    self.knock = Some(Instant::now() + KNOCK_AGAIN);
                    return Ok((false, true));
                }
                Err(errno) => tried.push(format!("{address}: {errno}")),
            }
        }
        if self.full > 0 {
            // From the first again, where somebody may have left.
            (self.full, self.knock) = (0, Some(Instant::now() + KNOCK_AGAIN));
            return Ok((false, true));
        }
        if tried.is_empty() {
            tried.push("neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set".to_owned());
        }
        Err(self.error(Why::Unreachable(tried.join(", "))))
    }

    fn greet(&mut self) -> Result<(bool, bool), SystemdError> {
        let Some(connection) = &mut self.connection else { return Err(self.broken(&Broken::Closed)) };
        match connection.is_greeted() {
            Ok(false) => {
                self.at = At::Greeting;
                return Ok((false, true));
            }
            Ok(true) => {}
            Err(why) => return Err(self.broken(&why)),
        }
        // In one go: their answers tell nothing, but for the last one's.
        if !connection.address.direct {
            self.send(Method { member: "Hello", ..BUS }, None::<&(String,)>)?;
            // The third argument is the unit: of others' we hear nothing, however many start beside us.
            let rule = format!("{JOB_REMOVED},arg2='{}'", self.unit);
            self.send(Method { member: "AddMatch", ..BUS }, Some(&(rule,)))?;
        }
        self.send(Method { member: "Subscribe", ..SYSTEMD }, None::<&(String,)>)?;
        let get = Method { interface: "org.freedesktop.DBus.Properties", member: "Get", ..SYSTEMD };
        self.at = At::Version(self.send(get, Some(&(SYSTEMD.interface, "Version")))?);
        Ok((false, false))
    }

    /// Takes the next message, and goes on with it if it is the one that is waited for.
    fn hear(&mut self, at: At) -> Result<(bool, bool), SystemdError> {
        if let At::Job(job) = &at
            && let Some(ended) = self.ended.iter().position(|(path, _)| path == job)
        {
            let (_, result) = self.ended.swap_remove(ended);
            return self.job_ended(result).map(|done| (done, false));
        }
        let Some(connection) = &mut self.connection else { return Err(self.broken(&Broken::Closed)) };
        let message = match connection.next() {
            Ok(Some(message)) => message,
            Ok(None) => {
                self.at = at;
                return Ok((false, true));
            }
            Err(why) => return Err(self.broken(&why)),
        };
        let (to, answer) = match message {
            Message::Signal { member, body } => {
                if member == "JobRemoved"
                    && let Some((_, job, unit, result)) = body.read::<(u32, OwnedObjectPath, String, String)>()
                    && unit == self.unit
                {
                    self.ended.push((job.to_string(), result));
                }
                self.at = at;
                return Ok((false, false));
            }
            Message::Reply { to, body } => (to, Ok(body)),
            Message::Error { to, name, text } => (to, Err((name, text))),
            Message::Call => (0, Err((String::new(), String::new()))),
        };
        match (at, answer) {
            (At::Version(serial), answer) if serial == to => {
                let version = answer.map_err(|(name, text)| self.refused(name, text))?.read::<(OwnedVariant,)>();
                self.version = version.and_then(|(version,)| read_version(&version)).unwrap_or_default();
                self.request()?;
            }
            (At::Answer(serial), answer) if serial == to => return self.answered(answer).map(|done| (done, false)),
            // Whether there was anything to forget or not.
            (At::Reset(serial), _) if serial == to => self.request()?,
            (At::Last(serial, failure), _) if serial == to => {
                return failure.map_or(Ok((true, false)), Err);
            }
            (At::Version(_), Err((name, _))) if name == NO_ROOM => {
                let here = self.connection.take().map(|connection| connection.address);
                self.full =
                    self.addresses.iter().position(|address| Some(address) == here.as_ref()).map_or(0, |at| at + 1);
                (self.at, self.crowded) = (At::Door, true);
            }
            // Before the bus knows us it answers nobody else.
            (At::Version(_), Err((name, text))) if !name.is_empty() => return Err(self.refused(name, text)),
            (at, _) => self.at = at,
        }
        Ok((false, false))
    }

    /// Asks for what is wanted.
    fn request(&mut self) -> Result<(), SystemdError> {
        self.crowded = false;
        let version = self.version;
        let known = |properties: &[Property]| -> Vec<(String, Variant<'static>)> {
            let known = properties.iter().filter(|property| property.since <= version);
            known.map(|property| (property.name.clone(), property.value.clone())).collect()
        };
        let serial = match &self.want {
            Want::Start { properties, pid, .. } => {
                let mut properties = known(properties);
                properties.extend(pid.map(|pid| ("PIDs".to_owned(), vec![pid.as_raw().cast_unsigned()].into())));
                let others: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
                let body = (self.unit.clone(), "replace", properties, others);
                self.send(Method { member: "StartTransientUnit", ..SYSTEMD }, Some(&body))?
            }
            Want::Set(properties) => {
                let body = (self.unit.clone(), true, known(properties));
                self.send(Method { member: "SetUnitProperties", ..SYSTEMD }, Some(&body))?
            }
            Want::Stop => {
                let body = (self.unit.clone(), "replace");
                self.send(Method { member: "StopUnit", ..SYSTEMD }, Some(&body))?
            }
        };
        self.at = At::Answer(serial);
        Ok(())
    }

    fn answered(&mut self, answer: Result<wire::Body, (String, String)>) -> Result<bool, SystemdError> {
        match (answer, &mut self.want) {
            (Ok(_), Want::Set(_)) => return Ok(true),
            (Ok(body), _) => match body.read::<(OwnedObjectPath,)>() {
                Some((job,)) => self.at = At::Job(job.to_string()),
                None => return Err(self.broken(&Broken::Nonsense("its answer names no job".to_owned()))),
            },
            // It may be one that has failed, left from before.
            (Err((name, _)), Want::Start { again: again @ true, .. }) if name == UNIT_EXISTS => {
                *again = false;
                self.at = At::Reset(self.reset()?);
            }
            (Err((name, _)), Want::Stop) if name == NO_SUCH_UNIT => return Ok(true),
            (Err((name, text)), _) => return Err(self.refused(name, text)),
        }
        Ok(false)
    }

    fn job_ended(&mut self, result: String) -> Result<bool, SystemdError> {
        let failure = match (result.as_str(), &self.want) {
            ("done", Want::Stop) => None,
            ("done", _) => return Ok(true),
            _ => Some(self.error(Why::Failed(result))),
        };
        self.at = At::Last(self.reset()?, failure);
        Ok(false)
    }

    /// Has systemd forget that the unit failed, and then the unit.
    fn reset(&mut self) -> Result<u32, SystemdError> {
        self.send(Method { member: "ResetFailedUnit", ..SYSTEMD }, Some(&(self.unit.clone(),)))
    }

    fn send<B: Serialize + DynamicType>(&mut self, method: Method, body: Option<&B>) -> Result<u32, SystemdError> {
        let Some(connection) = &mut self.connection else { return Err(self.broken(&Broken::Closed)) };
        let serial = connection.next_serial();
        let bytes = wire::call(serial, method, body);
        let sent = bytes.map_err(|error| Broken::Nonsense(format!("{} cannot be said: {error}", method.member)));
        match sent.and_then(|bytes| connection.write(&bytes)) {
            Ok(()) => Ok(serial),
            Err(why) => Err(self.broken(&why)),
        }
    }

    fn error(&self, why: Why) -> SystemdError {
        let what = match self.want {
            Want::Start { .. } => "start",
            Want::Set(_) => "change",
            Want::Stop => "stop",
        };
        SystemdError { what, unit: self.unit.clone(), why }
    }

    fn address(&self) -> String {
        let connected = self.connection.as_ref().map(|connection| &connection.address);
        connected.or(self.addresses.first()).map_or(String::new(), Address::to_string)
    }

    fn broken(&self, why: &Broken) -> SystemdError {
        self.error(Why::Broken { address: self.address(), why: why.to_string() })
    }

    fn stalled(&self) -> SystemdError {
        let what = match self.at {
            _ if self.crowded => "room among the connections that the bus gives each user",
            At::Door => "the connection",
            At::Greeting => "the greeting",
            At::Version(_) => "the first answer",
            At::Answer(_) | At::Reset(_) | At::Last(..) => "the answer",
            At::Job(_) => "the end of the job",
        };
        self.error(Why::Stalled { address: self.address(), seconds: self.patience.as_secs_f32(), what })
    }

    fn refused(&self, name: String, text: String) -> SystemdError {
        let hint = match name.rsplit('.').next() {
            Some("UnitExists") => "; another container has this name: choose another linux.cgroupsPath",
            Some("AccessDenied" | "InteractiveAuthorizationRequired") => {
                "; units of the host are root's to make: an ordinary user has a systemd of his own"
            }
            Some("PropertyReadOnly" | "UnknownProperty") => "; look at the annotations org.systemd.property.*",
            _ => "",
        };
        self.error(Why::Refused { name, text, hint })
    }
}

/// `252.30-1~deb12u2`, `v245` and the like.
fn read_version(version: &Variant<'_>) -> Option<u16> {
    let Variant::Str(text) = version else { return None };
    let digits = text.trim_start_matches(|first: char| !first.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
mod tests;
