//! The folders of a worker: made, held by one worker at a time, and watched while
//! it runs. None of this takes room on a disk where the worker has run before.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{self, Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    fs::{
        FlockOperation, flock,
        inotify::{self, CreateFlags, WatchFlags},
    },
    io::Errno,
};
use tokio::net::unix::pipe::Receiver;

use super::{
    Config,
    error::RunError,
    job::Place,
    journal::{Journal, is_full},
    scripts,
};
use crate::blocking::spawn_blocking;

/// How long a data folder may still be held by what a killed worker was starting.
const LET_GO: Duration = Duration::from_secs(1);

/// A handle to the folders of a worker, made and locked.
#[derive(Clone)]
pub(super) struct Folders {
    parts: Arc<Parts>,
}

struct Parts {
    data: PathBuf,
    scripts: PathBuf,
    /// Those in the data folder.
    own: Vec<PathBuf>,
    lock: Lock,
}

impl Folders {
    pub(super) async fn prepare(config: &Config) -> Result<Self, RunError> {
        // Whole paths, for shims do not run in this folder.
        let data = path::absolute(&config.data_dir).map_err(|source| RunError::Path {
            path: config.data_dir.clone(),
            source,
        })?;
        let at_data = |source| RunError::Path {
            path: data.clone(),
            source,
        };
        make_dir(&data).map_err(at_data)?;
        // It may have been there, and open to others.
        let mode = fs::metadata(&data).map_err(at_data)?.mode() & 0o7777;
        if mode != 0o700 {
            fs::set_permissions(&data, Permissions::from_mode(0o700)).map_err(at_data)?;
        }
        let lock = Lock::take(&data).await?;
        let place = place(&data);
        let mut own = vec![place.output, place.results];
        let scripts = match &config.script_dir {
            Some(scripts) => scripts.clone(),
            None => {
                own.push(data.join("scripts"));
                data.join("scripts")
            }
        };
        for folder in &own {
            match make_dir(folder) {
                // It was removed, and there is no room for it. It is made before the
                // next job that needs it.
                Err(error) if is_full(&error) && *folder != scripts => {
                    tracing::warn!(path = %folder.display(), %error, "cannot make a folder");
                }
                made => made.map_err(|source| RunError::Path {
                    path: folder.clone(),
                    source,
                })?,
            }
        }
        let found = scripts.canonicalize().and_then(|dir| {
            scripts::check_dir(&dir)?;
            Ok(dir)
        });
        let scripts = found.map_err(|source| RunError::Path {
            path: scripts,
            source,
        })?;
        Ok(Self {
            parts: Arc::new(Parts {
                data,
                scripts,
                own,
                lock,
            }),
        })
    }

    pub(super) fn data(&self) -> &Path {
        &self.parts.data
    }

    pub(super) fn scripts(&self) -> &Path {
        &self.parts.scripts
    }

    pub(super) fn journal(&self) -> PathBuf {
        journal(&self.parts.data)
    }

    pub(super) fn place(&self) -> Place {
        place(&self.parts.data)
    }

    /// Has folders that are removed made again, and the journal written again. Returns
    /// when the data folder itself was removed or replaced.
    pub(super) async fn watch(self, journal: Journal) -> RunError {
        let mut watch = Watch::new(&self.parts.data);
        if let Err(error) = &watch {
            // The journal sees it too, when it is written the next time.
            tracing::warn!(%error, "cannot watch the data folder");
        }
        loop {
            // Before the first event: what was removed before the watch has none.
            let parts = self.parts.clone();
            match spawn_blocking(move || parts.restore()).await {
                Ok(false) => return RunError::Removed(self.parts.data.clone()),
                Ok(true) => journal.look().await,
                // The runtime is going away.
                Err(_) => std::future::pending().await,
            }
            match &mut watch {
                Ok(watch) => watch.changed().await,
                Err(_) => std::future::pending().await,
            }
        }
    }
}

impl Parts {
    /// Makes removed folders again. False if the data folder is not the one that was
    /// locked, or was emptied.
    fn restore(&self) -> bool {
        if !self.lock.is_in_place(&self.data) {
            return false;
        }
        for folder in &self.own {
            if folder.is_dir() {
                continue;
            }
            let path = folder.display();
            match make_dir(folder) {
                Ok(()) => {
                    tracing::error!(%path, "a folder was removed, with all its files; it is made again");
                }
                // It is tried again before the next job that needs it.
                Err(error) => {
                    tracing::error!(%path, %error, "a folder was removed and cannot be made again");
                }
            }
        }
        true
    }
}

