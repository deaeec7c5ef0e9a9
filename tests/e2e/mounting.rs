//! Mounts that no engine asks for: by users, by mount(8), and by the name of fuse-overlayfs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use mica_tests::place::{self, Folders};
use mica_tests::wait::SOON;
use mica_tests::{Result, command, ensure, ensure_eq};

/// What every script finds: Mica under its names, a device, a user, and folders to be united.
///
/// It runs in a mount and a process namespace of its own, so nothing outlives it. `u COMMAND` is the user's command, who
/// has no privilege.
const BEFORE: &str = r#"
set -eu
cd "$1"
touch program && mount --bind "$2" program
for name in mica fuse-overlayfs mount.fuse.mica; do ln -s "$1/program" bin/$name; done
mkdir etc && cp /etc/passwd etc && echo 'mica-user:x:12345:12345::/:/bin/sh' >> etc/passwd
mount -t overlay -o "lowerdir=$1/etc:/etc" overlay /etc
mknod -m 666 fuse c 10 229 && mount --bind fuse /dev/fuse
# Servers of mounts end with the script, and have no time to remove their notes.
mkdir -m 777 state && export MICA_STATE=$1/state
PATH=$1/bin:$PATH
u() { setpriv --reuid 12345 --regid 12345 --clear-groups "$@"; }
u mkdir lower upper work mnt
u sh -c 'echo below > lower/file; echo gone > lower/gone; mkdir lower/dir'
dirs="lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work"
"#;

/// What the script prints; it must succeed.
fn script(test: &str, text: &str) -> Result<Option<String>> {
    if let Some(reason) = place::reason_to_skip() {
        place::tell_skipped(test, &reason);
        return Ok(None);
    }
    let folders = Folders::new()?;
    fs::set_permissions(folders.run(), fs::Permissions::from_mode(0o777))?;
    fs::create_dir(folders.run().join("bin"))?;
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    shell.args(["sh", "-c", &format!("{BEFORE}{text}"), "sh"]).arg(folders.run()).arg(place::mica()?);
    shell.env("XDG_RUNTIME_DIR", folders.run().join("xdg"));
    Ok(Some(command::succeed(&mut shell, SOON)?.text()))
}

/// Rule 70: A user without privilege mounts by `fusermount3`, for himself alone (`allow_other` takes leave of
/// fuse.conf), with nosuid and nodev; or in a user namespace of his own, with the rights that he has there.
#[test]
fn a_user_without_privilege_mounts_by_fusermount_and_unmounts() -> Result {
    let text = r"
u mica mount -o $dirs mnt
awk '$2 ~ /mnt$/ { print $3 }' /proc/mounts
u sh -euc 'echo above >> mnt/file; rm mnt/gone; mv mnt/dir mnt/moved; mkdir mnt/gone; ln -s x mnt/link'
u cat mnt/file
u ls mnt
# Others have no business in there, not even root.
ls mnt 2>/dev/null || echo closed
u stat -c '%t:%T' upper/dir
u mica umount mnt
u ls mnt
u mica mount -o $dirs,fsname=again mnt
u ls mnt
u sh -c 'exec mica umount --lazy mnt 3< mnt/file'
";
    let test = "a_user_without_privilege_mounts_by_fusermount_and_unmounts";
    let Some(said) = script(test, text)? else { return Ok(()) };
    let names = "file\ngone\nlink\nmoved\n";
    ensure_eq!(said, format!("fuse.mica\nbelow\nabove\n{names}closed\n0:0\n{names}"), "the mount");
    Ok(())
}

/// Rule 70: A user without privilege mounts by `fusermount3`, for himself alone (`allow_other` takes leave of
/// fuse.conf), with nosuid and nodev; or in a user namespace of his own, with the rights that he has there.
#[test]
fn a_user_mounts_in_a_namespace_of_his_own() -> Result {
    let text = r"
u unshare --user --map-root-user --mount sh -euc '
mica mount -o $1 mnt
id -u
stat -c %u mnt/file
echo above >> mnt/file; rm mnt/gone; mkdir mnt/gone; chmod 4711 mnt/file
cat mnt/file
umount mnt
mount -t overlay -o $1,userxattr overlay mnt
cat mnt/file
stat -c %a mnt/file
ls mnt/gone' sh $dirs
";
    let Some(said) = script("a_user_mounts_in_a_namespace_of_his_own", text)? else { return Ok(()) };
    ensure_eq!(said, "0\n0\nbelow\nabove\nbelow\nabove\n4711\n", "the mount, and the kernel's of the same upper");
    Ok(())
}

