//! The contexts of a client: how each cluster is reached, under a name, kept in
//! `client.toml` of the client's folder. Where that folder is, and which context
//! a command uses, is decided in `cmd`.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    mem,
    os::unix::fs::DirBuilderExt as _,
    path::{self, Path, PathBuf},
};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::Server;
use crate::{
    config,
    identity::{files, tls},
    ids::is_name,
};

/// In the client's folder.
pub const FILE: &str = "client.toml";

/// What a context may hold.
const KEYS: [&str; 4] = ["server", "ca_file", "identity_file", "token_file"];

/// So many wrong letters are still taken for a slip.
const SLIP: usize = 2;

/// How one cluster is reached. Paths are whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The scheduler's HTTP API.
    pub server: Server,
    /// PEM: what signs the scheduler's certificate.
    pub ca_file: Option<PathBuf>,
    /// PEM: the client's certificate and key. Then there is no token.
    pub identity_file: Option<PathBuf>,
    /// A bearer token. Then there is no identity.
    pub token_file: Option<PathBuf>,
}

impl Context {
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let files = [&self.ca_file, &self.identity_file, &self.token_file];
        files.into_iter().flatten()
    }

    fn with_paths(&self, change: impl Fn(&Path) -> PathBuf) -> Self {
        let changed = |file: &Option<PathBuf>| file.as_deref().map(&change);
        Self {
            server: self.server.clone(),
            ca_file: changed(&self.ca_file),
            identity_file: changed(&self.identity_file),
            token_file: changed(&self.token_file),
        }
    }
}

/// A context, and how it stands among the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// What it is called.
    pub name: String,
    /// Whether commands use it that name no other.
    pub current: bool,
    /// How its cluster is reached.
    #[serde(flatten)]
    pub context: Context,
}

