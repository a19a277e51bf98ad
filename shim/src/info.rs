//! `-info`: what this runtime is and can do, for containerd 2.0 and later.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use anyhow::{Context as _, Result};
use libcontainer::features::features;
use protobuf::{Message as _, MessageField};
use runtime_v2_api::{
    Any, json,
    types::{RuntimeInfo, RuntimeVersion},
};

use crate::{options::Options, start::LONGEST_INPUT};

/// Prints the document; the runtime's options, if there are any, come on stdin and are checked.
pub(crate) fn info() -> Result<()> {
    let mut input = Vec::new();
    // Whoever looks by hand has none.
    if !io::stdin().is_terminal() {
        io::stdin().take(LONGEST_INPUT).read_to_end(&mut input).context("read stdin")?;
    }
    let options = Any::parse_from_bytes(&input).context("decode the options on stdin")?;
    Options::read(&options)?;
    let features = Any {
        type_url: json::FEATURES.to_owned(),
        value: serde_json::to_vec(&features()).context("encode the features")?,
        ..Any::default()
    };
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    let info = RuntimeInfo {
        name: "io.containerd.dunnage.v2".to_owned(),
        version: MessageField::some(version),
        options: MessageField::from_option(Some(options).filter(|any| !any.type_url.is_empty())),
        features: MessageField::some(features),
        ..Default::default()
    };
    let info = info.write_to_bytes().context("encode the answer")?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&info).and_then(|()| stdout.flush()).context("write to stdout")
}
