//! The text of `-o`.
//!
//! Options are separated by commas, the directories of `lowerdir` by colons; a backslash takes the meaning off the
//! character behind it, and commas between double quotes separate nothing. Of a list of directories the first is on
//! top. Options that say the same thing override earlier ones. What is not known is refused by name, or handed back
//! to those who must put up with it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::mount::MountAttrFlags;

use crate::branches::{BranchMode, BranchSpec, CreatePolicy};
use crate::error::{Error, Result};
use crate::ids::IdMap;
use crate::lower::Role;
use crate::owners::Owners;
use crate::session::MountOptions;
use crate::upper::{BlockCopy, Claim, Format};

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `lowerdir`: directories to be united, top first; those behind `::` have data alone.
    pub lower: Vec<(PathBuf, Role)>,
    /// `branch`, once for each: directories to be united as AUFS does, top first.
    pub branches: Vec<BranchSpec>,
    /// `create`: which of the writable branches gets what is new.
    pub create: Option<CreatePolicy>,
    /// `upperdir`: where changes go.
    pub upper: Option<PathBuf>,
    /// `workdir`: on the upper's disk, for changes under way.
    pub work: Option<PathBuf>,
    /// `userxattr`, or its contrary: which extended attributes the layers use. Without, what the process may use.
    pub format: Option<Format>,
    /// `metacopy`: whether changes of attributes alone leave a file's contents in the lower.
    pub metacopy: bool,
    /// `block_copy_up`: how large files are copied up block by block; without, they are not.
    pub block_copy: Option<BlockCopy>,
    /// `xattr_permissions`: where owners and modes are kept.
    pub owners: Owners,
    /// `index`: what to do about another mount over the same upper.
    pub claim: Claim,
    /// Whether the upper may be one that fuse-overlayfs has written. No option: whoever takes its place says so.
    pub adopt: bool,
    /// What the mount looks like.
    pub mount: MountOptions,
}

/// Options of mount(8) that mean nothing here: to be mounted or not by `mount -a`, by whom, in what order, and
/// comments.
const IDLE: [&str; 20] = [
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "nouser",
    "group",
    "owner",
    "async",
    "silent",
    "loud",
    "nomand",
    "nolazytime",
    "default_permissions",
    // Of FUSE: what Mica does by itself, as the kernel allows.
    "splice_write",
    "splice_read",
    "splice_move",
    "kernel_cache",
    "max_write",
    "ino32_t",
];

impl Options {
    /// Takes in the text of one `-o`; several add up.
    pub fn parse(&mut self, text: &[u8]) -> Result<()> {
        match self.take(text)?.into_iter().next() {
            Some(option) => Err(Error::Option { option, reason: "is not known".to_owned() }),
            None => Ok(()),
        }
    }

    /// The same, but returns the options that are not known, as they were given.
    pub fn take(&mut self, text: &[u8]) -> Result<Vec<String>> {
        let mut unknown = Vec::new();
        for option in split(text, b',').into_iter().filter(|option| !option.is_empty()) {
            if !self.option(&option)? {
                unknown.push(option.escape_ascii().to_string());
            }
        }
        Ok(unknown)
    }

    /// What must hold of all of them together.
    pub fn check(&self) -> Result<()> {
        let refused =
            |option: &str, reason: &str| Err(Error::Option { option: option.to_owned(), reason: reason.to_owned() });
        if !self.branches.is_empty() {
            return match () {
                () if !self.lower.is_empty() || self.upper.is_some() => {
                    refused("branch", "does not go with lowerdir and upperdir")
                }
                () if self.owners != Owners::Disk => refused("branch", "does not go with xattr_permissions"),
                () => Ok(()),
            };
        }
        if self.create.is_some() {
            return refused("create", "is for branches");
        }
        match (&self.upper, &self.work) {
            (Some(_), None) => refused("upperdir", "needs a workdir"),
            (None, Some(_)) => refused("workdir", "needs an upperdir"),
            _ => Ok(()),
        }
    }

    /// False if the option is not known.
    fn option(&mut self, option: &[u8]) -> Result<bool> {
        let (name, value) = match option.iter().position(|&byte| byte == b'=') {
            Some(at) => (&option[..at], Some(&option[at + 1..])),
            None => (option, None),
        };
        let Ok(name) = std::str::from_utf8(name) else { return Ok(false) };
        match value {
            Some(value) => self.valued(name, value).map_or(Ok(false), |taken| taken.map(|()| true)),
            None => Ok(self.flag(name).is_some()),
        }
    }

