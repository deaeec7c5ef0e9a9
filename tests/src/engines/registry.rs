//! A registry on a free port of the loopback.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::command::succeed;
use crate::failure::{Context as _, Result};
use crate::place;
use crate::service::Service;
use crate::wait::LATER;

/// How often another port is tried when somebody else took the one that was free.
const ATTEMPTS: usize = 5;

/// docker-registry with an empty storage of its own.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    _service: Service,
}

impl Registry {
    /// Starts it; configuration, storage and log are in `folder`.
    pub fn start(folder: &Path) -> Result<Registry> {
        fs::create_dir_all(folder)?;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Registry::start_once(folder) {
                Ok(registry) => return Ok(registry),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    fn start_once(folder: &Path) -> Result<Registry> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let config = folder.join("registry.yml");
        let storage = folder.join("storage");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{ level: warn, accesslog: {{ disabled: true }} }}\n\
                 storage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: \"127.0.0.1:{port}\" }}\n",
                storage.display()
            ),
        )?;
        let mut command = Command::new(place::engine("tools")?.join("bin/docker-registry"));
        let mut service =
            Service::start("the registry", command.arg("serve").arg(config), &folder.join("registry.log"))?;
        service.ready(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())?;
        Ok(Registry { port, _service: service })
    }

    /// How engines call image `name` of this registry, for example `station:1`.
    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Pushes image `tag` of an OCI layout as `name`; returns its reference.
    pub fn push(&self, layout: &Path, tag: &str, name: &str) -> Result<String> {
        let reference = self.reference(name);
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        command.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{reference}"));
        succeed(&mut command, LATER)?;
        Ok(reference)
    }
}
