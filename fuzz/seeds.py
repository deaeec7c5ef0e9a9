#!/usr/bin/env python3
"""Makes the inputs that fuzzing begins with: seeds.py FOLDER [LAYOUT...]

Archives of every dialect, made by GNU tar and by Python, and the beginnings of the layers of real images, which are
OCI layouts. What a tool of this machine can't make is left out.
"""
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile

LARGEST = 24 << 10

# Calls of the administration; `fuzz/src/admin.rs` leaves those with paths out.
CALLS = [
    {"verb": "image-ls"},
    {"verb": "image-show", "arguments": {"reference": "app:1"}},
    {"verb": "image-rm", "arguments": {"reference": "sha256:0123"}},
    {"verb": "image-mount", "arguments": {"reference": "app", "lock": "/x"}},
    {"verb": "layer-ls"},
    {"verb": "snapshot-show", "arguments": {"key": "k"}},
    {"verb": "gc", "arguments": {"dry_run": True}},
    {"verb": "df"},
    {"verb": "status"},
]
FILTERS = [
    'name==a', 'parent~=/a.*b/', 'labels."a.b/c"!=x,kind==active', 'labels.a', 'name~=|^[a-z]{1,9}$|', '"n\\x61me"==\'b\'',
    'name=="\\u00e9\\U0001F600\\101"', 'a.b.c==d\nkind==view\n', 'name~="(a|b)*c"',
]
OPTIONS = [
    b"lowerdir=/a:/b\\:c:/d,upperdir=/u,workdir=/w", b"ro,nosuid,nodev,noatime,threads=4,passthrough=off",
    b"userxattr,allow_other,fsname=x\\,y,x-systemd.automount", b"lowerdir=/a\nrw,defaults\nthreads=256",
]


def entries():
    """Every kind of entry, with awkward names."""
    def entry(name, kind=tarfile.REGTYPE, data=b"", link="", **more):
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname, info.mtime, info.mode = kind, len(data), link, 1700000000.5, 0o644
        for key, value in more.items():
            setattr(info, key, value)
        return info, data

    long = "n" * 120
    return [
        entry("./", tarfile.DIRTYPE, mode=0o755),
        entry("d", tarfile.DIRTYPE, mode=0o755),
        entry("d/file", data=b"contents", uid=1000, gid=3000000),
        entry("d/" + long, data=b"long"),
        entry("d/" + long + "/" + "m" * 140 + "/leaf", data=b"deep"),
        entry("link", tarfile.SYMTYPE, link="d/file"),
        entry("longlink", tarfile.SYMTYPE, link="l" * 300),
        entry("s", tarfile.SYMTYPE, link="d"),
        entry("s/through", data=b"t"),
        entry("hard", tarfile.LNKTYPE, link="d/file"),
        entry("early", tarfile.LNKTYPE, link="late"),
        entry("late", data=b"later"),
        entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("disk", tarfile.BLKTYPE, devmajor=8, devminor=300),
        entry("pipe", tarfile.FIFOTYPE),
        entry("big", data=bytes(range(256)) * 20),
        entry("d/.wh.gone"),
        entry("d/.wh..wh..opq"),
        entry(".wh..wh.plnk", tarfile.DIRTYPE),
        entry("d/file", data=b"again"),
        entry("caf\xe9\udcff", data=b"name"),
        entry("old", mtime=-5.25),
    ]


