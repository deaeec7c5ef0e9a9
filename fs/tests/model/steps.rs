//! Random steps: each chooses by number among what the model has, so that shortened sequences still make sense.

use mica_fs::inode::FileKind;
use proptest::prelude::*;
use rustix::fs::{RenameFlags, makedev};

use super::reference::{Action, Body, Model, Name, Path};

/// The last is so long that no mark fits on top of it, nor two of them in a redirect of overlayfs.
const NAMES: [&[u8]; 7] = [b"aaa", b"bbb", b"ccc", b"ddd", b"z\xff!", b"\xc3\xbcx", &[b'n'; 254]];
/// Attributes that every filesystem takes.
pub const XATTRS: &[&str] = &["user.one", "user.two"];

/// What happens next.
#[derive(Clone, Debug)]
pub enum Step {
    Mkdir(usize, usize),
    Create(usize, usize, u16),
    Symlink(usize, usize, usize),
    Mknod(usize, usize, usize),
    Link(usize, usize, usize),
    Unlink(usize),
    Rmdir(usize),
    Rename(usize, usize, usize, usize),
    Exchange(usize, usize),
    Write(usize, u16, u16),
    Truncate(usize, u16),
    Chmod(usize, u32),
    Chown(usize, u32),
    SetTimes(usize, i32, u32),
    SetXattr(usize, usize, u8),
    RemoveXattr(usize, usize),
    /// Opens a file and keeps the handle.
    Hold(usize, bool),
    /// Writes through a kept handle.
    HeldWrite(usize, u16, u16),
    /// Gives back all that was looked up.
    Forget,
    Remount,
    /// Another process goes on where this one was.
    TakeOver,
    /// Makes the upper one more layer.
    Commit,
}

pub fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..count)
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..1000_usize;
    prop_oneof![
        8 => (at(), at()).prop_map(|(dir, name)| Step::Mkdir(dir, name)),
        8 => (at(), at(), any::<u16>()).prop_map(|(dir, name, mode)| Step::Create(dir, name, mode & 0o777 | 0o400)),
        3 => (at(), at(), at()).prop_map(|(dir, name, target)| Step::Symlink(dir, name, target)),
        3 => (at(), at(), at()).prop_map(|(dir, name, kind)| Step::Mknod(dir, name, kind)),
        6 => (at(), at(), at()).prop_map(|(file, dir, name)| Step::Link(file, dir, name)),
        6 => at().prop_map(Step::Unlink),
        5 => at().prop_map(Step::Rmdir),
        14 => (at(), at(), at(), at()).prop_map(|(from, dir, name, flags)| Step::Rename(from, dir, name, flags)),
        4 => (at(), at()).prop_map(|(one, other)| Step::Exchange(one, other)),
        6 => (at(), 0..9000_u16, 1..6000_u16).prop_map(|(file, offset, length)| Step::Write(file, offset, length)),
        3 => (at(), 0..9000_u16).prop_map(|(file, size)| Step::Truncate(file, size)),
        3 => (at(), 0..0o777_u32).prop_map(|(at, mode)| Step::Chmod(at, mode | 0o400)),
        2 => (at(), 0..3_u32).prop_map(|(at, id)| Step::Chown(at, id)),
        3 => (at(), any::<i32>(), 0..1_000_000_000_u32).prop_map(|(at, secs, nanos)| Step::SetTimes(at, secs, nanos)),
        4 => (at(), at(), any::<u8>()).prop_map(|(at, name, value)| Step::SetXattr(at, name, value)),
        2 => (at(), at()).prop_map(|(at, name)| Step::RemoveXattr(at, name)),
        3 => (at(), any::<bool>()).prop_map(|(file, write)| Step::Hold(file, write)),
        5 => (at(), 0..6000_u16, 1..3000_u16).prop_map(|(at, offset, length)| Step::HeldWrite(at, offset, length)),
        2 => Just(Step::Forget),
        2 => Just(Step::Remount),
        2 => Just(Step::TakeOver),
        1 => Just(Step::Commit),
    ]
}

/// What the filesystems under test can do.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// Character devices 0:0 that programs make.
    pub zero_devices: bool,
    /// Names of extended attributes.
    pub xattrs: &'static [&'static str],
    /// Sockets.
    pub sockets: bool,
    /// Directories with long paths that move.
    pub long_paths: bool,
}

fn pick<T: Clone>(from: &[T], at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from[at % from.len()].clone())
}

fn name(at: usize, can: Abilities) -> Name {
    let names = if can.long_paths { &NAMES[..] } else { &NAMES[..NAMES.len() - 1] };
    names[at % names.len()].to_vec()
}

