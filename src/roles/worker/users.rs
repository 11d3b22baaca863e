//! Who jobs run as: looks users up when the worker starts, and decides which of
//! them a job gets.

use std::{ffi::CString, io, path::PathBuf};

use nix::unistd::{self, Uid};
use rustix::thread::{CapabilitySet, capabilities};

use super::{error::Refusal, rules::Rules};

/// A user that jobs may run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) home: PathBuf,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

/// Which users there are for jobs.
#[derive(Clone, Debug, Default)]
pub(super) struct Users {
    /// The worker's own; `None`: it has no name.
    own: Option<String>,
    /// Where a start does not say; `None`: the worker's own.
    usual: Option<User>,
    allowed: Vec<User>,
}

impl Users {
    /// Looks all of them up. An error comes with the name it is about.
    pub(super) fn find(rules: &Rules) -> Result<Self, (String, io::Error)> {
        let find = |name: &String| find(name).map_err(|error| (name.clone(), error));
        let own = unistd::User::from_uid(Uid::effective()).ok().flatten();
        Ok(Self {
            own: own.map(|user| user.name),
            usual: rules.user.as_ref().map(find).transpose()?,
            allowed: rules
                .allow_users
                .iter()
                .map(find)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whom a job runs as; `None`: as the worker does.
    pub(super) fn choose(
        &self,
        asked: Option<&str>,
        worker: &str,
    ) -> Result<Option<&User>, Refusal> {
        let Some(asked) = asked else {
            return Ok(self.usual.as_ref());
        };
        let mut users = self.usual.iter().chain(&self.allowed);
        match users.find(|user| user.name == asked) {
            Some(user) => Ok(Some(user)),
            None if self.usual.is_none() && self.own.as_deref() == Some(asked) => Ok(None),
            None => Err(Refusal::UserNotAllowed {
                user: asked.to_owned(),
                worker: worker.to_owned(),
                allowed: self.names(),
            }),
        }
    }

    /// Whether some jobs run as root.
    pub(super) fn has_root(&self) -> bool {
        let usual = match &self.usual {
            Some(user) => user.uid == 0,
            None => Uid::effective().is_root(),
        };
        usual || self.allowed.iter().any(|user| user.uid == 0)
    }

    /// For an error and for the log.
    pub(super) fn names(&self) -> String {
        let usual = self.usual.as_ref().map(|user| &user.name);
        let mut names: Vec<&str> = usual
            .or(self.own.as_ref())
            .map(|n| &**n)
            .into_iter()
            .collect();
        names.extend(self.allowed.iter().map(|user| &*user.name));
        names.join(", ")
    }
}

fn find(name: &str) -> io::Result<User> {
    let user = unistd::User::from_name(name)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such user"))?;
    let c_name = CString::new(name)?;
    let groups = unistd::getgrouplist(&c_name, user.gid)?;
    if !user.uid.is_root() || !Uid::effective().is_root() {
        may_become_others()?;
    }
    Ok(User {
        name: user.name,
        home: user.dir,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: groups.into_iter().map(unistd::Gid::as_raw).collect(),
    })
}

/// Whether shims of this worker can start processes of other users, and signal them.
fn may_become_others() -> io::Result<()> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
    match capabilities(None)?.effective.contains(needed) {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the worker is not root, and lacks CAP_SETUID, CAP_SETGID or CAP_KILL",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> User {
        User {
            name: name.to_owned(),
            home: "/".into(),
            uid: 1000,
            gid: 1000,
            groups: Vec::new(),
        }
    }

    #[test]
    fn root_is_found_wherever_it_is_named() {
        let root = || User {
            uid: 0,
            ..user("root")
        };
        let users = |usual: Option<User>, allowed: Vec<User>| Users {
            own: None,
            usual,
            allowed,
        };
        let is_root = Uid::effective().is_root();
        assert_eq!(users(None, Vec::new()).has_root(), is_root);
        assert!(!users(Some(user("job")), vec![user("build")]).has_root());
        assert!(users(Some(root()), Vec::new()).has_root());
        assert!(users(Some(user("job")), vec![user("build"), root()]).has_root());
    }

    #[test]
    fn only_users_that_are_listed_are_had() {
        let users = |usual: Option<&str>| Users {
            own: Some("root".to_owned()),
            usual: usual.map(user),
            allowed: vec![user("build")],
        };
        let name = |users: &Users, asked| match users.choose(asked, "w1") {
            Ok(user) => user.map_or("(own)".to_owned(), |user| user.name.clone()),
            Err(error) => error.to_string(),
        };
        let as_worker = users(None);
        assert_eq!(name(&as_worker, None), "(own)");
        assert_eq!(name(&as_worker, Some("root")), "(own)");
        assert_eq!(name(&as_worker, Some("build")), "build");
        let as_job = users(Some("job"));
        assert_eq!(name(&as_job, None), "job");
        assert_eq!(name(&as_job, Some("job")), "job");
        for stranger in ["root", "0", "1000", "", "BUILD"] {
            let error = as_job.choose(Some(stranger), "w1").unwrap_err();
            assert_eq!(error.code(), "user_not_allowed");
            assert!(error.to_string().ends_with("only job, build"), "{error}");
        }
    }

    #[test]
    fn a_user_that_is_not_there_is_named() {
        let rules = Rules {
            allow_users: vec!["no-such-user".to_owned()],
            ..Rules::default()
        };
        let (name, error) = Users::find(&rules).unwrap_err();
        assert_eq!(name, "no-such-user");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
