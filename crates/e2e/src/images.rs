//! Images that need no registry: Debian's static busybox, and our example service.

use std::path::Path;
use std::process::Command;

use crate::{Host, run, told};

/// Imports the images `busybox:latest` and `whoami:latest`.
pub(crate) fn load(host: &Host) {
    let busybox = host.path("busybox.tar");
    pack_busybox(&busybox);
    import(host, &busybox, "CMD [\"sh\"]", "busybox:latest");
    let (whoami, archive) = (told("SKEP_E2E_WHOAMI"), host.path("whoami.tar"));
    let folder = whoami.parent().expect("in a folder");
    run(Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(&archive).arg("whoami"));
    import(host, &archive, "CMD [\"/whoami\"]", "whoami:latest");
}

/// Imports the image `registry:latest`: Debian's docker-registry and the two libraries it asks for.
pub(crate) fn load_registry(host: &Host) {
    let directory = tempfile::tempdir().expect("directory");
    let root = directory.path();
    let program = "/usr/bin/docker-registry";
    let libraries = Command::new("ldd").arg(program).output().expect("ldd runs");
    let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for path in paths.chain([program]) {
        let place = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().expect("in a folder")).expect("creates");
        std::fs::copy(path, place).expect("docker-registry is installed");
    }
    for name in ["tmp", "data"] {
        std::fs::create_dir(root.join(name)).expect("creates");
    }
    let text =
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /data\nhttp:\n  addr: :5000\n";
    std::fs::write(root.join("config.yml"), text).expect("writes");
    let archive = host.path("registry.tar");
    run(Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive).arg("."));
    let command = format!("CMD [\"{program}\", \"serve\", \"/config.yml\"]");
    import(host, &archive, &command, "registry:latest");
}

fn import(host: &Host, archive: &Path, change: &str, name: &str) {
    host.ok(&["import", "--change", change, archive.to_str().expect("text"), name]);
}

/// A root file system of Debian's static busybox.
fn pack_busybox(archive: &Path) {
    let directory = tempfile::tempdir().expect("directory");
    let root = directory.path();
    for name in ["bin", "etc", "tmp", "home", "root", "var", "usr"] {
        std::fs::create_dir(root.join(name)).expect("creates");
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let applets = Command::new("/bin/busybox").arg("--list").output().expect("busybox runs");
    for applet in String::from_utf8_lossy(&applets.stdout).split_whitespace() {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(applet));
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/sh\n";
    std::fs::write(root.join("etc/passwd"), users).expect("writes");
    std::fs::write(root.join("etc/group"), "root:x:0:\nnobody:x:65534:\n").expect("writes");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(root).args(["--owner=0", "--group=0", "-cf"]).arg(archive).arg(".");
    run(&mut tar);
}
