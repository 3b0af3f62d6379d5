//! (under construction)

pub mod demo;