/// Rule 71: `mount -t fuse.mica` and /etc/fstab mount, where `mount.fuse.mica` is a link to `mica` in /sbin.
#[test]
fn mount_and_fstab_know_mica_as_a_type() -> Result {
    let text = r#"
# The helper is where mount(8) looks for it.
mount -t overlay -o "lowerdir=$1/bin:/usr/sbin" overlay /usr/sbin
mount -n -t fuse.mica united mnt -o "$dirs,nodev,noatime"
findmnt -nro SOURCE,FSTYPE mnt
findmnt -nro OPTIONS mnt | tr ',' '\n' | grep -x -e nodev -e noatime
echo above >> mnt/file
umount mnt
printf 'tabled %s fuse.mica %s,nofail,x-systemd.automount 0 0\n' "$1/mnt" "$dirs" > fstab
mount -n -T fstab "$1/mnt"
cat mnt/file
umount mnt
mount -n -T fstab -a
findmnt -nro SOURCE,FSTYPE mnt
umount mnt
mount -n -t fuse.mica united mnt -o "$dirs,frob=1" 2>&1 | grep -o 'frob=1'
"#;
    let Some(said) = script("mount_and_fstab_know_mica_as_a_type", text)? else { return Ok(()) };
    let expected = "united fuse.mica\nnodev\nnoatime\nbelow\nabove\ntabled fuse.mica\nfrob=1\n";
    ensure_eq!(said, expected, "what was mounted");
    Ok(())
}

/// Rule 48: `mount -o remount,ro` and `rw` change what the kernel lets through (with `nosuid`, `nodev`, `noexec` as
/// well); all else that it is given stays as it was.
#[test]
fn a_mount_is_mounted_anew_read_only_and_writable() -> Result {
    let text = r#"
mount -t overlay -o "lowerdir=$1/bin:/usr/sbin" overlay /usr/sbin
mount -n -t fuse.mica united mnt -o "$dirs"
mount -n -o remount,ro mnt
echo x 2>/dev/null > mnt/new || echo refused
cat mnt/file
mount -n -o remount,rw,nosuid,noexec mnt
echo new > mnt/new && cat mnt/new
findmnt -nro OPTIONS mnt | tr ',' '\n' | grep -x -e nosuid -e noexec
umount mnt
"#;
    let Some(said) = script("a_mount_is_mounted_anew_read_only_and_writable", text)? else { return Ok(()) };
    ensure_eq!(said, "refused\nbelow\nnew\nnosuid\nnoexec\n", "what the kernel let through");
    Ok(())
}

/// Rule 40: With `userxattr`, `trusted.*` and `security.*` of lower files are not copied up, and symbolic links and
/// devices get another number at the remount after a copy-up: such files can't carry marks.
#[test]
fn a_user_without_privilege_copies_no_privileged_attributes() -> Result {
    let text = r#"
/usr/bin/python3 -c 'import os; os.setxattr("lower/file", "security.note", b"x"); os.setxattr("lower/file", "user.note", b"y")'
u mica mount -o $dirs mnt
u /usr/bin/python3 -c 'import os; print(sorted(os.listxattr("mnt/file")))'
u chmod 600 mnt/file
u sh -c 'echo above >> mnt/file'
u /usr/bin/python3 -c 'import os; print(sorted(os.listxattr("mnt/file")))'
u mica umount mnt
"#;
    let Some(said) = script("a_user_without_privilege_copies_no_privileged_attributes", text)? else { return Ok(()) };
    ensure_eq!(said, "['security.note', 'user.note']\n['user.note']\n", "attributes before and after");
    Ok(())
}

