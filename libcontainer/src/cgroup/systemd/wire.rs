//! D-Bus messages as bytes (D-Bus Specification, "Message Protocol"). zbus knows how values are laid out; what stands
//! here is which values a message begins with.

use serde::{Deserialize, Serialize};
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{BE, DynamicType, LE, to_bytes};
use zbus::{Error, ObjectPath, Signature, Type, Variant};

const CALL: u8 = 1;
const REPLY: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// What every message begins with: order of bytes, kind, flags, version, length of the body, serial, fields.
type Header<'h> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'h>)>);

/// How long the part is that says how long the rest is.
const FIXED: usize = 16;
/// The longest message we read. What we wait for is a hundred bytes long.
const LONGEST: usize = 1 << 20;

/// Whom a call is for.
#[derive(Clone, Copy)]
pub(super) struct Method {
    /// The name on the bus.
    pub(super) destination: &'static str,
    /// The object.
    pub(super) path: &'static str,
    /// Its interface.
    pub(super) interface: &'static str,
    /// The method.
    pub(super) member: &'static str,
}

/// The bytes of a call. `None` stands for no arguments.
pub(super) fn call<B>(serial: u32, method: Method, body: Option<&B>) -> Result<Vec<u8>, Error>
where
    B: Serialize + DynamicType,
{
    let context = Context::new(LE, 0);
    let fields: Vec<(u8, Variant<'_>)> = vec![
        (PATH, ObjectPath::try_from(method.path)?.into()),
        (INTERFACE, method.interface.into()),
        (MEMBER, method.member.into()),
        (DESTINATION, method.destination.into()),
    ];
    let header: Header<'_> = (b'l', CALL, 0, 1, 0, serial, fields);
    let mut bytes = to_bytes(context, &header)?.bytes().to_vec();
    let number = |length: usize| u32::try_from(length).map(u32::to_le_bytes).map_err(|_| Error::OutOfBounds);
    let mut arguments = Vec::new();
    if let Some(body) = body {
        arguments.extend_from_slice(to_bytes(context, body)?.bytes());
        // The last field, by hand: zbus would write the signature of a structure, but these are several arguments.
        let signature = body.signature().to_string_no_parens();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend([SIGNATURE, 1, b'g', 0, u8::try_from(signature.len()).map_err(|_| Error::OutOfBounds)?]);
        bytes.extend_from_slice(signature.as_bytes());
        bytes.push(0);
        let fields = number(bytes.len() - FIXED)?;
        bytes[12..FIXED].copy_from_slice(&fields);
    }
    bytes[4..8].copy_from_slice(&number(arguments.len())?);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(arguments);
    Ok(bytes)
}

/// A message that came.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// The answer to a call.
    Reply {
        /// The call's serial.
        to: u32,
        /// What it says.
        body: Body,
    },
    /// The refusal of a call.
    Error {
        /// The call's serial.
        to: u32,
        /// Such as `org.freedesktop.systemd1.UnitExists`.
        name: String,
        /// In words.
        text: String,
    },
    /// Something has happened.
    Signal {
        /// What.
        member: String,
        /// The details.
        body: Body,
    },
    /// A call, which nobody has reason to make to us.
    Call,
}

/// Arguments, not looked at yet.
#[derive(Debug, PartialEq)]
pub(super) struct Body {
    big: bool,
    signature: Option<Signature>,
    bytes: Vec<u8>,
}

impl Body {
    /// The arguments; none when they are of other types.
    pub(super) fn read<T>(&self) -> Option<T>
    where
        T: for<'d> Deserialize<'d> + Type,
    {
        let signature = self.signature.as_ref()?;
        if signature.to_string_no_parens() != T::SIGNATURE.to_string_no_parens() {
            return None;
        }
        let context = Context::new(if self.big { BE } else { LE }, 0);
        Data::new(self.bytes.as_slice(), context).deserialize().ok().map(|(value, _)| value)
    }
}

/// Takes the first message off what has been read, once it is there as a whole.
pub(super) fn take(inbox: &mut Vec<u8>) -> Result<Option<Message>, String> {
    let Some(length) = length(inbox)? else { return Ok(None) };
    if inbox.len() < length {
        return Ok(None);
    }
    let bytes: Vec<u8> = inbox.drain(..length).collect();
    parse(&bytes).map(Some)
}

/// How long the first message is.
fn length(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Some(fixed) = bytes.first_chunk::<FIXED>() else { return Ok(None) };
    let number = |at: usize| {
        let mut four = [0; 4];
        four.copy_from_slice(&fixed[at..at + 4]);
        (if fixed[0] == b'B' { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }) as usize
    };
    if !matches!(fixed[0], b'l' | b'B') || fixed[3] != 1 {
        return Err("what came is no message of D-Bus".to_owned());
    }
    let (body, fields) = (number(4), number(12));
    let length = (FIXED + fields).next_multiple_of(8) + body;
    if length > LONGEST { Err(format!("a message of {length} bytes came")) } else { Ok(Some(length)) }
}

