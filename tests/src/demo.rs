//! The demo: the main job, once through, with the real programs.

mod narrate;
mod story;
mod theft;

pub use story::{Options, tell};