/// Why contexts could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not as it should be.
    #[error(transparent)]
    File(#[from] config::Error),
    /// There is no such context.
    #[error(
        "context {name} not found{}",
        nearest.as_ref().map(|name| format!(", did you mean {name}?")).unwrap_or_default()
    )]
    NotFound {
        /// What was asked for.
        name: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// None was named, and none is the current one.
    #[error("no context is the current one")]
    NoneCurrent,
    /// One of this name is there, and is not overwritten.
    #[error("there is a context {0} already")]
    Exists(String),
    /// What would be written is what another context shows, or trusts.
    #[error("{} belongs to context {context}", file.display())]
    FileOfAnother {
        /// The file.
        file: PathBuf,
        /// The other context.
        context: String,
    },
    /// Not 1 to 64 letters, digits, `.`, `_` and `-`.
    #[error("`{0}` cannot be a context's name")]
    BadName(String),
    /// It is not clear who the client is to be.
    #[error("context {0} has both an identity and a token")]
    TwoCredentials(String),
    /// A file of keys, certificates or a token is not as it should be.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// A certificate cannot be used.
    #[error("cannot use {}", file.display())]
    Identity {
        /// Its file.
        file: PathBuf,
        /// Why not.
        source: tls::Error,
    },
    /// Authorities cannot be trusted.
    #[error("cannot use the authorities of the context")]
    Authorities(#[from] tls::Error),
    /// A file that is no file, or the system did not do it.
    #[error("cannot {what} {}", path.display())]
    Failed {
        /// What was to be done.
        what: &'static str,
        /// To this file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A path that is not UTF-8.
    #[error("cannot write the contexts as TOML")]
    Toml(#[from] toml::ser::Error),
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Failed { what, path, source }
}

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    current: Option<String>,
    contexts: BTreeMap<String, Context>,
}

/// The contexts of one folder.
#[derive(Debug)]
pub struct Contexts {
    folder: PathBuf,
    current: Option<String>,
    contexts: BTreeMap<String, Context>,
    /// Of contexts that were removed; they go when the file no longer names them.
    unused: Vec<PathBuf>,
}

impl Contexts {
    /// Reads those of `folder`; none where nothing is there.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or says what nobody understands.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let folder = path::absolute(folder).map_err(failed("find", folder))?;
        let file = folder.join(FILE);
        let stored = match fs::read_to_string(&file) {
            Ok(text) => parse(&text, &file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Stored::default(),
            Err(source) => return Err(config::Error::Unreadable { file, source }.into()),
        };
        let whole = |context: &Context| context.with_paths(|file| folder.join(file));
        let contexts = stored.contexts.iter();
        Ok(Self {
            contexts: contexts.map(|(k, v)| (k.clone(), whole(v))).collect(),
            current: stored.current,
            unused: Vec::new(),
            folder,
        })
    }

    /// Has `change` change those of `folder`, which is made if it is not there.
    /// Returns when they are on disk; until then, and if anything fails, the
    /// file is as it was. Changes by several processes come one after another.
    ///
    /// # Errors
    ///
    /// As [`Contexts::load`] and `change`; or the file cannot be written.
    pub fn change<T>(
        folder: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(folder);
        made.map_err(failed("make", folder))?;
        // Kept until the end: it holds the lock.
        let open = File::open(folder).map_err(failed("open", folder))?;
        rustix::fs::flock(&open, FlockOperation::LockExclusive)
            .map_err(|error| failed("lock", folder)(error.into()))?;
        let mut contexts = Self::load(folder)?;
        let changed = change(&mut contexts)?;
        contexts.save()?;
        for file in mem::take(&mut contexts.unused) {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &file)(error));
                }
                _ => {}
            }
        }
        Ok(changed)
    }

    fn save(&self) -> Result<(), Error> {
        let inside = |file: &Path| file.strip_prefix(&self.folder).unwrap_or(file).to_owned();
        let contexts = self.contexts.iter();
        let text = toml::to_string(&Stored {
            current: self.current.clone(),
            contexts: contexts
                .map(|(name, context)| (name.clone(), context.with_paths(inside)))
                .collect(),
        })?;
        let file = self.folder.join(FILE);
        // Whoever keeps it elsewhere and has a link here is to keep the link.
        let file = file.canonicalize().unwrap_or(file);
        let written = || {
            let folder = file.parent().unwrap_or(&self.folder);
            // For this user alone, from the beginning.
            let mut new = tempfile::NamedTempFile::new_in(folder)?;
            new.write_all(text.as_bytes())?;
            new.as_file().sync_all()?;
            new.persist(&file)?;
            File::open(folder)?.sync_all()
        };
        written().map_err(failed("write", &file))
    }

    /// Where they are kept.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Named> {
        let named = |(name, context): (&String, &Context)| Named {
            name: name.clone(),
            current: self.current() == Some(name),
            context: context.clone(),
        };
        self.contexts.iter().map(named).collect()
    }

    /// What the one is called that commands use which name no other.
    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// The one of this name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]
    pub fn get(&self, name: &str) -> Result<Named, Error> {
        let found = self.all().into_iter().find(|named| named.name == name);
        found.ok_or_else(|| self.not_found(name))
    }

    /// Adds one, unless there is one of its name.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::BadName`], [`Error::TwoCredentials`]
    pub fn add(&mut self, name: &str, context: Context) -> Result<(), Error> {
        if !is_name(name) {
            return Err(Error::BadName(name.to_owned()));
        }
        if self.contexts.contains_key(name) {
            return Err(Error::Exists(name.to_owned()));
        }
        one_credential(name, &context)?;
        self.contexts.insert(name.to_owned(), context);
        Ok(())
    }

    /// Puts it in the place of the one of this name, whose [files](Contexts::files_of)
    /// go unless they are its own.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::TwoCredentials`]
    pub fn replace(&mut self, name: &str, context: Context) -> Result<(), Error> {
        one_credential(name, &context)?;
        let mut unused = self.files_of(name)?;
        unused.retain(|file| context.files().all(|kept| kept != file));
        self.unused.extend(unused);
        self.contexts.insert(name.to_owned(), context);
        Ok(())
    }

    /// Refuses to have the files of `name` written where another context has its own.
    ///
    /// # Errors
    ///
    /// [`Error::FileOfAnother`]
    pub fn may_write(&self, name: &str, context: &Context) -> Result<(), Error> {
        for (other, known) in self.contexts.iter().filter(|(other, _)| *other != name) {
            if let Some(file) = known
                .files()
                .find(|file| context.files().any(|f| f == *file))
            {
                return Err(Error::FileOfAnother {
                    file: file.clone(),
                    context: other.clone(),
                });
            }
        }
        Ok(())
    }

    /// Makes it the one that commands use which name no other.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]
    pub fn set_current(&mut self, name: &str) -> Result<(), Error> {
        self.current = Some(self.get(name)?.name);
        Ok(())
    }

    /// From now on its cluster is at `server`. Returns how it is reached.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]
    pub fn move_to(&mut self, name: &str, server: Server) -> Result<Context, Error> {
        let mut moved = self.get(name)?.context;
        moved.server = server;
        self.contexts.insert(name.to_owned(), moved.clone());
        Ok(moved)
    }

    /// The files that go with a context: those in this folder that are no other
    /// context's.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]
    pub fn files_of(&self, name: &str) -> Result<Vec<PathBuf>, Error> {
        let own = self.get(name)?.context;
        let others = self.contexts.iter().filter(|(other, _)| *other != name);
        let others: Vec<_> = others.flat_map(|(_, context)| context.files()).collect();
        let here = self.folder.canonicalize();
        let is_here = |file: &Path| {
            let parent = file.parent().and_then(|parent| parent.canonicalize().ok());
            let within = here
                .iter()
                .zip(parent)
                .any(|(here, parent)| parent.starts_with(here));
            within && file.file_name().is_some_and(|name| name != FILE)
        };
        let files = own
            .files()
            .filter(|file| is_here(file) && !others.contains(file));
        Ok(files.cloned().collect())
    }

    /// Removes one, with [its files](Contexts::files_of). If it was the current
    /// one, there is none afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.unused.extend(self.files_of(name)?);
        self.contexts.remove(name);
        self.current = self.current.take().filter(|current| current != name);
        Ok(())
    }

    fn not_found(&self, name: &str) -> Error {
        let nearest = config::nearest(name, self.contexts.keys().map(String::as_str));
        let slip = nearest.filter(|nearest| config::distance(name, nearest) <= SLIP);
        Error::NotFound {
            name: name.to_owned(),
            nearest: slip.map(str::to_owned),
        }
    }
}

