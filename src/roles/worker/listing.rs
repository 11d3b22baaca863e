//! What the script folder holds, as the scheduler is told of it.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::scripts::Scripts;
use crate::proto::ScriptList;

/// The most scripts that are told of, and the most bytes of their paths.
const MAX_SCRIPTS: usize = 1000;
const MAX_BYTES: usize = 256 * 1024;

/// So many entries are looked at; a folder that holds more is not meant for
/// scripts alone.
const MAX_ENTRIES: usize = 10_000;

/// A folder that changed so shortly before it was read may have changed once more
/// within the same tick of its clock.
const TICK: Duration = Duration::from_secs(1);

/// What was found at one look.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    list: Arc<ScriptList>,
    /// Each folder that was read, and when it had changed; None: it has to be
    /// read again.
    folders: Vec<(PathBuf, Option<Duration>)>,
}

impl Listing {
    /// Reads the folder and those within. Hidden files are left out, and what a
    /// job could not be started with. Blocks.
    pub(super) fn read(scripts: &Scripts) -> Self {
        let mut paths = Vec::new();
        let mut folders = Vec::new();
        let mut entries = 0;
        let mut within = vec![String::new()];
        while let Some(below) = within.pop() {
            let folder = scripts.dir().join(&below);
            // Before it is read: what changes meanwhile is seen the next time.
            folders.push((folder.clone(), changed(&folder).filter(is_settled)));
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                entries += 1;
                if entries > MAX_ENTRIES {
                    within.clear();
                    break;
                }
                let (Ok(name), Ok(kind)) = (entry.file_name().into_string(), entry.file_type())
                else {
                    continue;
                };
                if name.starts_with('.') {
                    continue;
                }
                let path = match below.as_str() {
                    "" => name,
                    below => format!("{below}/{name}"),
                };
                if kind.is_dir() {
                    within.push(path);
                } else if kind.is_file() || kind.is_symlink() && scripts.holds(&path) {
                    paths.push(path);
                }
            }
        }
        paths.sort();
        let mut bytes = 0;
        let fits = paths.iter().take(MAX_SCRIPTS).take_while(|path| {
            bytes += path.len();
            bytes <= MAX_BYTES
        });
        let told = fits.count();
        let more = entries > MAX_ENTRIES || told < paths.len();
        paths.truncate(told);
        Self {
            list: Arc::new(ScriptList { paths, more }),
            folders,
        }
    }

    /// As [`Listing::read`], unless nothing has changed since this was read.
    /// Blocks, but for a moment only where there is nothing new.
    pub(super) fn renewed(&self, scripts: &Scripts) -> Option<Self> {
        let mut folders = self.folders.iter();
        let stale = folders.any(|(folder, read)| read.is_none() || changed(folder) != *read);
        stale.then(|| Self::read(scripts))
    }

    pub(super) fn list(&self) -> &Arc<ScriptList> {
        &self.list
    }
}

/// When a name within, or who may see it, changed last.
fn changed(folder: &Path) -> Option<Duration> {
    let found = fs::metadata(folder).ok()?;
    let (seconds, nanos) = (found.ctime(), found.ctime_nsec());
    Some(Duration::new(
        u64::try_from(seconds).ok()?,
        u32::try_from(nanos).ok()?,
    ))
}

fn is_settled(changed: &Duration) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.is_ok_and(|now| *changed + TICK < now)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::roles::worker::{rules::Allowed, users::Users};

    fn scripts(dir: &Path) -> Scripts {
        Scripts::new("w1".into(), dir.to_owned(), Allowed::All, Users::default())
    }

    #[test]
    fn scripts_are_listed_in_order_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("scripts");
        fs::create_dir_all(dir.join("sub/deep")).unwrap();
        fs::create_dir(dir.join(".git")).unwrap();
        for file in [
            "z.sh",
            "sub/deep/b.sh",
            "sub/a.sh",
            ".hidden",
            ".git/config",
        ] {
            fs::write(dir.join(file), "").unwrap();
        }
        fs::write(root.path().join("secret.sh"), "").unwrap();
        symlink("../secret.sh", dir.join("out.sh")).unwrap();
        symlink("z.sh", dir.join("within.sh")).unwrap();
        symlink("sub", dir.join("again")).unwrap();
        let listing = Listing::read(&scripts(&dir));
        assert_eq!(
            listing.list().paths,
            ["sub/a.sh", "sub/deep/b.sh", "within.sh", "z.sh"]
        );
        assert!(!listing.list().more);
    }

    #[test]
    fn a_list_that_is_too_long_says_so() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..=MAX_SCRIPTS {
            fs::write(dir.path().join(format!("{n:04}.sh")), "").unwrap();
        }
        let listing = Listing::read(&scripts(dir.path()));
        assert_eq!(listing.list().paths.len(), MAX_SCRIPTS);
        assert_eq!(listing.list().paths[0], "0000.sh");
        assert!(listing.list().more);
    }

    #[test]
    fn only_a_folder_that_changed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let scripts = scripts(dir.path());
        let young = Listing::read(&scripts);
        assert!(
            young.renewed(&scripts).is_some(),
            "it may have changed again"
        );
        let settled = Listing {
            folders: [dir.path(), &sub]
                .map(|folder| (folder.to_owned(), changed(folder)))
                .to_vec(),
            ..young
        };
        assert!(settled.renewed(&scripts).is_none());
        let before = changed(&sub);
        while changed(&sub) == before {
            fs::write(sub.join("new.sh"), "").unwrap();
            fs::remove_file(sub.join("new.sh")).unwrap();
        }
        fs::write(sub.join("new.sh"), "").unwrap();
        let renewed = settled.renewed(&scripts).unwrap();
        assert_eq!(renewed.list().paths, ["sub/new.sh"]);
        fs::remove_dir_all(&sub).unwrap();
        assert!(renewed.renewed(&scripts).unwrap().list().paths.is_empty());
    }
}
