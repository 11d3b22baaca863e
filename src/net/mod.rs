//! Connections: how both roles accept them, and how they dial each other.

pub mod accept;
pub mod bounds;
pub mod dial;
pub mod socket;
