//! Disks that lose what was not synced, fail when told, and rot.

mod content;
mod files;
mod image;
mod log;

pub use files::{Flip, SimFiles, SimHandle, SimReader, SimWriter, Struck, WriteFault};
pub use image::{Disk, Image, RegionLog};
pub use log::{Device, Engine, SimLog, Troubles};
