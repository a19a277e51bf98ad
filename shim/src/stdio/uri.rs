//! What a client writes where it names its stdio.

use std::path::{Path, PathBuf};

use super::StdioError;

/// A path as clients write it: bare, or as `fifo://`.
pub(super) fn plain_path(text: &str) -> Option<&Path> {
    let path = text.strip_prefix("fifo://").unwrap_or(text);
    (!path.is_empty()).then(|| Path::new(path))
}

/// What a client may say as stdout.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Uri<'a> {
    Path(Option<&'a Path>),
    File(PathBuf),
    Logger { path: PathBuf, args: Vec<String>, strict: bool },
}

impl<'a> Uri<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, StdioError> {
        let malformed = || StdioError::Uri(text.to_owned());
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Self::Path(plain_path(text))) };
        match scheme {
            "fifo" => Ok(Self::Path(plain_path(text))),
            "file" => Ok(Self::File(percent_decoded(rest, false).ok_or_else(malformed)?.into())),
            "binary" | "binary-v2" => {
                let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
                let mut args = Vec::new();
                // An argument for each key and each value, even an empty one, in the order they were written.
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    args.push(percent_decoded(key, true).ok_or_else(malformed)?);
                    args.push(percent_decoded(value, true).ok_or_else(malformed)?);
                }
                let path = percent_decoded(path, false).ok_or_else(malformed)?.into();
                Ok(Self::Logger { path, args, strict: scheme == "binary-v2" })
            }
            other => Err(StdioError::Scheme(other.to_owned())),
        }
    }
}

/// Undoes percent-encoding; in a query `+` is a space. None if it is not UTF-8 or an escape is cut short.
pub(crate) fn percent_decoded(text: &str, query: bool) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' if query => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_told_apart() {
        let path = |text| Uri::Path(Some(Path::new(text)));
        assert_eq!(Uri::parse("").unwrap(), Uri::Path(None));
        assert_eq!(Uri::parse("/a").unwrap(), path("/a"));
        assert_eq!(Uri::parse("fifo:///a").unwrap(), path("/a"));
        assert_eq!(Uri::parse("file:///a%2fb").unwrap(), Uri::File("/a/b".into()));
        assert_eq!(
            Uri::parse("binary-v2:///bin/log?a=1+2&b&c=").unwrap(),
            Uri::Logger {
                path: "/bin/log".into(),
                args: ["a", "1 2", "b", "", "c", ""].map(str::to_owned).to_vec(),
                strict: true
            }
        );
        assert_eq!(Uri::parse("npipe://x").unwrap_err().to_string(), "unknown STDIO scheme npipe");
        assert!(Uri::parse("file:///%f").is_err());
        assert!(Uri::parse("file:///%ff").is_err());
    }
}
