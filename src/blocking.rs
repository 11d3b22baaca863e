//! Work that may wait for a disk, on threads where it holds up nothing else.

#[cfg(not(test))]
pub(crate) use tokio::{fs, task::spawn_blocking};

#[cfg(test)]
pub(crate) use self::in_turn::spawn_blocking;

/// The functions of `tokio::fs` that the roles use.
#[cfg(test)]
pub(crate) mod fs {
    use std::{fs, io, path::Path};

    use super::spawn_blocking;

    pub(crate) use tokio::fs::read_dir;

    async fn of<T: Send + 'static>(
        path: impl AsRef<Path>,
        act: fn(&Path) -> io::Result<T>,
    ) -> io::Result<T> {
        let path = path.as_ref().to_owned();
        let done = spawn_blocking(move || act(&path)).await;
        done.map_err(io::Error::other)?
    }

    pub(crate) async fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        of(path, |path| fs::read(path)).await
    }

    pub(crate) async fn metadata(path: impl AsRef<Path>) -> io::Result<fs::Metadata> {
        of(path, |path| fs::metadata(path)).await
    }

    pub(crate) async fn symlink_metadata(path: impl AsRef<Path>) -> io::Result<fs::Metadata> {
        of(path, |path| fs::symlink_metadata(path)).await
    }

    pub(crate) async fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
        of(path, |path| fs::remove_file(path)).await
    }
}

#[cfg(test)]
mod in_turn {
    use tokio::task::JoinHandle;

    use crate::simulation;

    /// As tokio's. In a simulation the work is done in the turn of a task, so that
    /// which comes first is decided by the seed, not by the kernel.
    pub(crate) fn spawn_blocking<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        match simulation::is_on() {
            true => tokio::spawn(async move { work() }),
            false => tokio::task::spawn_blocking(work),
        }
    }
}
