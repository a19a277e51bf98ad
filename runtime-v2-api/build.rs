//! Generates the messages and services of `proto/` into `OUT_DIR`, in pure Rust: no protoc.

use std::{env, fs, io, path::PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

/// The files of `proto/` that define a service; each gives a second module.
const SERVICES: [&str; 5] = ["forward", "shim", "supervisor", "task_v2", "task_v3"];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let mut inputs = fs::read_dir("proto")?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    inputs.sort();

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo did not set OUT_DIR"))?);
    Codegen::new()
        .out_dir(&out)
        .include("proto")
        .inputs(inputs)
        .rust_protobuf()
        // The lite runtime has no descriptors: nobody here reflects, and a shim would pay for them in memory.
        .rust_protobuf_customize(
            ProtobufCustomize::default().lite_runtime(true).generate_accessors(false).gen_mod_rs(true),
        )
        .customize(Customize { async_all: true, ..Customize::default() })
        .run()?;

    // protobuf's index can be included, but lacks the services; ttrpc's has them, but cannot be included.
    let mut index = fs::read_to_string(out.join("mod.rs"))?;
    for service in SERVICES {
        index.push_str(&format!("pub mod {service}_ttrpc;\n"));
    }
    fs::write(out.join("mod.rs"), index)
}