    fn valued(&mut self, name: &str, value: &[u8]) -> Option<Result<()>> {
        let refused = |reason: &str| Some(Err(Error::Option { option: format!("{name}="), reason: reason.to_owned() }));
        match name {
            "lowerdir" => {
                let parts = split(value, b':');
                // Empty parts mean nothing, but one between two others.
                let first = parts.iter().position(|dir| !dir.is_empty()).unwrap_or(parts.len());
                let merged = parts[first..].iter().position(Vec::is_empty).map_or(parts.len(), |at| first + at);
                let layer = |(at, dir): (usize, &Vec<u8>)| {
                    let role = if at < merged { Role::Layer } else { Role::Data };
                    (!dir.is_empty()).then(|| (path(dir), role))
                };
                self.lower = parts.iter().enumerate().filter_map(layer).collect();
                if self.lower.is_empty() {
                    return refused("names no directory");
                }
            }
            "branch" => return Some(self.branch(value)),
            "create" => match std::str::from_utf8(value).ok().and_then(CreatePolicy::named) {
                Some(policy) => self.create = Some(policy),
                None => return refused("is none of tdp, mfs and rr"),
            },
            "upperdir" | "workdir" if value.is_empty() => return refused("names no directory"),
            "upperdir" => self.upper = Some(path(value)),
            "workdir" => self.work = Some(path(value)),
            "fsname" | "source" => match String::from_utf8(plain(value)) {
                Ok(fsname) if !fsname.is_empty() => self.mount.fsname = fsname,
                _ => return refused("is no text"),
            },
            "threads" => match std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
                Some(threads) if (1..=256).contains(&threads) => self.mount.threads = threads,
                _ => return refused("is no number from 1 to 256"),
            },
            "passthrough" => match value {
                b"on" => self.mount.passthrough = true,
                b"off" => self.mount.passthrough = false,
                _ => return refused("is neither \"on\" nor \"off\""),
            },
            name if name.starts_with("x-") || name == "comment" => {}
            _ => return self.shown(name, value),
        }
        Some(Ok(()))
    }

    /// `branch=PATH=MODE`, as AUFS has them: the first is on top.
    fn branch(&mut self, value: &[u8]) -> Result<()> {
        // The first branch is writable by default, the others are not.
        let mode = if self.branches.is_empty() { BranchMode::Writable } else { BranchMode::ReadOnly };
        self.branches.push(branch(&plain(value), mode)?);
        Ok(())
    }

    /// Options of `fuse-overlayfs`: what programs are shown, and what Mica has no use for since it does so always.
    fn shown(&mut self, name: &str, value: &[u8]) -> Option<Result<()>> {
        let refused = |reason: String| Some(Err(Error::Option { option: format!("{name}="), reason }));
        let text = String::from_utf8_lossy(value);
        let number = |what: &str| text.parse::<u32>().map_err(|_| format!("\"{text}\" is no {what}"));
        let switch = || match &*text {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(format!("\"{text}\" is neither 0 nor 1")),
        };
        let shown = &mut self.mount.shown;
        let taken = match name {
            "uidmapping" => IdMap::parse(&text).map(|map| shown.ids.users = map),
            "gidmapping" => IdMap::parse(&text).map(|map| shown.ids.groups = map),
            "squash_to_uid" => number("user").map(|id| shown.ids.squash_user = Some(id)),
            "squash_to_gid" => number("group").map(|id| shown.ids.squash_group = Some(id)),
            "fsync" | "sync" => switch().map(|sync| shown.volatile = !sync),
            "noxattrs" => switch().map(|without| shown.no_xattrs = without),
            "xattr_permissions" => match &*text {
                "0" => Ok(Owners::Disk),
                "1" => Ok(Owners::Security),
                "2" => Ok(Owners::Containers),
                _ => Err(format!("\"{text}\" is none of 0, 1 and 2")),
            }
            .map(|owners| {
                self.owners = owners;
                // The disk's ACLs name the disk's owners.
                shown.no_acls |= owners != Owners::Disk;
            }),
            "redirect_dir" | "xino" | "nfs_export" | "verity" | "uuid" if is_switch(&text) => Ok(()),
            "index" if matches!(&*text, "on" | "off") => {
                self.claim = if text == "on" { Claim::Strict } else { Claim::Tolerant };
                Ok(())
            }
            "metacopy" if matches!(&*text, "on" | "off") => {
                self.metacopy = text == "on";
                Ok(())
            }
            "block_copy_up" => match &*text {
                "off" => Ok(BlockCopy::NEVER),
                "on" => Ok(BlockCopy::default()),
                "force" => Ok(BlockCopy { force: true, ..BlockCopy::default() }),
                _ => Err(format!("\"{text}\" is none of on, off and force")),
            }
            .map(|how| self.block_copy = Some(how)),
            "block_copy_up_from" => number("size in bytes").map(|bytes| {
                let how = self.block_copy.unwrap_or_default();
                self.block_copy = Some(BlockCopy { from_bytes: bytes.into(), ..how });
            }),
            "threaded" | "writeback" | "fast_ino" | "fast_ino_check" => switch().map(drop),
            "timeout" => text.parse::<f64>().map(drop).map_err(|_| format!("\"{text}\" is no number of seconds")),
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                self.mount.labels.retain(|(known, _)| known != name);
                self.mount.labels.push((name.to_owned(), text.trim_matches('"').to_owned()));
                Ok(())
            }
            "plugins" | "max_write" => Ok(()),
            _ => return None,
        };
        match taken {
            Ok(()) => Some(Ok(())),
            Err(reason) => refused(reason),
        }
    }

    fn flag(&mut self, name: &str) -> Option<()> {
        if IDLE.contains(&name) || name.starts_with("x-") {
            return Some(());
        }
        match name {
            "ro" => self.mount.read_only = true,
            "rw" => self.mount.read_only = false,
            "userxattr" => self.format = Some(Format::User),
            "nouserxattr" => self.format = Some(Format::Trusted),
            "allow_other" => self.mount.allow_other = true,
            "noallow_other" => self.mount.allow_other = false,
            "squash_to_root" => {
                let ids = &mut self.mount.shown.ids;
                ids.squash_user.get_or_insert(0);
                ids.squash_group.get_or_insert(0);
            }
            "static_nlink" => self.mount.shown.static_nlink = true,
            "volatile" => self.mount.shown.volatile = true,
            "idmap" => self.mount.shown.idmapped = true,
            "noidmap" => self.mount.shown.idmapped = false,
            "noacl" => self.mount.shown.no_acls = true,
            "acl" => self.mount.shown.no_acls = false,
            _ => {
                let (set, cleared) = attribute(name)?;
                self.mount.attributes.remove(cleared);
                self.mount.attributes.insert(set);
            }
        }
        Some(())
    }
}