def python_archives():
    formats = [("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)]
    for label, form in formats:
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w", format=form, errors="surrogateescape") as all_of_them:
            for number, (info, data) in enumerate(entries()):
                if form == tarfile.USTAR_FORMAT:
                    info.mtime = abs(int(info.mtime))
                single = io.BytesIO()
                try:
                    with tarfile.open(fileobj=single, mode="w", format=form, errors="surrogateescape") as one:
                        one.addfile(info, io.BytesIO(data))
                    all_of_them.addfile(info, io.BytesIO(data))
                except ValueError:
                    continue
                if number % 3 == 0:
                    yield f"python-{label}-{number}", single.getvalue()
        yield f"python-{label}", whole.getvalue()
    records = [
        {"SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.capability": "\x01\0\0\x02\0\x20" + "\0" * 14},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse", "GNU.sparse.realsize": "9000"},
        {"GNU.sparse.map": "0,3,4000,2", "GNU.sparse.size": "5000", "GNU.sparse.numblocks": "2"},
        {"mtime": "-1.5", "uid": "4294967294", "size": "5", "path": "x/y", "linkpath": ""},
        {"SCHILY.devmajor": "1", "SCHILY.devminor": "2", "comment": "c"},
    ]
    for number, pax in enumerate(records):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
            info = tarfile.TarInfo("p")
            data = b"2\n0\n3\n4000\n2\n".ljust(512, b"\0") + b"abcde" if number == 1 else b"abcde"
            info.size, info.pax_headers = len(data), pax
            tar.addfile(info, io.BytesIO(data))
            tar.addfile(*(lambda info: (info, None))(tarfile.TarInfo("q")))
        yield f"pax-{number}", out.getvalue()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uid": "7", "comment": "all"}) as tar:
        tar.addfile(tarfile.TarInfo("g"))
    yield "pax-global", out.getvalue()


def gnu_archives():
    with tempfile.TemporaryDirectory() as folder:
        def path(*names):
            return os.path.join(folder, *names)

        os.makedirs(path("d", "e"))
        with open(path("d", "f"), "wb") as file:
            file.write(b"abc")
        os.link(path("d", "f"), path("d", "hard"))
        os.symlink("d/f", path("s"))
        os.mkfifo(path("p"))
        with open(path("sparse"), "wb") as file:
            for at in range(0, 60 * 8192, 8192):
                file.seek(at)
                file.write(b"x")
            file.truncate(1 << 20)
        with open(path("hole"), "wb") as file:
            file.truncate(3 << 20)
        with open(path("n" * 200), "wb") as file:
            file.write(b"long")
        subprocess.run(["setfattr", "-n", "user.a", "-v", "1", path("d", "f")], check=False, stderr=subprocess.DEVNULL)
        runs = [(form, []) for form in ["v7", "oldgnu", "gnu", "ustar", "posix"]]
        runs += [("oldgnu", ["--sparse"]), ("gnu", ["--sparse"])]
        runs += [("posix", ["--sparse", f"--sparse-version={version}"]) for version in ["0.0", "0.1", "1.0"]]
        runs += [("posix", ["--xattrs", "--acls", "--selinux"]), ("gnu", ["--label=volume"]), ("posix", ["--label=v"])]
        for number, (form, flags) in enumerate(runs):
            names = [".", "sparse hole", "d s p", "n" * 200] if "--sparse" not in flags else ["sparse", "hole"]
            for at, name in enumerate(names):
                command = ["tar", "--create", f"--format={form}", "--directory", folder, "--record-size=1024", *flags]
                if "--sparse" not in flags:
                    command += ["--exclude=sparse", "--exclude=hole"]
                made = subprocess.run(command + name.split(), capture_output=True, check=False)
                if made.stdout:
                    yield f"gnu-{form}-{number}-{at}", made.stdout


def real_layers(layout):
    """The beginning of every layer, and of its entries the first of each kind."""
    def blob(descriptor):
        with open(os.path.join(layout, "blobs", *descriptor["digest"].split(":")), "rb") as file:
            return file.read()

    with open(os.path.join(layout, "index.json"), "rb") as file:
        index = json.load(file)
    for descriptor in index["manifests"]:
        for number, layer in enumerate(json.loads(blob(descriptor)).get("layers", [])):
            data = blob(layer)
            if layer["mediaType"].endswith("gzip"):
                data = gzip.decompress(data)
            elif layer["mediaType"].endswith("zstd"):
                if not which("zstd"):
                    continue
                data = subprocess.run(["zstd", "--decompress", "--stdout"], input=data, capture_output=True, check=True).stdout
            name = f"real-{descriptor['digest'][7:15]}-{number}"
            yield name, data[:LARGEST // 512 * 512]
            kinds, picked = set(), b""
            with tarfile.open(fileobj=io.BytesIO(data + b"\0" * 1024)) as tar:
                for member in tar:
                    end = member.offset_data + ((member.size + 511) // 512 * 512 if member.isreg() else 0)
                    kind = (member.type, tuple(sorted(member.pax_headers)), member.size > 4096, len(member.name) > 100)
                    if kind not in kinds and end - member.offset <= LARGEST // 2:
                        kinds.add(kind)
                        picked += data[member.offset:end]
            yield name + "-kinds", picked[:LARGEST // 512 * 512] + b"\0" * 1024


def layouts(tar):
    config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["@3"]}}'
    layer = b'{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"@3","size":#3}'
    manifest = (b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":'
                b'{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"@2","size":#2},"layers":[' + layer + b"]}")
    index = (b'{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@1",'
             b'"size":#1,"annotations":{"org.opencontainers.image.ref.name":"a:1"},"platform":{"os":"linux","architecture":'
             b'"amd64"}}]}')
    docker = b'[{"Config":"blobs/sha256/%1","RepoTags":["a:1"],"Layers":["blobs/sha256/%2"]}]'
    between = b"\n--\n"
    for kind in b"do":
        yield f"layout-{kind:c}", bytes([kind]) + between.join([index, manifest, config, tar])
    nested = b'{"manifests":[{"digest":"@2","size":#2,"platform":{"os":"linux","architecture":"arm64"}},{"digest":"@2","size":#2}]}'
    shifted = [part.replace(b"@3", b"@4").replace(b"#3", b"#4").replace(b"@2", b"@3").replace(b"#2", b"#3")
               for part in (manifest, config)]
    yield "layout-nested", b"d" + between.join([index, nested, *shifted, tar])
    shifted = config.replace(b"@3", b"@2")
    for kind in b"kg":
        yield f"layout-{kind:c}", bytes([kind]) + between.join([docker, shifted, tar])
    yield "layout-raw", b"r" + tar
    yield "layout-two", b"d" + between.join([b'{"manifests":[{"digest":"@1","size":#1},{"digest":"@1","size":#1,'
                                            b'"annotations":{"io.containerd.image.name":"b"}}]}', manifest, config, tar])


def compressed(name, data):
    yield name + ".gz", gzip.compress(data, mtime=0)
    yield name + ".2.gz", gzip.compress(data[:700], mtime=0) + gzip.compress(data[700:], mtime=0)
    made = subprocess.run(["zstd", "--stdout", "--quiet"], input=data, capture_output=True, check=False) if which("zstd") else None
    if made and made.stdout:
        yield name + ".zst", made.stdout
        yield name + ".skip.zst", b"\x50\x2a\x4d\x18\x04\0\0\0skip" + made.stdout


def which(program):
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.environ["PATH"].split(":"))


def main():
    folder, *images = sys.argv[1:]

    def put(target, name, data):
        os.makedirs(os.path.join(folder, target), exist_ok=True)
        with open(os.path.join(folder, target, name), "wb") as file:
            file.write(data)

    tars = [*python_archives(), *gnu_archives()]
    for image in images:
        tars += real_layers(image)
    for name, data in tars:
        if len(data) > 512 and len(data) <= 64 << 10:
            put("tar", name, data)
    chosen = [(name, data) for name, data in tars if name in ("python-ustar-0", "python-pax-0", "pax-0", "python-gnu-3")]
    for name, data in chosen:
        for label, packed in compressed(name, data):
            put("compressed", label, packed)
        for label, text in layouts(data.rstrip(b"\0").ljust(2048, b"\0")):
            put("layout", f"{label}-{name}", text)
    for number, call in enumerate(CALLS):
        put("admin", str(number), json.dumps(call).encode())
    for number, text in enumerate(FILTERS):
        put("filter", str(number), text.encode())
    for number, text in enumerate(OPTIONS):
        put("options", str(number), text)


main()
