//! Who a container's processes are: `user[:group]` by the container's own `/etc/passwd` and `/etc/group`.

use std::io;
use std::path::Path;

use super::invalid::Invalid;
use crate::beneath::Root;

/// Largest file of users or groups that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The ids of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Further groups.
    pub(crate) groups: Vec<u32>,
}

/// The container's users and groups.
#[derive(Debug)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads them from a container's root; missing files are empty.
    pub(crate) fn read(root: &Root) -> io::Result<Self> {
        let text = |path: &str| root.read_text(Path::new(path), FILE_BYTES_MAX);
        Ok(Self {
            passwd: text("/etc/passwd")?.unwrap_or_default(),
            group: text("/etc/group")?.unwrap_or_default(),
        })
    }

    /// The ids that `user` (empty for root) and the names or numbers in `additional` mean.
    pub(crate) fn resolve(&self, user: &str, additional: &[String]) -> Result<Identity, Invalid> {
        let (user, group) =
            user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
        let user = if user.is_empty() { "0" } else { user };
        let entry = self.user(user);
        let (name, uid, gid) = match (&entry, user.parse::<u32>()) {
            (Some((name, uid, gid)), _) => (*name, *uid, *gid),
            (None, Ok(uid)) => ("", uid, 0),
            (None, Err(_)) => return Err(Invalid::User { name: user.to_owned() }),
        };
        let mut identity = Identity { uid, gid, groups: Vec::new() };
        match group.filter(|group| !group.is_empty()) {
            Some(group) => identity.gid = self.group_id(group)?,
            None => identity.groups = self.groups_of(name),
        }
        for group in additional {
            let gid = self.group_id(group)?;
            if !identity.groups.contains(&gid) {
                identity.groups.push(gid);
            }
        }
        Ok(identity)
    }

    /// Name, user id and group id of a user given by name or number.
    fn user(&self, wanted: &str) -> Option<(&str, u32, u32)> {
        self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (fields.next()?, fields.next()?.parse().ok()?);
            (name == wanted || uid == wanted).then_some(())?;
            Some((name, uid.parse().ok()?, gid))
        })
    }

    fn group_id(&self, wanted: &str) -> Result<u32, Invalid> {
        let by_name = self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _password, gid) = (fields.next()?, fields.next()?, fields.next()?);
            (name == wanted).then(|| gid.parse().ok())?
        });
        by_name
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| Invalid::Group { name: wanted.to_owned() })
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        if user.is_empty() {
            return Vec::new();
        }
        let member = |line: &str| {
            let mut fields = line.split(':').skip(2);
            let (gid, members) = (fields.next()?.parse().ok()?, fields.next()?);
            members.split(',').any(|member| member.trim() == user).then_some(gid)
        };
        self.group.lines().filter_map(member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Accounts, Identity};

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbroken\n".into(),
            group: "root:x:0:\nweb:x:34:\nlogs:x:50:root,web\naudio:x:63:web\n".into(),
        }
    }

    fn resolve(user: &str, additional: &[&str]) -> Result<(u32, u32, Vec<u32>), String> {
        let additional: Vec<String> = additional.iter().map(|group| (*group).to_owned()).collect();
        let resolved = accounts().resolve(user, &additional);
        resolved
            .map(|Identity { uid, gid, groups }| (uid, gid, groups))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        assert_eq!(resolve("", &[]), Ok((0, 0, vec![50])));
        assert_eq!(resolve("web", &[]), Ok((33, 34, vec![50, 63])));
        assert_eq!(resolve("33", &[]), Ok((33, 34, vec![50, 63])));
        assert_eq!(resolve("web:audio", &[]), Ok((33, 63, vec![])));
        assert_eq!(resolve("1000", &[]), Ok((1000, 0, vec![])));
        assert_eq!(resolve("1000:1001", &["audio", "7"]), Ok((1000, 1001, vec![63, 7])));
        assert_eq!(
            resolve("nobody", &[]),
            Err("unable to find user nobody: no matching entries in passwd file".into())
        );
        assert_eq!(resolve("web:none", &[]), Err("Unable to find group none".into()));
    }
}
