//! Keeper and server for the tests of mounts, to be killed.
//!
//! `keeper --socket SOCKET` is the keeper. `serve SOCKET ID MOUNTPOINT how what...` serves a mount: `how` is `mount` or
//! `resume`, which says `started` and waits for a first line; `what` is `dirs OPTIONS` or `image STORE TAR CHANGES OPTIONS` (`-` for no changes). It says `ready` and then
//! answers one line for each line it reads: `counts`, `leave`, `unmount`, `lazy`.
#![allow(clippy::print_stdout, missing_docs)]

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::BufRead;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_fs::Claim;
use mica_fs::keeper::{self, Keeper};
use mica_fs::mount::{union_of_dirs, union_of_image};
use mica_fs::objects::Objects;
use mica_fs::options::Options;
use mica_fs::session::Session;
use mica_fs::union::Union;
use mica_layerdb::Store;
use mica_layerdb::ingest::IngestOptions;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|verb| std::str::from_utf8(verb.as_bytes()).ok()) {
        Some("keeper") => Ok(keeper::serve(Path::new(&arguments[2]))?),
        Some("serve") => match serve(&arguments[1..]) {
            Ok(session) => converse(session),
            Err(error) => {
                println!("failed: {error}");
                Err(error)
            }
        },
        _ => Err("usage: keeper --socket SOCKET | serve SOCKET ID MOUNTPOINT mount|resume WHAT...".into()),
    }
}

fn serve(arguments: &[OsString]) -> Result<Session, Box<dyn Error>> {
    let [socket, id, mountpoint, how, what, source @ ..] = arguments else { return Err("too few arguments".into()) };
    let keeper = match socket.as_bytes() {
        b"-" => Keeper::in_process(),
        _ => Keeper::connect_or_start(Path::new(socket), &std::env::current_exe()?)?,
    };
    if how.as_bytes() == b"resume" {
        println!("started");
        std::io::stdin().lock().read_line(&mut String::new())?;
    }
    let id = std::str::from_utf8(id.as_bytes())?;
    let mut options = Options::default();
    options.parse(source.last().ok_or("options are missing")?.as_bytes())?;
    if how.as_bytes() == b"resume" {
        // Who served it before may still be there, having left.
        options.claim = Claim::None;
    }
    let union = Arc::new(if what.as_bytes() == b"dirs" { union_of_dirs(&options)? } else { image(source, &options)? });
    Ok(match how.as_bytes() {
        b"mount" => Session::mount(&keeper, id, Path::new(mountpoint), union, &options.mount)?,
        _ => Session::resume(&keeper, id, union, &options.mount)?,
    })
}

fn image(source: &[OsString], options: &Options) -> Result<Union, Box<dyn Error>> {
    let store = Store::open(Path::new(&source[0]))?;
    let layer = store.ingest(&mut File::open(&source[1])?, &IngestOptions::default(), &())?;
    let tree = store.chain(&[layer.diff_id])?;
    let objects = Arc::new(Objects::sealed(store.objects_path())?);
    let changes = Some(PathBuf::from(&source[2])).filter(|changes| changes.as_os_str() != "-");
    // Whoever resumes opens the store as well; this process may still be there, having left.
    drop(store);
    Ok(union_of_image(tree, objects, changes.as_deref(), options.claim, options.block_copy)?)
}

fn converse(session: Session) -> Result<(), Box<dyn Error>> {
    println!("ready");
    let mut session = Some(session);
    for line in std::io::stdin().lock().lines() {
        match (line?.as_str(), session.take()) {
            ("counts", Some(serving)) => {
                let counts = serving.counts();
                println!("{} {} {}", counts.handles, counts.upper_passthrough, counts.lower_passthrough);
                session = Some(serving);
            }
            ("leave", Some(serving)) => {
                serving.leave();
                println!("left");
            }
            ("wait", Some(serving)) => {
                serving.wait();
                println!("ended");
            }
            (how @ ("unmount" | "lazy"), Some(serving)) => match serving.try_unmount(how == "lazy") {
                Ok(()) => println!("unmounted"),
                Err(error) => {
                    println!("failed: {error}");
                    session = Some(serving);
                }
            },
            (line, _) => return Err(format!("what is {line}?").into()),
        }
    }
    Ok(())
}