/// The journal of the worker that has this data folder.
pub(super) fn journal(data: &Path) -> PathBuf {
    data.join("journal")
}

fn place(data: &Path) -> Place {
    Place {
        output: data.join("output"),
        results: data.join("results"),
    }
}

/// Makes a folder for its owner alone, because output may hold anything, and those
/// around it; their names are on the disk when it returns. Changes nothing where it
/// is there.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    let around = path.parent();
    let mut builder = DirBuilder::new();
    match builder.mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_dir(around.ok_or(error)?)?;
            // Another process may have made it in between.
            return make_dir(path);
        }
        made => made?,
    }
    match around {
        Some(around) => File::open(around)?.sync_all(),
        None => Ok(()),
    }
}

/// A data folder that is held by one worker at a time.
pub(super) struct Lock {
    folder: File,
    /// What an older worker holds. `None`: there is no room for it.
    file: Option<File>,
}

impl Lock {
    /// Takes it, if it is let go in a moment.
    pub(super) async fn take(data: &Path) -> Result<Self, RunError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            |source| RunError::Path { path, source }
        };
        let folder = File::open(data).map_err(at(data))?;
        let path = data.join("lock");
        let file = match open_lock(&path) {
            Ok(file) => Some(file),
            Err(error) if is_full(&error) => None,
            Err(error) => return Err(at(&path)(error)),
        };
        let lock = Self { folder, file };
        // A shim that was about to be executed when its worker was killed has the
        // worker's lock until then, and no event says when it lets go.
        let until = Instant::now() + LET_GO;
        while !lock.hold().map_err(at(&path))? {
            if Instant::now() > until {
                return Err(RunError::DataDirInUse(data.to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(lock)
    }

    /// False if another process has it.
    fn hold(&self) -> io::Result<bool> {
        let exclusively = FlockOperation::NonBlockingLockExclusive;
        if let Some(file) = &self.file {
            match flock(file, exclusively) {
                Err(Errno::WOULDBLOCK) => return Ok(false),
                held => held?,
            }
        }
        match flock(&self.folder, exclusively) {
            Err(Errno::WOULDBLOCK) => Ok(false),
            // Network file systems lock no folders.
            Err(_) if self.file.is_some() => Ok(true),
            held => Ok(held.map(|()| true)?),
        }
    }

    /// Whether the names still lead to what is held.
    fn is_in_place(&self, data: &Path) -> bool {
        let same = |held: &File, path: &Path| match (held.metadata(), fs::symlink_metadata(path)) {
            (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
            _ => false,
        };
        // The data folder may be a link to it.
        let data = data.canonicalize();
        data.is_ok_and(|data| {
            let file = self.file.as_ref();
            same(&self.folder, &data) && file.is_none_or(|file| same(file, &data.join("lock")))
        })
    }
}

/// Without a change to it where it is there.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut access = File::options();
    access.write(true).create(true).truncate(false);
    match access.open(path) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(path),
        opened => opened,
    }
}

/// Tells when something in a data folder, or the folder itself, is removed or replaced.
struct Watch(Receiver);

impl Watch {
    fn new(data: &Path) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&events, data, flags)?;
        for around in data.canonicalize()?.ancestors().skip(1) {
            let flags = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
            // Not every user may watch them all.
            let _ = inotify::add_watch(&events, around, flags);
        }
        // It is read as a pipe is.
        Ok(Self(Receiver::from_owned_fd_unchecked(events)?))
    }

    /// Returns when there is something to look at. Never, if there can be no more.
    async fn changed(&mut self) {
        // Which event it is does not matter: there are few of them, and a look at
        // all that is watched costs as little.
        let mut events = [0; 4096];
        while self.0.readable().await.is_ok() {
            let mut taken = false;
            loop {
                match self.0.try_read(&mut events) {
                    Ok(0) => return std::future::pending().await,
                    Ok(_) => taken = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return std::future::pending().await,
                }
            }
            if taken {
                return;
            }
        }
        std::future::pending().await
    }
}
