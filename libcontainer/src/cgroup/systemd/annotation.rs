//! Annotations `org.systemd.property.NAME`: properties that engines and users give the unit, as runc takes them.
//!
//! The value is GVariant text: `uint64 5000000`, `'inactive-or-failed'`, `true`, `['a.service']`, `@as []`. A number
//! without a type is an int32, or a double if it has a point.

use zbus::{Array, ObjectPath, Signature, Variant};

use super::Property;

const PREFIX: &str = "org.systemd.property.";

/// How deep arrays and variants nest, at most: nothing of systemd's goes further.
const DEEPEST: u8 = 6;

/// The property that an annotation is, if it is one.
pub(super) fn property(annotation: &str, text: &str) -> Result<Option<Property>, String> {
    let Some(name) = annotation.strip_prefix(PREFIX) else { return Ok(None) };
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(format!("{name:?} is not the name of a property of systemd"));
    }
    let value = parse(text).map_err(|why| format!("{text:?} is not a value (GVariant text): {why}"))?;
    // Durations are documented in seconds and set in microseconds, under a name that says so.
    match name.strip_suffix("Sec").filter(|stem| stem.ends_with(|last: char| last.is_ascii_lowercase())) {
        Some(stem) => Ok(Some(Property::new(format!("{stem}USec"), microseconds(&value)?))),
        None => Ok(Some(Property::new(name, value))),
    }
}

fn microseconds(seconds: &Variant<'_>) -> Result<u64, String> {
    let whole = |seconds: u64| seconds.checked_mul(1_000_000);
    let micros = match seconds {
        Variant::I16(n) => u64::try_from(*n).ok().and_then(whole),
        Variant::I32(n) => u64::try_from(*n).ok().and_then(whole),
        Variant::I64(n) => u64::try_from(*n).ok().and_then(whole),
        Variant::U16(n) => whole((*n).into()),
        Variant::U32(n) => whole((*n).into()),
        Variant::U64(n) => whole(*n),
        Variant::F64(n) if *n >= 0.0 && *n * 1e6 < u64::MAX as f64 => Some((*n * 1e6) as u64),
        _ => None,
    };
    micros.ok_or_else(|| format!("{seconds} is not a number of seconds"))
}

fn parse(text: &str) -> Result<Variant<'static>, String> {
    let mut parser = Parser { rest: text.trim() };
    let value = parser.value(None, DEEPEST)?;
    match parser.rest.trim_start() {
        "" => Ok(value),
        rest => Err(format!("what is {rest:?} behind it?")),
    }
}

struct Parser<'t> {
    rest: &'t str,
}

