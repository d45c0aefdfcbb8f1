//! Real processes: small shell scripts as ranks. Every wait is for an event, with a limit that no healthy machine meets.

use super::signals::Request;
use super::*;
use gradus_error::Kind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

const SHELL: &str = "/bin/sh";

/// Names the script that a copy of this test program is to launch instead of testing.
const SCRIPT: &str = "GRADUS_TEST_LAUNCHES";

/// A rank that says that it is there, waits, and ends with 130 when interrupted. The traps are `wait`'s to run: while
/// the shell waits for a command in the foreground it would put them off.
const PATIENT: &str = "trap 'echo got INT; exit 130' INT; sleep 600 & echo pid $$; wait";

/// What ranks have written; calls `react` with all of it whenever more comes.
struct Reacting<F> {
    text: String,
    react: F,
}

impl<F: FnMut(&str)> Write for Reacting<F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.text.push_str(std::str::from_utf8(bytes).unwrap());
        (self.react)(&self.text);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn launch(script: &str, ranks: usize) -> Launch {
    Launch {
        program: SHELL.into(),
        arguments: vec!["-c".into(), script.into()],
        ranks,
        environment: Vec::new(),
        grace: Duration::from_secs(60),
        membership: Membership::Nowhere,
    }
}

fn supervised(launch: &Launch, signals: &Signals, react: impl FnMut(&str)) -> (ExitStatusSummary, String) {
    let mut out = Reacting { text: String::new(), react };
    let (ranks, _) = launch.start(false).unwrap();
    let summary = supervise::run(ranks, signals, launch.grace, &RealClock::new(), &mut out).unwrap();
    (summary, out.text)
}

fn run(script: &str, ranks: usize) -> (ExitStatusSummary, String) {
    supervised(&launch(script, ranks), &Signals::none(), |_| {})
}

fn failed(rank: usize, ending: Ending) -> ExitStatusSummary {
    ExitStatusSummary::Failed { rank, ending }
}

/// Waits until the process behind `pidfd` is no more.
fn assert_ends(pidfd: &OwnedFd) {
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    let limit = Timespec::try_from(Duration::from_secs(60)).unwrap();
    assert_eq!(poll(&mut polled, Some(&limit)).unwrap(), 1, "the process is still alive");
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

#[test]
fn ranks_find_their_place_in_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let script = "env > $OUT/$RANK; [ $RANK != 0 ] || { readlink /proc/self/fd/$GRADUS_RENDEZVOUS_FD; cat /proc/net/tcp; } > $OUT/port";
    let mut launch = launch(script, 3);
    launch.environment.push(("OUT".into(), directory.path().into()));
    assert_eq!(supervised(&launch, &Signals::none(), |_| {}).0, ExitStatusSummary::Done);
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    let value = |rank: &str, name: &str| {
        read(rank).lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    };
    for rank in ["0", "1", "2"] {
        assert_eq!(value(rank, "RANK").as_deref(), Some(rank));
        assert_eq!(value(rank, "LOCAL_RANK").as_deref(), Some(rank));
        assert_eq!(value(rank, "WORLD_SIZE").as_deref(), Some("3"));
        assert_eq!(value(rank, "LOCAL_WORLD_SIZE").as_deref(), Some("3"));
        assert_eq!(value(rank, "GROUP_RANK").as_deref(), Some("0"));
        assert_eq!(value(rank, "MASTER_ADDR").as_deref(), Some("127.0.0.1"));
        assert_eq!(value(rank, RENDEZVOUS_FD).is_some(), rank == "0");
    }
    // What rank 0 inherits is the socket that listens on MASTER_PORT.
    let port: u16 = value("0", "MASTER_PORT").unwrap().parse().unwrap();
    let text = read("port");
    let (socket, table) = text.split_once('\n').unwrap();
    let inode = socket.trim_start_matches("socket:[").trim_end_matches(']');
    let of_inode = |line: &&str| line.split_whitespace().nth(9) == Some(inode);
    let line = table.lines().find(of_inode).expect("a socket of that inode listens");
    assert!(line.contains(&format!("0100007F:{port:04X} ")), "{line}");
}