/// Bytes that tell where they were written.
pub fn pattern(offset: u16, length: u16) -> Vec<u8> {
    (0..length).map(|at| (offset.wrapping_add(at).wrapping_mul(31) >> 3) as u8).collect()
}

/// The change that a step asks for in the model's present state; `None` when there is nothing to ask.
pub fn action(step: &Step, model: &Model, can: Abilities) -> Option<Action> {
    let all = model.paths();
    let of = |wanted: fn(&Body) -> bool| -> Vec<Path> {
        let fits = |(_, id): &&(Path, u64)| model.node(*id).is_some_and(|node| wanted(&node.body));
        all.iter().filter(fits).map(|(path, _)| path.clone()).collect()
    };
    let dirs = of(|body| matches!(body, Body::Dir(_)));
    let others = of(|body| !matches!(body, Body::Dir(_)));
    let files = of(|body| matches!(body, Body::File(_)));
    let plain = of(|body| matches!(body, Body::File(_) | Body::Dir(_)));
    let no_links = of(|body| !matches!(body, Body::Symlink(_)));
    let any: Vec<Path> = all.iter().map(|(path, _)| path.clone()).collect();
    let below = |dir: usize, at: usize| Some([pick(&dirs, dir)?, vec![name(at, can)]].concat());
    Some(match *step {
        Step::Mkdir(dir, at) => Action::Mkdir(below(dir, at)?, 0o755),
        Step::Create(dir, at, mode) => Action::Create(below(dir, at)?, u32::from(mode)),
        Step::Symlink(dir, at, target) => {
            Action::Symlink(below(dir, at)?, pick(&any, target)?.join(&b'/')).filter_empty_target()?
        }
        Step::Mknod(dir, at, kind) => {
            let mut kinds =
                vec![(FileKind::Fifo, 0), (FileKind::CharDevice, makedev(1, 3)), (FileKind::BlockDevice, 7)];
            kinds.extend(can.sockets.then_some((FileKind::Socket, 0)));
            kinds.extend(can.zero_devices.then_some((FileKind::CharDevice, 0)));
            let (kind, rdev) = pick(&kinds, kind)?;
            Action::Mknod(below(dir, at)?, kind, rdev)
        }
        Step::Link(file, dir, at) => Action::Link(pick(&others, file)?, below(dir, at)?),
        Step::Unlink(at) => Action::Unlink(pick(if at % 8 == 0 { &dirs } else { &others }, at / 8)?),
        Step::Rmdir(at) => Action::Rmdir(pick(if at % 8 == 0 { &others } else { &dirs }, at / 8)?),
        Step::Rename(from, dir, at, flags) => {
            let flags = match flags % 8 {
                0 => RenameFlags::NOREPLACE,
                1 if can.zero_devices => RenameFlags::WHITEOUT,
                _ => RenameFlags::empty(),
            };
            // Directories are what makes renaming hard.
            let from = pick(if from % 3 > 0 { &dirs } else { &any }, from / 3)?;
            Action::Rename(from, below(dir, at)?, flags)
        }
        Step::Exchange(one, other) => Action::Rename(pick(&any, one)?, pick(&any, other)?, RenameFlags::EXCHANGE),
        Step::Write(file, offset, length) => {
            Action::Write(pick(&files, file)?, u64::from(offset), pattern(offset, length))
        }
        Step::Truncate(file, size) => Action::Truncate(pick(&files, file)?, u64::from(size)),
        Step::Chmod(at, mode) => Action::Chmod(pick(&no_links, at)?, mode),
        Step::Chown(at, id) => Action::Chown(pick(&any, at)?, id, id + 1),
        Step::SetTimes(at, secs, nanos) => Action::SetTimes(pick(&any, at)?, i64::from(secs), nanos),
        Step::SetXattr(at, name, value) => Action::SetXattr(pick(&plain, at)?, xattr(name, can), vec![value; 3]),
        Step::RemoveXattr(at, name) => Action::RemoveXattr(pick(&plain, at)?, xattr(name, can)),
        Step::Hold(..) | Step::HeldWrite(..) | Step::Forget | Step::Remount | Step::TakeOver | Step::Commit => {
            return None;
        }
    })
    .filter(|action| match action {
        // What becomes of the root is not the filesystem's to say.
        Action::Rmdir(at) | Action::Unlink(at) => !at.is_empty(),
        Action::Rename(from, to, _) => !from.is_empty() && !to.is_empty(),
        _ => true,
    })
}

fn xattr(at: usize, can: Abilities) -> Name {
    can.xattrs[at % can.xattrs.len()].into()
}

impl Action {
    fn filter_empty_target(self) -> Option<Action> {
        match &self {
            Action::Symlink(_, target) if target.is_empty() => None,
            _ => Some(self),
        }
    }
}