impl<'t> Parser<'t> {
    /// The next value; of the type `expected`, where that is known.
    fn value(&mut self, expected: Option<&Signature>, depth: u8) -> Result<Variant<'static>, String> {
        let Some(depth) = depth.checked_sub(1) else { return Err("it is nested too deep".to_owned()) };
        self.rest = self.rest.trim_start();
        let Some(first) = self.rest.chars().next() else { return Err("it ends where a value is missing".to_owned()) };
        match first {
            '@' => {
                self.rest = &self.rest[1..];
                let word = self.word();
                let signature = Signature::try_from(word).map_err(|_| format!("@{word} is not a type"))?;
                self.value(Some(&signature), depth)
            }
            '[' => self.array(expected, depth),
            '<' => {
                self.rest = &self.rest[1..];
                let value = self.value(None, depth)?;
                self.expect('>')?;
                Ok(Variant::Variant(Box::new(value)))
            }
            '\'' | '"' => {
                let text = self.quoted(first)?;
                typed_text(expected, text)
            }
            _ => self.plain(first, expected, depth),
        }
    }

    /// A value that begins with a word.
    fn plain(&mut self, first: char, expected: Option<&Signature>, depth: u8) -> Result<Variant<'static>, String> {
        let word = self.word();
        if let Some(signature) = named(word) {
            return self.value(Some(&signature), depth);
        }
        let quote = self.rest.chars().next().filter(|next| matches!(next, '\'' | '"'));
        match (word, quote) {
            ("b", Some(quote)) => {
                let mut bytes = self.quoted(quote)?.into_bytes();
                bytes.push(0); // as GVariant has it: the C string it stands for
                Ok(bytes.into())
            }
            ("true" | "false", _) if matches!(expected, None | Some(Signature::Bool)) => Ok((word == "true").into()),
            ("", _) => Err(format!("{first:?} begins no value that is supported")),
            _ => number(word, expected),
        }
    }

    fn array(&mut self, expected: Option<&Signature>, depth: u8) -> Result<Variant<'static>, String> {
        let mut element = match expected {
            None => None,
            Some(Signature::Array(child)) => Some(child.signature().clone()),
            Some(other) => return Err(format!("an array is not of type {other}")),
        };
        self.rest = &self.rest[1..];
        let mut values = Vec::new();
        while !self.rest.trim_start().starts_with(']') {
            if !values.is_empty() {
                self.expect(',')?;
            }
            let value = self.value(element.as_ref(), depth)?;
            element.get_or_insert_with(|| value.value_signature().clone());
            values.push(value);
        }
        self.expect(']')?;
        let element = element.ok_or("an empty array needs its type, such as @as []")?;
        let mut array = Array::new(&element);
        for value in values {
            array.append(value).map_err(|_| format!("not all in the array are of type {element}"))?;
        }
        Ok(Variant::Array(array))
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        match self.rest.trim_start().strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(format!("{wanted:?} is missing before {:?}", self.rest)),
        }
    }

    /// Everything up to what ends a word.
    fn word(&mut self) -> &'t str {
        let ends = |c: char| c.is_whitespace() || ",[]<>'\"".contains(c);
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        let mut letters = self.rest.char_indices().skip(1);
        while let Some((at, letter)) = letters.next() {
            match letter {
                letter if letter == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => match letters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, kept @ ('\\' | '\'' | '"'))) => text.push(kept),
                    other => return Err(format!("\\{} is not supported", other.map_or(' ', |(_, letter)| letter))),
                },
                letter => text.push(letter),
            }
        }
        Err(format!("the closing {quote} is missing"))
    }
}

fn typed_text(expected: Option<&Signature>, text: String) -> Result<Variant<'static>, String> {
    match expected {
        None | Some(Signature::Str) => Ok(text.into()),
        Some(Signature::ObjectPath) => {
            ObjectPath::try_from(text.clone()).map(Variant::from).map_err(|_| format!("{text:?} is not an object path"))
        }
        Some(Signature::Signature) => {
            Signature::try_from(text.as_str()).map(Variant::from).map_err(|_| format!("{text:?} is not a signature"))
        }
        Some(other) => Err(format!("text is not of type {other}")),
    }
}

/// The types that have a name of their own in the text.
fn named(word: &str) -> Option<Signature> {
    Some(match word {
        "boolean" => Signature::Bool,
        "byte" => Signature::U8,
        "int16" => Signature::I16,
        "uint16" => Signature::U16,
        "int32" => Signature::I32,
        "uint32" => Signature::U32,
        "int64" => Signature::I64,
        "uint64" => Signature::U64,
        "double" => Signature::F64,
        "string" => Signature::Str,
        "objectpath" => Signature::ObjectPath,
        "signature" => Signature::Signature,
        _ => return None,
    })
}

