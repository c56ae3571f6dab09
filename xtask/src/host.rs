//! What tasks need of the machine: programs, packages, the musl target.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Where Skep is built: static, so that one file runs on any host.
pub(crate) const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-musl"
} else {
    "x86_64-unknown-linux-musl"
};

/// A program, and the Debian package that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

const fn package(program: &'static str, package: &'static str) -> Package {
    Package { program, package }
}

/// What a build needs.
pub(crate) const BUILD_PACKAGES: &[Package] =
    &[package("gcc", "gcc"), package("make", "make"), package("musl-gcc", "musl-tools")];

/// What the example needs beside the build.
pub(crate) const DEMO_PACKAGES: &[Package] =
    &[package("docker", "docker.io"), package("curl", "curl"), package("ip", "iproute2")];

/// What the tests need beside the build. Docker's daemon comes with its command line and is not started.
pub(crate) const TEST_PACKAGES: &[Package] = &[
    package("/usr/bin/docker", "docker.io"),
    package("docker-registry", "docker-registry"),
    package("nginx", "nginx"),
    package("redis-server", "redis-server"),
    package("redis-cli", "redis-tools"),
    package("runc", "runc"),
    package("crun", "crun"),
    package("/bin/busybox", "busybox-static"),
    package("ip", "iproute2"),
    package("nft", "nftables"),
    package("curl", "curl"),
    package("openssl", "openssl"),
    package("wrk", "wrk"),
];

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the workspace").to_owned()
}

/// Runs a command in the workspace; its failure is ours.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.current_dir(root()).status();
    let status = status.with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

pub(crate) fn cargo() -> Command {
    Command::new("cargo")
}

pub(crate) fn must_be_root(what: &str) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "{what} needs root: it makes namespaces, mounts and cgroups"
    );
    Ok(())
}

fn is_there(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    let path = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    path.iter().any(|directory| Path::new(directory).join(program).exists())
}

/// Installs the packages whose programs are missing, with Debian's apt-get.
pub(crate) fn install(packages: &[Package]) -> anyhow::Result<()> {
    let missing: Vec<_> = packages.iter().filter(|package| !is_there(package.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|package| package.package).collect();
    if !is_there("apt-get") {
        bail!(
            "missing: {}; install them and try again (apt-get is not there to do it)",
            names.join(" ")
        );
    }
    must_be_root("installing packages")?;
    println!("installing {}", names.join(" "));
    run(Command::new("apt-get").args(["-qq", "update"]))?;
    // No service may start because its package came: a Docker daemon would get in nobody's way, but was not asked for.
    let no_start = NoServiceStarts::new()?;
    let mut install = Command::new("apt-get");
    install.args(["-qq", "-y", "install", "--no-install-recommends"]).args(&names);
    let installed = run(install.env("DEBIAN_FRONTEND", "noninteractive"));
    drop(no_start);
    installed
}

/// Debian asks this file whether services may be started; one that is already there is left alone.
struct NoServiceStarts(Option<PathBuf>);

impl NoServiceStarts {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        std::fs::write(&path, "#!/bin/sh\nexit 101\n").context("write policy-rc.d")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .context("policy-rc.d")?;
        Ok(Self(Some(path)))
    }
}

impl Drop for NoServiceStarts {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes sure that Rust can build for [`TARGET`].
pub(crate) fn prepare_target() -> anyhow::Result<()> {
    install(BUILD_PACKAGES)?;
    let sysroot =
        Command::new("rustc").args(["--print", "sysroot"]).output().context("run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    if sysroot.join("lib/rustlib").join(TARGET).join("lib").exists() {
        return Ok(());
    }
    run(Command::new("rustup").args(["target", "add", TARGET]))
}