/// The values of overlayfs' options for features that Mica has, or has no need of, in every mount.
fn is_switch(text: &str) -> bool {
    matches!(text, "on" | "off" | "auto" | "follow" | "nofollow" | "null")
}

/// A branch by its text, `PATH` or `PATH=MODE`.
pub fn branch(text: &[u8], default: BranchMode) -> Result<BranchSpec> {
    let refused = |reason: &str| {
        let option = format!("branch={}", text.escape_ascii());
        Err(Error::Option { option, reason: reason.to_owned() })
    };
    let (dir, mode) = match text.iter().rposition(|&byte| byte == b'=') {
        Some(at) => (&text[..at], std::str::from_utf8(&text[at + 1..]).ok().and_then(BranchMode::named)),
        None => (text, Some(default)),
    };
    let Some(mode) = mode else { return refused("has another mode than rw, ro and ro+wh") };
    if dir.is_empty() {
        return refused("names no directory");
    }
    Ok(BranchSpec { path: OsString::from_vec(dir.to_vec()).into(), mode, work: None })
}

/// The mount's attributes that an option sets and clears.
fn attribute(name: &str) -> Option<(MountAttrFlags, MountAttrFlags)> {
    let none = MountAttrFlags::empty();
    let (suid, dev) = (MountAttrFlags::MOUNT_ATTR_NOSUID, MountAttrFlags::MOUNT_ATTR_NODEV);
    let (exec, diratime) = (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountAttrFlags::MOUNT_ATTR_NODIRATIME);
    let (noatime, strict) = (MountAttrFlags::MOUNT_ATTR_NOATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME);
    let symlinks = MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
    Some(match name {
        "suid" => (none, suid),
        "nosuid" => (suid, none),
        "dev" => (none, dev),
        "nodev" => (dev, none),
        "exec" => (none, exec),
        "noexec" => (exec, none),
        "diratime" => (none, diratime),
        "nodiratime" => (diratime, none),
        "symfollow" => (none, symlinks),
        "nosymfollow" => (symlinks, none),
        "noatime" => (noatime, strict),
        "strictatime" => (strict, noatime),
        "atime" | "relatime" => (none, noatime | strict),
        "norelatime" | "nostrictatime" => (none, none),
        _ => return None,
    })
}

