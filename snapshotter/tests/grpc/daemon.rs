//! The daemon's life: start, refusal, end.

use std::os::unix::fs::PermissionsExt as _;

use mica_snapshotter::admin::Call;
use mica_snapshotter::grpc::proto::grpc::health::v1::HealthCheckRequest;
use mica_snapshotter::grpc::proto::grpc::health::v1::health_check_response::ServingStatus;
use mica_snapshotter::grpc::proto::grpc::health::v1::health_client::HealthClient;
use mica_snapshotter::server::ServeError;
use tonic::Code;

use super::serving::{Serving, config, run};

#[test]
fn second_daemon_on_a_root_is_refused_by_the_name_of_the_first() {
    let serving = Serving::start();
    let mut second = serving.config.clone();
    second.state = serving.folder.path().join("other-state");
    second.socket = second.state.join("mica.sock");
    let error = run(&second).unwrap_err();
    assert!(matches!(error, ServeError::SecondDaemon { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&serving.config.root.display().to_string()), "{text}");
    assert!(text.contains(&std::process::id().to_string()) && text.contains(&serving.config.address()), "{text}");
    assert!(!second.state.exists(), "nothing was touched");
}

#[test]
fn second_daemon_on_a_socket_is_refused() {
    let serving = Serving::start();
    let mut second = serving.config.clone();
    second.root = serving.folder.path().join("other-root");
    let error = run(&second).unwrap_err();
    assert!(matches!(error, ServeError::Socket { .. }), "{error}");
    assert!(error.to_string().contains(&serving.config.socket.display().to_string()), "{error}");
}

#[test]
fn store_of_a_newer_format_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    std::fs::create_dir(&config.root).unwrap();
    std::fs::write(config.root.join("FORMAT"), r#"{"version":99,"uuid":"u"}"#).unwrap();
    let error = run(&config).unwrap_err();
    assert!(error.to_string().contains("version 99"), "{error}");
    assert_eq!(std::fs::read_dir(&config.root).unwrap().count(), 1);
    assert!(!config.state.exists());
}

#[test]
fn end_removes_socket_and_record_and_a_restart_finds_them_free() {
    let serving = Serving::start();
    let config = serving.config.clone();
    assert_eq!(std::fs::metadata(&config.socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(config.root.join("daemon.json").exists());
    let (ended, folder) = serving.end(&Call::Stop);
    ended.unwrap();
    assert!(!config.socket.exists() && !config.root.join("daemon.json").exists());
    let serving = Serving::start_in(folder);
    let (ended, _) = serving.end(&Call::UmountAll);
    ended.unwrap();
    assert!(!config.socket.exists() && !config.root.join("daemon.json").exists());
}

#[test]
fn start_after_a_kill_replaces_what_was_left() {
    let (ended, folder) = Serving::start().end(&Call::Stop);
    ended.unwrap();
    let config = config(folder.path());
    drop(std::os::unix::net::UnixListener::bind(&config.socket).unwrap());
    let record = format!(r#"{{"address":"{}","pid":1,"state":"/x"}}"#, config.address());
    std::fs::write(config.root.join("daemon.json"), record).unwrap();
    drop(Serving::start_in(folder));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_for_every_service() {
    let serving = Serving::start();
    let mut client = HealthClient::new(serving.channel());
    for service in ["", "containerd.services.snapshots.v1.Snapshots", "containerd.services.diff.v1.Diff"] {
        let answer = client.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    }
    let status = client.check(HealthCheckRequest { service: "nobody".into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
}

#[test]
fn end_does_not_wait_for_a_client_that_does_not_listen() {
    let serving = Serving::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut client = HealthClient::new(runtime.block_on(async { serving.channel() }));
    runtime.block_on(client.check(HealthCheckRequest::default())).unwrap();
    let start = std::time::Instant::now();
    let (ended, _) = serving.end(&Call::Stop);
    ended.unwrap();
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
}
