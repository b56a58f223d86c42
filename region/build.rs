//! Generates the Rust of `proto/region.proto`, without a `protoc` on the machine.

use std::path::PathBuf;

use protobuf_codegen_pure::{Codegen, Customize};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=proto/region.proto");
    println!("cargo:rerun-if-changed=build.rs");
    Codegen::new()
        .customize(Customize {
            carllerche_bytes_for_bytes: Some(true),
            gen_mod_rs: Some(false),
            ..Customize::default()
        })
        .out_dir(&out)
        .include("proto")
        .input("proto/region.proto")
        .run()
        .expect("proto/region.proto must compile");

    // The generated file opens with inner attributes, which `include!` refuses inside a module.
    let file = out.join("region.rs");
    let text = std::fs::read_to_string(&file).expect("the generated file must be readable");
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&file, text).expect("the generated file must be writable");
}
