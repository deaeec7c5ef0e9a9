//! Programs that look closely at a tree: on a mount they find nothing that moves by itself.

use std::process::Command;

use super::served::{Place, Server, can_mount};

/// Runs a script in the test's folder; what it prints. It must end well and complain of nothing.
fn quiet(place: &Place, script: &str) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-ec", script]).current_dir(place.path(".")).env("LC_ALL", "C.UTF-8").env("HOME", place.path("."));
    shell.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let done = shell.output().unwrap();
    let (said, complaint) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && complaint.is_empty(), "{script}\n{}: {said}{complaint}", done.status);
    said.into_owned()
}

/// A mount over two directories, or of an image with the same files, that can be mounted again.
struct Mounted {
    place: Place,
    image: bool,
    server: Server,
}

impl Mounted {
    fn new(image: bool) -> Mounted {
        let place = Place::new();
        quiet(
            &place,
            r#"
            mkdir -p lower/usr/bin lower/usr/lib lower/etc/deep/er lower2/usr/bin lower2/usr/share/doc lower2/etc
            for n in 1 2 3; do echo "below $n" >lower2/etc/conf$n; echo "of the top $n" >lower/usr/lib/lib$n; done
            echo over >lower/etc/conf1
            head -c 100000 /dev/zero | tr '\0' x >lower/usr/bin/large
            ln lower/usr/bin/large lower/usr/lib/hard
            ln -s ../lib/lib1 lower/usr/bin/soft
            echo odd >"lower/etc/$(printf 'a name\nof two lines \303\244')"
            touch -d '2001-02-03 04:05:06.789' lower/usr/lib/lib2
            mkdir expected
            cp -a lower2/. expected/ && cp -a lower/. expected/
            tar --format=posix -cf tar -C expected ."#,
        );
        let server = Mounted::serve(&place, image);
        Mounted { place, image, server }
    }

    fn serve(place: &Place, image: bool) -> Server {
        if image {
            return place.image("").unwrap();
        }
        let [lower, lower2, upper, work] = ["lower", "lower2", "upper", "work"].map(|name| place.path(name));
        let [lower, lower2, upper, work] = [lower, lower2, upper, work].map(|path| path.display().to_string());
        place.dirs("keeper", &format!("lowerdir={lower}:{lower2},upperdir={upper},workdir={work}")).unwrap()
    }

    fn again(&mut self) {
        assert_eq!(self.server.order("unmount"), "unmounted");
        self.server = Mounted::serve(&self.place, self.image);
    }

    fn quiet(&self, script: &str) -> String {
        quiet(&self.place, script)
    }

    fn end(mut self) {
        assert_eq!(self.server.order("unmount"), "unmounted");
    }
}

fn on_both(test: impl Fn(Mounted)) {
    if !can_mount() {
        return;
    }
    for image in [false, true] {
        test(Mounted::new(image));
    }
}

/// find(1) relies on the number of links of directories, and tar(1) on numbers that stay.
///
/// Rule 5: Programs that look closely at a tree (find, tar, rsync, git, dpkg) find nothing that moves by itself, also
/// after a remount.
#[test]
fn find_and_tar_see_every_file_once_and_nothing_that_changes() {
    on_both(|mut mounted| {
        // The root's times are the upper's.
        let list = "find . -mindepth 1 -printf '%p %y %m %s %l %T@\\n' | sed 's/ d \\([0-7]*\\) [0-9]*/ d \\1/' | sort";
        assert_eq!(mounted.quiet(&format!("cd mnt; {list}")), mounted.quiet(&format!("cd expected; {list}")));
        let count = "find . -type d -printf '%n %p\\n' | sort";
        let links = mounted.quiet(&format!("cd mnt; {count}"));
        assert!(links.contains("3 ./usr/share\n"), "{links}");
        assert!(links.contains("5 ./usr\n"), "{links}");
        mounted.quiet("tar --format=posix -cf one.tar --listed-incremental=state --no-check-device -C mnt .; tar -df one.tar -C mnt");
        mounted.again();
        mounted.quiet("tar -df one.tar -C mnt");
        let later =
            "cp state again; tar --format=posix -cf two.tar --listed-incremental=again --no-check-device -C mnt .;
            tar -tf two.tar | grep -v '/$' || true";
        assert_eq!(mounted.quiet(later), "");
        mounted.quiet("chmod 600 mnt/etc/conf2; mv mnt/usr/share mnt/usr/shared; echo more >>mnt/usr/bin/large");
        mounted.again();
        let changed = mounted.quiet(later);
        assert!(
            changed.contains("./etc/conf2") && !changed.contains("conf3") && !changed.contains("lib2"),
            "{changed}"
        );
        mounted.end();
    });
}

