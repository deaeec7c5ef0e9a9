//! The demonstration behind `make run`: a private containerd runs real containers on Mica, and every claim is checked.
//! Exit status 0 only if all held.

mod claims;
mod show;

use std::process::ExitCode;
use std::time::Instant;

use mica_tests::Result;
use mica_tests::engines::Version;
use mica_tests::scene::Scene;

use claims::Demo;
use show::Show;

fn main() -> ExitCode {
    let start = Instant::now();
    let mut show = Show::new();
    let played = play(&mut show);
    if let Err(failure) = played {
        show.check("the demonstration runs to its end", Err(failure));
    }
    show.end(start.elapsed())
}

fn play(show: &mut Show) -> Result {
    show.section("A private containerd with Mica as its snapshotter and differ, and a registry on the loopback");
    let scene = Scene::new(Version::V1_7)?;
    claims::machine(show, &scene)?;
    let images = (scene.publish("station")?, scene.publish("ledger")?);
    let demo = Demo { scene: &scene, station: images.0, ledger: images.1 };
    let empty = demo.bytes()?;

    show.part("Pull: layers go from the registry's blobs straight into the store", |show| demo.pull(show));
    show.part("Run: the container's own output, on a root that is Mica's", |show| demo.run(show));
    show.part("What upper layers delete is gone, what they replace is new", |show| demo.layers(show));
    show.part("Containers are apart from each other and from the image", |show| demo.isolation(show));
    show.part("Ten containers of one image at once", |show| demo.ten(show));
    show.part("A second image on the same base: what both have is stored once", |show| demo.sharing(show));
    show.part("A change becomes a layer: committed, exported, imported again and run", |show| demo.commit(show));
    show.part("Removed: containers, snapshots, layers; the space is back", |show| demo.removal(show, empty));
    show.part("The end of it", |show| {
        show.check("daemon, keeper and engine ended, and no mount of theirs is left", scene.finish());
        Ok(())
    });
    show.part("The same image on containerd 1.6, which unpacks through the mount", claims::older_engine);
    Ok(())
}