fn number(word: &str, expected: Option<&Signature>) -> Result<Variant<'static>, String> {
    let whole = || match word.strip_prefix("0x") {
        Some(digits) => i128::from_str_radix(digits, 16).ok(),
        None => word.parse::<i128>().ok(),
    };
    fn fits<T: TryFrom<i128> + Into<Variant<'static>>>(number: Option<i128>) -> Option<Variant<'static>> {
        number.and_then(|number| T::try_from(number).ok()).map(Into::into)
    }
    let real = || word.parse::<f64>().ok().filter(|number| number.is_finite()).map(Variant::from);
    let looks_real = word.contains(['.', 'e', 'E']) && !word.starts_with("0x");
    let value = match expected {
        None if looks_real => real(),
        None | Some(Signature::I32) => fits::<i32>(whole()),
        Some(Signature::U8) => fits::<u8>(whole()),
        Some(Signature::I16) => fits::<i16>(whole()),
        Some(Signature::U16) => fits::<u16>(whole()),
        Some(Signature::U32) => fits::<u32>(whole()),
        Some(Signature::I64) => fits::<i64>(whole()),
        Some(Signature::U64) => fits::<u64>(whole()),
        Some(Signature::F64) => real(),
        Some(_) => None,
    };
    let kind = expected.map_or("int32".to_owned(), ToString::to_string);
    value.ok_or_else(|| format!("{word:?} is not of type {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<String, String> {
        property(&format!("{PREFIX}{name}"), text).map(|property| property.unwrap().to_string())
    }

    #[test]
    fn values_have_the_types_they_are_written_with() {
        for (text, value) in [
            ("true", "true"),
            ("-7", "-7"),
            ("0x1f", "31"),
            ("1.5", "1.5"),
            ("uint64 123456789", "uint64 123456789"),
            ("@t 5", "uint64 5"),
            ("byte 0xff", "byte 0xff"),
            ("'inactive-or-failed'", "\"inactive-or-failed\""),
            ("objectpath '/a/b'", "objectpath \"/a/b\""),
            ("['a.service', 'b.service']", "[\"a.service\", \"b.service\"]"),
            ("@as []", "@as []"),
            ("@au [1,2]", "[uint32 1, 2]"),
            ("[uint32 1 , 2 ]", "[uint32 1, 2]"),
            ("<true>", "<true>"),
        ] {
            assert_eq!(read("Property", text).as_deref(), Ok(format!("Property={value}").as_str()), "{text}");
        }
        let quoted = property("org.systemd.property.Text", r#""it's \"it\"\n""#).unwrap().unwrap();
        assert_eq!(quoted.value, Variant::from("it's \"it\"\n"));
        let bytes = property("org.systemd.property.Bytes", "b'ab'").unwrap().unwrap();
        assert_eq!(bytes.value, Variant::from(b"ab\0".to_vec()));
    }

    #[test]
    fn seconds_become_microseconds_under_the_name_that_says_so() {
        assert_eq!(read("TimeoutStopSec", "90").unwrap(), "TimeoutStopUSec=uint64 90000000");
        assert_eq!(read("TimeoutStopSec", "1.5").unwrap(), "TimeoutStopUSec=uint64 1500000");
        assert_eq!(read("TimeoutStopUSec", "uint64 7").unwrap(), "TimeoutStopUSec=uint64 7");
        for bad in ["'x'", "-1", "uint64 18446744073709551615"] {
            assert!(read("TimeoutStopSec", bad).unwrap_err().contains("number of seconds"), "{bad}");
        }
    }

    #[test]
    fn what_is_no_property_is_said() {
        assert_eq!(property("org.systemd.other", "x"), Ok(None));
        for name in ["", "Xy", "Memory Max", "A-B-C", "Max1"] {
            assert!(read(name, "true").unwrap_err().contains("not the name"), "{name:?}");
        }
        for text in [
            "",
            "x",
            "[",
            "[1",
            "[1,",
            "[1 2]",
            "[]",
            "'x",
            "1 2",
            "uint64",
            "uint64 -1",
            "byte 256",
            "[1,'x']",
            "@zz 1",
            "{'a':1}",
            "(1,2)",
            "@as 1",
            "uint32 'x'",
            "'\\q'",
            "<1",
            "1e400",
            "[[[[[[[1]]]]]]]",
        ] {
            assert!(read("Property", text).unwrap_err().contains("GVariant text"), "{text:?}");
        }
    }
}