fn one_credential(name: &str, context: &Context) -> Result<(), Error> {
    match (&context.identity_file, &context.token_file) {
        (Some(_), Some(_)) => Err(Error::TwoCredentials(name.to_owned())),
        _ => Ok(()),
    }
}

fn parse(text: &str, file: &Path) -> Result<Stored, Error> {
    let malformed = |source| config::Error::Malformed {
        file: file.to_owned(),
        source: Box::new(source),
    };
    let table: toml::Table = toml::from_str(text).map_err(malformed)?;
    known(&table, file)?;
    // From the text again, not from the table: only so does an error know its line.
    let stored: Stored = toml::from_str(text).map_err(malformed)?;
    for (name, context) in &stored.contexts {
        if !is_name(name) {
            return Err(Error::BadName(name.clone()));
        }
        one_credential(name, context)?;
    }
    Ok(stored)
}

/// Refuses a key that nobody reads.
fn known(table: &toml::Table, file: &Path) -> Result<(), config::Error> {
    let unknown = |key: &str, nearest: String| config::Error::UnknownKey {
        file: file.to_owned(),
        key: key.to_owned(),
        nearest,
    };
    let not_a_section = |section: &str| config::Error::NotASection {
        file: file.to_owned(),
        section: section.to_owned(),
    };
    let nearest = |key: &str, known: &[&'static str]| {
        config::nearest(key, known.iter().copied()).unwrap_or_default()
    };
    for (key, value) in table {
        match (key.as_str(), value.as_table()) {
            ("current", _) | ("contexts", Some(_)) => {}
            ("contexts", None) => return Err(not_a_section(key)),
            (_, Some(_)) => return Err(unknown(key, "contexts".to_owned())),
            // A value outside every section was meant for one of them.
            (_, None) => {
                let nearest = match nearest(key, &[&["current"], &KEYS[..]].concat()) {
                    "current" => "current".to_owned(),
                    key => format!("contexts.NAME.{key}"),
                };
                return Err(unknown(key, nearest));
            }
        }
    }
    let contexts = table.get("contexts").and_then(toml::Value::as_table);
    for (name, context) in contexts.into_iter().flatten() {
        let section = format!("contexts.{name}");
        let context = context.as_table().ok_or_else(|| not_a_section(&section))?;
        if let Some(key) = context.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let nearest = format!("{section}.{}", nearest(key, &KEYS));
            return Err(unknown(&format!("{section}.{key}"), nearest));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn context(server: &str) -> Context {
        Context {
            server: server.parse().unwrap(),
            ca_file: None,
            identity_file: None,
            token_file: None,
        }
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn private(file: &Path) {
        fs::write(file, "secret").unwrap();
        fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn what_was_added_is_read_again_with_whole_paths() {
        let outer = folder();
        let folder = outer.path().join("a/jobctl");
        let mut prod = context("https://10.0.0.1:3000");
        prod.ca_file = Some(folder.join("prod.ca.pem"));
        prod.identity_file = Some("/elsewhere/prod.pem".into());
        Contexts::change(&folder, |contexts| {
            contexts.add("prod", prod.clone())?;
            contexts.add("dev", context("http://127.0.0.1:4000"))?;
            contexts.set_current("prod")
        })
        .unwrap();
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join(FILE)), 0o600);
        let text = fs::read_to_string(folder.join(FILE)).unwrap();
        assert!(text.contains("ca_file = \"prod.ca.pem\"\n"), "{text}");

        let read = Contexts::load(&folder).unwrap();
        assert_eq!(read.current(), Some("prod"));
        let named = read.get("prod").unwrap();
        assert!(named.current);
        assert_eq!(named.context, prod);
        let names: Vec<_> = read.all().into_iter().map(|named| named.name).collect();
        assert_eq!(names, ["dev", "prod"]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn nothing_there_is_no_context_and_makes_nothing() {
        let outer = folder();
        let contexts = Contexts::load(&outer.path().join("none")).unwrap();
        assert!(contexts.all().is_empty() && contexts.current().is_none());
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_added_context_is_never_overwritten_and_a_refusal_changes_nothing() {
        let folder = folder();
        let add = |name: &str, context| {
            Contexts::change(folder.path(), |contexts| contexts.add(name, context))
        };
        add("prod", context("http://a")).unwrap();
        let before = fs::read(folder.path().join(FILE)).unwrap();
        let error = add("prod", context("http://b")).unwrap_err();
        assert!(matches!(error, Error::Exists(_)), "{error}");
        for name in ["", "a b", "-x", "../x", &"x".repeat(65)] {
            let error = add(name, context("http://b")).unwrap_err();
            assert!(matches!(error, Error::BadName(_)), "{error}");
        }
        let mut both = context("http://b");
        both.identity_file = Some("/a".into());
        both.token_file = Some("/b".into());
        let error = add("both", both).unwrap_err();
        assert!(matches!(error, Error::TwoCredentials(_)), "{error}");
        assert_eq!(fs::read(folder.path().join(FILE)).unwrap(), before);
    }

    #[test]
    fn a_removed_context_takes_along_only_files_of_its_own_in_the_folder() {
        let (folder, elsewhere) = (folder(), folder());
        let [own, shared] = ["own.pem", "shared.pem"].map(|name| folder.path().join(name));
        let outside = elsewhere.path().join("token");
        for file in [&own, &shared, &outside] {
            private(file);
        }
        let mut prod = context("http://a");
        prod.identity_file = Some(own.clone());
        prod.ca_file = Some(shared.clone());
        let mut other = context("http://b");
        other.ca_file = Some(shared.clone());
        other.token_file = Some(outside.clone());
        let mut sly = context("http://c");
        sly.ca_file = Some(folder.path().join(FILE));
        sly.token_file = Some(folder.path().join("..").join("x"));
        Contexts::change(folder.path(), |contexts| {
            contexts.add("prod", prod)?;
            contexts.add("other", other)?;
            contexts.add("sly", sly)?;
            contexts.set_current("prod")
        })
        .unwrap();
        let remove = |name| Contexts::change(folder.path(), |contexts| contexts.remove(name));
        remove("prod").unwrap();
        assert!(!own.exists() && shared.exists());
        assert_eq!(Contexts::load(folder.path()).unwrap().current(), None);
        remove("other").unwrap();
        assert!(!shared.exists() && outside.exists());
        remove("sly").unwrap();
        assert!(Contexts::load(folder.path()).unwrap().all().is_empty());
        let error = remove("prod").unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }

    #[test]
    fn a_linked_file_stays_linked() {
        let (folder, elsewhere) = (folder(), folder());
        let kept = elsewhere.path().join("mine.toml");
        fs::write(&kept, "").unwrap();
        std::os::unix::fs::symlink(&kept, folder.path().join(FILE)).unwrap();
        let add = |contexts: &mut Contexts| contexts.add("prod", context("http://a"));
        Contexts::change(folder.path(), add).unwrap();
        assert!(
            fs::read_to_string(&kept)
                .unwrap()
                .contains("[contexts.prod]")
        );
        assert!(folder.path().join(FILE).is_symlink());
    }

    #[test]
    fn of_changes_at_the_same_time_none_is_lost() {
        let folder = folder();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = folder.path();
                scope.spawn(move || {
                    let name = format!("c{number}");
                    Contexts::change(path, |contexts| contexts.add(&name, context("http://a")))
                        .unwrap();
                });
            }
        });
        assert_eq!(Contexts::load(folder.path()).unwrap().all().len(), 8);
    }

    #[test]
    fn a_slip_is_put_right() {
        let folder = folder();
        let add = |contexts: &mut Contexts| contexts.add("prod", context("http://a"));
        Contexts::change(folder.path(), add).unwrap();
        let contexts = Contexts::load(folder.path()).unwrap();
        let said = |name| contexts.get(name).unwrap_err().to_string();
        assert_eq!(said("prdo"), "context prdo not found, did you mean prod?");
        assert_eq!(said("testing"), "context testing not found");
    }

    #[test]
    fn what_nobody_understands_is_an_error_that_says_where() {
        let folder = folder();
        let said = |text: &str| {
            fs::write(folder.path().join(FILE), text).unwrap();
            match Contexts::load(folder.path()).unwrap_err() {
                Error::File(config::Error::UnknownKey { key, nearest, .. }) => {
                    format!("{key} {nearest}")
                }
                Error::File(config::Error::Malformed { source, .. }) => source.to_string(),
                error => error.to_string(),
            }
        };
        for (text, key) in [
            ("curent = \"a\"", "curent current"),
            ("sever = \"a\"", "sever contexts.NAME.server"),
            ("[context.prod]\nserver = \"http://a\"", "context contexts"),
            (
                "[contexts.prod]\nserver = \"http://a\"\nca_fil = \"x\"",
                "contexts.prod.ca_fil contexts.prod.ca_file",
            ),
        ] {
            assert_eq!(said(text), key);
        }
        for (text, words) in [
            ("[contexts.prod]\n", "missing field `server`"),
            ("[contexts.prod]\nserver = \"ftp://a\"", "line 2"),
            ("contexts = 1", "is a section"),
            ("contexts.prod = 1", "`contexts.prod`"),
            ("[contexts.\"a b\"]\nserver = \"http://a\"", "`a b`"),
            (
                "[contexts.a]\nserver = \"http://a\"\ntoken_file = \"x\"\nidentity_file = \"y\"",
                "both an identity and a token",
            ),
        ] {
            let said = said(text);
            assert!(said.contains(words), "{text}: {said}");
        }
    }
}