/// rsync(1) copies all there is, hard links as such, and then finds nothing more to do.
///
/// Rule 5: Programs that look closely at a tree (find, tar, rsync, git, dpkg) find nothing that moves by itself, also
/// after a remount.
#[test]
fn rsync_finds_nothing_to_do_after_it_has_copied() {
    on_both(|mut mounted| {
        let again = "rsync -aHAX --numeric-ids --dry-run --itemize-changes --delete";
        mounted.quiet("rsync -aHAX --numeric-ids mnt/ copy/");
        assert_eq!(
            mounted.quiet(&format!(
                "{again} mnt/ copy/; {again} expected/usr/ copy/usr/; {again} expected/etc/ copy/etc/"
            )),
            ""
        );
        mounted
            .quiet("echo more >>mnt/usr/lib/hard; chown 7:7 mnt/etc/conf3; rm mnt/etc/conf1; mv mnt/etc/deep mnt/usr");
        mounted.quiet("rsync -aHAX --numeric-ids --delete mnt/ copy/");
        mounted.again();
        assert_eq!(mounted.quiet(&format!("{again} mnt/ copy/")), "");
        mounted.quiet("cmp copy/usr/bin/large copy/usr/lib/hard; test copy/usr/bin/large -ef copy/usr/lib/hard");
        mounted.end();
    });
}

/// git(1) compares numbers and times with those in its index: a file that was not changed is not read again.
///
/// Rule 5: Programs that look closely at a tree (find, tar, rsync, git, dpkg) find nothing that moves by itself, also
/// after a remount.
#[test]
fn git_sees_no_change_where_there_is_none() {
    on_both(|mut mounted| {
        let git = "git -c safe.directory='*' -c user.name=n -c user.email=e -c init.defaultBranch=m -C mnt";
        mounted.quiet(&format!("{git} init -q; {git} add .; {git} commit -qm one; {git} update-index -q --refresh"));
        mounted.again();
        assert_eq!(mounted.quiet(&format!("{git} diff-files; {git} status --porcelain")), "");
        mounted.quiet("echo more >>mnt/etc/conf2");
        assert_eq!(mounted.quiet(&format!("{git} status --porcelain")), " M etc/conf2\n");
        mounted.quiet(&format!("{git} checkout -q etc/conf2; {git} mv etc other; {git} commit -qm two; {git} gc -q"));
        mounted.again();
        assert_eq!(mounted.quiet(&format!("{git} status --porcelain; {git} fsck --no-progress")), "");
        mounted.end();
    });
}

/// dpkg(1) replaces files by renaming, and keeps its database so.
///
/// Rule 5: Programs that look closely at a tree (find, tar, rsync, git, dpkg) find nothing that moves by itself, also
/// after a remount.
#[test]
fn dpkg_upgrades_what_the_lower_has_installed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    quiet(
        &place,
        r#"
        for version in 1 2; do
          mkdir -p pack$version/DEBIAN pack$version/usr/share/thing pack$version/etc
          printf 'Package: thing\nVersion: %s\nArchitecture: all\nMaintainer: m <m@m>\nDescription: thing\n' $version \
            >pack$version/DEBIAN/control
          for n in 1 2 3 4 5; do echo "$version $n" >pack$version/usr/share/thing/file$n; done
          echo /etc/thing.conf >pack$version/DEBIAN/conffiles
          echo setting >pack$version/etc/thing.conf
        done
        rm pack2/usr/share/thing/file5
        for version in 1 2; do dpkg-deb --root-owner-group -b pack$version thing$version.deb >/dev/null; done
        mkdir -p lower/var/lib/dpkg/info lower/var/lib/dpkg/updates
        touch lower/var/lib/dpkg/status lower/var/lib/dpkg/available
        dpkg --root="$PWD/lower" --log=/dev/null --install thing1.deb >/dev/null"#,
    );
    let mut server = place.mount("");
    quiet(&place, r#"dpkg --root="$PWD/mnt" --log=/dev/null --install thing2.deb >/dev/null"#);
    assert_eq!(server.order("unmount"), "unmounted");
    let mut server = place.mount("");
    let verify = r#"dpkg --root="$PWD/mnt" --verify thing; cat mnt/usr/share/thing/*; ls mnt/usr/share/thing | wc -l"#;
    assert_eq!(quiet(&place, verify), "2 1\n2 2\n2 3\n2 4\n4\n");
    assert_eq!(quiet(&place, "cat lower/usr/share/thing/*"), "1 1\n1 2\n1 3\n1 4\n1 5\n");
    let purge = r#"dpkg --root="$PWD/mnt" --log=/dev/null --purge thing >/dev/null; ls -A mnt mnt/usr/share 2>/dev/null || true"#;
    quiet(&place, purge);
    assert_eq!(quiet(&place, "test -e mnt/usr/share/thing && echo left || true"), "");
    assert_eq!(server.order("unmount"), "unmounted");
}