#[test]
fn ranks_share_a_secret_that_no_command_line_shows() {
    let directory = tempfile::tempdir().unwrap();
    let script =
        "printf %s $GRADUS_SECRET > $OUT/$RANK; cat /proc/$PPID/cmdline /proc/$$/cmdline > $OUT/c$RANK";
    let secrets = [0, 1].map(|_| {
        let mut launch = launch(script, 2);
        launch.environment.push(("OUT".into(), directory.path().into()));
        assert_eq!(supervised(&launch, &Signals::none(), |_| {}).0, ExitStatusSummary::Done);
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        let secret = read("0");
        assert!(secret.len() == 64 && secret == read("1"));
        assert!(!read("c0").contains(&secret) && !read("c1").contains(&secret));
        secret
    });
    assert_ne!(secrets[0], secrets[1]);
}

#[test]
fn lines_of_other_ranks_carry_their_name() {
    let (summary, text) = run("[ $RANK = 0 ] || { echo out; printf 'half' >&2; }", 3);
    assert_eq!(summary, ExitStatusSummary::Done);
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[rank 1] half", "[rank 1] out", "[rank 2] half", "[rank 2] out"]);
}

#[test]
fn when_one_fails_the_others_are_stopped_and_it_is_named() {
    let (summary, text) = run("[ $RANK = 1 ] && exit 3; exec sleep 600", 3);
    assert_eq!(summary, failed(1, Ending::Code(3)));
    assert_eq!(text, "gradus: rank 1 ended with exit code 3; stopping the other 2\n");
    assert_eq!(summary.exit_code(), exit::FAILED);
    assert_eq!(failed(0, Ending::Code(2)).exit_code(), exit::BAD_INPUT);
}

#[test]
fn a_rank_that_is_killed_is_named_with_its_signal() {
    let (summary, _) = run("[ $RANK = 0 ] && kill -SEGV $$; exec sleep 600", 2);
    assert_eq!(summary, failed(0, Ending::Signal(11)));
    assert_eq!(summary.to_string(), "rank 0 was ended by SIGSEGV");
}

#[test]
fn one_that_will_not_stop_is_killed_after_the_grace() {
    // Rank 1 fails only once rank 0 ignores SIGTERM.
    let directory = tempfile::tempdir().unwrap();
    let script = "cd $OUT; if [ $RANK = 0 ]; then trap '' TERM; echo > ready; exec sleep 600; else read _ < ready; exit 1; fi";
    assert!(Command::new("mkfifo").arg(directory.path().join("ready")).status().unwrap().success());
    let mut launch = launch(script, 2);
    launch.environment.push(("OUT".into(), directory.path().into()));
    launch.grace = Duration::from_millis(100);
    let (summary, _) = supervised(&launch, &Signals::none(), |_| {});
    assert_eq!(summary, failed(1, Ending::Code(1)));
}

#[test]
fn what_a_rank_leaves_running_ends_with_it() {
    let mut left = None;
    let (summary, _) =
        supervised(&launch("sleep 600 & [ $RANK = 0 ] || echo $!", 2), &Signals::none(), |text| {
            let number = pid(text.strip_prefix("[rank 1] ").unwrap());
            left = pidfd_open(number, PidfdFlags::empty()).ok();
        });
    assert_eq!(summary, ExitStatusSummary::Done);
    // Without a pidfd it was gone before we looked.
    left.iter().for_each(assert_ends);
}

#[test]
fn ranks_that_end_with_130_were_interrupted() {
    let (summary, _) = run("exit 130", 2);
    assert_eq!(summary, ExitStatusSummary::Interrupted);
    assert_eq!(summary.exit_code(), exit::INTERRUPTED);
}

#[test]
fn an_interrupt_is_passed_on_once() {
    let mut signals = Signals::none();
    let mut interrupt = signals.add(Request::End(Signal::INT)).unwrap();
    let mut sent = false;
    let script = format!("[ $RANK = 0 ] && exit 130; {PATIENT}");
    let (summary, text) = supervised(&launch(&script, 3), &signals, |text| {
        if text.matches("pid ").count() == 2 && !std::mem::replace(&mut sent, true) {
            interrupt.write_all(b"x").unwrap();
        }
    });
    assert_eq!(summary, ExitStatusSummary::Interrupted);
    assert_eq!(text.matches("got INT").count(), 2, "{text}");
}

