//! What a job of this worker may be, as its operator decided it. What is made of
//! that is the business of `scripts.rs` and, for what only holds between fork and
//! exec, of the shim.

/// What jobs may be and do. The default allows whatever the worker may do
/// itself, but no more than that.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Programs like sudo, and files with capabilities, give a job the rights that
    /// the worker does not have. Without this they do not.
    pub allow_new_privileges: bool,
}
