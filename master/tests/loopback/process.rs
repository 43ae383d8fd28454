use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEADLINE: Duration = Duration::from_secs(20);

fn master(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arborcast-master"));
    command.args(arguments).env_remove("ARBORCAST_SECRET").env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A child that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < DEADLINE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = master(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn it_says_where_it_listens_and_ends_cleanly_on_a_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut running = Running(master(&["-s", "x", "--listen", "127.0.0.1:0"]).spawn().unwrap());
        let mut stdout = BufReader::new(running.0.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on 127.0.0.1:").unwrap().trim_end();
        assert_ne!(address.parse::<u16>().unwrap(), 0);
        running.signal(signal);
        assert_eq!(running.wait().code(), Some(0));
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "nothing else on standard output");
    }
}

#[test]
fn an_address_in_use_is_a_plain_sentence_and_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stdout, stderr) = output(&["-s", "x", "--listen", &address]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains(&format!("cannot listen on {address}")) && stderr.contains("--listen"), "{stderr}");
}

#[test]
fn an_unusable_command_line_is_code_2_and_help_has_examples() {
    let (code, _, stderr) = output(&[]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--secret-file"), "{stderr}");
    let (code, stdout, _) = output(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("grpcurl -plaintext"), "{stdout}");
}

#[test]
fn the_secret_may_come_from_the_environment_or_a_file_and_is_never_logged() {
    let file = std::env::temp_dir().join(format!("arborcast-master-{}", std::process::id()));
    std::fs::write(&file, "hush-hush\n").unwrap();
    let mut from_file = master(&["--listen", "127.0.0.1:0", "--secret-file", file.to_str().unwrap()]);
    let mut from_environment = master(&["--listen", "127.0.0.1:0"]);
    from_environment.env("ARBORCAST_SECRET", "hush-hush");
    for command in [&mut from_file, &mut from_environment] {
        let mut running = Running(command.env("RUST_LOG", "trace").spawn().unwrap());
        let mut line = String::new();
        BufReader::new(running.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on "), "{line}");
        running.signal(Signal::SIGTERM);
        assert_eq!(running.wait().code(), Some(0));
        let mut log = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(log.contains("serving") && !log.contains("hush-hush"), "{log}");
    }
    std::fs::remove_file(&file).unwrap();
}
