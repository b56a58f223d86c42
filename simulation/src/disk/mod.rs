//! Disks that lose what was not synced, and fail when told.

mod image;
mod log;

pub use image::{Disk, Image, RegionLog};
pub use log::{Device, SimLog, Troubles};