/// Rule 72: Called as `fuse-overlayfs`, it returns when the mount answers, keeps nothing of its caller's open, warns
/// of unknown options once, and mounts at the last word.
#[test]
fn fuse_overlayfs_mounts_before_it_returns_and_keeps_nothing_of_its_caller() -> Result {
    let text = r#"
options="$dirs,private,uidmapping=:0:100:1:1:1000:10,gidmapping=:0:100:1,context=\"system_u:object_r:t:s0:c1,c2\""
# Whoever reads what it says comes to the end of it when the mount is there.
said=$(fuse-overlayfs -o "$options" -o redirect_dir=off,volatile overlay "$1/mnt" 2>&1)
echo "$said"
findmnt -nro SOURCE,FSTYPE mnt
cat mnt/file
pid=$(pidof fuse-overlayfs)
for fd in 0 1 2; do readlink /proc/$pid/fd/$fd; done
readlink /proc/$pid/cwd
umount mnt
fuse-overlayfs --version | head -n 1 | cut -d ' ' -f 1-3 | tr -d '0-9.'
fuse-overlayfs -o lowerdir=/absent "$1/mnt" 2>/dev/null || echo failed
fuse-overlayfs -o "$dirs,xattr_permissions=9" "$1/mnt" 2>&1 | grep -o xattr_permissions
findmnt mnt || echo nothing
"#;
    let test = "fuse_overlayfs_mounts_before_it_returns_and_keeps_nothing_of_its_caller";
    let Some(said) = script(test, text)? else { return Ok(()) };
    let expected = "unknown argument ignored: private\nfuse-overlayfs fuse.fuse-overlayfs\nbelow\n\
        /dev/null\n/dev/null\n/dev/null\n/\nfuse-overlayfs: version \nfailed\nxattr_permissions\nnothing\n";
    ensure_eq!(said, expected, "what it did");
    Ok(())
}

/// Rule 73: `context=` and its like are the kernel's: it labels the mount, or refuses it in its own words if it knows
/// no labels.
#[test]
fn a_label_reaches_the_kernel_which_refuses_it_in_its_own_words_if_it_has_none() -> Result {
    let text = r#"
grep -q selinuxfs /proc/filesystems && echo known || echo unknown
mica mount -o "$dirs,context=\"system_u:object_r:container_file_t:s0:c1,c2\"" mnt 2>&1 || true
"#;
    let test = "a_label_reaches_the_kernel_which_refuses_it_in_its_own_words_if_it_has_none";
    let Some(said) = script(test, text)? else { return Ok(()) };
    match said.strip_prefix("unknown\n") {
        Some(refusal) => ensure!(refusal.contains("Unknown parameter 'context'"), "{refusal}"),
        None => ensure_eq!(said, "known\n", "a kernel with labels"),
    }
    Ok(())
}

/// Rule 29: Called as `fuse-overlayfs`, an upper that another program has used since (there is `work/work`, or
/// nothing of Mica's in the work directory) is searched once for `.wh.NAME`, `.wh..wh..opq` and
/// `user.fuseoverlayfs.opaque`, which become the marks above.
#[test]
fn an_upper_that_fuse_overlayfs_has_written_goes_on() -> Result {
    let text = r#"
mkdir -p work/work upper/dir upper/again/inner lower/again upper/flat
echo low > lower/again/old; echo low > lower/dir/old; mkdir lower/flat; echo low > lower/flat/old
touch upper/.wh.gone upper/.wh..wh.plnk upper/dir/.wh..wh..opq upper/.wh.again
setfattr -n user.fuseoverlayfs.opaque -v y upper/flat
fuse-overlayfs -o "$dirs" "$1/mnt"
(cd mnt && find . | sort)
umount mnt
find upper -name '.wh.*'
ls work
mount -t overlay -o "$dirs" overlay mnt
(cd mnt && find . | sort | tr '\n' ' ')
umount mnt
# Mica has had it since: what is there now was made by programs.
touch upper/.wh.file && rm -rf work/work
fuse-overlayfs -o "$dirs" "$1/mnt"
ls -A mnt | head -n 2
umount mnt
"#;
    let Some(said) = script("an_upper_that_fuse_overlayfs_has_written_goes_on", text)? else { return Ok(()) };
    let names = [".", "./again", "./again/inner", "./dir", "./file", "./flat"];
    let expected = format!("{}\nblocks\nlinks\norphans\ntmp\n{} .wh.file\nagain\n", names.join("\n"), names.join(" "));
    ensure_eq!(said, expected, "what shows");
    Ok(())
}

