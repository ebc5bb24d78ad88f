//! Whole-product tests, the demo's driver and benches.

pub mod demo;
pub mod process;