#[test]
fn a_second_interrupt_kills() {
    let mut signals = Signals::none();
    let mut interrupt = signals.add(Request::End(Signal::INT)).unwrap();
    let script = "[ $RANK = 0 ] && exit 0; trap 'echo no' INT; sleep 600 & echo ready; wait; wait";
    let (summary, text) = supervised(&launch(script, 2), &signals, |text| {
        // Once when it is ready, and once when it has refused.
        if text.ends_with("ready\n") || text.ends_with("no\n") {
            interrupt.write_all(b"x").unwrap();
        }
    });
    assert_eq!(summary, ExitStatusSummary::Killed);
    assert_eq!(text, "[rank 1] ready\n[rank 1] no\n");
    assert_eq!(summary.exit_code(), exit::FAILED);
}

#[test]
fn impossible_launches_are_bad_input() {
    assert_eq!(*launch("", 0).run().unwrap_err().kind(), Kind::Invalid);
    assert_eq!(*launch("", 1 << 20).run().unwrap_err().kind(), Kind::Invalid);
    let nowhere = launch_local(Path::new("/nowhere/gradus"), &[], 1, &[], Membership::Nowhere).unwrap_err();
    assert_eq!(*nowhere.kind(), Kind::Invalid);
}

/// A copy of this program that launches two patient ranks, and the ranks.
struct Copy {
    process: Child,
    ranks: Vec<OwnedFd>,
}

/// Starts a copy of this program as a launcher; it runs the test `name`, which sees [`SCRIPT`] and launches.
fn copy(name: &str, script: &str) -> Copy {
    // Tests may run where signals are ignored (nohup, a background job), which children inherit.
    let mut process = Command::new("env")
        .arg("--default-signal")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(SCRIPT, script)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let from_rank_0 = first_pid(BufReader::new(process.stdout.take().unwrap()));
    let from_rank_1 = first_pid(BufReader::new(process.stderr.take().unwrap()));
    Copy { process, ranks: vec![from_rank_0, from_rank_1] }
}

/// The process that the first line of the form `... pid NUMBER` names. The rest of the stream is read and forgotten by
/// a thread, since a closed pipe would end who writes to it.
fn first_pid(mut stream: impl BufRead + Send + 'static) -> OwnedFd {
    let mut line = String::new();
    while !line.contains("pid ") {
        line.clear();
        assert_ne!(stream.read_line(&mut line).unwrap(), 0, "the launcher ended before its ranks were there");
    }
    std::thread::spawn(move || stream.lines().count());
    pidfd_open(pid(line.split_once("pid ").unwrap().1), PidfdFlags::empty()).unwrap()
}

/// In a copy: launches, and ends the process with the launch's exit code.
#[allow(clippy::disallowed_methods, reason = "the copy's whole purpose is its exit code")]
fn launch_if_copy() {
    if let Ok(script) = std::env::var(SCRIPT) {
        let summary = launch(&script, 2).run().unwrap();
        std::process::exit(summary.exit_code().into());
    }
}

#[test]
fn a_launcher_that_is_killed_leaves_nothing_behind() {
    launch_if_copy();
    let mut copy = copy(
        "launcher::tests::a_launcher_that_is_killed_leaves_nothing_behind",
        "echo pid $$; exec sleep 600",
    );
    copy.process.kill().unwrap();
    copy.process.wait().unwrap();
    copy.ranks.iter().for_each(assert_ends);
}

#[test]
fn a_launcher_that_is_interrupted_ends_with_130() {
    launch_if_copy();
    let mut copy = copy("launcher::tests::a_launcher_that_is_interrupted_ends_with_130", PATIENT);
    kill_process(Pid::from_child(&copy.process), Signal::INT).unwrap();
    assert_eq!(copy.process.wait().unwrap().code(), Some(130));
    copy.ranks.iter().for_each(assert_ends);
}

#[test]
fn a_launcher_that_is_suspended_goes_on_when_continued() {
    launch_if_copy();
    let mut copy = copy("launcher::tests::a_launcher_that_is_suspended_goes_on_when_continued", PATIENT);
    let launcher = Pid::from_child(&copy.process);
    kill_process(launcher, Signal::TSTP).unwrap();
    let (_, status) = waitpid(Some(launcher), WaitOptions::UNTRACED).unwrap().unwrap();
    assert!(status.stopped());
    kill_process(launcher, Signal::CONT).unwrap();
    kill_process(launcher, Signal::INT).unwrap();
    assert_eq!(copy.process.wait().unwrap().code(), Some(130));
    copy.ranks.iter().for_each(assert_ends);
}
