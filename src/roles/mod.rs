//! The parts that run: the scheduler, the worker, and the shim of each job.

pub mod scheduler;
pub mod shim;
pub mod worker;
