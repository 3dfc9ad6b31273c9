//! What differs between two snapshots: [`listing`] lists it, [`source`] reads the head by that listing's tokens.

pub(super) mod listing;
pub(super) mod source;
