//! A disk that is lost in part by crashes, and that fails and rots on demand.

mod content;
mod files;

pub use files::{Flip, SimFiles, SimHandle, SimReader, SimWriter, Struck, WriteFault};