/// Splits at `separator`, unless a backslash stands before it or it is between double quotes that begin a value.
/// Backslashes and quotes stay.
fn split(text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = text.iter();
    let (mut quoted, mut before) = (false, 0);
    while let Some(&byte) = bytes.next() {
        if byte == b'"' {
            // Elsewhere a quote is part of a path.
            quoted = !quoted && before == b'=';
        }
        before = byte;
        if byte == separator && !quoted {
            parts.push(Vec::new());
            continue;
        }
        if let Some(part) = parts.last_mut() {
            part.push(byte);
            if byte == b'\\' {
                part.extend(bytes.next());
            }
        }
    }
    parts
}

/// Takes the backslashes off.
fn plain(text: &[u8]) -> Vec<u8> {
    let mut bytes = text.iter();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(&byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().copied().unwrap_or(byte) } else { byte });
    }
    plain
}

fn path(text: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(plain(text)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn layers<const N: usize>(paths: [&str; N]) -> Vec<(PathBuf, Role)> {
        paths.map(|path| (path.into(), Role::Layer)).into()
    }

    fn parsed(text: &str) -> Result<Options> {
        let mut options = Options::default();
        options.parse(text.as_bytes())?;
        options.check()?;
        Ok(options)
    }

    #[test]
    fn directories_are_split_at_colons_that_are_not_escaped() {
        let options = parsed(r"lowerdir=/a\:b:/c\,d:/e\\f,upperdir=/u\,v,workdir=/w:x").unwrap();
        assert_eq!(options.lower, layers(["/a:b", "/c,d", r"/e\f"]));
        assert_eq!(options.upper, Some("/u,v".into()));
        assert_eq!(options.work, Some("/w:x".into()));
    }

    #[test]
    fn directories_behind_two_colons_have_data_alone() {
        let data = ["/c", "/d"].map(|path| (PathBuf::from(path), Role::Data));
        assert_eq!(parsed("lowerdir=/a:/b::/c::/d").unwrap().lower, [&layers(["/a", "/b"])[..], &data].concat());
        assert_eq!(parsed("lowerdir=:/a:").unwrap().lower, layers(["/a"]));
    }

    /// Rule 74: A branch is `rw`, `ro` or `ro+wh`; without a mode the first is `rw`, the others are `ro`.
    #[test]
    fn branches_are_taken_in_their_order() {
        let told = |text: &str| {
            let branches = parsed(text).unwrap().branches.into_iter();
            branches.map(|branch| format!("{}:{}", branch.path.display(), branch.mode)).collect::<Vec<_>>().join(" ")
        };
        let text = "branch=/t\\,op,branch=/a=b=ro+wh,branch=/c=rw,branch=/d";
        assert_eq!(told(text), "/t,op:rw /a=b:ro+wh /c:rw /d:ro");
        assert_eq!(told("branch=/a=ro,branch=/b"), "/a:ro /b:ro");
        assert_eq!(parsed("branch=/a,create=mfs").unwrap().create, Some(CreatePolicy::MostFreeSpace));
        for text in ["branch=/a=rx", "branch==ro", "branch=/a,lowerdir=/b", "branch=/a,xattr_permissions=2"] {
            assert!(parsed(text).unwrap_err().to_string().contains("branch"), "{text}");
        }
        for text in ["branch=/a,create=best", "lowerdir=/a,create=rr"] {
            assert!(parsed(text).unwrap_err().to_string().contains("create"), "{text}");
        }
    }

    #[test]
    fn later_options_override_earlier_ones() {
        let options = parsed("ro,nosuid,nodev,noatime,lowerdir=/a,rw,suid,strictatime,fsname=x,fsname=y").unwrap();
        assert!(!options.mount.read_only);
        let expected = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
        assert_eq!(options.mount.attributes, expected);
        assert_eq!(options.mount.fsname, "y");
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        for option in ["redirect=1", "lowerdirs=/a", "frobnicate", "upperdir"] {
            let message = parsed(&format!("lowerdir=/a,{option}")).unwrap_err().to_string();
            assert!(message.contains(option), "{message}");
        }
    }

    #[test]
    fn an_upper_without_its_work_directory_is_refused() {
        assert!(parsed("lowerdir=/a,upperdir=/u").unwrap_err().to_string().contains("upperdir"));
        assert!(parsed("lowerdir=/a,workdir=/w").unwrap_err().to_string().contains("workdir"));
        assert!(parsed("lowerdir=").unwrap_err().to_string().contains("lowerdir"));
        assert!(parsed("threads=0").unwrap_err().to_string().contains("threads"));
    }

    /// Rule 69: Options that ask for what Mica always does (`xino`, `redirect_dir`, `timeout`, `writeback`, ...) are
    /// taken and mean nothing.
    #[test]
    fn options_of_fuse_overlayfs_are_understood_and_the_unknown_ones_handed_back() {
        let mut options = Options::default();
        let text = "lowerdir=/a:/b,upperdir=/u,workdir=/w,volatile,private,context=\"system_u:object_r:t:s0:c1,c2\",\
            uidmapping=:0:1000:1,gidmapping=0:1000:1:1:2000:5,squash_to_gid=9,squash_to_root,noacl,frob=1,timeout=1.5";
        assert_eq!(options.take(text.as_bytes()).unwrap(), ["private", "frob=1"]);
        options.check().unwrap();
        let shown = &options.mount.shown;
        assert!(shown.volatile && shown.no_acls && !shown.static_nlink && !shown.no_xattrs);
        assert_eq!((shown.ids.squash_user, shown.ids.squash_group), (Some(0), Some(9)));
        assert_eq!(shown.ids.users, IdMap::parse("0:1000:1").unwrap());
        assert_eq!(options.mount.labels, [("context".to_owned(), "system_u:object_r:t:s0:c1,c2".to_owned())]);
        assert_eq!(options.lower, layers(["/a", "/b"]));
    }

    #[test]
    fn contents_are_left_in_the_lower_if_that_is_asked_for() {
        assert!(parsed("lowerdir=/a,metacopy=off,metacopy=on").unwrap().metacopy);
        assert!(!parsed("lowerdir=/a,metacopy=off").unwrap().metacopy && !parsed("lowerdir=/a").unwrap().metacopy);
        assert!(parsed("lowerdir=/a,metacopy=auto").unwrap_err().to_string().contains("metacopy"));
    }

    #[test]
    fn files_are_copied_by_blocks_if_that_is_asked_for() {
        let how = |text: &str| parsed(&format!("lowerdir=/a,{text}")).unwrap().block_copy;
        assert_eq!(how("ro"), None);
        assert_eq!(how("block_copy_up=on"), Some(BlockCopy::default()));
        assert_eq!(how("block_copy_up=on,block_copy_up=off"), Some(BlockCopy::NEVER));
        let small = BlockCopy { from_bytes: 4096, force: true, ..BlockCopy::default() };
        assert_eq!(how("block_copy_up=force,block_copy_up_from=4096"), Some(small));
        assert!(parsed("lowerdir=/a,block_copy_up=1").unwrap_err().to_string().contains("block_copy_up"));
    }

    #[test]
    fn a_known_option_with_a_wrong_value_is_refused_by_name() {
        for option in ["uidmapping=1", "squash_to_uid=x", "fsync=2", "xattr_permissions=3", "redirect_dir=maybe"] {
            let message = parsed(&format!("lowerdir=/a,{option}")).unwrap_err().to_string();
            assert!(message.contains(option.split('=').next().unwrap()), "{message}");
        }
    }

    #[test]
    fn quotes_in_a_path_are_part_of_it() {
        assert_eq!(parsed("lowerdir=/a\"b,ro").unwrap().lower, layers(["/a\"b"]));
    }

    #[test]
    fn what_mount_and_fstab_add_is_accepted() {
        parsed("rw,relatime,dev,suid,exec,defaults,nofail,x-systemd.requires=/a,_netdev,comment=x,lowerdir=/a")
            .unwrap();
    }
}