fn parse(bytes: &[u8]) -> Result<Message, String> {
    let big = bytes.first() == Some(&b'B');
    let data = Data::new(bytes, Context::new(if big { BE } else { LE }, 0));
    let malformed = |error: Error| format!("a malformed message came: {error}");
    let ((_, kind, _, _, _, _, fields), length): (Header<'_>, usize) = data.deserialize().map_err(malformed)?;
    let mut body = Body { big, signature: None, bytes: Vec::new() };
    body.bytes = bytes.get(length.next_multiple_of(8)..).unwrap_or_default().to_vec();
    let (mut to, mut name, mut member) = (0, String::new(), String::new());
    for (field, value) in fields {
        match (field, value) {
            (REPLY_SERIAL, Variant::U32(serial)) => to = serial,
            (ERROR_NAME, Variant::Str(text)) => name = text.to_string(),
            (MEMBER, Variant::Str(text)) => member = text.to_string(),
            (SIGNATURE, Variant::Signature(signature)) => body.signature = Some(signature),
            _ => {}
        }
    }
    Ok(match kind {
        REPLY => Message::Reply { to, body },
        ERROR => Message::Error { to, name, text: body.read::<(String,)>().map_or(String::new(), |(text,)| text) },
        SIGNAL => Message::Signal { member, body },
        _ => Message::Call,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: Method = Method { destination: "a.b", path: "/a", interface: "a.b.C", member: "Do" };

    #[test]
    fn a_call_is_laid_out_as_the_specification_has_it() {
        let bytes = call(7, METHOD, Some(&("x", 5_u32))).unwrap();
        assert_eq!(bytes[..4], [b'l', CALL, 0, 1]);
        assert_eq!(bytes[4..12], [12, 0, 0, 0, 7, 0, 0, 0], "the body's length, the serial");
        assert_eq!(length(&bytes), Ok(Some(bytes.len())));
        assert_eq!(bytes[bytes.len() - 12..], [1, 0, 0, 0, b'x', 0, 0, 0, 5, 0, 0, 0]);
        let signature = [SIGNATURE, 1, b'g', 0, 2, b's', b'u', 0];
        assert!(bytes.windows(8).any(|window| window == signature));
        assert_eq!(parse(&bytes), Ok(Message::Call));
        let empty = call(1, METHOD, None::<&(String,)>).unwrap();
        assert!(empty[4..8] == [0; 4] && empty.len().is_multiple_of(8));
    }

    /// A signal in the order of bytes that we do not write.
    fn signal() -> Vec<u8> {
        let context = Context::new(BE, 0);
        let job = ObjectPath::try_from("/job/1").unwrap();
        let body = to_bytes(context, &(1_u32, job, "x.scope", "done")).unwrap();
        let fields = vec![
            (MEMBER, Variant::from("JobRemoved")),
            (SIGNATURE, Variant::from(Signature::try_from("uoss").unwrap())),
        ];
        let header: Header<'_> = (b'B', SIGNAL, 1, 1, body.len() as u32, 9, fields);
        let mut bytes = to_bytes(context, &header).unwrap().bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(body.bytes());
        bytes
    }

    #[test]
    fn messages_are_taken_as_they_become_whole() {
        let (mut inbox, whole) = (Vec::new(), signal());
        for byte in &whole {
            assert_eq!(take(&mut inbox), Ok(None));
            inbox.push(*byte);
        }
        inbox.push(b'l');
        let Ok(Some(Message::Signal { member, body })) = take(&mut inbox) else { panic!("no signal") };
        assert_eq!((member.as_str(), inbox.as_slice()), ("JobRemoved", b"l".as_slice()));
        type Removed = (u32, zbus::OwnedObjectPath, String, String);
        let (id, job, unit, result) = body.read::<Removed>().unwrap();
        assert_eq!((id, job.as_str(), unit.as_str(), result.as_str()), (1, "/job/1", "x.scope", "done"));
        assert_eq!(body.read::<(String,)>(), None, "of another type");
    }

    #[test]
    fn whatever_comes_is_refused_and_not_believed() {
        assert!(take(&mut b"HTTP/1.1 400 Bad Request".to_vec()).is_err());
        let mut long = signal();
        long[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(take(&mut long).unwrap_err().contains("bytes"));
        let whole = signal();
        for at in 16..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                // Anything but a panic.
                if let Ok(Some(Message::Signal { body, .. })) = take(&mut broken) {
                    drop(body.read::<(u32, zbus::OwnedObjectPath, String, String)>());
                }
            }
        }
    }
}
