//! Whole-product tests, the demo's driver and benches.

pub mod bench;
pub mod demo;
pub mod process;
pub mod site;
pub mod tap;