/// Rule 74: A branch is `rw`, `ro` or `ro+wh`; without a mode the first is `rw`, the others are `ro`.
#[test]
fn a_live_system_writes_to_memory_over_a_base_that_can_not_change() -> Result {
    let text = r#"
mkdir base ram "odd,name" && echo base > base/file && echo base > base/deleted && touch base/.wh.file
mount --bind base base && mount -o remount,ro,bind base
mount -t tmpfs tmpfs ram && mkdir ram/changes
echo update > odd,name/update && touch odd,name/.wh.deleted lower/.wh.update
mica mount --branch ram/changes=rw --branch lower=ro --branch odd,name=ro+wh --branch base mnt
ls -A mnt
cat mnt/file
echo changed >> mnt/update && rm mnt/file && cat mnt/update
mica umount mnt
ls -A ram/changes
mica mount -o branch=ram/changes,branch=lower=ro+wh,branch=base mnt
ls -A mnt
umount mnt
mica mount --branch lower=rx mnt 2>&1 | grep -o 'another mode than rw, ro and ro+wh'
"#;
    let test = "a_live_system_writes_to_memory_over_a_base_that_can_not_change";
    let Some(said) = script(test, text)? else { return Ok(()) };
    let expected = "dir\nfile\ngone\nupdate\nbelow\nupdate\nchanged\nfile\nupdate\n\
                    deleted\ndir\ngone\nupdate\nanother mode than rw, ro and ro+wh\n";
    ensure_eq!(said, expected, "what shows");
    Ok(())
}

/// Rule 83: A branch that comes shows at once, and one that goes takes its names along.
#[test]
fn branches_come_go_and_change_while_they_are_mounted() -> Result {
    let text = r#"
mkdir one two three three/only && echo one > one/file && echo two > two/file && echo two > two/below && echo three > three/only/file
mica mount --create rr --branch one=rw --branch two=ro mnt
cat mnt/file
ls mnt/only 2>/dev/null || echo absent
# What was looked for in vain shows when it comes.
mica branch add --bottom mnt three=rw
cat mnt/only/file
touch mnt/a mnt/b && ls one three
mica branch ls mnt | awk 'NR > 1 { print $1, $2 }' | sed "s,$PWD/,,"
# In use: a file, a working directory, a file that is being written.
exec 3< mnt/only/file
mica branch rm mnt three 2>&1 | grep -o 'a file of it is open'
exec 3<&-
(cd mnt/only && mica branch rm "$1/mnt" "$1/three" 2>&1 | grep -o 'a file or directory of it is in use')
exec 3>> mnt/file
mica branch mode mnt one=ro 2>&1 | grep -o 'a file of it is open for writing'
exec 3>&-
mica branch rm mnt three
ls mnt
mica branch mode mnt one=ro
echo more 2>/dev/null >> mnt/file || echo refused
mica branch mode mnt two=rw
rm mnt/below && ls two
mica branch rm mnt one
cat mnt/file
mica branch rm mnt two 2>&1 | grep -o 'is the last branch'
mica branch add mnt "$1/mnt" 2>&1 | grep -o 'is in the mount itself'
mica branch add mnt two/../two 2>&1 | grep -o 'is a branch already'
u mica branch ls mnt 2>&1 | grep -o 'only root and the user who mounted it may ask\|is no mount that' | head -n 1
mica umount mnt
mica branch ls mnt 2>&1 | grep -o 'is no mount that'
"#;
    let Some(said) = script("branches_come_go_and_change_while_they_are_mounted", text)? else { return Ok(()) };
    let expected = "one\nabsent\nthree\none:\na\nfile\n\nthree:\nb\nonly\none rw\ntwo ro\nthree rw\n\
                    a file of it is open\na file or directory of it is in use\na file of it is open for writing\n\
                    a\nbelow\nfile\nrefused\nfile\ntwo\nis the last branch\nis in the mount itself\n\
                    is a branch already\nis no mount that\nis no mount that\n";
    ensure_eq!(said, expected, "what was said");
    Ok(())
}

/// Says what becomes of locks, and what who watches a directory, or all, hears: `python3 -c WATCH DIRECTORY [MOUNT]`.
const WATCH: &str = r#"
import ctypes, errno, fcntl, os, struct, sys
here = sys.argv[1]
def at(name): return os.path.join(here, name)
def attempt(call):
    try: return call() and "" or "got"
    except OSError as error: return errno.errorcode[error.errno]
def lock(fd, command, start, length, kind=fcntl.F_WRLCK):
    return attempt(lambda: fcntl.fcntl(fd, command, struct.pack("hh4xqqi4x", kind, 0, start, length, 0)) and None)
