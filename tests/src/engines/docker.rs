//! dockerd with root, state and socket of its own, on a containerd of its own.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Containerd, Snapshotter, Version};
use crate::command;
use crate::failure::Result;
use crate::place::{self, Folders};
use crate::service::Service;
use crate::wait::LATER;

/// A running dockerd without networks. Dropped, it removes its containers and ends, and its containerd after it.
#[derive(Debug)]
pub struct Docker {
    service: Service,
    folder: PathBuf,
    containerd: Containerd,
}

impl Docker {
    /// Starts both.
    pub fn start(folders: &Folders) -> Result<Docker> {
        let (folder, disk) = (folders.run().join("docker"), folders.disk().join("docker"));
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(&disk)?;
        let engine = folders.run().join("docker-containerd");
        let containerd = Containerd::start(Version::V1_7, Snapshotter::Overlayfs, &engine, &disk.join("containerd"))?;
        // Nothing of the machine's own, if it has one.
        let configuration = folder.join("daemon.json");
        fs::write(&configuration, "{}")?;
        let socket = folder.join("docker.sock");
        let mut command = Command::new(place::engine("docker")?.join("sbin/dockerd"));
        command
            .arg("--config-file")
            .arg(&configuration)
            .arg("--data-root")
            .arg(disk.join("root"))
            .arg("--exec-root")
            .arg(folder.join("exec"))
            .arg("--pidfile")
            .arg(folder.join("docker.pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .arg("--containerd")
            .arg(containerd.socket())
            .args(["--containerd-namespace", containerd.namespace(), "--cgroup-parent", containerd.namespace()])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "overlay2", "--log-level", "warn"])
            .args([
                "--bridge",
                "none",
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
                "--ip-masq=false",
            ])
            .args(["--userland-proxy=false", "--group", "root"])
            .env("PATH", place::path_with(Version::V1_7.name())?);
        let mut service = Service::start("dockerd", &mut command, &folder.join("dockerd.log"))?;
        service.ready(|| UnixStream::connect(&socket).is_ok())?;
        Ok(Docker { service, folder, containerd })
    }

    /// What `docker WORDS...` prints; it must succeed.
    pub fn docker(&self, words: &[&str]) -> Result<String> {
        Ok(self.run(words)?.success()?.text())
    }

    /// What an image prints that runs without a network.
    pub fn run_image(&self, image: &str, words: &[&str]) -> Result<String> {
        self.docker(&[&["run", "--rm", "--network", "none", image], words].concat())
    }

    /// The diff-ids of an image's layers, bottom first.
    pub fn diff_ids(&self, image: &str) -> Result<Vec<String>> {
        let said = self.docker(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", image])?;
        Ok(serde_json::from_str(&said)?)
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.service.log_tail(lines)
    }

    /// Removes all containers and images, and ends.
    pub fn finish(mut self) -> Result {
        self.remove_containers()?;
        self.docker(&["image", "prune", "--all", "--force"])?;
        let status = self.service.stop()?;
        crate::ensure!(status.success(), "dockerd ended with {status}:\n{}", self.log_tail(15));
        drop(self);
        Ok(())
    }

    fn remove_containers(&self) -> Result {
        let all = self.docker(&["ps", "--all", "--quiet"])?;
        let all: Vec<&str> = all.split_whitespace().collect();
        if !all.is_empty() {
            self.docker(&[&["rm", "--force", "--volumes"], &all[..]].concat())?;
        }
        Ok(())
    }

    fn run(&self, words: &[&str]) -> Result<command::Output> {
        let mut command = Command::new(place::engine("docker")?.join("bin/docker"));
        command
            .args(words)
            .env("DOCKER_HOST", format!("unix://{}", self.folder.join("docker.sock").display()))
            .env("DOCKER_CONFIG", self.folder.join("config"))
            // The builder that dockerd has itself; the other one is a plugin of the client's.
            .env("DOCKER_BUILDKIT", "0");
        command::run(&mut command, LATER)
    }

    /// Where its containerd runs.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if self.service.is_running() {
            let _ = self.remove_containers();
            let _ = self.service.stop();
        }
    }
}

/// Why dockerd can't run on this machine, if it can't.
pub fn reason_to_skip() -> Option<String> {
    place::reason_to_skip().or_else(|| place::engine("docker").err().map(|failure| failure.to_string()))
}

/// The folder of a build: its `Dockerfile`, and what it copies.
pub fn context(folder: &Path, dockerfile: &str, files: &[(&str, &[u8])]) -> Result<String> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("Dockerfile"), dockerfile)?;
    for (name, contents) in files {
        fs::write(folder.join(name), contents)?;
    }
    Ok(folder.display().to_string())
}
