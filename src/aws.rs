//! The border to AWS: [`classify`] says what a failed call means.

mod classify;

pub use classify::*;
