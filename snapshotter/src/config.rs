//! Where the daemon keeps what, and whom it talks to: a TOML file, and flags that win over it.

use std::path::{Path, PathBuf};

use mica_layerdb::{Limits, Rate};
use serde::{Deserialize, Serialize};

/// Where the store is when nobody says otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/mica";
/// Where sockets and mountpoints are when nobody says otherwise.
pub const DEFAULT_STATE: &str = "/run/mica";
/// The socket of containerd when nobody says otherwise.
pub const DEFAULT_CONTAINERD: &str = "/run/containerd/containerd.sock";

/// The longest path that a socket address can hold (`sockaddr_un`), its final NUL left out.
const SOCKET_PATH_MAX: usize = 107;

/// What the daemon was told, every gap filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Folder of the store.
    pub root: PathBuf,
    /// Folder of sockets and mountpoints.
    pub state: PathBuf,
    /// Socket to serve on.
    pub socket: PathBuf,
    /// Socket of the containerd whose content store layers are read from.
    pub containerd: PathBuf,
    /// Whether the kernel may pass file data through where it can.
    pub passthrough: bool,
    /// Who serves mounts that don't say it themselves.
    pub mount: Form,
    /// What layers and images may cost.
    pub limits: Limits,
    /// How much garbage the engine's cleanups may remove in a second.
    pub gc_rate: Option<Rate>,
    /// Whether contents are compared with their digests before they are served.
    pub verify: Verify,
    /// Whether the digest of a tree is compared with the recorded one each time it is opened.
    pub verify_trees: bool,
    /// MiB of contents that are read in a second to look for damage, day and night; 0 is none.
    pub scrub_mib_per_second: u64,
}

/// Who serves mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Mica, by FUSE.
    #[default]
    Fuse,
    /// The kernel: the merged tree as EROFS, and its overlayfs upon that.
    Kernel,
    /// The kernel where it can do it, else Mica.
    Auto,
}

impl Form {
    /// By its name, `fuse`, `kernel` or `auto`.
    pub fn named(name: &str) -> Option<Form> {
        match name {
            "fuse" => Some(Form::Fuse),
            "kernel" => Some(Form::Kernel),
            "auto" => Some(Form::Auto),
            _ => None,
        }
    }
}

/// When contents are compared with their digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// When they are checked or scrubbed, not when they are served.
    #[default]
    Never,
    /// Before they are served for the first time after the daemon has started.
    FirstUse,
}

impl Verify {
    /// By its name, `never` or `first-use`.
    pub fn named(name: &str) -> Option<Verify> {
        match name {
            "never" => Some(Verify::Never),
            "first-use" => Some(Verify::FirstUse),
            _ => None,
        }
    }
}

