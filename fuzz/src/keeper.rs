//! The keeper's wire, both ends of it. The first byte says which; the rest are packets, one on a line.
//!
//! A keeper gets them as requests, all but those that would mount something or end it: afterwards it serves still, and
//! holds nothing. A client gets them as the answers of a keeper: a list of connections, or an error that says something.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use mica_fs::keeper::{Keeper, serve};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind, connect, listen, recv,
    send, socket_with,
};

/// Packets of one input.
const PACKETS: usize = 16;

/// A folder with a keeper; both end with the thread that has made them.
struct Place {
    folder: tempfile::TempDir,
    /// Accepts the clients that are answered by inputs.
    impostor: OwnedFd,
    keeper: Option<JoinHandle<()>>,
}

thread_local!(static PLACE: Place = Place::new());

pub fn run(data: &[u8]) {
    PLACE.with(|place| run_in(place, data));
}

fn run_in(place: &Place, data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let packets: Vec<&[u8]> =
        rest.split(|byte| *byte == b'\n').filter(|packet| !packet.is_empty()).take(PACKETS).collect();
    if first.is_ascii_uppercase() { place.answer(&packets) } else { place.ask(&packets) }
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a directory");
        let impostor = socket();
        bind(&impostor, &address(&folder.path().join("impostor"))).expect("bind");
        listen(&impostor, 4).expect("listen");
        let real = folder.path().join("keeper");
        let keeper = std::thread::spawn({
            let real = real.clone();
            move || serve(&real).expect("the keeper serves")
        });
        while Keeper::connect(&real).is_err() {
            std::thread::yield_now();
        }
        Place { folder, impostor, keeper: Some(keeper) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ask(&self, packets: &[&[u8]]) {
        let client = socket();
        connect(&client, &address(&self.path("keeper"))).expect("connect");
        let mut answer = vec![0; 64 << 10];
        for packet in packets.iter().filter(|packet| is_harmless(packet)) {
            // It may have had enough of this client.
            if send(&client, packet, SendFlags::NOSIGNAL).is_err() {
                break;
            }
        }
        let _ = rustix::net::shutdown(&client, rustix::net::Shutdown::Write);
        while recv(&client, &mut answer[..], RecvFlags::empty()).is_ok_and(|(received, _)| received > 0) {}
        let keeper = Keeper::connect(&self.path("keeper")).expect("the keeper is there");
        assert_eq!(keeper.held().expect("the keeper serves"), []);
    }

    fn answer(&self, packets: &[&[u8]]) {
        std::thread::scope(|scope| {
            let client = scope.spawn(|| Keeper::connect(&self.path("impostor")).and_then(|keeper| keeper.held()));
            // One that only looks whether somebody is there, and the one that asks.
            drop(accept(&self.impostor).expect("accept"));
            let server = accept(&self.impostor).expect("accept");
            let mut request = [0; 64];
            assert!(recv(&server, &mut request[..], RecvFlags::empty()).expect("receive").0 > 0);
            for packet in packets {
                if send(&server, packet, SendFlags::NOSIGNAL).is_err() {
                    break;
                }
            }
            drop(server);
            match client.join().expect("the client does not panic") {
                Ok(held) => assert!(held.len() <= packets.len()),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        Keeper::connect(&self.path("keeper")).and_then(|keeper| keeper.stop()).expect("the keeper ends");
        self.keeper.take().map(JoinHandle::join).expect("there is one").expect("the keeper does not panic");
    }
}

/// Whether it is no request to mount or to end, however that is written.
fn is_harmless(packet: &[u8]) -> bool {
    match serde_json::from_slice(packet) {
        Ok(serde_json::Value::String(name)) => name != "Stop" && name != "Mount",
        Ok(serde_json::Value::Object(members)) => !members.contains_key("Stop") && !members.contains_key("Mount"),
        _ => true,
    }
}

fn socket() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket")
}

fn address(path: &Path) -> SocketAddrUnix {
    SocketAddrUnix::new(path).expect("a path that is short enough")
}
