//! Images that need no registry: Debian's static busybox, and our example service.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Host, run, told};

const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/sh\n";
const GROUPS: &str = "root:x:0:\nnobody:x:65534:\n";

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

/// Imports the image `registry:latest`: Debian's docker-registry.
pub(crate) fn load_registry(host: &Host) {
    let text =
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /data\nhttp:\n  addr: :5000\n";
    let image = Image::of(&["/usr/bin/docker-registry"], &["tmp", "data"]);
    image.write("config.yml", text);
    let command = r#"CMD ["/usr/bin/docker-registry", "serve", "/config.yml"]"#;
    image.import(host, "registry", command);
}

/// Imports the image `nginx:latest`: Debian's nginx, which says on port 80 which container it is, logs to its output as usual,
/// and has what is asked beneath `/NAME/` from a service of that name; of who asks for `/quiet` nothing is logged.
pub(crate) fn load_nginx(host: &Host) {
    let image = Image::of(&["/usr/sbin/nginx"], &["tmp", "run", "var/log/nginx", "var/lib/nginx"]);
    let text = "user root; daemon off; worker_processes 2; error_log /dev/stderr; pid /run/nginx.pid;\n\
         events { worker_connections 1024; }\n\
         http {\n\
           access_log /dev/stdout;\n\
           server {\n\
             listen 80;\n\
             resolver 127.0.0.11 valid=1s;\n\
             location = / { default_type text/plain; return 200 \"nginx on $hostname\\n\"; }\n\
             location = /quiet { access_log off; return 200; }\n\
             location ~ ^/([^/]+)/ { proxy_pass http://$1/; }\n\
           }\n\
         }\n";
    image.write("etc/nginx/nginx.conf", text);
    image.write("usr/share/nginx/empty", "");
    image.import(host, "nginx", r#"CMD ["/usr/sbin/nginx"]"#);
}

/// Imports the image `redis:latest`: Debian's server and command, with a shell.
pub(crate) fn load_redis(host: &Host) {
    let programs = ["/usr/bin/redis-server", "/usr/bin/redis-cli", "/bin/busybox"];
    let image = Image::of(&programs, &["data", "bin"]);
    for name in ["sh", "sleep"] {
        std::os::unix::fs::symlink("busybox", image.path(&format!("bin/{name}"))).expect("links");
    }
    let command =
        r#"CMD ["redis-server", "--save", "", "--dir", "/data", "--protected-mode", "no"]"#;
    image.import(host, "redis", command);
}

/// A root file system of programs of this machine.
struct Image(tempfile::TempDir);

impl Image {
    /// The programs with the libraries they ask for, and empty folders.
    fn of(programs: &[&str], folders: &[&str]) -> Self {
        let image = Self(tempfile::tempdir().expect("directory"));
        let libraries = Command::new("ldd").args(programs).output().expect("ldd runs");
        let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
        // Of several programs, each is named before its libraries.
        let words = libraries.split_whitespace().filter(|word| !word.ends_with(':'));
        let paths: BTreeSet<_> = words.filter(|word| word.starts_with('/')).collect();
        for path in paths.into_iter().chain(programs.iter().copied()) {
            std::fs::copy(path, image.path(path)).expect("the program is installed");
        }
        for name in folders {
            std::fs::create_dir_all(image.0.path().join(name)).expect("creates");
        }
        image.write("etc/passwd", USERS);
        image.write("etc/group", GROUPS);
        image
    }

    /// A place in the image, in a folder that is there.
    fn path(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().expect("in a folder")).expect("creates");
        path
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("writes");
    }

    fn import(&self, host: &Host, name: &str, command: &str) {
        let archive = host.path(&format!("{name}.tar"));
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(self.0.path()).args(["--owner=0", "--group=0", "-cf"]).arg(&archive);
        run(tar.arg("."));
        import(host, &archive, command, &format!("{name}:latest"));
    }
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
    std::fs::write(root.join("etc/passwd"), USERS).expect("writes");
    std::fs::write(root.join("etc/group"), GROUPS).expect("writes");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(root).args(["--owner=0", "--group=0", "-cf"]).arg(archive).arg(".");
    run(&mut tar);
}