/// What the command line says; it wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// Folder of the store.
    pub root: Option<PathBuf>,
    /// Folder of sockets and mountpoints.
    pub state: Option<PathBuf>,
    /// Address to serve on.
    pub address: Option<String>,
    /// Address of containerd.
    pub containerd: Option<String>,
    /// Serve file data from the daemon.
    pub no_passthrough: bool,
    /// `fuse`, `kernel` or `auto`.
    pub mount: Option<String>,
    /// Limits of layers and images, as `NAME=VALUE`.
    pub limits: Vec<String>,
    /// `never` or `first-use`.
    pub verify: Option<String>,
    /// Compare trees with their digests.
    pub verify_trees: bool,
    /// MiB scrubbed in a second.
    pub scrub_mib_per_second: Option<u64>,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is no TOML, or has a key or value that is not known.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// An address is none.
    #[error("{what} {address:?}: {reason}")]
    Address {
        /// Whose address.
        what: &'static str,
        /// The address as given.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no such limit, or it can't be that.
    #[error("{reason}")]
    Limit {
        /// What is wrong.
        reason: String,
    },
    /// The kernel reads contents itself, and compares nothing.
    #[error("mount = \"kernel\" and verify = \"first-use\" exclude each other; mount = \"auto\" gives way to verify")]
    Unverified,
    /// A folder must not depend on where the daemon was started.
    #[error("{what} {} is not an absolute path", path.display())]
    Relative {
        /// Which one.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    root: Option<PathBuf>,
    state: Option<PathBuf>,
    address: Option<String>,
    passthrough: Option<bool>,
    mount: Option<Form>,
    verify: Option<Verify>,
    verify_trees: Option<bool>,
    scrub_mib_per_second: Option<u64>,
    #[serde(default)]
    containerd: Containerd,
    #[serde(default)]
    gc: Gc,
    #[serde(default)]
    limits: Limits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gc {
    rate: Option<Rate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Containerd {
    address: Option<String>,
}

impl Config {
    /// Reads the file, if there is to be one, and lets the flags win.
    pub fn load(file: Option<&Path>, flags: Flags) -> Result<Config, ConfigError> {
        let file = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Unreadable { path: path.to_path_buf(), source })?;
                toml::from_str(&text).map_err(|error: toml::de::Error| ConfigError::Invalid {
                    path: path.to_path_buf(),
                    reason: error.to_string().trim_end().to_owned(),
                })?
            }
            None => File::default(),
        };
        let state = flags.state.or(file.state).unwrap_or_else(|| DEFAULT_STATE.into());
        let socket = match flags.address.or(file.address) {
            Some(address) => socket_path("the daemon's address", &address)?,
            None => state.join("mica.sock"),
        };
        let containerd = match flags.containerd.or(file.containerd.address) {
            Some(address) => socket_path("containerd's address", &address)?,
            None => DEFAULT_CONTAINERD.into(),
        };
        let mount = flags.mount.as_deref().and_then(Form::named).or(file.mount).unwrap_or_default();
        let verify = flags.verify.as_deref().and_then(Verify::named).or(file.verify).unwrap_or_default();
        if mount == Form::Kernel && verify == Verify::FirstUse {
            return Err(ConfigError::Unverified);
        }
        Ok(Config {
            root: absolute("the root folder", flags.root.or(file.root).unwrap_or_else(|| DEFAULT_ROOT.into()))?,
            state: absolute("the state folder", state)?,
            socket: absolute("the daemon's socket", socket)?,
            containerd: absolute("containerd's socket", containerd)?,
            passthrough: !flags.no_passthrough && file.passthrough.unwrap_or(true),
            mount,
            gc_rate: file.gc.rate,
            limits: limits(file.limits, &flags.limits)?,
            verify,
            verify_trees: flags.verify_trees || file.verify_trees.unwrap_or(false),
            scrub_mib_per_second: flags.scrub_mib_per_second.or(file.scrub_mib_per_second).unwrap_or(0),
        })
    }

    /// The address under which clients find the daemon.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

/// Limits, with some of them changed by `NAME=VALUE`.
pub fn limits(mut limits: Limits, changes: &[String]) -> Result<Limits, ConfigError> {
    for change in changes {
        let refused = |reason: String| ConfigError::Limit { reason };
        let parts = change.split_once('=').and_then(|(name, value)| Some((name.trim(), value.trim().parse().ok()?)));
        let (name, value) = parts.ok_or_else(|| refused(format!("limit {change:?} is not NAME=NUMBER")))?;
        limits.set(name, value).map_err(refused)?;
    }
    limits.check().map_err(|reason| ConfigError::Limit { reason })?;
    Ok(limits)
}

/// The path in `unix:///path`, or the path itself.
pub fn socket_path(what: &'static str, address: &str) -> Result<PathBuf, ConfigError> {
    let wrong = |reason| Err(ConfigError::Address { what, address: address.to_owned(), reason });
    let path = match address.split_once("://") {
        Some(("unix", path)) => path,
        Some(_) => return wrong("only unix sockets are served: unix:///path"),
        None => address,
    };
    if path.is_empty() {
        return wrong("it names no path");
    }
    if path.len() > SOCKET_PATH_MAX {
        return wrong("a socket's path has at most 107 bytes");
    }
    Ok(path.into())
}

/// Paths of the command line are the caller's; in a file they must be absolute, and all are from here on.
fn absolute(what: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() {
        return Ok(path);
    }
    std::path::absolute(&path).map_err(|_| ConfigError::Relative { what, path })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn load(text: &str, flags: Flags) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path), flags)
    }

    #[test]
    fn load_without_a_file_gives_the_defaults() {
        let config = Config::load(None, Flags::default()).unwrap();
        assert_eq!(config.root, Path::new("/var/lib/mica"));
        assert_eq!(config.socket, Path::new("/run/mica/mica.sock"));
        assert_eq!(config.containerd, Path::new("/run/containerd/containerd.sock"));
        assert!(config.passthrough);
    }

    #[test]
    fn load_lets_flags_win_over_the_file() {
        let text = "root = \"/a\"\nstate = \"/b\"\naddress = \"unix:///c/s\"\n[containerd]\naddress = \"/d\"\n";
        let config = load(text, Flags::default()).unwrap();
        assert_eq!(config.root, Path::new("/a"));
        assert_eq!(config.address(), "unix:///c/s");
        assert_eq!(config.containerd, Path::new("/d"));
        let flags = Flags {
            root: Some("/e".into()),
            address: Some("/f".into()),
            containerd: Some("unix:///g".into()),
            no_passthrough: true,
            ..Flags::default()
        };
        let config = load(text, flags).unwrap();
        assert_eq!(config.root, Path::new("/e"));
        assert_eq!(config.state, Path::new("/b"));
        assert_eq!(config.socket, Path::new("/f"));
        assert_eq!(config.containerd, Path::new("/g"));
        assert!(!config.passthrough);
    }

    #[test]
    fn load_takes_limits_from_the_file_and_the_flags() {
        let text = "[limits]\nentries = 1000\ndepth = 7\n";
        let flags =
            |limits: &[&str]| Flags { limits: limits.iter().map(ToString::to_string).collect(), ..Flags::default() };
        let config = load(text, flags(&["depth=9", "hole_bytes = 5"])).unwrap();
        assert_eq!((config.limits.entries, config.limits.depth, config.limits.hole_bytes), (1000, 9, 5));
        assert_eq!(config.limits.layers, Limits::default().layers);
        for (text, limits, words) in [
            ("[limits]\nentry = 5", &[][..], "entry"),
            ("[limits]\nexpansion = 0", &[], "limit expansion is 0"),
            ("", &["expansion=0"], "limit expansion is 0"),
            ("", &["entry=5"], "entry"),
            ("", &["entries"], "NAME=NUMBER"),
            ("", &["entries=-1"], "NAME=NUMBER"),
            ("", &["zstd_window_log=4294967300"], "zstd_window_log"),
        ] {
            let error = load(text, flags(limits)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn load_with_another_state_moves_the_socket_too() {
        let config = Config::load(None, Flags { state: Some("/x".into()), ..Flags::default() }).unwrap();
        assert_eq!(config.socket, Path::new("/x/mica.sock"));
    }

    #[test]
    fn load_of_a_rate_takes_files_and_bytes() {
        let rate = |text: &str| load(text, Flags::default()).map(|config| config.gc_rate);
        assert_eq!(rate("").unwrap(), None);
        assert_eq!(rate("[gc]\nrate = 500").unwrap(), Some(Rate::Files(500)));
        assert_eq!(rate("[gc]\nrate = \"20M\"").unwrap(), Some(Rate::Bytes(20 << 20)));
        let error = rate("[gc]\nrate = \"fast\"").unwrap_err().to_string();
        assert!(error.contains("fast") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn load_of_what_is_verified_takes_words_and_flags_win() {
        let config = load("verify = \"first-use\"\nverify_trees = true\nscrub_mib_per_second = 5", Flags::default());
        let config = config.unwrap();
        assert_eq!((config.verify, config.verify_trees, config.scrub_mib_per_second), (Verify::FirstUse, true, 5));
        let flags = Flags { verify: Some("never".into()), scrub_mib_per_second: Some(0), ..Flags::default() };
        let config = load("verify = \"first-use\"\nscrub_mib_per_second = 5", flags).unwrap();
        assert_eq!((config.verify, config.verify_trees, config.scrub_mib_per_second), (Verify::Never, false, 0));
        assert!(load("verify = \"always\"", Flags::default()).unwrap_err().to_string().contains("first-use"));
    }

    #[test]
    fn load_of_a_form_takes_words_and_keeps_the_kernel_from_contents_that_are_to_be_verified() {
        assert_eq!(Config::load(None, Flags::default()).unwrap().mount, Form::Fuse);
        assert_eq!(load("mount = \"auto\"", Flags::default()).unwrap().mount, Form::Auto);
        let kernel = || Flags { mount: Some("kernel".into()), ..Flags::default() };
        assert_eq!(load("mount = \"auto\"", kernel()).unwrap().mount, Form::Kernel);
        let error = load("verify = \"first-use\"", kernel()).unwrap_err();
        assert!(matches!(error, ConfigError::Unverified), "{error}");
        assert_eq!(load("verify = \"first-use\"\nmount = \"auto\"", Flags::default()).unwrap().mount, Form::Auto);
        assert!(load("mount = \"both\"", Flags::default()).unwrap_err().to_string().contains("kernel"));
    }

    #[test]
    fn load_of_an_unknown_key_names_it() {
        for (text, key) in [("rooot = \"/a\"", "rooot"), ("[containerd]\nsocket = \"/a\"", "socket"), ("[x]", "`x`")] {
            let error = load(text, Flags::default()).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("config.toml"), "{error}");
        }
    }

    #[test]
    fn load_of_a_wrong_value_names_the_place() {
        let error = load("root = 5", Flags::default()).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }

    #[test]
    fn load_of_a_missing_file_names_it() {
        let error = Config::load(Some(Path::new("/nowhere/config.toml")), Flags::default()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/config.toml"), "{error}");
    }

    #[test]
    fn address_that_is_no_socket_is_refused() {
        for address in ["tcp://127.0.0.1:1", "unix://", "", &format!("/{}", "x".repeat(200))] {
            let error = load(&format!("address = {address:?}"), Flags::default()).unwrap_err();
            assert!(matches!(error, ConfigError::Address { .. }), "{error}");
        }
    }
}
