//! The client library's examples, in Rust and Python, against `reelkv dev`.
#![allow(clippy::disallowed_methods)] // tests start real processes

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{reelkv, told};

/// Three nodes in one process, which ends with it.
struct Dev {
    child: Child,
    addr: String,
}

impl Dev {
    fn start() -> Self {
        let port = common::free_port();
        // The next ones are its too; nobody else of this test may be given them.
        for _ in 0..3 {
            common::free_port();
        }
        let mut child = reelkv()
            .args(["dev", "--port", &port.to_string(), "--shards", "3"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the addresses");
        let addr = line.trim().split(',').next().unwrap_or_default().to_owned();
        assert!(addr.starts_with("127.0.0.1:"), "reelkv dev said {line:?}");
        Self { child, addr }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the root")
        .to_owned()
}

fn passed(what: &str, output: &Output) {
    assert!(output.status.success(), "{what}: {}", told(output));
}

#[test]
fn every_rust_example_runs() {
    let dev = Dev::start();
    let examples = root().join("client/examples");
    let names = std::fs::read_dir(examples)
        .expect("examples")
        .map(|entry| entry.expect("an entry").path());
    let names: Vec<_> = names
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    assert!(names.len() >= 4, "{names:?}");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for name in names {
        let output = Command::new(&cargo)
            .current_dir(root())
            .args(["run", "--quiet", "-p", "reelkv-client", "--example", &name])
            .env("REELKV_ADDR", &dev.addr)
            .output()
            .expect("cargo runs");
        passed(&name, &output);
    }
}

/// Says on the real standard error that a test did not run; panics if it was required to.
fn skip(reason: &str) {
    let required = std::env::var("REELKV_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == "python"),
        "the Python example: {reason}"
    );
    if let Ok(mut stderr) = std::fs::OpenOptions::new().append(true).open("/dev/stderr") {
        let _ = writeln!(stderr, "SKIPPED the_python_example_runs: {reason}");
    }
}

/// A Python with the example's requirements, in a directory of its own.
fn python(dir: &Path) -> Result<PathBuf, String> {
    let run = |command: &mut Command| {
        let output = command.output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(told(&output).lines().last().unwrap_or_default().to_owned()),
        }
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
    let python = dir.join("bin/python");
    let requirements = root().join("client/examples/python/requirements.txt");
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "-r"])
        .arg(requirements))?;
    Ok(python)
}

#[test]
fn the_python_example_runs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let python = match python(dir.path()) {
        Ok(python) => python,
        Err(reason) => return skip(&reason),
    };
    let dev = Dev::start();
    let output = Command::new(python)
        .arg(root().join("client/examples/python/quickstart.py"))
        .env("REELKV_ADDR", &dev.addr)
        .output()
        .expect("Python runs");
    passed("quickstart.py", &output);
}