def elsewhere(call):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, call().encode())
        os._exit(0)
    os.wait()
    return os.read(reading, 16).decode()
OFD = 37
one, other = (os.open(at("file"), os.O_RDWR) for _ in range(2))
print("ofd", lock(one, OFD, 0, 10), lock(other, OFD, 5, 10), lock(other, OFD, 10, 5), lock(os.dup(one), OFD, 0, 12))
print("ofd and posix", elsewhere(lambda: lock(os.open(at("file"), os.O_RDWR), fcntl.F_SETLK, 0, 1)))
lock(one, OFD, 0, 10, fcntl.F_UNLCK)
print("posix", lock(one, fcntl.F_SETLK, 0, 4), lock(other, fcntl.F_SETLK, 0, 4),
      elsewhere(lambda: lock(os.open(at("file"), os.O_RDWR), fcntl.F_SETLK, 3, 1)),
      elsewhere(lambda: lock(os.open(at("file"), os.O_RDWR), fcntl.F_SETLK, 4, 1)))
os.close(os.open(at("file"), os.O_RDONLY))
print("posix after a close", elsewhere(lambda: lock(os.open(at("file"), os.O_RDWR), fcntl.F_SETLK, 3, 1)))
print("flock", attempt(lambda: fcntl.flock(one, fcntl.LOCK_SH)), attempt(lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)))
libc = ctypes.CDLL(None, use_errno=True)
MODIFY, CLOSE_WRITE, OPEN, ON_CHILD = 2, 8, 0x20, 0x08000000
def watch(flags, mask, path):
    fd = libc.fanotify_init(3, os.O_RDONLY)
    marked = fd >= 0 and libc.fanotify_mark(fd, 1 | flags, ctypes.c_uint64(mask), -100, path.encode()) == 0
    return fd if marked else sys.exit("fanotify: " + os.strerror(ctypes.get_errno()))
def heard(fd):
    events = os.read(fd, 65536)
    for start in range(0, len(events), 24):
        _, _, _, _, mask, file, _ = struct.unpack_from("IBBHQii", events, start)
        print(os.path.basename(os.readlink(f"/proc/self/fd/{file}")), [name for name, bit in
              (("modify", MODIFY), ("close", CLOSE_WRITE), ("open", OPEN)) if mask & bit])
        os.close(file)
watches = [watch(0, MODIFY | CLOSE_WRITE | OPEN | ON_CHILD, here)]
watches += [watch(0x10, MODIFY, mount) for mount in sys.argv[2:]]
with open(at("gone"), "ab") as file: file.write(b"more")
with open(at("new"), "wb") as file: file.write(b"new")
os.truncate(at("new"), 1)
os.rename(at("new"), at("renamed"))
for fd in watches: heard(fd)
"#;

/// Rule 19: inotify and fanotify tell of changes made through the mount, as on a disk.
/// Rule 57: Locks (flock, POSIX, of open file descriptions) hold between all processes that use the mount.
#[test]
fn locks_and_those_who_watch_find_on_a_mount_what_they_find_on_the_disk() -> Result {
    let text = format!(
        r"
cat > watch.py <<'END'
{WATCH}
END
cp -a lower disk
/usr/bin/python3 watch.py disk > on-the-disk
mica mount -o $dirs mnt
/usr/bin/python3 watch.py mnt > on-the-mount
diff on-the-disk on-the-mount && cat on-the-disk
mica umount mnt && rm -r upper work lower && mkdir upper work && cp -a disk lower && rm lower/renamed
mica mount -o $dirs mnt
/usr/bin/python3 watch.py mnt mnt | tail -n 3
umount mnt
"
    );
    let test = "locks_and_those_who_watch_find_on_a_mount_what_they_find_on_the_disk";
    let Some(said) = script(test, &text)? else { return Ok(()) };
    let expected = "ofd got EAGAIN got EAGAIN\nofd and posix EAGAIN\nposix got got EAGAIN got\nposix after a close got\nflock got EAGAIN\n\
                    gone ['modify', 'close', 'open']\nrenamed ['modify', 'close', 'open']\n\
                    renamed ['modify', 'close', 'open']\ngone ['modify']\nrenamed ['modify']\n";
    ensure_eq!(said, expected, "locks and events");
    Ok(())
}
